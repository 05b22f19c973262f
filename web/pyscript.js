// @ts-check
/**
 * PyScript for pages whose Content-Security-Policy forbids evaluating text as code. Load this instead of PyScript's `core.js`:
 *
 *     <script type="module" src="./pyscript.js"></script>
 *
 * PyScript prepares its workers with one hook of its own, which it turns into text and evaluates, on every page, also where there is no
 * such worker. Without the hook, `script-src 'self' 'wasm-unsafe-eval'` is enough for Pyodide and for MicroPython on the page itself.
 */
import { hooks } from "./vendor/pyscript/core.js";

hooks.worker.onBeforeRunAsync.clear();
