// @ts-check
/** What `<durable-steps>` shows: every step of a run, what it waits for, and the steps of the runs that it has started. */
import { Binding, coalesced, nextFrame } from "../bindings/binding.js";
import { RunBinding } from "../durable-bindings.js";
import { StatusView, attribute, make, name, write, writeText } from "./parts.js";
import { clockText, countText, durationText, momentText, visible } from "../bindings/text.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../durable-bindings.js").Run} Run */
/** @typedef {import("./following.js").FollowedRun} FollowedRun */
/**
 * @typedef {{name: string, kind: string, status: string, index: number, attempt: number, error: {message: string} | null,
 *   retryAt: number | null, wakeAt: number | null, waitingFor: string | null, startedAt: number,
 *   completedAt: number | null}} Step as `runs.steps` gives it
 */

/** So many steps of a run are shown, the latest. */
const MOST_STEPS = 200;
/** The runs that a run has started are followed to this depth, and so many of each. */
const MOST_DEPTH = 4;
const MOST_CHILDREN = 50;
/** A day: what is further away is told with its date. Milliseconds. */
const DAY = 86_400_000;

/** @type {Record<string, string>} */
const KINDS = {
  transaction: "transaction",
  value: "value",
  patch: "patch",
  sleep: "sleep",
  signal: "signal",
  event: "event",
  webhook: "webhook",
  update: "update",
  breakpoint: "breakpoint",
  child: "run",
  start: "start of a run",
  compensation: "undo",
};

/** A run's steps are read again when it changes, at most once per animation frame, and one reading at a time. */
class StepsBinding extends Binding {
  /** @type {Step[]} */
  steps = [];
  /** The runs that this one has started, by the name of the step. @type {Map<string, Run>} */
  children = new Map();
  #id = "";
  /** The steps of which it was asked which run they have started: that is known from the moment they are there. */
  #asked = new Set();

  /** @param {string | null} id */
  follow(id) {
    if (this.#id !== (id ?? "")) [this.#id, this.steps, this.children, this.#asked] = [id ?? "", [], new Map(), new Set()];
    if (this.#id) void this.#readSoon();
  }

  #readSoon = coalesced(async () => {
    await nextFrame();
    const id = this.#id;
    if (this.isClosed || !id) return;
    try {
      const recorded = await this.durable.runs.steps(id);
      const steps = recorded.filter(({ kind }) => kind !== "publish"); // what a run tells is no work of its own
      const asked = new Set(steps.filter(({ kind }) => kind === "child").map(({ name: step }) => step));
      const hasNew = [...asked].some((step) => !this.#asked.has(step));
      const started = hasNew ? await this.durable.runs.list({ parent: id, limit: 1000 }) : [];
      if (id !== this.#id) return;
      this.#asked = asked;
      this.steps = steps;
      for (const run of started) if (run.parentStep) this.children.set(run.parentStep, run);
      this.problem = null;
      this.changed();
    } catch (error) {
      if (id === this.#id) this.fail(error);
    }
  });
}

/** The steps of one run, and inside them those of the runs that it has started. */
export class StepGraph {
  #host;
  #binding;
  #depth;
  #list = make("ol", { class: "nodes" });
  #note = make("p", { class: "muted small", part: "note" });
  #problem = make("p", { class: "problem text", part: "problem", role: "alert" });
  element = make("div", { class: "graph" }, this.#note, this.#list, this.#problem);
  /** @type {Map<string, StepNode>} */
  #nodes = new Map();
  #runId = "";

  /** @param {Element} host @param {Durable} client @param {number} [depth] */
  constructor(host, client, depth = 0) {
    this.#host = host;
    this.#depth = depth;
    this.#binding = new StepsBinding(client);
    this.#binding.addEventListener("changed", () => this.#draw());
    this.#problem.hidden = true;
  }

  /** @param {FollowedRun} followed */
  render({ runId, run, isHydrated, problem }) {
    if (runId !== this.#runId) this.#clear(runId);
    attribute(this.#list, "aria-label", `Steps of ${name(run?.job ?? "a run")}`);
    this.#note.hidden = this.#nodes.size > 0 || this.#depth > 0;
    write(this.#note, runId === null || isHydrated ? "No step has been taken yet." : "");
    this.#problem.hidden = !problem;
    writeText(this.#problem, problem?.message ?? "");
    this.#binding.follow(runId);
  }

  close() {
    this.#clear(null);
    this.#binding.close();
  }

  /** @param {string | null} runId */
  #clear(runId) {
    this.#runId = runId ?? "";
    for (const node of this.#nodes.values()) node.close();
    this.#nodes.clear();
    this.#list.replaceChildren();
  }

  /** Nodes stay what they are, so that none loses the focus because another one comes. */
  #draw() {
    const { steps, children, problem } = this.#binding;
    this.#problem.hidden = !problem;
    writeText(this.#problem, problem?.message ?? "");
    const shown = steps.slice(-MOST_STEPS);
    const names = new Set(shown.map((step) => step.name));
    for (const [step, node] of this.#nodes) {
      if (names.has(step)) continue;
      node.close();
      node.element.remove();
      this.#nodes.delete(step);
    }
    const older = steps.length - shown.length;
    this.#note.hidden = !older && (shown.length > 0 || this.#depth > 0);
    if (older) write(this.#note, `${countText(older, "older step")} not shown`);
    let followed = 0;
    shown.forEach((step, index) => {
      const node = this.#nodes.get(step.name) ?? new StepNode(this.#host, this.#binding.durable, this.#depth);
      this.#nodes.set(step.name, node);
      const child = children.get(step.name);
      if (child) followed += 1;
      node.render(step, followed <= MOST_CHILDREN ? child : undefined);
      const place = this.#list.children[index] ?? null;
      if (place !== node.element) this.#list.insertBefore(node.element, place);
    });
  }
}

/** One step; of a child run, its steps too. */
class StepNode {
  #host;
  #client;
  #depth;
  #name = make("span", { class: "node-name text", part: "step-name" });
  #kind = make("span", { class: "kind", part: "kind" });
  #state = make("span", { class: "muted small state", part: "state" });
  #reason = make("p", { class: "small text reason", part: "reason" });
  #body = make(
    "div",
    { class: "node-body" },
    make("div", { class: "spread" }, make("span", { class: "node-head" }, this.#name, this.#kind), this.#state),
    this.#reason,
  );
  element = make("li", { class: "node", part: "step" }, this.#body);
  /** @type {{binding: RunBinding, graph: StepGraph} | undefined} */
  #child;

  /** @param {Element} host @param {Durable} client @param {number} depth */
  constructor(host, client, depth) {
    this.#host = host;
    this.#client = client;
    this.#depth = depth;
  }

  /** @param {Step} step @param {Run} [child] */
  render(step, child) {
    attribute(this.element, "data-status", isParked(step) ? "waiting" : step.status);
    attribute(this.element, "data-kind", step.kind);
    attribute(this.element, "part", `step ${step.status}`);
    this.#renderName(step, child);
    write(this.#kind, KINDS[step.kind] ?? "");
    this.#kind.hidden = !this.#kind.textContent;
    write(this.#state, stateText(step));
    const reason = reasonFor(step);
    this.#reason.hidden = !reason;
    attribute(this.#reason, "data-status", step.error ? "failed" : "");
    writeText(this.#reason, reason);
    if (child && !this.#child && this.#depth < MOST_DEPTH) this.#follow(child);
  }

  close() {
    this.#child?.binding.close();
    this.#child?.graph.close();
    this.#child = undefined;
  }

  /** With `href`, a child run's name is a link to it. @param {Step} step @param {Run} [child] */
  #renderName(step, child) {
    const href = this.#host.getAttribute("href");
    if (!child || href === null) return write(this.#name, name(step.name));
    const link = this.#name.querySelector("a") ?? make("a", { part: "link" });
    if (!link.parentElement) this.#name.replaceChildren(link);
    attribute(link, "href", href.replaceAll("{id}", encodeURIComponent(child.id)));
    write(link, name(step.name));
  }

  /** @param {Run} child */
  #follow(child) {
    const binding = new RunBinding(this.#client, child.id);
    const graph = new StepGraph(this.#host, this.#client, this.#depth + 1);
    const status = new StatusView();
    const head = make("p", { class: "small node-child" }, make("span", { class: "muted" }, name(child.job)), status.element);
    this.#child = { binding, graph };
    this.#body.append(head, graph.element);
    const draw = () => {
      status.render(binding.status);
      graph.render(binding);
    };
    binding.addEventListener("changed", draw);
    draw();
  }
}

/** Whether it waits for something other than its function. @param {Step} step */
const isParked = ({ status, waitingFor }) => status === "running" && waitingFor !== null;

/** Such as "Done, 0.7 s" or "Running, attempt 2". @param {Step} step */
function stateText(step) {
  const { status, attempt, startedAt, completedAt, kind, retryAt } = step;
  const tries = attempt > 1 ? `, attempt ${retryAt === null ? attempt : attempt + 1}` : "";
  if (isParked(step)) return `Waiting${tries}`;
  if (status === "running") return `Running${tries}`;
  const word = { completed: kind === "compensation" ? "Undone" : "Done", failed: "Failed" }[status] ?? "Stopped";
  const took = completedAt === null ? "" : `, ${durationText(Math.max(0, completedAt - startedAt) / 1000)}`;
  return word + tries + took;
}

/** For what it waits and until when, or why it failed. @param {Step} step */
function reasonFor(step) {
  const until = step.retryAt ?? step.wakeAt;
  if (isParked(step)) {
    const due = until === null ? "" : `, ${step.retryAt === null ? "until" : "due"} ${whenText(until)}`;
    return visible(`for ${step.waitingFor}${due}${step.error ? `: ${step.error.message}` : ""}`);
  }
  return step.error?.message ?? "";
}

/** @param {number} moment */
const whenText = (moment) => (Math.abs(moment - Date.now()) < DAY ? clockText(moment) : momentText(moment));
