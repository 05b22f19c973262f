/** The references: raw commits in Pyodide and in the official SQLite build, and messages over a bare port. */
import { caller } from "./worker-call.js";

const now = () => performance.timeOrigin + performance.now();
const pause = (/** @type {number} */ milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** @type {Record<string, ReturnType<typeof caller>>} */
const workers = {};

globalThis.workbench = {
  /** Calls a method of a worker, which is started when it is called for the first time. */
  call(name, url, method, params) {
    workers[name] ??= caller(url);
    return workers[name].call(method, params);
  },

  end(name) {
    workers[name]?.worker.terminate();
    delete workers[name];
  },

  /** There and back over a bare port: milliseconds. */
  async roundTrip() {
    workers.port ??= caller("./port-worker.js");
    await pause(20);
    const began = performance.now();
    await workers.port.call("echo", { text: "x".repeat(200) });
    return performance.now() - began;
  },

  /** Bare messages that carry what a frame does, with a pause after each: milliseconds from sending to the handler. */
  async messages(count, pauseMilliseconds) {
    workers.port ??= caller("./port-worker.js");
    const { worker, call } = workers.port;
    /** @type {number[]} */
    const latencies = [];
    const hear = ({ data }) => {
      if (typeof data === "string") latencies.push(now() - JSON.parse(data).sent);
    };
    worker.addEventListener("message", hear);
    await call("messages", { count, pause: pauseMilliseconds });
    worker.removeEventListener("message", hear);
    return latencies;
  },

  /** The same objects over a bare port, in batches: milliseconds. */
  async batches(frames, batch) {
    workers.port ??= caller("./port-worker.js");
    const { worker, call } = workers.port;
    await call("keep", { frames });
    let arrived = 0;
    const hear = ({ data }) => {
      if (Array.isArray(data)) for (const frame of data) arrived += frame.seq > 0 ? 1 : 0;
    };
    worker.addEventListener("message", hear);
    const began = performance.now();
    await call("batches", { batch });
    const milliseconds = performance.now() - began;
    worker.removeEventListener("message", hear);
    if (arrived !== frames.length) throw new Error(`${arrived} of ${frames.length} frames arrived`);
    return milliseconds;
  },
};
document.title = "loaded";
