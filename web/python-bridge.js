// @ts-check
/**
 * What `durable_page.py` needs of JavaScript. Values cross between the page's Python and the client as JSON text: that is the one form that
 * Pyodide and MicroPython read alike, and at full speed.
 */
import { DurableError, connect as connectClient } from "./durable-web.js";

/**
 * @param {string} name
 * @param {string} options JSON
 * @param {(detail: string) => void} onstatus is given JSON
 */
export function connect(name, options, onstatus) {
  return connectClient(name, { ...JSON.parse(options), onstatus: (detail) => onstatus(JSON.stringify(detail)) });
}

/**
 * What a promise came to, as JSON text: `{"result": ...}` or `{"error": {"code", "message", ...}}`. It never rejects.
 *
 * @param {Promise<any>} promise
 */
export async function outcome(promise) {
  try {
    return JSON.stringify({ result: (await promise) ?? null });
  } catch (error) {
    return JSON.stringify({ error: describe(error) });
  }
}

/**
 * Like `outcome`, for a result that has no form in JSON, such as a client or a Blob: the text tells only whether it worked.
 *
 * @param {Promise<any>} promise
 * @param {(result: any) => void} take
 */
export function take(promise, take) {
  return outcome(promise.then((result) => void take(result)));
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

/** Lets the person save a file. @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
