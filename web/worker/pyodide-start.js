// @ts-check
/**
 * Starts Pyodide from this site's own files, with durable-web installed: from the memory snapshot where it fits, else
 * plainly, which takes four times as long.
 *
 *     const { pyodide, start, reason } = await startPython({ snapshot: true, report: (phase, detail) => {} });
 */
import { MemorySnapshot } from "./memory-snapshot.js";
import { withDurableSync } from "./opfs-filesystem.js";

const PYODIDE = new URL("../vendor/pyodide/", import.meta.url).href;
const SNAPSHOT = `${PYODIDE}snapshot.bin.gz`;
/** Milliseconds between two reports of what has been loaded. */
const REPORT_INTERVAL = 100;

/** @typedef {import("./memory-snapshot.js").Factory} Factory */
/** @typedef {(phase: "pyodide" | "packages", detail?: {loaded: number, total?: number}) => void} Report sizes in bytes */
/** @typedef {{pyodide: any, start: "snapshot" | "plain", reason?: string}} Started `reason` is why it was a plain start */

/**
 * @param {{snapshot?: boolean, report: Report}} options without `snapshot` it is a plain start
 * @returns {Promise<Started>}
 * @throws {Error} whose code is PythonUnavailableError
 */
export async function startPython({ snapshot = true, report }) {
  let reason = "the options ask for it";
  if (snapshot) {
    try {
      return { pyodide: await restore(report), start: "snapshot" };
    } catch (/** @type {any} */ error) {
      reason = `the snapshot could not be used: ${(error?.cause ?? error).message}`;
    }
  }
  const pyodide = await load(new Downloads(report), withDurableSync);
  report("packages");
  await install(pyodide, ["durable-web"]);
  return { pyodide, start: "plain", reason };
}

/** @param {Report} report */
async function restore(report) {
  const downloads = new Downloads(report);
  const opening = MemorySnapshot.open(SNAPSHOT, (loaded, total) => downloads.note("snapshot", loaded, total));
  opening.catch(() => {}); // told below
  const pyodide = await load(
    downloads,
    (factory, compiling) => async (settings) => (await opening).restoredBy(withDurableSync(factory), compiling)(settings),
    { _loadSnapshot: Promise.resolve(new Uint8Array(1)) }, // asks for a restoration; the bytes come from `restoredBy`
  );
  renewTimeZone(pyodide._module);
  pyodide.pyimport("durable_web._browser.fresh").renew(navigator.language);
  return pyodide;
}

/** The browser's time zone, for C: its own `tzset` does this once, and has done it before the snapshot. @param {any} module */
function renewTimeZone(module) {
  const [standard, summer] = module.HEAPU32.subarray(module.___tzname / 4);
  module.__tzset_js(module.___timezone, module.___daylight, standard, summer);
}

/**
 * Pyodide only warns when its WebAssembly cannot be instantiated, and then waits for ever; so we look on.
 *
 * @param {Downloads} downloads
 * @param {(factory: Factory, compiling: Promise<void>) => Factory} wrap `compiling` resolves when the browser compiles
 * @param {object} [options] more for loadPyodide
 */
async function load(downloads, wrap, options) {
  const { instantiateStreaming } = WebAssembly;
  try {
    const importing = import(`${PYODIDE}pyodide.asm.mjs`);
    importing.catch(() => {}); // told by createPyodideModule
    const { loadPyodide } = await import(`${PYODIDE}pyodide.mjs`);
    let begin = () => {};
    const compiling = /** @type {Promise<void>} */ (new Promise((resolve) => (begin = resolve)));
    const refused = new Promise((_, reject) => {
      WebAssembly.instantiateStreaming = (source, imports) => {
        begin();
        void downloads.follow("wasm", source);
        const instantiating = instantiateStreaming(source, imports);
        instantiating.then(() => downloads.complete("wasm"), reject);
        return instantiating;
      };
    });
    /** @type {Factory} */
    const createPyodideModule = async (settings) => wrap((await importing).default, compiling)(settings);
    return await Promise.race([loadPyodide({ indexURL: PYODIDE, createPyodideModule, ...options }), refused]);
  } catch (error) {
    throw notLoaded("Python", error);
  } finally {
    WebAssembly.instantiateStreaming = instantiateStreaming;
  }
}

/**
 * Installs packages whose wheels pyodide-lock.json names. Pyodide only complains when one cannot be had.
 *
 * @param {any} pyodide
 * @param {string[]} names
 */
async function install(pyodide, names) {
  /** @type {string[]} */
  const complaints = [];
  const errorCallback = (/** @type {string} */ text) => complaints.push(text);
  await pyodide.loadPackage(names, { messageCallback: () => {}, errorCallback });
  if (complaints.length) throw notLoaded(`The package ${names.join(" and ")}`, complaints.join("\n"));
}

/** @param {string} what @param {any} reason */
function notLoaded(what, reason) {
  const message = `${what} could not be loaded from ${PYODIDE}: ${reason?.message ?? reason}`;
  return Object.assign(new Error(message, { cause: reason }), { code: "PythonUnavailableError" });
}

/**
 * How much of the large files has come. The WebAssembly counts when all of it is there: reading along would keep the
 * browser from storing the compiled code.
 */
class Downloads {
  /** @type {Map<string, {loaded: number, total: number}>} */
  #files = new Map();
  #report;
  #reported = 0;

  /** @param {Report} report */
  constructor(report) {
    this.#report = report;
  }

  /** @param {string} name @param {number} loaded @param {number} [total] */
  note(name, loaded, total = loaded) {
    this.#files.set(name, { loaded, total });
    const isEarly = performance.now() - this.#reported < REPORT_INTERVAL;
    if (isEarly && loaded < total) return;
    this.#reported = performance.now();
    const sum = { loaded: 0, total: 0 };
    for (const file of this.#files.values()) {
      sum.loaded += file.loaded;
      sum.total += file.total;
    }
    this.#report("pyodide", sum);
  }

  /** @param {string} name @param {Response | PromiseLike<Response>} source */
  async follow(name, source) {
    try {
      const size = Number((await source).headers.get("Content-Length"));
      if (size && !this.#files.has(name)) this.note(name, 0, size);
    } catch {} // reported where it is loaded
  }

  /** @param {string} name */
  complete(name) {
    const file = this.#files.get(name);
    if (file) this.note(name, file.total, file.total);
  }
}

/** How a function of Python's is called in a turn of its own, so that it may wait for promises where the browser can. */
export function turnsOf(/** @type {any} */ { _module, _api }) {
  if (!_module.jspiSupported) return (/** @type {any} */ take) => _api.scheduleCallback(take, 0);
  return (/** @type {any} */ take) => void take.callPromising(); // which asks for the turn
}

/**
 * Calls a function when the tasks were executed that are queued now, messages of the pages above all. A timer does this; but
 * one that is set in the task of another timer is held back for 4 ms, so it is set in the task of a message.
 *
 * @param {() => void} done
 */
export function giveWay(done) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    setTimeout(done, 0);
  };
  port2.postMessage(null);
}
