// @ts-check
/** What `<durable-run>` and `<durable-log>` show of a run. */
import { json, words } from "./element.js";
import {
  ProgressView,
  StatusView,
  act,
  actionsFor,
  attribute,
  make,
  makeButton,
  name,
  percentText,
  write,
  writeText,
} from "./parts.js";
import { clockText, countText, durationText, fieldsText, isTerminal, momentText, visible } from "../bindings/text.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../durable-bindings.js").Run} Run */
/** @typedef {import("../durable-bindings.js").Line} Line */
/** @typedef {import("../durable-bindings.js").StepEnd} StepEnd */
/** @typedef {import("./following.js").FollowedRun} FollowedRun */

const MOST_MARKS = 120;
const LATEST_STEPS = 12;
/** Pixels from its end, within which a log follows what is added. */
const AT_END = 24;
/** More lines at once are not read out. */
const MOST_READ_OUT = 3;

/** All of a run. */
export class RunView {
  #element;
  #client;
  #input;
  #offered;
  #title = make("h2", { class: "title text", part: "title" });
  #begun = make("span", { class: "muted small", part: "begun" });
  #status = new StatusView();
  #message = make("p", { class: "muted text", part: "message" });
  #percent = make("span", { class: "percent", part: "percent", "aria-hidden": "true" });
  #progress = new ProgressView();
  #survived = make("p", { class: "survived", part: "survived" });
  #steps = new StepsView();
  #error = make("p", { class: "problem text", part: "error" });
  #output = make("pre", { tabindex: "0" });
  #outputDetails = make("details", { part: "output" }, make("summary", {}, "Result"), this.#output);
  #problem = make("p", { class: "problem text", part: "problem", role: "alert" });
  #buttons = make("div", { class: "buttons", part: "actions" });
  #announcement = make("p", { class: "visually-hidden", role: "status" });
  #whileActive = /** @type {HTMLSlotElement} */ (make("slot", { name: "active" }));
  #foot = make("div", { class: "spread foot" });
  #card = make("section", { class: "card", part: "card", tabindex: "-1" });
  #announced = { status: "", milestone: 0 };
  /** What the buttons are for. */
  #shownActions = "";
  /** @type {unknown} */
  #shownOutput;

  /** @param {import("./element.js").DurableElement} element @param {Durable} client */
  constructor(element, client) {
    this.#element = element;
    this.#client = client;
    this.#input = json(element, "input");
    this.#offered = words(element, "actions") ?? ["cancel", "retry"];
    const facts = make("div", { class: "buttons" }, this.#begun, this.#status.element);
    const head = make("div", { class: "spread", part: "head" }, this.#title, facts);
    const foot = make("div", { class: "spread" }, this.#message, this.#percent);
    const progress = make("div", { class: "progress", part: "progress" }, this.#progress.element, foot);
    this.#foot.append(this.#whileActive, this.#buttons);
    const result = [this.#survived, this.#error, this.#outputDetails, this.#steps.element, this.#problem];
    this.#card.append(head, progress, ...result, this.#foot, this.#announcement);
    this.#problem.hidden = true;
    element.root.replaceChildren(this.#card);
  }

  /** @param {FollowedRun} binding */
  render(binding) {
    const { run } = binding;
    write(this.#title, name(run?.job ?? this.#element.getAttribute("job") ?? ""));
    this.#status.render(binding.status);
    write(this.#begun, begunText(run));
    this.#progress.render(run, this.#title.textContent ?? "");
    writeText(this.#message, messageFor(binding));
    write(this.#percent, percentText(run));
    this.#survived.hidden = !binding.interruptions;
    const interruptions = countText(binding.interruptions, "interruption");
    write(this.#survived, `Survived ${interruptions}: it went on from its last committed step.`);
    this.#error.hidden = !run?.error;
    writeText(this.#error, run?.error?.message ?? "");
    this.#renderOutput(run);
    this.#steps.render(binding);
    this.#renderButtons(binding);
    this.#whileActive.hidden = !binding.isActive || !this.#whileActive.assignedNodes().length;
    this.#foot.hidden = this.#whileActive.hidden && this.#buttons.hidden;
    if (binding.problem) this.#tell(binding.problem);
    this.#announce(binding);
  }

  /** @param {Run | null} run */
  #renderOutput(run) {
    const output = run?.status === "completed" ? run.output : null;
    this.#outputDetails.hidden = output === null;
    if (output === this.#shownOutput) return;
    this.#shownOutput = output;
    writeText(this.#output, typeof output === "string" ? output : JSON.stringify(output, null, 2));
  }

  /** @param {FollowedRun} binding */
  #renderButtons(binding) {
    const { status, run } = binding;
    const isIdle = status === null || isTerminal(status);
    const canStart = this.#input !== undefined && "trigger" in binding && isIdle;
    const shown = JSON.stringify([canStart, status, run?.id]);
    if (shown === this.#shownActions) return;
    this.#shownActions = shown;
    const buttons = run
      ? this.#offers(status).map(([action, label]) =>
          this.#button(label, () => act(this.#element, this.#client, action, run)),
        )
      : [];
    if (canStart) {
      const label = this.#element.getAttribute("start-label") ?? "Start";
      buttons.unshift(this.#button(label, () => binding.trigger(this.#input), "primary"));
    }
    const hadFocus = this.#card.matches(":focus") || this.#buttons.matches(":focus-within");
    this.#buttons.replaceChildren(...buttons);
    this.#buttons.hidden = !buttons.length;
    if (hadFocus) (buttons[0] ?? this.#card).focus();
  }

  /** @param {string | null} status */
  #offers(status) {
    return Object.entries(actionsFor(status)).filter(([action]) => this.#offered.includes(action));
  }

  /** @param {string} label @param {() => Promise<unknown>} work @param {string} [kind] */
  #button(label, work, kind) {
    let isAtWork = false;
    const press = async () => {
      if (isAtWork) return;
      isAtWork = this.#problem.hidden = true;
      attribute(button, "aria-disabled", "true"); // a button that is disabled would lose the focus
      try {
        await work();
      } catch (error) {
        this.#tell(/** @type {Error} */ (error));
      } finally {
        isAtWork = false;
        attribute(button, "aria-disabled", null);
      }
    };
    const button = makeButton(label, press, kind);
    return button;
  }

  /** @param {Error} error */
  #tell(error) {
    this.#problem.hidden = false;
    writeText(this.#problem, error.message);
  }

  /** Every change of status, and every quarter of the way. @param {FollowedRun} binding */
  #announce({ status, percentage }) {
    if (status === null) return;
    const milestone = isTerminal(status) ? 0 : Math.floor((percentage ?? 0) / 25) * 25;
    if (status === this.#announced.status && milestone <= this.#announced.milestone) return;
    this.#announced = { status, milestone };
    const share = milestone ? `, ${milestone} percent` : "";
    write(this.#announcement, `${this.#title.textContent}: ${this.#status.element.textContent}${share}`);
  }
}

/** Such as "Nov 21, 2026, 5:41 AM, took 3.2 s". @param {Run | null} run */
function begunText(run) {
  if (!run) return "";
  const { createdAt, startedAt, completedAt } = run;
  const took = completedAt && startedAt ? `, took ${durationText((completedAt - startedAt) / 1000)}` : "";
  return momentText(createdAt) + took;
}

/** @param {FollowedRun} binding */
export function messageFor({ run, runId, isHydrated }) {
  if (!run) return runId === null || isHydrated ? "Nothing has been run yet." : "";
  if (run.status === "pending") return "Waiting for its turn.";
  return run.progress?.message ?? (isTerminal(run.status) ? "" : (run.currentStep ?? ""));
}

/** A mark for each step that was committed, with a line where the run was interrupted; and the latest ones in words. */
class StepsView {
  #marks = make("span", { class: "marks", part: "marks", "aria-hidden": "true" });
  #summary = make("summary", { part: "steps-summary" });
  #list = make("ol", { class: "small" });
  element = make(
    "div",
    { class: "progress", part: "steps" },
    this.#marks,
    make("details", {}, this.#summary, this.#list),
  );
  #runId = "";
  #seq = 0;

  /** @param {FollowedRun} binding */
  render({ runId, steps, stepCount }) {
    if (runId !== this.#runId) {
      [this.#runId, this.#seq] = [runId ?? "", 0];
      this.#marks.replaceChildren();
      this.#list.replaceChildren();
    }
    this.element.hidden = !stepCount;
    const first = steps.findLastIndex(({ seq }) => seq <= this.#seq) + 1;
    const added = steps.slice(Math.max(first, steps.length - MOST_MARKS));
    if (!added.length) return;
    this.#seq = added[added.length - 1].seq;
    write(this.#summary, `${countText(stepCount, "step")} committed`);
    const before = (steps.length > added.length ? steps[steps.length - added.length - 1] : added[0]).interruptions;
    this.#marks.append(...added.map((step, index) => markOf(step, added[index - 1]?.interruptions ?? before)));
    while (this.#marks.childElementCount > MOST_MARKS) this.#marks.firstElementChild?.remove();
    this.#list.replaceChildren(...steps.slice(-LATEST_STEPS).reverse().map(lineOfStep));
  }
}

/** @param {StepEnd} step @param {number} interruptionsBefore */
function markOf({ status, interruptions }, interruptionsBefore) {
  const place = interruptions > interruptionsBefore ? "mark is-after-break" : "mark";
  return make("i", { class: place, part: "mark", "data-status": status });
}

/** @param {StepEnd} step */
function lineOfStep({ name: step, status, attempt, duration }) {
  const failed = status === "completed" ? "" : `${status}, attempt ${attempt}, `;
  const took = duration === null || duration === undefined ? "" : durationText(duration);
  return make(
    "li",
    { class: "step" },
    make("span", { class: "text" }, name(step)),
    make("span", { class: "muted" }, failed + took),
  );
}

/** The latest lines of a run. */
export class LogView {
  #max;
  #note = make("p", { class: "muted", part: "note" });
  #lines = make("div");
  #box = make(
    "div",
    { class: "lines", part: "log", role: "log", tabindex: "0", "aria-label": "Log" },
    this.#note,
    this.#lines,
  );
  /** @type {string | null} */
  #runId = null;
  #seq = 0;

  /** @param {ShadowRoot} root @param {number} max */
  constructor(root, max) {
    this.#max = max;
    root.replaceChildren(this.#box);
  }

  /** @param {FollowedRun} binding */
  render(binding) {
    const { runId, logs, droppedLogs, problem } = binding;
    if (runId !== this.#runId) {
      [this.#runId, this.#seq] = [runId, 0];
      this.#lines.replaceChildren();
    }
    const notShown = droppedLogs + Math.max(0, logs.length - this.#max);
    const older = notShown ? `${countText(notShown, "older line")} not shown` : "";
    write(this.#note, visible(problem?.message ?? (logs.length ? older : "Nothing has been logged yet.")));
    this.#note.hidden = !this.#note.textContent;
    const first = logs.findLastIndex(({ seq }) => seq <= this.#seq) + 1;
    const added = logs.slice(Math.max(first, logs.length - this.#max));
    if (added.length) this.#append(added);
  }

  /** @param {Line[]} added */
  #append(added) {
    const box = this.#box;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < AT_END;
    attribute(box, "aria-live", added.length > MOST_READ_OUT ? "off" : "polite");
    this.#seq = added[added.length - 1].seq;
    this.#lines.append(...added.map(elementOfLine));
    while (this.#lines.childElementCount > this.#max) this.#lines.firstElementChild?.remove();
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }
}

/** A line, its time, and its text: copied, because a flood of lines is made of them. */
const LINE = make("div", {}, make("span", { class: "time", part: "time" }), make("span", { class: "text" }));

/** @param {Line} line */
function elementOfLine({ ts, level, message, fields }) {
  const line = /** @type {HTMLElement} */ (LINE.cloneNode(true));
  const [time, text] = /** @type {Iterable<HTMLElement>} */ (/** @type {unknown} */ (line.children));
  line.className = "line";
  line.setAttribute("part", `line ${level}`);
  line.setAttribute("data-level", level);
  time.textContent = clockText(ts);
  writeText(text, message);
  if (level !== "info" && level !== "debug") text.prepend(make("span", { class: "level" }, `${visible(level)}: `));
  const more = fieldsText(fields);
  if (more) {
    const pairs = make("span", { class: "fields", part: "fields" });
    writeText(pairs, more);
    text.append(pairs);
  }
  return line;
}
