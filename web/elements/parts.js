// @ts-check
/**
 * What the elements put into the page, and how text gets there: always as text.
 */
import { STATUS_WORDS, isTerminal, percentage, visible } from "../bindings/text.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../durable-bindings.js").Run} Run */

/** Longer texts are cut to so many characters, until the rest is asked for. */
const MOST_CHARACTERS = 4000;
/** And names to so many. */
const MOST_OF_A_NAME = 200;

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
