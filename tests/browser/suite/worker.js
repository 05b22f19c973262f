// Boots Pyodide as the engine's worker does, and runs the engine's tests in it, each with a database on OPFS.
import { mountStorage, withDurableSync } from "../../worker/opfs-filesystem.js";
import { OpfsStorage } from "../../worker/opfs-storage.js";

const PYODIDE = new URL("../../vendor/pyodide/", import.meta.url).href;

onmessage = async ({ data: packages }) => {
  try {
    const [{ loadPyodide }, { default: factory }] = await Promise.all([import(`${PYODIDE}pyodide.mjs`), import(`${PYODIDE}pyodide.asm.mjs`)]);
    const pyodide = await loadPyodide({ indexURL: PYODIDE, createPyodideModule: withDurableSync(factory) });
    await pyodide.loadPackage(["durable-web", "cronsim", "tzdata"], { messageCallback: () => {} });
    const archive = await fetch("suite.zip");
    pyodide.unpackArchive(await archive.arrayBuffer(), "zip", { extractDir: "/suite" });
    pyodide.registerJsModule("opfs_bridge", {
      open: (name) => OpfsStorage.open(name),
      mount: (storage, path) => mountStorage(pyodide, storage, path),
      unmount: (path) => pyodide.FS.unmount(path),
    });
    const report = await pyodide.runPythonAsync("import sys; sys.path[:0] = ['/suite', '/suite/packages']; import opfs_home; opfs_home.run_tests()");
    postMessage({ report });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
