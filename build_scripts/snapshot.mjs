// Starts Pyodide in Node.js, imports the engine, and writes down the memory before and after.
//
//     node snapshot.mjs <folder of Pyodide> <durable-web wheel> <path of the wheel inside> <folder for the results>
//
// Results: python.bin, the memory after the imports; start-1.bin, the memory of a module in which Python has not started;
// start-2.bin, the same at another time, with other random numbers, in another environment; description.json.
// build_scripts/snapshot.py makes the snapshot out of them.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, wheel, wheelPath, results] = process.argv.slice(2);
const indexURL = resolve(folder) + "/";
const { loadPyodide } = await import(pathToFileURL(join(indexURL, "pyodide.mjs")).href);
const { default: factory } = await import(pathToFileURL(join(indexURL, "pyodide.asm.mjs")).href);

const options = {
  indexURL,
  _makeSnapshot: true,
  _sysExecutable: "./this.program", // what it is in a browser, and no path of this machine
  env: { PYTHONHASHSEED: "0", LANG: "C.UTF-8" },
};

// Chance, time and place are held still: the same files make the same snapshot, and what differs between two starts has
// its reason. Whatever is made of them is renewed when a snapshot is restored (durable_web/_browser/fresh.py).
let seed = 1;
createRequire(import.meta.url)("node:crypto").randomFillSync = (view) => {
  view.forEach((_, index) => (view[index] = (seed * 151 + index * 89) % 256));
  return view;
};
Date.now = () => Date.UTC(2026, 0, seed);
performance.now = () => seed;
process.env.TZ = "UTC";

/** Shows Pyodide a WebAssembly that can suspend Python, or one that cannot: both are common. @param {boolean} isOffered */
function offerStackSwitching(isOffered) {
  delete WebAssembly.Suspender;
  delete WebAssembly.Suspending;
  delete WebAssembly.promising;
  if (!isOffered) return;
  WebAssembly.Suspending = function (method) {
    return method;
  };
  WebAssembly.promising = (method) => method;
}

/** What the engine needs, and what jobs commonly import; then everything that is as it would be right after a start. */
const PREPARE = `
import gc, importlib, os, sys
sys.path.append(wheel_path)
import asyncio, csv, importlib.metadata, json, random, sqlite3, tempfile, urllib.parse, uuid
import durable_web._browser, durable_web._browser.fresh
importlib.resources.files("durable_web._store").joinpath("schema.sql").read_text("utf-8")  # what reading imports
importlib.invalidate_caches()
del os.environ["PYTHONHASHSEED"]
sys.path.remove("")  # loadPyodide puts it there when it restores, too
sys.path_importer_cache.clear()
gc.collect()
`;

/** The largest block, in bytes, that is taken from free memory at once to be emptied. */
const LARGEST_BLOCK = 1 << 20;

/** The memory of a module in which Python has not started. @param {number} size in bytes @param {object} [other] options */
async function memoryAtStart(size, other) {
  let memory;
  const stop = new Error("stop");
  const createPyodideModule = async (settings) => {
    Object.assign(settings, { noInitialRun: true, INITIAL_MEMORY: size });
    memory = (await factory(settings)).HEAPU8.slice();
    throw stop;
  };
  await loadPyodide({ ...options, ...other, createPyodideModule }).catch((error) => {
    if (error !== stop) throw error;
  });
  return memory;
}

/** Overwrites with zeros what was freed: it need not be shipped. */
function emptyFreeMemory(module) {
  const top = () => module._sbrk(0);
  const blocks = [];
  for (let size = LARGEST_BLOCK; size >= 16; size = size > 4096 ? size / 2 : size - 16) {
    for (let before = top(); top() === before && before + size < module.HEAPU8.length;) {
      const block = module._malloc(size);
      module.HEAPU8.fill(0, block, block + size);
      blocks.push(block);
    }
  }
  blocks.forEach((block) => module._free(block));
}

/** What Pyodide's own start writes elsewhere where it can suspend Python: pairs of a word's number and its value. */
async function changesForStackSwitching(without) {
  offerStackSwitching(true);
  const started = await loadPyodide(options);
  const memory = new Uint32Array(started._module.HEAPU8.slice().buffer);
  offerStackSwitching(false);
  const changes = [];
  memory.forEach((word, index) => word !== without[index] && changes.push([index, word]));
  return changes;
}

offerStackSwitching(false);
const pyodide = await loadPyodide(options);
const started = new Uint32Array(pyodide._module.HEAPU8.slice().buffer);
pyodide.FS.writeFile(wheelPath, readFileSync(wheel));
const locals = pyodide.toPy({ wheel_path: wheelPath });
pyodide.runPython(PREPARE, { globals: locals });
locals.destroy();
emptyFreeMemory(pyodide._module);

const hiwire = pyodide._api.serializeHiwireState((object) => {
  throw new Error(`The snapshot would hold a JavaScript object: ${object}`);
});
const memory = pyodide._module.HEAPU8;
const description = {
  buildId: pyodide._api.config.BUILD_ID,
  memorySize: memory.length,
  tableSize: pyodide._module.wasmTable.length,
  stackSwitching: await changesForStackSwitching(started),
  hiwire,
};
writeFileSync(join(results, "python.bin"), memory);
writeFileSync(join(results, "start-1.bin"), await memoryAtStart(memory.length));
seed = 2;
const elsewhere = { _sysExecutable: "./another.program", env: { ...options.env, LANG: "x".repeat(1000) } };
writeFileSync(join(results, "start-2.bin"), await memoryAtStart(memory.length, elsewhere));
writeFileSync(join(results, "description.json"), JSON.stringify(description));
process.exit(0);
