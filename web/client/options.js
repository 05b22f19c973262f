// @ts-check
/**
 * The options of `connect()`, checked in the page's own spelling before anything is started.
 */
import { PROTOCOL, failure } from "./connection.js";

/** @typedef {import("./connection.js").Start} Start */
/** @typedef {import("../durable-web.js").Options} Options */
/** @typedef {import("../durable-web.js").StatusDetail} StatusDetail */

const NAME = /^(?!\.+$)[A-Za-z0-9._-]{1,64}$/;
const DURABILITIES = ["full", "normal"];
/** Edits by which a misspelt option may differ from the one that was meant. */
const MOST_EDITS = 3;

/** What is right for each option; what is left out or undefined is not checked. @type {Record<string, [(value: any) => boolean, string]>} */
const RULES = {
  jobs: [isListOfAddresses, 'a list of addresses, such as ["./jobs.py"]'],
  durability: [(value) => DURABILITIES.includes(value), '"full" or "normal"'],
  snapshot: [(value) => typeof value === "boolean", "true or false"],
  maxRecoveries: [(value) => Number.isInteger(value) && value >= 0, "a whole number of at least 0"],
  onstatus: [(value) => typeof value === "function", "a function"],
  signal: [(value) => value instanceof AbortSignal, "an AbortSignal"],
};

/**
 * What the engine is to be started with. Where the page gave no jobs, `jobs` is null, and `durability` unless it is given:
 * the page takes those of the tab that runs the database.
 *
 * @param {unknown} name @param {unknown} options as given to `connect`
 * @returns {Start}
 * @throws {import("./connection.js").DurableError} InvalidNameError or InvalidOptionError, naming what is wrong
 */
export function startOf(name, options) {
  if (typeof name !== "string" || !NAME.test(name)) {
    throw failure(
      "InvalidNameError",
      `A database cannot be called ${shown(name)}: ` +
        "use 1 to 64 letters, digits, dots, hyphens and underscores, and not only dots.",
    );
  }
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw invalid(`connect(name, options): options is an object such as { jobs: ["./jobs.py"] }, not ${shown(options)}.`);
  }
  for (const [option, value] of Object.entries(options)) {
    const rule = Object.hasOwn(RULES, option) ? RULES[option] : undefined;
    if (!rule) throw invalid(`connect() has no option ${JSON.stringify(option)}${suggestion(option, Object.keys(RULES))}.`);
    if (value !== undefined && !rule[0](value)) throw invalid(`${option} is ${rule[1]}, not ${shown(value)}.`);
  }
  const { jobs, durability, snapshot = true, maxRecoveries = 5 } = /** @type {Options} */ (options);
  return {
    type: "start",
    name,
    jobs: jobs ? jobs.map(addressOf) : null,
    options: { durability: durability ?? (jobs ? "full" : null), snapshot, maxRecoveries },
    protocol: PROTOCOL,
  };
}

/** @param {unknown} value */
function isListOfAddresses(value) {
  return Array.isArray(value) && value.every((each) => typeof each === "string" || each instanceof URL);
}

/** @param {string | URL} address relative to the page */
function addressOf(address) {
  try {
    return new URL(address, document.baseURI).href;
  } catch {
    throw invalid(`jobs is a list of addresses, and ${shown(address)} is none.`);
  }
}

/** Such as `. Did you mean "maxRecoveries"?`, without its last mark. @param {string} given @param {string[]} known */
function suggestion(given, known) {
  const plain = (/** @type {string} */ text) => text.replace(/[_-]/g, "").toLowerCase();
  const [[edits, nearest]] = known
    .map((each) => /** @type {const} */ ([distance(plain(given), plain(each)), each]))
    .sort(([one], [other]) => one - other);
  return edits <= MOST_EDITS ? `; did you mean ${JSON.stringify(nearest)}?` : `; it has ${known.join(", ")}`;
}

/** How many letters have to be put in, taken out or replaced (Levenshtein). @param {string} from @param {string} to */
function distance(from, to) {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (const [index, letter] of [...from].entries()) {
    const next = [index + 1];
    for (let place = 0; place < to.length; place++) {
      const replaced = row[place] + (letter === to[place] ? 0 : 1);
      next.push(Math.min(replaced, row[place + 1] + 1, next[place] + 1));
    }
    row = next;
  }
  return row[to.length];
}

/** @param {unknown} value */
function shown(value) {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "function") return "a function";
  if (typeof value !== "object" || value === null) return String(value);
  return Array.isArray(value) ? "a list" : `an instance of ${value.constructor?.name ?? "a class"}`;
}

/** @param {string} message */
const invalid = (message) => failure("InvalidOptionError", message.replace(/\?\.$/, "?"));
