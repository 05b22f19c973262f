// @ts-check
/**
 * The worker that hosts the engine: starts Python, mounts the database's storage, starts `durable_web.browser` and passes
 * messages between it and the page. The page's side is `durable-web.js`.
 *
 *     page → worker   first {type: "start", name, jobs, options}; when it is ready {type: "request" | "watch" | "unwatch",
 *                     id, ...}; at last {type: "stop"}
 *     worker → page   first {type: "boot", phase, ...detail} several times; then {type: "ready"} or {type: "failed", error};
 *                     then {type: "response" | "frames" | "end", id, ...} and {type: "engine", state, message}; at any
 *                     time {type: "error", error}; at last {type: "stopped"}
 *
 * Python's own messages arrive as JSON text. An error on the way is always `{code, message, traceback}`.
 */
import { mountStorage } from "./opfs-filesystem.js";
import { MOUNT_POINT, OpfsStorage } from "./opfs-storage.js";
import { startPython } from "./pyodide-start.js";

/** @typedef {{storage: OpfsStorage, host: any, python: {start: string, reason?: string}}} Engine */

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
 * @param {{name: string, jobs: string[], options: {durability: string, snapshot?: boolean}}} message
 * @returns {Promise<Engine>}
 */
async function boot({ name, jobs, options: { snapshot, ...options } }) {
  const report = (/** @type {string} */ phase, /** @type {object} */ detail = {}) =>
    postMessage({ type: "boot", phase, ...detail });

  report("storage");
  opening = OpfsStorage.open(name);
  let isOpen = false;
  const sources = fetchAll(jobs);
  /** @type {Parameters<typeof report>} */
  let loaded = ["pyodide"];
  const starting = startPython({
    snapshot,
    report(...news) {
      loaded = news;
      if (isOpen) report(...news);
    },
  });
  starting.catch(() => {}); // the storage's error comes first
  const storage = await opening;
  isOpen = true;

  report(...loaded);
  const { pyodide, ...python } = await starting;
  mountStorage(pyodide, storage);
  pyodide.registerJsModule("durable_worker", { fetch: async (/** @type {string} */ url) => (await sources.get(url))?.clone() });

  report("jobs", python);
  const browser = pyodide.pyimport("durable_web.browser");
  const settings = { database: `${MOUNT_POINT}/database.sqlite3`, jobs, ...options };
  const files = {
    create: (/** @type {string} */ name) => storage.create(name),
    remove: (/** @type {string} */ name) => storage.remove(name),
  };
  const send = (/** @type {string} */ text) => postMessage(text);
  const host = await browser.start(send, JSON.stringify(settings), files);
  return { storage, host, python };
}

/** Asks for the job modules, while Python starts. @param {string[]} urls @returns {Map<string, Promise<Response>>} */
function fetchAll(urls) {
  const responses = new Map(urls.map((url) => [url, fetch(url, { cache: "no-cache" })]));
  for (const response of responses.values()) response.catch(() => {}); // told to Python, which awaits it
  return responses;
}

/** @param {any} message a request, watch or unwatch */
async function receive(message) {
  const engine = await /** @type {Promise<Engine>} */ (booting);
  if (!/^(files|debug)\./.test(message.method)) {
    await engine.host.receive(JSON.stringify(message));
    return;
  }
  const { id, method, params } = message;
  try {
    postMessage({ type: "response", id, result: await answer(engine, method, params) });
  } catch (error) {
    postMessage({ type: "response", id, error: described(error) });
  }
}

/** What is answered without Python. @param {Engine} engine @param {string} method @param {any} params */
function answer({ storage, python }, method, params) {
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
    case "debug.start":
      return python;
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
