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
 *     <durable-client database jobs durability max-recoveries>  the client of the elements inside
 *     <durable-run run-id | job input start-label actions>   state, progress, steps, error and output, with buttons;
 *                                                            the slot "active" is shown until the run has ended
 *     <durable-progress run-id | job label>                  the bar alone
 *     <durable-log run-id | job max>                         the latest lines
 *     <durable-steps run-id | job href>                      every step, what it waits for, and the runs it has started
 *     <durable-runs job status labels search page-size actions href title-field empty>   a table of runs
 *
 * With `job`, an element shows the job's latest run: one that has not ended when the page is opened, then each that is
 * triggered, here or in another tab. Whatever is shown is text. README.md lists the parts and custom properties.
 */
import { RunsBinding } from "./durable-bindings.js";
import { DurableElement, json, optionsOf, takeOver, words } from "./elements/element.js";
import { show } from "./elements/following.js";
import { ProgressView, attribute, make, makeButton, name, percentText, write, writeText } from "./elements/parts.js";
import { LogView, RunView, messageFor } from "./elements/run-view.js";
import { RunsView } from "./elements/runs-view.js";
import { StepGraph } from "./elements/steps-view.js";
import { styles } from "./elements/styles.js";
import { visible } from "./bindings/text.js";
import { connect, release } from "./durable-web.js";

/** @typedef {import("./durable-web.js").Durable} Durable */
/** @typedef {import("./durable-web.js").StatusDetail} StatusDetail */

/** So many lines a log shows, unless told otherwise. */
const MOST_LINES = 200;

/**
 * Connects to the database that its attributes name, for the elements inside. While the engine starts it says so, and so it
 * does when the engine cannot start, or has ended, with a button to try again. The event "client" tells that `client` is
 * another one, or null; the elements inside follow it. A client that a page gives as the property `client` counts more.
 */
export class DurableClient extends HTMLElement {
  static observedAttributes = ["database", "jobs", "durability", "max-recoveries"];
  #root = this.attachShadow({ mode: "open" });
  #note = make("p", { class: "muted", part: "note", role: "status" });
  #problem = make("p", { class: "problem text", part: "problem", role: "alert" });
  #again = makeButton("Try again", () => this.#connectAnew());
  /** @type {Durable | null} */
  #client = null;
  /** What its attributes asked for when it last connected. */
  #wish = "";
  /** Gives up that connection. */
  #connection = new AbortController();
  #isGiven = false;

  constructor() {
    super();
    this.#root.adoptedStyleSheets = [styles];
    this.#note.hidden = this.#problem.hidden = this.#again.hidden = true;
    this.#root.append(this.#note, this.#problem, this.#again, make("slot"));
    takeOver(this, "client");
  }

  /** @returns {Durable | null} */
  get client() {
    return this.#client;
  }
  set client(client) {
    this.#isGiven = client !== null;
    this.#wish = "";
    this.#connection.abort();
    this.#tell({ status: client?.status ?? "", message: client?.statusMessage ?? "" });
    this.#use(client);
    if (!client) void this.#connect();
  }

  connectedCallback() {
    void this.#connect();
  }
  attributeChangedCallback() {
    void this.#connect();
  }

  #connectAnew() {
    this.#wish = "";
    void this.#connect();
  }

  /** Once for all attributes that are set in one go. An element that is only moved in the page keeps its client. */
  async #connect() {
    await null;
    const database = this.getAttribute("database");
    const options = optionsOf(this);
    const wish = JSON.stringify([database, options]);
    if (!this.isConnected || this.#isGiven || wish === this.#wish) return;
    this.#wish = wish;
    this.#connection.abort();
    this.#use(null);
    const { signal } = (this.#connection = new AbortController());
    const tell = (/** @type {StatusDetail} */ detail) => signal.aborted || this.#hear(detail);
    const last = leaving; // the client before, which may be of the same database with other options
    try {
      await last;
      if (signal.aborted || database === null) return this.#tell({ status: "", message: "" });
      const client = await connect(database, { ...options, onstatus: tell, signal });
      const leave = () => (leaving = release(client));
      if (signal.aborted) return void leave();
      signal.addEventListener("abort", leave, { once: true });
      this.#use(client);
    } catch (error) {
      if (!signal.aborted) this.#hear({ status: "failed", message: /** @type {Error} */ (error).message });
    }
  }

  /** @param {Durable | null} client */
  #use(client) {
    if (client === this.#client) return;
    this.#client = client;
    this.dispatchEvent(new CustomEvent("client"));
  }

  /** @param {StatusDetail} detail of the connection of now */
  #hear(detail) {
    this.#tell(detail);
    if (detail.status !== "failed" && detail.status !== "closed") return;
    this.#wish = ""; // the same attributes connect again
    this.#use(null);
  }

  /** @param {{status: string, message: string}} detail */
  #tell({ status, message }) {
    const hasEnded = status === "failed" || status === "closed";
    attribute(this, "status", status || null);
    this.#note.hidden = status !== "starting";
    write(this.#note, status === "starting" ? `Starting: ${message}` : "");
    this.#problem.hidden = this.#again.hidden = !hasEnded;
    write(this.#problem, hasEnded ? visible(message) : "");
  }
}

/** Resolves when the clients that were given up are closed. @type {Promise<void>} */
let leaving = Promise.resolve();

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
    const view = new RunView(this, client);
    return show(this, client, (binding) => view.render(binding));
  }
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
    return show(this, client, (binding) => view.render(binding));
  }
}

/**
 * The steps of a run, with their kinds, what they wait for and why they failed, and in them the steps of the runs that it
 * has started. With `href`, such as "#run={id}", the name of a step that has started a run is a link to that.
 */
export class DurableSteps extends DurableElement {
  static observedAttributes = ["run-id", "job", "href", "auto-resume", "follow-latest", "database", "jobs"];

  /** @param {Durable} client */
  begin(client) {
    const graph = new StepGraph(this, client);
    this.root.replaceChildren(graph.element);
    const end = show(this, client, (binding) => graph.render(binding));
    return () => {
      end();
      graph.close();
    };
  }
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
    const statuses = words(this, "status") ?? [];
    const filter = {
      job: this.getAttribute("job") || undefined,
      status: statuses.length > 0 ? statuses : undefined, // an empty list would be of no status
      labels: json(this, "labels"),
      search: this.getAttribute("search") ?? undefined,
    };
    const pageSize = Number(this.getAttribute("page-size") ?? 10);
    const given = Object.entries(filter).filter(([, value]) => value !== undefined);
    const payloads = /^(input|output)\b/.test(this.getAttribute("title-field") ?? "");
    const binding = new RunsBinding(client, { ...Object.fromEntries(given), pageSize, payloads });
    const view = new RunsView(this, client, binding);
    binding.addEventListener("changed", () => view.render());
    view.render();
    return () => binding.close();
  }
}

/** @type {[string, CustomElementConstructor][]} */
const ELEMENTS = [
  ["durable-client", DurableClient],
  ["durable-run", DurableRun],
  ["durable-progress", DurableProgress],
  ["durable-log", DurableLog],
  ["durable-steps", DurableSteps],
  ["durable-runs", DurableRuns],
];
for (const [tag, element] of ELEMENTS) {
  if (!customElements.get(tag)) customElements.define(tag, element);
}
