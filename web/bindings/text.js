// @ts-check
/** How runs are put into words, and how text of any kind is made fit to be shown: the same in bindings and elements. */

/** @typedef {import("../durable-bindings.js").Run} Run */

/** @type {Record<string, string>} */
export const STATUS_WORDS = {
  pending: "Waiting",
  running: "Running",
  waiting: "Waiting",
  cancelling: "Undoing",
  completed: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
  dead: "Given up",
};

export const TERMINAL = ["completed", "failed", "cancelled", "dead"];
export const ACTIVE = ["pending", "running", "waiting", "cancelling"];

/** @param {string | null | undefined} status */
export const isTerminal = (status) => TERMINAL.includes(status ?? "");

/**
 * How much of a run is done, in percent; undefined where its end is not known. Only a run that completed has done it all.
 *
 * @param {Run | null} run
 * @returns {number | undefined}
 */
export function percentage(run) {
  if (run?.status === "completed") return 100;
  const { current = 0, total = null } = run?.progress ?? {};
  if (!total) return undefined;
  return Math.floor(Math.min(99, Math.max(0, (100 * current) / total)));
}

/** Such as "Running, 38 %: lines 1 to 500". @param {Run | null} run */
export function sentence(run) {
  if (!run) return "";
  const status = STATUS_WORDS[run.status] ?? run.status;
  if (run.error) return visible(`${status}: ${run.error.message}`);
  const percent = percentage(run);
  const share = isTerminal(run.status) || percent === undefined ? "" : `, ${percent} %`;
  const message = run.progress?.message;
  return visible(message ? `${status}${share}: ${message}` : status + share);
}

/** Such as "warning: disk almost full free=3". @param {import("../durable-bindings.js").Line} line */
export function lineText({ level, message, fields }) {
  const kind = level === "info" ? "" : `${level}: `;
  return visible(kind + message + fieldsText(fields));
}

/** @param {Record<string, any> | undefined} fields */
export function fieldsText(fields) {
  const pairs = Object.entries(fields ?? {}).map(
    ([name, value]) => ` ${name}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
  return pairs.join("");
}

/** What `visible` replaces. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/;

/**
 * Text in which nothing is hidden: control characters as pictures, and what would turn the order of the text around as its
 * number. Line ends and tabs stay.
 *
 * @param {string} text
 */
export function visible(text) {
  if (!HIDDEN.test(text)) return text;
  return text
    .replace(/\r\n/g, "\n")
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (found) => String.fromCharCode(0x2400 + found.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421")
    .replace(/[\u0080-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (found) => `[U+${hexadecimal(found)}]`);
}

/** @param {string} character */
const hexadecimal = (character) => character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");

/** Seconds, for a person. @param {number} seconds */
export function durationText(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return `${minutes} min ${Math.floor(seconds - 60 * minutes)} s`;
}

const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hour12: false });

/** When it was, in the person's own time zone and language. @param {number} milliseconds since 1970 */
export const momentText = (milliseconds) => moments.format(milliseconds);

/** The time of day. @param {number} milliseconds since 1970 */
export const clockText = (milliseconds) => clock.format(milliseconds);

/** Such as "1 step" or "2,000 steps". @param {number} amount @param {string} one */
export const countText = (amount, one) => `${amount.toLocaleString("en")} ${one}${amount === 1 ? "" : "s"}`;
