// @ts-check
/**
 * What the elements of `durable-elements.js` are made of: how an element finds its client, how elements share bindings, and
 * how text gets into the page: always as text.
 */
import { JobBinding, RunBinding } from "../durable-bindings.js";
import { DurableError } from "../client/connection.js";
import { STATUS_WORDS, isTerminal, percentage, visible } from "../bindings/text.js";
import { connect } from "../durable-web.js";
import { styles } from "./styles.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../durable-bindings.js").Run} Run */
/** @typedef {JobBinding | RunBinding} FollowedRun */

/** Longer texts are cut to so many characters, until the rest is asked for. */
const MOST_CHARACTERS = 4000;
/** And names to so many. */
const MOST_OF_A_NAME = 200;

/**
 * The base of all elements: it begins when there is a client, and again whenever an attribute changes.
 *
 * The client is that of the property `client`, or of the attributes `database` and `jobs` (URLs of Python modules), of this
 * element or of the nearest element around it that has them.
 */
export class DurableElement extends HTMLElement {
  root = this.attachShadow({ mode: "open" });
  /** @type {Durable | null} */
  #client = null;
  #visit = 0;
  /** @type {(() => void) | undefined} */
  #end;

  constructor() {
    super();
    this.root.adoptedStyleSheets = [styles];
  }

  /** @returns {Durable | null} the client that was given to this element */
  get client() {
    return this.#client;
  }
  set client(client) {
    this.#client = client;
    void this.#restart();
  }

  connectedCallback() {
    void this.#restart();
  }
  disconnectedCallback() {
    void this.#restart();
  }
  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (before !== now) void this.#restart();
  }

  /** @protected @param {Durable} client @returns {() => void} what ends it */
  begin(client) {
    throw new TypeError(`There is no beginning for ${this.localName} and ${client.name}.`);
  }

  /** @protected @param {Error} error why it cannot begin */
  refuse(error) {
    this.root.replaceChildren(
      make("p", { class: "problem text", part: "problem", role: "alert" }, visible(error.message)),
    );
  }

  /** Once for all attributes that are set in one go. */
  async #restart() {
    const visit = (this.#visit += 1);
    await null;
    if (visit !== this.#visit) return;
    this.#end?.();
    this.#end = undefined;
    if (!this.isConnected) return;
    try {
      const client = await clientOf(this);
      if (visit === this.#visit) this.#end = this.begin(client);
    } catch (error) {
      if (visit === this.#visit) this.refuse(/** @type {Error} */ (error));
    }
  }
}

/** @param {Element} element @returns {Promise<Durable>} */
async function clientOf(element) {
  for (let place = /** @type {Element | null} */ (element); place; place = parentOf(place)) {
    const { client } = /** @type {any} */ (place);
    if (client) return client;
    const database = place.getAttribute("database");
    if (database !== null) return connect(database, optionsOf(place));
    if (place.localName === "durable-client") {
      await new Promise((resolve) => place?.addEventListener("client", resolve, { once: true }));
      return /** @type {any} */ (place).client;
    }
  }
  const message =
    `<${element.localName}> belongs to no database. ` +
    "Give it the attributes database and jobs, put it into a <durable-client> that has them, or set its client property.";
  throw new DurableError({ code: "NoClientError", message });
}

/** Also out of a shadow root. @param {Element} element @returns {Element | null} */
function parentOf(element) {
  if (element.parentElement) return element.parentElement;
  const root = element.getRootNode();
  return root instanceof ShadowRoot ? root.host : null;
}

/** @param {Element} element */
export function optionsOf(element) {
  const durability = element.getAttribute("durability") === "normal" ? "normal" : "full";
  const most = element.getAttribute("max-recoveries");
  return {
    jobs: words(element, "jobs") ?? [],
    durability: /** @type {"full" | "normal"} */ (durability),
    maxRecoveries: most === null ? undefined : Number(most),
  };
}

/** The words of an attribute; undefined where it is not there. @param {Element} element @param {string} name */
export const words = (element, name) => element.getAttribute(name)?.split(/\s+/).filter(Boolean);

/** The JSON of an attribute; undefined where it is not there. @param {Element} element @param {string} name */
export function json(element, name) {
  const text = element.getAttribute(name);
  if (text === null) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    const message = `The attribute ${name} of <${element.localName}> is not JSON: ${/** @type {Error} */ (error).message}`;
    throw new DurableError({ code: "AttributeError", message });
  }
}

// --- Bindings, shared by the elements that show the same ---

/** @type {WeakMap<Durable, Map<string, {binding: FollowedRun, users: number}>>} */
const shared = new WeakMap();

/**
 * Calls `render` with what the attributes `run-id` or `job` of an element name, now and whenever it changes.
 *
 * @param {Element} element
 * @param {Durable} client
 * @param {(binding: FollowedRun) => void} render
 * @returns {() => void} ends that
 */
export function show(element, client, render) {
  const { key, make } = wanted(element, client);
  const ofClient = shared.get(client) ?? new Map();
  shared.set(client, ofClient);
  const share = ofClient.get(key) ?? { binding: make(), users: 0 };
  ofClient.set(key, share);
  share.users += 1;
  const draw = () => render(share.binding);
  share.binding.addEventListener("changed", draw);
  draw();
  return () => {
    share.binding.removeEventListener("changed", draw);
    share.users -= 1;
    if (share.users) return;
    ofClient.delete(key);
    share.binding.close();
  };
}

/** @param {Element} element @param {Durable} client @returns {{key: string, make: () => FollowedRun}} */
function wanted(element, client) {
  const [id, job] = [element.getAttribute("run-id"), element.getAttribute("job")];
  if (id) return { key: `run ${id}`, make: () => new RunBinding(client, id) };
  if (job) {
    const autoResume = element.getAttribute("auto-resume") !== "false";
    const followLatest = element.getAttribute("follow-latest") !== "false";
    const key = `job ${autoResume} ${followLatest} ${job}`;
    return { key, make: () => new JobBinding(client, job, { autoResume, followLatest }) };
  }
  const message = `<${element.localName}> has nothing to show: give it the attribute run-id, or job.`;
  throw new DurableError({ code: "AttributeError", message });
}

// --- Parts of elements ---

/** @param {string} tag @param {Record<string, string>} [attributes] @param {(Node | string)[]} children */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** @param {string} label @param {() => void} act @param {string} [kind] a class and a part */
export function makeButton(label, act, kind = "secondary") {
  const button = make("button", { type: "button", class: kind, part: `button ${kind}` }, label);
  button.addEventListener("click", act);
  return button;
}

/** @param {Element} element @param {string} text */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {Element} element @param {string} name @param {string | null} value null takes it away */
export function attribute(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** A name, cut where it is too long to be one. @param {string} text */
export const name = (text) => visible(text.length > MOST_OF_A_NAME ? `${cut(text, MOST_OF_A_NAME)}…` : text);

/** @type {WeakMap<Element, string>} */
const texts = new WeakMap();

/** Writes a text of any length; of a very long one its beginning, and a button for the rest. @param {HTMLElement} element @param {string} text */
export function writeText(element, text) {
  if (texts.get(element) === text) return;
  texts.set(element, text);
  if (text.length <= MOST_CHARACTERS) {
    element.textContent = visible(text);
    return;
  }
  const beginning = document.createTextNode(`${visible(cut(text, MOST_CHARACTERS))}… `);
  const showAll = () => {
    beginning.data = visible(text);
    more.remove();
    element.setAttribute("tabindex", "-1"); // the button is gone, and the focus would be with it
    element.focus();
  };
  const more = makeButton(`Show all ${text.length.toLocaleString("en")} characters`, showAll, "plain");
  element.replaceChildren(beginning, more);
}

/** Not in the middle of a character. @param {string} text @param {number} most */
const cut = (text, most) => text.slice(0, most).replace(/[\ud800-\udbff]$/, "");

/** A run's status as a badge. */
export class StatusView {
  element = make("span", { class: "status", part: "status" });

  /** @param {string | null} status */
  render(status) {
    this.element.hidden = status === null;
    attribute(this.element, "data-status", status ?? "");
    attribute(this.element, "part", `status ${status ?? ""}`.trim());
    write(this.element, STATUS_WORDS[status ?? ""] ?? status ?? "");
  }
}

/** How far a run has come, as a bar; it wanders as long as the end is not known. */
export class ProgressView {
  #fill = make("div", { class: "fill", part: "fill" });
  element = make(
    "div",
    { class: "bar", part: "bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" },
    this.#fill,
  );

  /** @param {Run | null} run @param {string} label */
  render(run, label) {
    const percent = percentage(run);
    const isEndless = run !== null && percent === undefined && !isTerminal(run.status);
    attribute(this.element, "aria-label", label);
    attribute(this.element, "aria-valuenow", isEndless ? null : String(percent ?? 0));
    attribute(this.element, "aria-valuetext", run?.progress?.message ? name(run.progress.message) : null);
    attribute(this.element, "data-status", run?.status ?? "");
    this.element.classList.toggle("is-endless", isEndless);
    this.#fill.style.inlineSize = `${percent ?? 0}%`;
  }
}

/** @param {Run | null} run */
export function percentText(run) {
  const percent = percentage(run);
  return percent === undefined ? "" : `${percent} %`;
}

/**
 * Does what a button says, unless the page does it itself: it is asked by the event "durable-action", whose detail is
 * {action, run}, and says so with preventDefault().
 *
 * @param {Element} element
 * @param {Durable} client
 * @param {string} action "cancel", "retry", "retrigger" or "delete"
 * @param {Run} run
 */
export async function act(element, client, action, run) {
  const detail = { action, run };
  const event = new CustomEvent("durable-action", { detail, bubbles: true, composed: true, cancelable: true });
  if (!element.dispatchEvent(event)) return;
  await /** @type {any} */ (client.runs)[action](run.id);
}

/** What can be done with a run of that status, and what its button says. @param {string | null} status @returns {Record<string, string>} */
export function actionsFor(status) {
  if (status === null || status === "cancelling") return {};
  if (!isTerminal(status)) return { cancel: "Cancel" };
  if (status === "completed") return { retrigger: "Run again", delete: "Delete" };
  return { retry: "Try again", retrigger: "Run anew", delete: "Delete" };
}
