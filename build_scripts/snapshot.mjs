// Starts Pyodide in Node.js, imports the engine, and writes down the memory before and after.
//
//     node snapshot.mjs <folder of Pyodide> <durable-web wheel> <path of the wheel inside> <folder for the results>
//
// Results: start-1.bin and start-2.bin, the memory of two modules in which Python has not started; python.bin, the memory
// after the imports; description.json. build_scripts/snapshot.py makes the snapshot out of them.
import { readFileSync, writeFileSync } from "node:fs";
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
  env: { PYTHONHASHSEED: "0" },
};

/** What the engine needs, and what jobs commonly import; then everything that is as it would be right after a start. */
const PREPARE = `
import gc, importlib, os, sys
sys.path.append(wheel_path)
import asyncio, csv, importlib.metadata, json, random, sqlite3, tempfile, urllib.parse, uuid
import durable_web.browser, durable_web.browser.fresh
importlib.resources.files("durable_web.store").joinpath("schema.sql").read_text("utf-8")  # what reading imports
importlib.invalidate_caches()
del os.environ["PYTHONHASHSEED"]
sys.path.remove("")  # loadPyodide puts it there when it restores, too
sys.path_importer_cache.clear()
gc.collect()
`;

/** The largest block, in bytes, that is taken from free memory at once to be emptied. */
const LARGEST_BLOCK = 1 << 20;

/** The memory of a module in which Python has not started. @param {number} size in bytes */
async function memoryAtStart(size) {
  let memory;
  const stop = new Error("stop");
  const createPyodideModule = async (settings) => {
    Object.assign(settings, { noInitialRun: true, INITIAL_MEMORY: size });
    memory = (await factory(settings)).HEAPU8.slice();
    throw stop;
  };
  await loadPyodide({ ...options, createPyodideModule }).catch((error) => {
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

const pyodide = await loadPyodide(options);
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
  hiwire,
};
writeFileSync(join(results, "python.bin"), memory);
for (const number of [1, 2]) writeFileSync(join(results, `start-${number}.bin`), await memoryAtStart(memory.length));
writeFileSync(join(results, "description.json"), JSON.stringify(description));
process.exit(0);
