// @ts-check
/** What `<durable-runs>` shows: a row for each run, with what can be done with it. */
import { words } from "./element.js";
import {
  ProgressView,
  StatusView,
  act,
  actionsFor,
  attribute,
  make,
  makeButton,
  name,
  write,
  writeText,
} from "./parts.js";
import { momentText } from "../bindings/text.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../durable-bindings.js").Run} Run */
/** @typedef {import("../durable-bindings.js").RunsBinding} RunsBinding */

/** A page of runs, as a table. */
export class RunsView {
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

  /** @param {import("./element.js").DurableElement} element @param {Durable} client @param {RunsBinding} binding */
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

  /** @param {Element} host @param {string[]} offered @param {(action: string, run: Run) => Promise<void>} act */
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
