/** Pyodide on the engine's own storage, for what is measured without a page: workbench.py, called by name. */
import { mountStorage, withDurableSync } from "../worker/opfs-filesystem.js";
import { MOUNT_POINT, OpfsStorage } from "../worker/opfs-storage.js";
import { giveWay, turnsOf } from "../worker/pyodide-start.js";

const PYODIDE = new URL("../vendor/pyodide/", import.meta.url).href;

/** @type {any} */
let pyodide;
/** @type {any} */
let workbench;
/** @type {OpfsStorage} */
let storage;

async function open({ name }) {
  storage = await OpfsStorage.open(name);
  const [{ loadPyodide }, { default: factory }] = await Promise.all([import(`${PYODIDE}pyodide.mjs`), import(`${PYODIDE}pyodide.asm.mjs`)]);
  pyodide = await loadPyodide({ indexURL: PYODIDE, createPyodideModule: withDurableSync(factory) });
  mountStorage(pyodide, storage);
  await pyodide.loadPackage("durable-web", { messageCallback: () => {} });
  for (const module of ["history.py", "jobs.py", "profiling.py", "workbench.py"]) {
    const response = await fetch(new URL(module, import.meta.url));
    pyodide.FS.writeFile(module, await response.text());
  }
  workbench = pyodide.pyimport("workbench");
  pyodide.pyimport("durable_web._browser.turns").share_turns(turnsOf(pyodide), giveWay); // as the engine's own worker does
}

self.onmessage = async ({ data: { id, method, params } }) => {
  try {
    if (method === "open") await open(params);
    if (method === "close") storage.close();
    const result = ["open", "close"].includes(method) ? null : await workbench.call(method, JSON.stringify({ folder: MOUNT_POINT, ...params }));
    postMessage({ id, result: typeof result === "string" ? JSON.parse(result) : null });
  } catch (error) {
    postMessage({ id, error: String(error?.stack ?? error) });
  }
};
