// @ts-check
/**
 * The worker that hosts the engine: boots Pyodide from this site's own files, mounts the database's storage, starts
 * `durable_web.browser` and passes messages between it and the page. The page's side is `durable-web.js`.
 *
 *     page → worker   first {type: "start", name, jobs, options}; when it is ready {type: "request" | "watch" | "unwatch",
 *                     id, ...}; at last {type: "stop"}
 *     worker → page   first {type: "boot", phase} several times; then {type: "ready"} or {type: "failed", error}; then
 *                     {type: "response" | "frames" | "end", id, ...} and {type: "engine", state, message}; at any time
 *                     {type: "error", error}; at last {type: "stopped"}
 *
 * Python's own messages arrive as JSON text. An error on the way is always `{code, message, traceback}`.
 */
import { mountStorage, withDurableSync } from "./opfs-filesystem.js";
import { MOUNT_POINT, OpfsStorage } from "./opfs-storage.js";

const PYODIDE = new URL("./vendor/pyodide/", import.meta.url).href;

/** @typedef {{storage: OpfsStorage, host: any}} Engine */

/** @type {Promise<OpfsStorage> | undefined} */
let opening;
/** @type {Promise<Engine> | undefined} */
let booting;

self.onmessage = ({ data: message }) => {
  switch (message.type) {
    case "start":
      booting = boot(message);
      booting.then(
        () => postMessage({ type: "ready" }),
        (error) => end({ type: "failed", error: described(error) }),
      );
      break;
    case "stop":
      void stop();
      break;
    default:
      void receive(message);
  }
};

self.addEventListener("unhandledrejection", ({ reason }) => postMessage({ type: "error", error: described(reason) }));

/**
 * @param {{name: string, jobs: string[], options: {durability: string}}} message
 * @returns {Promise<Engine>}
 */
async function boot({ name, jobs, options }) {
  const report = (/** @type {string} */ phase) => postMessage({ type: "boot", phase });

  report("storage");
  opening = OpfsStorage.open(name);
  const loading = load();
  loading.catch(() => {}); // the storage's error comes first
  const storage = await opening;

  report("pyodide");
  const pyodide = await loading;
  mountStorage(pyodide, storage);

  report("packages");
  await install(pyodide, ["micropip", "durable-web"]);

  report("jobs");
  const browser = pyodide.pyimport("durable_web.browser");
  const settings = { database: `${MOUNT_POINT}/database.sqlite3`, jobs, ...options };
  const files = {
    create: (/** @type {string} */ name) => storage.create(name),
    remove: (/** @type {string} */ name) => storage.remove(name),
  };
  const send = (/** @type {string} */ text) => postMessage(text);
  const host = await browser.start(send, JSON.stringify(settings), files);
  return { storage, host };
}

/** Pyodide only warns when its WebAssembly cannot be instantiated, and then waits for ever; so we look on. */
async function load() {
  const { instantiateStreaming } = WebAssembly;
  try {
    const [{ loadPyodide }, { default: factory }] = await Promise.all([
      import(`${PYODIDE}pyodide.mjs`),
      import(`${PYODIDE}pyodide.asm.mjs`),
    ]);
    const refused = new Promise((_, reject) => {
      WebAssembly.instantiateStreaming = (source, imports) => {
        const instantiating = instantiateStreaming(source, imports);
        instantiating.catch(reject);
        return instantiating;
      };
    });
    return await Promise.race([
      loadPyodide({ indexURL: PYODIDE, createPyodideModule: withDurableSync(factory) }),
      refused,
    ]);
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
  if (complaints.length) throw notLoaded(`The packages ${names.join(" and ")}`, complaints.join("\n"));
}

/** @param {string} what @param {any} reason */
function notLoaded(what, reason) {
  const message = `${what} could not be loaded from ${PYODIDE}: ${reason?.message ?? reason}`;
  return Object.assign(new Error(message, { cause: reason }), { code: "PythonUnavailableError" });
}

/** @param {any} message a request, watch or unwatch */
async function receive(message) {
  const { storage, host } = await /** @type {Promise<Engine>} */ (booting);
  if (!/^(files|debug)\./.test(message.method)) {
    await host.receive(JSON.stringify(message));
    return;
  }
  const { id, method, params } = message;
  try {
    postMessage({ type: "response", id, result: await answer(storage, method, params) });
  } catch (error) {
    postMessage({ type: "response", id, error: described(error) });
  }
}

/** What is answered without Python. @param {OpfsStorage} storage @param {string} method @param {any} params */
function answer(storage, method, params) {
  switch (method) {
    case "files.put":
      return storage.put(params.name, params.blob);
    case "files.get":
      return { name: params.name, blob: storage.get(params.name) };
    case "files.list":
      return storage.list();
    case "files.delete":
      return storage.remove(params.name);
    case "debug.flushes":
      return storage.flushes();
    default:
      throw new TypeError(`There is no method ${method}.`);
  }
}

async function stop() {
  try {
    const engine = await booting;
    await engine?.host.stop();
  } catch (error) {
    postMessage({ type: "error", error: described(error) });
  }
  await end({ type: "stopped" });
}

/** Releases the files, then says the last word. @param {object} message */
async function end(message) {
  await opening?.then(
    (storage) => storage.close(),
    () => {},
  ); // one that could not be opened holds nothing
  postMessage(message);
}

/** @param {any} error @returns {{code: string, message: string, traceback?: string}} */
function described(error) {
  if (error?.name === "PythonError") {
    return { code: error.type, message: lastWords(error.type, error.message), traceback: error.message };
  }
  const isForeseen = typeof error?.code === "string";
  if (isForeseen) return { code: error.code, message: error.message };
  if (!(error instanceof Error)) return { code: "Error", message: String(error) };
  return { code: error.name, message: error.message, traceback: error.stack };
}

/** What follows the exception's name at the end of a traceback. @param {string} type @param {string} traceback */
function lastWords(type, traceback) {
  const parts = traceback.split(new RegExp(`^(?:[\\w.<>]+\\.)?${type}(?:: |$)`, "m"));
  return (parts.length > 1 ? parts[parts.length - 1] : traceback).trim();
}
