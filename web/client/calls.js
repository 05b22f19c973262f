// @ts-check
/**
 * The calls that a client makes, by what they are about: runs, schedules and files.
 */
import { failure } from "./connection.js";

/** @typedef {(method: string, params: Record<string, any>) => Promise<any>} Call */
/** @typedef {import("../durable-web.js").Filter} Filter */
/** @typedef {import("../durable-web.js").FrameFilter} FrameFilter */
/** @typedef {import("../durable-web.js").FileInfo} FileInfo */
/** @typedef {(subject: import("./watch.js").Subject, from: number | null) => import("./watch.js").Watch} StartWatch */
/**
 * @typedef {{cron?: string, every?: number | string, timezone?: string, input?: unknown,
 *   overlap?: "skip" | "queue" | "allow", catchUp?: "none" | "latest" | "all", jitter?: number | string,
 *   labels?: Record<string, string>}} ScheduleOptions
 *   either `cron`, with a `timezone` such as "Europe/Berlin", or `every`; times are seconds, or texts such as "15m"
 */

const REPEATABLE = new Set([
  "runs.get",
  "runs.list",
  "runs.count",
  "runs.steps",
  "runs.logs",
  "runs.value",
  "files.get",
  "files.list",
  "files.delete",
  "engine.watches",
  "debug.flushes",
  "debug.start",
  "runs.pause",
  "runs.resume",
  "schedules.create",
  "schedules.list",
  "schedules.pause",
  "schedules.resume",
  "deliverWebhook",
]);
/** The calls that the engine knows again by an id that the caller gives. @type {Record<string, string>} */
const KNOWN_BY = {
  trigger: "idempotencyKey",
  triggerWithSignal: "idempotencyKey",
  publish: "eventId",
  "runs.signal": "signalId",
  "runs.update": "updateId",
};

/**
 * Whether a call that has no answer may be made again.
 *
 * @param {string} method
 * @param {Record<string, any>} params
 */
export const isRepeatable = (method, params) => REPEATABLE.has(method) || params[KNOWN_BY[method]] != null;

/** @param {Call} call @param {StartWatch} watch */
export const runCalls = (call, watch) => ({
  /** @param {string} id @returns {Promise<any>} */
  get: (id) => call("runs.get", { runId: id }),
  /** @param {Filter} [filter] @returns {Promise<any[]>} */
  list: (filter = {}) => call("runs.list", filter),
  /**
   * Cancels an active run, and the runs that it has started; with `compensate`, its completed steps are undone first.
   *
   * @param {string} id
   * @param {{compensate?: boolean}} [options]
   * @returns {Promise<any>}
   */
  cancel: (id, { compensate = false } = {}) => call("runs.cancel", { runId: id, compensate }),
  /** Lets a run start no further step until it is resumed. @param {string} id @returns {Promise<any>} */
  pause: (id) => call("runs.pause", { runId: id }),
  /** Lets a run go on that is paused, or stands at a breakpoint. @param {string} id @returns {Promise<any>} */
  resume: (id) => call("runs.resume", { runId: id }),
  /**
   * Sends a signal to a run; it is kept until the run waits for it.
   *
   * @param {string} id
   * @param {string} name
   * @param {unknown} [payload] a JSON value
   * @param {{signalId?: string}} [options] a second signal of one id is not delivered
   * @returns {Promise<boolean>} false when one of that id was delivered before
   */
  signal: (id, name, payload = null, { signalId } = {}) =>
    call("runs.signal", { runId: id, name, payload, signalId }),
  /**
   * Sends an update to a run, and waits for its answer.
   *
   * @param {string} id
   * @param {string} name
   * @param {unknown} [argument] a JSON value
   * @param {{updateId?: string, timeout?: number}} [options] a second update of one id is not sent, but answered as the
   *   first; `timeout` in seconds
   * @returns {Promise<any>}
   */
  update: (id, name, argument = null, { updateId, timeout } = {}) =>
    call("runs.update", { runId: id, name, argument, updateId, timeout }),
  /** How many runs there are for each "status" or "job". @param {string} [by] @returns {Promise<Record<string, number>>} */
  count: (by = "status") => call("runs.count", { by }),
  /** @param {string} id @returns {Promise<any[]>} */
  steps: (id) => call("runs.steps", { runId: id }),
  /**
   * The value that the run has published last under a key.
   *
   * @param {string} id
   * @param {string} key
   * @param {{default?: unknown}} [options] what to give when there is none; null if nothing is given
   * @returns {Promise<any>}
   */
  value: (id, key, { default: fallback = null } = {}) => call("runs.value", { runId: id, key, default: fallback }),
  /**
   * Lets a run that did not complete go on from its failed step.
   *
   * @param {string} id
   * @param {{input?: unknown}} [options] another `input`, a JSON value
   * @returns {Promise<any>}
   */
  retry: async (id, options = {}) => {
    const input = "input" in options ? { input: options.input ?? null } : {};
    return call("runs.retry", { runId: id, ...input });
  },
  /** Makes a new run with the same input and labels. @param {string} id @returns {Promise<any>} */
  retrigger: (id) => call("runs.retrigger", { runId: id }),
  /** Makes a new run that has the steps before the one named. @param {string} id @param {string} fromStep @returns {Promise<any>} */
  fork: (id, fromStep) => call("runs.fork", { runId: id, fromStep }),
  /** Deletes a run that has ended, and everything of it. @param {string} id @returns {Promise<void>} */
  delete: (id) => call("runs.delete", { runId: id }),
  /**
   * The frames of a run's timeline after the one numbered `from`, each exactly once: those that are there, then new
   * ones as they are committed. It ends by itself when the run has ended; leaving the loop unsubscribes.
   *
   * @param {string} id
   * @param {{from?: number}} [options]
   */
  watch: (id, { from = 0 } = {}) => watch({ runId: id }, from),
  /**
   * The frames of all runs in the order of their commits, each exactly once: those with an `id` above `from`, or those
   * from "now" on. It does not end by itself; leaving the loop unsubscribes.
   *
   * @param {{from?: number | "now"} & FrameFilter} [options] only frames of runs of these `jobs`, with these `labels`,
   *   and of these `kinds`
   */
  watchAll: ({ from = 0, ...filters } = {}) => watch({ filters }, from === "now" ? null : from),
  /**
   * A page of the lines that a run has written, oldest first.
   *
   * @param {string} id
   * @param {{from?: number, limit?: number, level?: "debug" | "info" | "warning" | "error"}} [options] `from` is the
   *   `seq` of the last line of the page before; at most `limit` lines (100, up to 1,000), at least as severe as `level`
   * @returns {Promise<any[]>}
   */
  logs: (id, { from = 0, limit, level } = {}) => call("runs.logs", { runId: id, fromSeq: from, limit, level }),
});

/** @param {Call} call */
export const scheduleCalls = (call) => ({
  /**
   * Triggers a job again and again, from now on; the same name again changes the schedule.
   *
   * @param {string} name
   * @param {string} job
   * @param {ScheduleOptions} options `catchUp`: what becomes of the times at which no tab was open
   * @returns {Promise<any>}
   */
  create: (name, job, options) => call("schedules.create", { ...options, name, job }),
  /** @returns {Promise<any[]>} */
  list: () => call("schedules.list", {}),
  /** @param {string} name @returns {Promise<any>} */
  pause: (name) => call("schedules.pause", { name }),
  /** @param {string} name @returns {Promise<any>} */
  resume: (name) => call("schedules.resume", { name }),
  /** Deletes a schedule; the runs that it has made stay. @param {string} name @returns {Promise<void>} */
  delete: (name) => call("schedules.delete", { name }),
});

/** @param {Call} call */
export const fileCalls = (call) => ({
  /**
   * Makes a file durable: resolves when every byte is on the disk. Its name is made unique.
   *
   * @param {Blob} blob
   * @param {string} [name] by default that of the File
   * @returns {Promise<FileInfo>}
   */
  put: async (blob, name = blob instanceof File ? blob.name : "file") => {
    if (!(blob instanceof Blob)) throw failure("TypeError", "files.put() takes a File or a Blob.");
    return call("files.put", { name, blob });
  },
  /** @param {string} name @returns {Promise<Blob>} */
  get: async (name) => (await call("files.get", { name })).blob,
  /** @returns {Promise<FileInfo[]>} */
  list: () => call("files.list", {}),
  /** @param {string} name @returns {Promise<void>} */
  delete: (name) => call("files.delete", { name }),
});

/**
 * Checks the parameters of a call. JSON.stringify would leave out a function, and turn NaN into null and a Date into text; but
 * nothing that a page gives is altered silently. A parameter that is undefined is not given.
 *
 * @param {Record<string, any>} params
 */
export function refuseWrongParameters(params) {
  for (const [name, value] of Object.entries(params))
    if (value !== undefined && !(value instanceof Blob)) refuseWhatIsNotJson(value, name);
}

/**
 * @param {unknown} value
 * @param {string} path
 * @param {unknown[]} ancestors
 */
function refuseWhatIsNotJson(value, path, ancestors = []) {
  if (value === null || typeof value === "string" || typeof value === "boolean" || Number.isFinite(value)) return;
  if (typeof value !== "object")
    throw notJson(path, typeof value === "number" || value === undefined ? String(value) : `a ${typeof value}`);
  if (ancestors.includes(value)) throw notJson(path, "an object that contains itself");
  if (!Array.isArray(value) && !isPlain(value))
    throw notJson(path, value instanceof Date ? DATE : `an instance of ${value.constructor?.name ?? "a class"}`);
  if (Object.getOwnPropertySymbols(value).length) throw notJson(path, "an object with a symbol for a key");
  const inner = [...ancestors, value];
  if (Array.isArray(value)) Array.from(value, (item, index) => refuseWhatIsNotJson(item, `${path}[${index}]`, inner));
  else for (const [key, item] of Object.entries(value)) refuseWhatIsNotJson(item, `${path}.${key}`, inner);
}

/** Also an object of another frame's. @param {object} value */
const isPlain = (value) =>
  [null, Object.prototype].includes(Object.getPrototypeOf(value)) ||
  Object.getPrototypeOf(Object.getPrototypeOf(value)) === null;

const DATE = "a Date (a time is given in milliseconds since 1970, as date.getTime() has it)";

/** @param {string} path @param {string} kind */
const notJson = (path, kind) =>
  failure(
    "SerializationError",
    `${path} is ${kind}, which JSON cannot hold. ` +
      "What is sent is made of objects, arrays, strings, finite numbers, booleans and null.",
  );
