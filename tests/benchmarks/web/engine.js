/**
 * The engine as a page uses it: `connect()`, trigger, watch. Every function gives milliseconds, if it does not say
 * otherwise. `?start=NAME` measures a start: navigation to the first committed step.
 */
import { connect } from "../durable-web.js";

const JOBS = ["./jobs.py"];
const now = () => performance.timeOrigin + performance.now();
const pause = (/** @type {number} */ milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** @type {any} */
let durable;
/** How Python started, where the client tells: {start: "snapshot" | "plain", reason}. @type {any} */
let start;
/** The longest task of the page's main thread since it was last set to 0. */
let longestTask = 0;
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) longestTask = Math.max(longestTask, duration);
}).observe({ type: "longtask" });

/** Resolves with the frames when the run has ended. @param {string} id */
async function ended(id) {
  const frames = [];
  for await (const frame of durable.runs.watch(id)) frames.push(frame);
  return frames;
}

/** @param {string} job @param {unknown} [input] */
async function timed(job, input) {
  const began = performance.now();
  const { id } = await durable.trigger(job, input);
  await ended(id);
  return performance.now() - began;
}

globalThis.engine = {
  /** @param {string} name @param {object} [options] of connect() */
  async open(name, options = {}) {
    const onstatus = (/** @type {any} */ detail) => (start = detail.start ? detail : start);
    durable = globalThis.durable = await connect(name, { jobs: JOBS, onstatus, ...options });
    await durable.ready;
  },

  close: () => durable.close(),

  /** One run of so many steps of a function, which the job names so, from trigger to completed. */
  steps: (count, name) => timed("steps", { count, function: name }),

  /** So many runs of one step each, triggered one after the other, until the last has completed. */
  async runs(count) {
    const began = performance.now();
    const unfinished = [];
    for (let number = 0; number < count; number += 1) {
      const { id } = await durable.trigger("steps", { count: 1 });
      unfinished.push(ended(id));
    }
    await Promise.all(unfinished);
    return performance.now() - began;
  },

  /** One one-step run after an idle time, from the trigger to `completed` seen here. */
  async latency(idle) {
    await pause(idle);
    return timed("steps", { count: 1 });
  },

  /** How many commits a one-step run makes. */
  async commitsPerRun(count) {
    const total = async () => (await durable.flushes())["database.sqlite3-wal"];
    const before = await total();
    for (let number = 0; number < count; number += 1) await timed("steps", { count: 1 });
    return ((await total()) - before) / count;
  },

  /** Records steps, and gives the id of their run, for `replay`. */
  async record(count) {
    const { id } = await durable.trigger("replayed", { count });
    await ended(id);
    return id;
  },

  /** From retrying that run until it has come to its end again. */
  async replay(id) {
    const last = (await durable.runs.get(id)).attempt;
    const frames = await ended(id);
    const from = frames.at(-1).seq;
    const began = performance.now();
    await durable.runs.retry(id);
    for await (const frame of durable.runs.watch(id, { from }));
    const milliseconds = performance.now() - began;
    const run = await durable.runs.get(id);
    if (run.attempt !== last + 1 || run.status !== "failed") throw new Error(`not replayed: ${JSON.stringify(run)}`);
    return milliseconds;
  },

  /** From the COMMIT of each of so many steps to the page's handler of its frame. @returns {Promise<number[]>} */
  async commitToPage(count, pauseSeconds) {
    const { id } = await durable.trigger("paced", { count, pause: pauseSeconds });
    const seen = [];
    for await (const frame of durable.runs.watch(id)) {
      if (frame.kind === "step_status" && frame.status === "completed") seen.push(now());
    }
    const { output: commits } = await durable.runs.get(id);
    // The first commit and frame are of the step that began to listen; that of the step that ended it was not heard.
    if (commits.length !== count + 1 || seen.length !== count + 2) throw new Error(`${commits.length}, ${seen.length}`);
    return commits.map((moment, index) => seen[index] - moment).slice(1);
  },

  /** Log lines in a tight loop: the lines per second that the job made. */
  async lines(count) {
    const { id } = await durable.trigger("lines", { count });
    const frames = await ended(id);
    const logged = frames.filter(({ kind }) => kind === "log").length;
    if (logged !== count) throw new Error(`${logged} of ${count} lines arrived`);
    return { id, perSecond: count / (await durable.runs.get(id)).output };
  },

  /**
   * The longest task of a page that shows such a run in elements, and then draws all of its lines itself, of which a
   * whole window waits for it when it begins.
   */
  async flood(count) {
    await import("../durable-elements.js");
    const list = document.createElement("ol");
    list.style = "height: 10em; overflow: auto";
    const { id } = await durable.trigger("lines", { count });
    const shown = ["durable-run", "durable-log"].map((name) => {
      const element = document.createElement(name);
      element.setAttribute("run-id", id);
      return Object.assign(element, { client: durable });
    });
    longestTask = 0;
    document.body.replaceChildren(list, ...shown);
    const waiting = durable.runs.watch(id);
    await ended(id);
    for await (const { kind, message } of waiting) {
      if (kind !== "log") continue;
      list.append(Object.assign(document.createElement("li"), { textContent: message }));
      if (list.childElementCount > 100) list.firstChild?.remove();
      if (list.childElementCount % 20 === 0) list.scrollTop = list.scrollHeight;
    }
    await pause(100); // long tasks are told a little later
    document.body.replaceChildren();
    return longestTask;
  },

  /** Watches a finished run from its beginning: its frames, and the milliseconds that it took. */
  async watchAll(id) {
    const began = performance.now();
    const frames = await ended(id);
    const milliseconds = performance.now() - began;
    globalThis.frames = frames;
    return { count: frames.length, milliseconds };
  },

  /** Starts a run that waits until this tab dies; resolves when it does. */
  async startInterrupted() {
    const { id } = await durable.trigger("interrupted");
    for await (const frame of durable.runs.watch(id)) {
      if (frame.kind === "step_status" && frame.name === "before" && frame.status === "completed") return;
    }
  },

  /** In another tab: the moment, in milliseconds since 1970, when the run went on after the leader's death. */
  async takeOver(name) {
    durable = await connect(name, { jobs: JOBS });
    await durable.ready;
    const [{ id }] = await durable.runs.list({ job: "interrupted", limit: 1 });
    for await (const frame of durable.runs.watch(id)) {
      if (frame.kind === "step_status" && frame.name === "after" && frame.status === "completed") return now();
    }
  },
};

const parameters = new URLSearchParams(location.search);
if (parameters.has("start")) {
  globalThis.started = (async () => {
    await engine.open(parameters.get("start"), parameters.has("plain") ? { snapshot: false } : {});
    const { id } = await durable.trigger("steps", { count: 1 });
    for await (const frame of durable.runs.watch(id)) {
      if (frame.kind !== "step_status" || frame.status !== "completed") continue;
      return { milliseconds: performance.now(), kind: start?.start, reason: start?.reason };
    }
  })();
}
document.title = "loaded";
