// @ts-check
/**
 * What `durable_page.py` needs of JavaScript. Values cross between the page's Python and the client as JSON text: that is the one form that
 * Pyodide and MicroPython read alike, and at full speed. What has no form in JSON, such as a client or a Blob, is handed to a callback.
 *
 * Every promise made here is awaited by Python and never given back to JavaScript: Pyodide turns it into a Future, and crashes when that is
 * passed on.
 */
import { actions, job, logs, run, runs } from "./durable-bindings.js";
import { DurableError, connect as connectClient } from "./durable-web.js";

/** @typedef {import("./durable-web.js").Durable} Durable */

/**
 * @param {string} name
 * @param {string} options JSON
 * @param {(detail: string) => void} onstatus is given JSON
 * @param {(client: Durable) => void} take
 */
export function connect(name, options, onstatus, take) {
  const listener = (/** @type {object} */ detail) => onstatus(JSON.stringify(detail));
  return outcome(connectClient(name, { ...JSON.parse(options), onstatus: listener }).then(take));
}

/** @param {Durable} durable */
export function whenReady(durable) {
  return outcome(durable.ready.then(() => null));
}

/** @param {Durable} durable @param {Blob} blob @param {string | null} [name] */
export function putFile(durable, blob, name) {
  return outcome(durable.files.put(blob, name ?? undefined));
}

/** @param {Durable} durable @param {string} name @param {(blob: Blob) => void} take */
export function getFile(durable, name, take) {
  return outcome(durable.files.get(name).then(take));
}

/** @param {{nextBatch: () => Promise<object[]>}} watch */
export function nextBatch(watch) {
  return outcome(watch.nextBatch());
}

/**
 * What a promise came to, as JSON text: `{"result": ...}` or `{"error": {"code", "message", ...}}`. It never rejects.
 *
 * @param {Promise<any>} promise
 */
async function outcome(promise) {
  try {
    return JSON.stringify({ result: (await promise) ?? null });
  } catch (error) {
    return JSON.stringify({ error: describe(error) });
  }
}

/** @param {unknown} error */
function describe(error) {
  if (!(error instanceof DurableError)) return { code: "Error", message: String(error) };
  const { code, message, traceback } = error;
  return { code, message, traceback };
}

/** @param {any} durable @param {string} method "trigger" or "runs.get" ... @param {string} parameters a JSON array */
export function call(durable, method, parameters) {
  const path = method.split(".");
  const last = /** @type {string} */ (path.pop());
  const owner = path.reduce((object, name) => object[name], durable);
  return outcome((async () => owner[last](...JSON.parse(parameters)))());
}

/** @param {Durable} durable @param {string} name @param {string} options JSON */
export const bindJob = (durable, name, options) => job(durable, name, JSON.parse(options));
/** @param {Durable} durable @param {string} id @param {string} options JSON */
export const bindRun = (durable, id, options) => run(durable, id, JSON.parse(options));
/** @param {Durable} durable @param {string} id @param {string} options JSON */
export const bindLogs = (durable, id, options) => logs(durable, id, JSON.parse(options));
/** @param {Durable} durable @param {string} options JSON */
export const bindRuns = (durable, options) => runs(durable, JSON.parse(options));
/** @param {Durable} durable */
export const bindActions = (durable) => actions(durable);

/** What a binding shows now, but for its log lines and steps, which are many. @param {any} binding @returns {string} JSON */
export function stateOf(binding) {
  const {
    run = null,
    runId = null,
    percentage = null,
    stepCount,
    interruptions,
    droppedLogs,
    items,
    page,
    hasMore,
    hasPrevious,
  } = binding;
  const { isBusy, isHydrated } = binding;
  const [problem, error] = [binding.problem, binding.error].map((found) => found && describe(found));
  return JSON.stringify({
    ...{
      run,
      runId,
      percentage,
      stepCount,
      interruptions,
      droppedLogs,
      items,
      page,
      hasMore,
      hasPrevious,
      isBusy,
      isHydrated,
      problem,
      error,
    },
  });
}

/**
 * The log lines of a binding that are new to Python, and how many are kept in all.
 *
 * @param {{runId: string | null, logs: readonly import("./client/watch.js").Frame[]}} binding
 * @param {string} known JSON: the run and the number of the last line that Python has
 * @returns {string} JSON
 */
export function linesOf({ runId, logs }, known) {
  const [knownRunId, seq] = JSON.parse(known);
  const lines = runId === knownRunId ? logs.filter((line) => line.seq > seq) : logs;
  return JSON.stringify({ runId, lines, kept: logs.length });
}

/** @param {{steps: readonly object[]}} binding @returns {string} JSON */
export const stepsOf = ({ steps }) => JSON.stringify(steps);

/** @param {{published: object}} binding @returns {string} JSON */
export const publishedOf = ({ published }) => JSON.stringify(published);

/** Lets the person save a file. @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
