// @ts-check
/**
 * Runs as live values: what a page shows of a job is read from one object, which says when it has changed.
 *
 *     import { connect } from "./durable-web.js";
 *     import { job } from "./durable-bindings.js";
 *
 *     const durable = await connect("squares", { jobs: ["./jobs.py"] });
 *     const squares = job(durable, "squares");
 *     squares.bind(document.querySelector("progress"));
 *     squares.addEventListener("changed", () => console.log(squares.status, squares.output));
 *     await squares.trigger({ count: 10 });
 *
 * A binding reads the store first, then follows what commits, and never misses anything in between: what was there before
 * the page, what other tabs do, and what happens while the engine is restarted or moves to another tab. "changed" comes at
 * most once per animation frame, whatever happens meanwhile.
 */
import { Binding, Latest, coalesced, follow, isNews } from "./bindings/binding.js";
import { ActionsBinding, RunsBinding } from "./bindings/runs.js";
import { ACTIVE, isTerminal, lineText, percentage, sentence } from "./bindings/text.js";
import { DurableError } from "./client/connection.js";

export { ActionsBinding, Binding, RunsBinding };

/** @typedef {import("./durable-web.js").Durable} Durable */
/** @typedef {import("./durable-web.js").TriggerOptions} TriggerOptions */
/** @typedef {import("./client/watch.js").Frame} Frame */
/** @typedef {{current: number, total: number | null, message: string | null}} Progress */
/** @typedef {{type: string, message: string, traceback?: string}} RunError */
/**
 * @typedef {Record<string, any> & {id: string, job: string, status: string, attempt: number, output: any, createdAt: number,
 *   updatedAt: number, lastSeq: number, progress: Progress | null, error: RunError | null}} Run as `runs.get` gives it
 */
/** @typedef {Frame & {level: string, message: string, fields: Record<string, any>, step: string | null}} Line */
/**
 * @typedef {Frame & {name: string, status: string, attempt: number, duration: number | null, runAttempt: number,
 *   interruptions: number}} StepEnd `runAttempt` says in which execution of the run the step ended, `interruptions` how often
 *   the run had been interrupted before
 */

/** How the reason begins for which a run was given up by its engine in the middle; one that goes on after a wait was not. */
const INTERRUPTIONS = /^(its engine stopped|the engine is stopping|the storage was in trouble)/;

/** How many log lines, and how many ends of steps, are kept by default. */
export const MOST_LINES = 1000;
/** @param {Durable} durable @param {string} name of a job @param {{autoResume?: boolean, followLatest?: boolean, max?: number}} [options] */
export const job = (durable, name, options) => new JobBinding(durable, name, options);
/** @param {Durable} durable @param {string} id of a run @param {{max?: number}} [options] */
export const run = (durable, id, options) => new RunBinding(durable, id, options);
/** @param {Durable} durable @param {string} id of a run @param {{max?: number}} [options] */
export const logs = (durable, id, options) => new LogsBinding(durable, id, options);
/** @param {Durable} durable @param {import("./bindings/runs.js").ListOptions} [options] */
export const runs = (durable, options) => new RunsBinding(durable, options);
/** @param {Durable} durable */
export const actions = (durable) => new ActionsBinding(durable);

/** One run, live: the base of those that are told which one, and of those that find one. */
class FollowedRun extends Binding {
  /** @type {string | null} */
  runId = null;
  /** As the store knows it, with what happened since. @type {Run | null} */
  run = null;
  #kept;
  #steps;
  /** How many steps have ended. */
  stepCount = 0;
  /** How often it was executing when its engine went away. */
  interruptions = 0;
  /** @type {Map<string, any>} */
  #published = new Map();
  /** The number of the last frame that was taken, and of the last that is known to be there. */
  #seq = 0;
  #known = 0;
  #attempt = 1;
  /** Ends what is done for the run that is shown, when another one is. */
  #leave = new AbortController();

  /** @param {Durable} durable @param {{max?: number}} options `max`: so many log lines are kept */
  constructor(durable, { max = MOST_LINES } = {}) {
    super(durable);
    this.#kept = new Latest(max);
    this.#steps = new Latest(MOST_LINES);
    this.whenClosed(() => this.#leave.abort());
    this.whenClosed(follow(durable, null, (frames) => this.#hear(frames)));
  }

  /** "pending", "running", "waiting", "cancelling", "completed", "failed", "cancelled", "dead"; null when there is no run. */
  get status() {
    return this.run?.status ?? null;
  }
  get output() {
    return this.run?.output ?? null;
  }
  get error() {
    return this.run?.error ?? null;
  }
  get progress() {
    return this.run?.progress ?? null;
  }
  /** In percent, or undefined where the end is not known. */
  get percentage() {
    return percentage(this.run);
  }
  /** The latest log lines, oldest first. @type {readonly Line[]} */
  get logs() {
    return /** @type {Line[]} */ (this.#kept.items);
  }
  /** How many older log lines are not kept. */
  get droppedLogs() {
    return this.#kept.dropped;
  }
  /** The latest ends of steps, oldest first. @type {readonly StepEnd[]} */
  get steps() {
    return /** @type {StepEnd[]} */ (this.#steps.items);
  }
  /** What the run has published last under each key. @returns {Record<string, any>} */
  get published() {
    return Object.fromEntries(this.#published);
  }
  get isPending() {
    return this.status === "pending";
  }
  get isRunning() {
    return this.status === "running";
  }
  get isWaiting() {
    return this.status === "waiting";
  }
  get isCompleted() {
    return this.status === "completed";
  }
  get isFailed() {
    return this.status === "failed";
  }
  get isCancelled() {
    return this.status === "cancelled";
  }
  get isDead() {
    return this.status === "dead";
  }
  get isActive() {
    return ACTIVE.includes(this.status ?? "");
  }
  get isTerminal() {
    return isTerminal(this.status);
  }
  get text() {
    return sentence(this.run);
  }

  /** @protected @param {Element} element */
  renderInto(element) {
    if (!(element instanceof HTMLProgressElement)) return super.renderInto(element);
    const { percentage } = this;
    if (percentage !== undefined) [element.max, element.value] = [100, percentage];
    else if (this.isActive) element.removeAttribute("value");
    else element.value = 0;
  }

  /**
   * Shows another run, or none.
   *
   * @protected
   * @param {string | null} runId
   * @param {Run | null} [run] as far as it is known
   */
  show(runId, run = null) {
    if (this.isClosed || (runId !== null && runId === this.runId)) return;
    this.#leave.abort();
    const { signal } = (this.#leave = new AbortController());
    [this.runId, this.run, this.problem, this.isHydrated] = [runId, run, null, false];
    [this.stepCount, this.interruptions, this.#seq, this.#known, this.#attempt] = [0, 0, 0, 0, 1];
    this.#kept.clear();
    this.#published.clear();
    this.#steps.clear();
    this.changed();
    if (runId === null) return;
    this.#read = coalesced(() => this.#ask(runId, signal));
    void this.#read();
    void this.#watch(runId, signal);
  }

  /** Reads the run, unless what was read knows of that frame. @param {number} seq */
  #readBeyond(seq) {
    if (!this.isHydrated || !this.run || seq > this.run.lastSeq) void this.#read();
  }

  /** Reads the run from the store; calls that come meanwhile share one more reading. */
  #read = async () => {};

  /** @param {string} runId @param {AbortSignal} signal */
  async #ask(runId, signal) {
    try {
      const run = await this.durable.runs.get(runId);
      if (signal.aborted) return;
      [this.run, this.isHydrated] = [run, true];
      this.changed();
    } catch (error) {
      if (!signal.aborted) this.#lose(error);
    }
  }

  /** @param {unknown} error */
  #lose(error) {
    if (error instanceof DurableError && error.code === "RunNotFound") this.run = null;
    this.fail(error);
  }

  /**
   * Takes the run's frames to its end, each once; `#hear` begins it again when the run is taken up again.
   *
   * @param {string} runId
   * @param {AbortSignal} signal
   */
  async #watch(runId, signal) {
    try {
      do {
        this.#isWatching = true;
        const watch = this.durable.runs.watch(runId, { from: this.#seq });
        signal.addEventListener("abort", () => void watch.return(), { once: true });
        for (let frames; (frames = await watch.nextBatch()).length && !signal.aborted;) this.#take(frames);
      } while (!signal.aborted && this.#known > this.#seq);
    } catch (error) {
      if (!signal.aborted) this.#lose(error);
    } finally {
      if (!signal.aborted) this.#isWatching = false;
    }
  }
  #isWatching = false;

  /** @param {Frame[]} frames of all runs */
  #hear(frames) {
    for (const { runId, kind, seq } of frames) {
      if (runId !== this.runId) continue;
      this.#known = Math.max(this.#known, seq);
      if (kind === "run_deleted") void this.#read();
      if (kind === "run_status" && !this.#isWatching && seq > this.#seq) void this.#watch(runId, this.#leave.signal);
    }
  }

  /** @param {Frame[]} frames */
  #take(frames) {
    for (const frame of frames) {
      this.#seq = frame.seq;
      if (frame.kind === "log") this.#kept.push(frame, frame.message.length);
      else if (frame.kind === "step_status") this.#takeStep(frame);
      else if (frame.kind === "event") this.#published.set(frame.key, frame.value);
      else if (frame.kind === "run_status" || frame.kind === "progress") this.#takeState(frame);
      else if (frame.kind === "run_deleted") void this.#read();
    }
    this.#kept.trim();
    this.#steps.trim();
    this.changed();
  }

  /** @param {Frame} frame */
  #takeStep(frame) {
    if (frame.status === "running") {
      if (this.run && isNews(this.run, frame)) this.run = { ...this.run, currentStep: frame.name };
      return;
    }
    this.stepCount += 1;
    this.#steps.push({ ...frame, runAttempt: this.#attempt, interruptions: this.interruptions });
  }

  /**
   * Takes what is newer than the run that the store gave, whose number is that of the last frame it knows of. Where a run
   * is no longer executing, the store is asked again: for what it waits, or the output, which comes with its status.
   *
   * @param {Frame} frame
   */
  #takeState(frame) {
    const { kind, seq, ts, status, attempt, current, total = null, message = null } = frame;
    if (kind === "run_status") {
      this.#attempt = attempt;
      if (INTERRUPTIONS.test(frame.reason ?? "")) this.interruptions += 1;
    }
    if (kind === "run_status" && (status !== "running" || frame.reason)) this.#readBeyond(seq);
    if (!this.run || !isNews(this.run, frame) || isTerminal(status)) return;
    const state = kind === "progress" ? { progress: { current, total, message } } : { status, attempt };
    this.run = { ...this.run, ...state, updatedAt: ts, lastSeq: seq };
  }
}

/** The run of an id. */
export class RunBinding extends FollowedRun {
  /** @param {Durable} durable @param {string} id @param {{max?: number}} [options] */
  constructor(durable, id, options) {
    super(durable, options);
    this.show(id);
  }
}

/** The log lines of a run, live. */
export class LogsBinding extends RunBinding {
  get text() {
    return this.logs.map(lineText).join("\n");
  }
}

/**
 * The runs of a job, one at a time: the one that was triggered here last; with `autoResume` one that has not ended when the
 * page is opened; with `followLatest` also each that is triggered elsewhere, such as in another tab.
 */
export class JobBinding extends FollowedRun {
  /** Resolves when it is known whether there is a run to go on with. @type {Promise<void>} */
  resumed;

  /** @param {Durable} durable @param {string} name @param {{autoResume?: boolean, followLatest?: boolean, max?: number}} [options] */
  constructor(durable, name, { autoResume = true, followLatest = true, max } = {}) {
    super(durable, { max });
    this.name = name;
    if (followLatest) this.whenClosed(follow(durable, name, (frames) => this.#hearOfTriggers(frames)));
    this.resumed = autoResume ? this.#resume() : Promise.resolve();
  }

  /** The same of its run, once it is known whether there is one. @returns {Promise<void>} */
  async hydrated() {
    await this.resumed;
    if (this.runId !== null) await super.hydrated();
  }

  /** Makes a run, and shows it. @param {unknown} [input] @param {TriggerOptions} [options] @returns {Promise<Run>} */
  async trigger(input, options) {
    const run = await this.durable.trigger(this.name, input, options);
    this.show(run.id, run);
    return run;
  }

  /** The same, and resolves to the run when it has ended, however. @param {unknown} [input] @param {TriggerOptions} [options] @returns {Promise<Run>} */
  async triggerAndWait(input, options) {
    const { id } = await this.trigger(input, options);
    const watch = this.durable.runs.watch(id);
    while ((await watch.nextBatch()).length);
    return this.durable.runs.get(id);
  }

  /** Shows no run, until there is a new one. The run goes on. */
  reset() {
    this.show(null);
  }

  async #resume() {
    try {
      const [run] = await this.durable.runs.list({ job: this.name, status: ACTIVE, limit: 1 });
      if (run && !this.runId) this.show(run.id, run);
    } catch (error) {
      this.fail(error);
    }
  }

  /** The ids of runs rise with the time of their making. @param {Frame[]} frames */
  #hearOfTriggers(frames) {
    for (const { kind, seq, runId } of frames) {
      if (kind === "run_status" && seq === 1 && runId > (this.runId ?? "")) this.show(runId);
    }
  }
}
