// @ts-check
/**
 * Ready-made elements that show runs, for pages without any script of their own:
 *
 *     <script type="module" src="./durable-web/durable-elements.js"></script>
 *     <durable-client database="squares" jobs="./jobs.py">
 *       <durable-run job="squares" input='{"count": 10}'></durable-run>
 *       <durable-log job="squares"></durable-log>
 *     </durable-client>
 *
 *     <durable-client database jobs durability>              the client of the elements inside
 *     <durable-run run-id | job input start-label actions>   state, progress, steps, error and output, with buttons;
 *                                                            the slot "active" is shown until the run has ended
 *     <durable-progress run-id | job label>                  the bar alone
 *     <durable-log run-id | job max>                         the latest lines
 *     <durable-runs job status labels search page-size actions href title-field empty>   a table of runs
 *
 * With `job`, an element shows the job's latest run: one that has not ended when the page is opened, then each that is
 * triggered, here or in another tab. Whatever is shown is text. README.md lists the parts and custom properties.
 */
import { RunsBinding } from "./durable-bindings.js";
import {
  DurableElement,
  ProgressView,
  StatusView,
  act,
  actionsFor,
  attribute,
  json,
  make,
  makeButton,
  name,
  optionsOf,
  percentText,
  show,
  words,
  write,
  writeText,
} from "./durable-element.js";
import { clockText, countText, durationText, fieldsText, isTerminal, momentText, visible } from "./durable-text.js";
import { styles } from "./durable-styles.js";
import { connect } from "./durable-web.js";

/** @typedef {import("./durable-web.js").Durable} Durable */
/** @typedef {import("./durable-bindings.js").Run} Run */
/** @typedef {import("./durable-bindings.js").Line} Line */
/** @typedef {import("./durable-bindings.js").StepEnd} StepEnd */
/** @typedef {import("./durable-element.js").FollowedRun} FollowedRun */

const MOST_MARKS = 120;
const LATEST_STEPS = 12;
const MOST_LINES = 200;
/** Pixels from its end, within which a log follows what is added. */
const AT_END = 24;
/** More lines at once are not read out. */
const MOST_READ_OUT = 3;

/**
 * Connects to the database that its attributes name, for the elements inside. While the engine starts it says so, and so it
 * does when the engine cannot start. The event "client" tells that `client` is there.
 */
export class DurableClient extends HTMLElement {
  static observedAttributes = ["database", "jobs"];
  #root = this.attachShadow({ mode: "open" });
  #note = make("p", { class: "muted", part: "note", role: "status" });
  #problem = make("p", { class: "problem text", part: "problem", role: "alert" });
  /** @type {Durable | null} */
  #client = null;
  #connecting = "";

  constructor() {
    super();
    this.#root.adoptedStyleSheets = [styles];
    this.#note.hidden = this.#problem.hidden = true;
    this.#root.append(this.#note, this.#problem, make("slot"));
  }

  /** @returns {Durable | null} */
  get client() {
    return this.#client;
  }
  set client(client) {
    this.#client = client;
    this.dispatchEvent(new CustomEvent("client"));
  }

  connectedCallback() {
    void this.#connect();
  }
  attributeChangedCallback() {
    if (this.isConnected) void this.#connect();
  }

  async #connect() {
    const database = this.getAttribute("database");
    const options = optionsOf(this);
    const wish = JSON.stringify([database, options]);
    if (database === null || wish === this.#connecting) return;
    this.#connecting = wish;
    try {
      const client = await connect(database, { ...options, onstatus: (detail) => this.#tell(detail) });
      if (wish === this.#connecting) this.client = client;
    } catch (error) {
      this.#tell({ status: "failed", message: /** @type {Error} */ (error).message });
    }
  }

  /** @param {{status: string, message: string}} detail */
  #tell({ status, message }) {
    attribute(this, "status", status);
    this.#note.hidden = status !== "starting";
    write(this.#note, status === "starting" ? `Starting: ${message}` : "");
    this.#problem.hidden = status !== "failed";
    write(this.#problem, status === "failed" ? visible(message) : "");
  }
}

/** One run: its state, progress, steps, error and output, and what can be done with it. */
export class DurableRun extends DurableElement {
  static observedAttributes = [
    "run-id",
    "job",
    "input",
    "start-label",
    "actions",
    "auto-resume",
    "follow-latest",
    "database",
    "jobs",
  ];

  /** @param {Durable} client */
  begin(client) {
    return show(this, client, viewOf(new RunView(this, client)));
  }
}

/** @param {{render: (binding: FollowedRun) => void}} view */
const viewOf = (view) => (/** @type {FollowedRun} */ binding) => view.render(binding);

class RunView {
  #element;
  #client;
  #input;
  #offered;
  #title = make("h2", { class: "title text", part: "title" });
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
  #whileActive = make("slot", { name: "active" });
  #foot = make("div", { class: "spread foot" });
  #card = make("section", { class: "card", part: "card", tabindex: "-1" });
  #announced = { status: "", milestone: 0 };
  /** What the buttons are for. */
  #shownActions = "";
  /** @type {unknown} */
  #shownOutput;

  /** @param {DurableRun} element @param {Durable} client */
  constructor(element, client) {
    this.#element = element;
    this.#client = client;
    this.#input = json(element, "input");
    this.#offered = words(element, "actions") ?? ["cancel", "retry"];
    const head = make("div", { class: "spread", part: "head" }, this.#title, this.#status.element);
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
    this.#progress.render(run, this.#title.textContent ?? "");
    writeText(this.#message, messageFor(binding));
    write(this.#percent, percentText(run));
    this.#survived.hidden = !run || run.attempt < 2;
    if (run && run.attempt > 1) {
      write(
        this.#survived,
        `Survived ${countText(run.attempt - 1, "interruption")}: it went on from its last committed step.`,
      );
    }
    this.#error.hidden = !run?.error;
    writeText(this.#error, run?.error?.message ?? "");
    this.#renderOutput(run);
    this.#steps.render(binding);
    this.#renderButtons(binding);
    this.#whileActive.hidden = !binding.isActive;
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

/** @param {FollowedRun} binding */
function messageFor({ run, runId, isHydrated }) {
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
    const before =
      steps.length > added.length ? steps[steps.length - added.length - 1].runAttempt : added[0].runAttempt;
    this.#marks.append(...added.map((step, index) => markOf(step, added[index - 1]?.runAttempt ?? before)));
    while (this.#marks.childElementCount > MOST_MARKS) this.#marks.firstElementChild?.remove();
    this.#list.replaceChildren(...steps.slice(-LATEST_STEPS).reverse().map(lineOfStep));
  }
}

/** @param {StepEnd} step @param {number} attemptBefore */
function markOf({ status, runAttempt }, attemptBefore) {
  const place = runAttempt > attemptBefore ? "mark is-after-break" : "mark";
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

/** The bar of a run alone. */
export class DurableProgress extends DurableElement {
  static observedAttributes = ["run-id", "job", "label", "auto-resume", "follow-latest", "database", "jobs"];

  /** @param {Durable} client */
  begin(client) {
    const progress = new ProgressView();
    const message = make("span", { class: "text", part: "message" });
    const percent = make("span", { class: "percent", part: "percent", "aria-hidden": "true" });
    const foot = make("div", { class: "spread small muted" }, message, percent);
    this.root.replaceChildren(make("div", { class: "progress", part: "progress" }, progress.element, foot));
    return show(this, client, (binding) => {
      progress.render(binding.run, this.getAttribute("label") ?? name(binding.run?.job ?? "Progress"));
      writeText(message, binding.problem?.message ?? binding.run?.error?.message ?? messageFor(binding));
      write(percent, percentText(binding.run));
    });
  }
}

/** The latest log lines of a run. */
export class DurableLog extends DurableElement {
  static observedAttributes = ["run-id", "job", "max", "auto-resume", "follow-latest", "database", "jobs"];

  /** @param {Durable} client */
  begin(client) {
    const max = Number(this.getAttribute("max") ?? MOST_LINES);
    const view = new LogView(this.root, max);
    return show(this, client, viewOf(view));
  }
}

class LogView {
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

/** @param {Line} line */
function elementOfLine({ ts, level, message, fields }) {
  const time = make("time", { class: "time", part: "time", datetime: new Date(ts).toISOString() }, clockText(ts));
  const said = make("span");
  writeText(said, message);
  const text = make("span", { class: "text" }, said);
  if (level !== "info" && level !== "debug") text.prepend(make("span", { class: "level" }, `${visible(level)}: `));
  const more = fieldsText(fields);
  if (more) {
    const pairs = make("span", { class: "fields", part: "fields" });
    writeText(pairs, more);
    text.append(pairs);
  }
  return make("div", { class: "line", part: `line ${level}`, "data-level": level }, time, text);
}

/**
 * The runs that pass a filter, as a table, a page at a time. With `href`, such as "#run={id}", a run's name is a link;
 * without, a button that tells the page with the event "durable-select", whose detail is {run}. `title-field` names what a
 * run is called by, such as "input.name"; by default it is the job.
 */
export class DurableRuns extends DurableElement {
  static observedAttributes = [
    ...[
      "job",
      "status",
      "labels",
      "search",
      "page-size",
      "actions",
      "href",
      "title-field",
      "empty",
      "label",
      "database",
      "jobs",
    ],
  ];

  /** @param {Durable} client */
  begin(client) {
    const filter = {
      job: this.getAttribute("job") ?? undefined,
      status: words(this, "status"),
      labels: json(this, "labels"),
      search: this.getAttribute("search") ?? undefined,
    };
    const pageSize = Number(this.getAttribute("page-size") ?? 10);
    const given = Object.entries(filter).filter(([, value]) => value !== undefined);
    const binding = new RunsBinding(client, { ...Object.fromEntries(given), pageSize });
    const view = new RunsView(this, client, binding);
    binding.addEventListener("changed", () => view.render());
    view.render();
    return () => binding.close();
  }
}

class RunsView {
  #binding;
  #element;
  #client;
  #offered;
  #problem = make("p", { class: "problem text", part: "problem", role: "alert" });
  #empty = make("p", { class: "muted", part: "empty" });
  #body = make("tbody");
  #table;
  #page = make("span", { class: "muted small", part: "page", role: "status" });
  #previous = makeButton("Newer", () => void this.#binding.previous());
  #next = makeButton("Older", () => void this.#binding.next());
  #pager = make("div", { class: "spread pager", part: "pager" }, this.#previous, this.#page, this.#next);
  #region;
  /** @type {Map<string, RunRow>} */
  #rows = new Map();

  /** @param {DurableRuns} element @param {Durable} client @param {RunsBinding} binding */
  constructor(element, client, binding) {
    this.#element = element;
    this.#client = client;
    this.#binding = binding;
    this.#offered = words(element, "actions") ?? ["cancel", "retry", "delete"];
    this.#problem.hidden = true;
    const heads = ["Run", "Status", "Progress", "Begun"].map((head) => make("th", { scope: "col" }, head));
    heads.push(make("th", { scope: "col" }, make("span", { class: "visually-hidden" }, "Actions")));
    const label = element.getAttribute("label") ?? "Runs";
    const caption = make("caption", {}, make("span", { class: "visually-hidden" }, label));
    this.#table = make(
      "table",
      { class: "table", part: "table" },
      caption,
      make("thead", {}, make("tr", {}, ...heads)),
      this.#body,
    );
    const inside = [this.#problem, this.#empty, this.#table, this.#pager];
    this.#region = make("div", { role: "region", "aria-label": label, tabindex: "-1", part: "region" }, ...inside);
    element.root.replaceChildren(this.#region);
  }

  render() {
    const { items, page, hasMore, hasPrevious, isHydrated, problem } = this.#binding;
    if (problem) this.#tell(problem);
    this.#empty.hidden = !isHydrated || items.length > 0;
    write(this.#empty, this.#element.getAttribute("empty") ?? "There are no runs yet.");
    this.#table.hidden = !items.length;
    this.#renderRows(items);
    this.#pager.hidden = !hasMore && !hasPrevious;
    write(this.#page, `Page ${page}`);
    attribute(this.#previous, "disabled", hasPrevious ? null : "");
    attribute(this.#next, "disabled", hasMore ? null : "");
  }

  /** Rows stay what they are, so that none loses the focus because another one comes or goes. @param {Run[]} runs */
  #renderRows(runs) {
    const ids = new Set(runs.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      if (row.element.matches(":focus-within")) this.#region.focus();
      row.element.remove();
      this.#rows.delete(id);
    }
    runs.forEach((run, index) => {
      const row =
        this.#rows.get(run.id) ?? new RunRow(this.#element, this.#offered, (action, of) => this.#act(action, of));
      this.#rows.set(run.id, row);
      row.render(run);
      const place = this.#body.children[index] ?? null;
      if (place !== row.element) this.#body.insertBefore(row.element, place);
    });
  }

  /** @param {string} action @param {Run} run */
  async #act(action, run) {
    this.#problem.hidden = true;
    try {
      await act(this.#element, this.#client, action, run);
    } catch (error) {
      this.#tell(/** @type {Error} */ (error));
    }
  }

  /** @param {Error} error */
  #tell(error) {
    this.#problem.hidden = false;
    writeText(this.#problem, error.message);
  }
}

class RunRow {
  #host;
  #offered;
  #act;
  #name;
  #status = new StatusView();
  #progress = new ProgressView();
  #begun = make("td", { class: "muted small", part: "begun" });
  #buttons = make("div", { class: "buttons" });
  #shownActions = "";
  #isAsking = false;
  /** @type {Run | undefined} */
  #run;

  /** @param {DurableRuns} host @param {string[]} offered @param {(action: string, run: Run) => Promise<void>} act */
  constructor(host, offered, act) {
    this.#host = host;
    this.#offered = offered;
    this.#act = act;
    this.#name = host.hasAttribute("href")
      ? make("a", { part: "link" })
      : makeButton("", () => this.#select(), "plain");
    const cells = [make("td", {}, this.#status.element), make("td", {}, this.#progress.element), this.#begun];
    const actions = make("td", { class: "actions", part: "actions" }, this.#buttons);
    this.element = make("tr", { part: "row" }, make("th", { scope: "row" }, this.#name), ...cells, actions);
  }

  /** @param {Run} run */
  render(run) {
    this.#run = run;
    const title = this.#title(run);
    write(this.#name, title);
    const href = this.#host.getAttribute("href");
    if (href !== null) attribute(this.#name, "href", href.replaceAll("{id}", encodeURIComponent(run.id)));
    this.#status.render(run.status);
    this.#progress.render(run, title);
    write(this.#begun, momentText(run.createdAt));
    this.#renderButtons(run, title);
  }

  /** @param {Run} run */
  #title(run) {
    const path = this.#host.getAttribute("title-field")?.split(".") ?? [];
    const found = path.reduce((/** @type {any} */ value, key) => value?.[key], run);
    return name(typeof found === "string" && found ? found : run.job);
  }

  /** @param {Run} run @param {string} title */
  #renderButtons(run, title) {
    const offers = Object.entries(actionsFor(run.status)).filter(([action]) => this.#offered.includes(action));
    const shown = JSON.stringify([run.status, this.#isAsking]);
    if (shown === this.#shownActions) return;
    this.#shownActions = shown;
    const hadFocus = this.#buttons.matches(":focus-within");
    const buttons = this.#isAsking
      ? this.#confirmation(title)
      : offers.map(([action, label]) => this.#button(action, label, title));
    this.#buttons.replaceChildren(...buttons);
    if (hadFocus) buttons.at(-1)?.focus();
  }

  /** @param {string} action @param {string} label @param {string} title */
  #button(action, label, title) {
    const work =
      action === "delete" ? () => this.#ask(true) : () => void this.#act(action, /** @type {Run} */ (this.#run));
    const button = makeButton(label, work);
    button.setAttribute("aria-label", `${label} ${title}`);
    return button;
  }

  /** What is deleted is gone: so it takes a second word. @param {string} title */
  #confirmation(title) {
    const forGood = makeButton(
      "Delete for good",
      () => void this.#act("delete", /** @type {Run} */ (this.#run)),
      "danger",
    );
    const keep = makeButton("Keep", () => this.#ask(false));
    forGood.setAttribute("aria-label", `Delete ${title} for good`);
    keep.setAttribute("aria-label", `Keep ${title}`);
    return [forGood, keep];
  }

  /** @param {boolean} isAsking */
  #ask(isAsking) {
    this.#isAsking = isAsking;
    const run = /** @type {Run} */ (this.#run);
    this.#renderButtons(run, this.#title(run));
  }

  #select() {
    this.#host.dispatchEvent(
      new CustomEvent("durable-select", { detail: { run: this.#run }, bubbles: true, composed: true }),
    );
  }
}

/** @type {[string, CustomElementConstructor][]} */
const ELEMENTS = [
  ["durable-client", DurableClient],
  ["durable-run", DurableRun],
  ["durable-progress", DurableProgress],
  ["durable-log", DurableLog],
  ["durable-runs", DurableRuns],
];
for (const [tag, element] of ELEMENTS) {
  if (!customElements.get(tag)) customElements.define(tag, element);
}
