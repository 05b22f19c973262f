/**
 * The peer: `@coji/durably` on SQLocal, with the same jobs as jobs.py. Bundled by build_scripts/bench.py, and served with
 * the headers for cross-origin isolation, without which SQLocal keeps nothing.
 *
 *     await peer.open("steps", { pollingIntervalMs: 50 });
 *     const milliseconds = await peer.steps(500);
 *     await peer.close();
 */
import { createDurably, defineJob } from "@coji/durably";
import { SQLocalKysely } from "sqlocal/kysely";
import { z } from "zod";

const counted = z.object({ count: z.number() });

/** The same as `steps` in jobs.py. */
const steps = defineJob({
  name: "steps",
  input: counted,
  output: z.number(),
  run: async (step, { count }) => {
    let total = 0;
    for (let number = 0; number < count; number += 1) total += await step.run(`step ${number}`, () => number);
    return total;
  },
});

/** Makes its steps, and then waits for the tab to die; when it is executed again, tells how long they took to replay. */
const replayed = defineJob({
  name: "replayed",
  input: counted,
  run: async (step, { count }) => {
    const began = performance.now();
    let calls = 0;
    for (let number = 0; number < count; number += 1) {
      await step.run(`step ${number}`, () => {
        calls += 1;
        return number;
      });
      globalThis.done = number + 1;
    }
    globalThis.replay = { milliseconds: performance.now() - began, calls };
    await new Promise(() => {});
  },
});

/** @type {any} */
let durably;

/** Where SQLocal keeps its rollback journal by default: the `opfs` file system of the official build. */
const TUNED = ["PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"];

globalThis.peer = {
  /** @param {string} name of the database @param {object} options of createDurably @param {boolean} tuned whether to use a write-ahead log */
  async open(name, options, tuned = false) {
    const processor = new Worker(new URL("./sqlocal-worker.js", import.meta.url), { type: "module" });
    const { dialect } = new SQLocalKysely({
      databasePath: `${name}.sqlite3`,
      processor,
      onInit: (sql) => (tuned ? TUNED.map((text) => sql([text])) : []),
    });
    durably = createDurably({ dialect, preserveSteps: true, ...options, jobs: { steps, replayed } });
    await durably.init();
  },

  async close() {
    await durably.stop();
    await durably.db.destroy();
  },

  /** One run of so many steps: milliseconds from trigger to completed. */
  async steps(count) {
    const began = performance.now();
    await durably.jobs.steps.triggerAndWait({ count });
    return performance.now() - began;
  },

  /** So many runs of one step each: milliseconds from the first trigger to the last one completed. */
  async runs(count, stepsEach = 1) {
    const began = performance.now();
    let unfinished = count;
    await new Promise((resolve) => {
      const off = durably.on("run:complete", () => {
        unfinished -= 1;
        if (!unfinished) resolve(off());
      });
      void (async () => {
        for (let number = 0; number < count; number += 1) await durably.jobs.steps.trigger({ count: stepsEach });
      })();
    });
    return performance.now() - began;
  },

  /** One one-step run after an idle time: milliseconds from the trigger to "completed". */
  async latency(idle) {
    await new Promise((resolve) => setTimeout(resolve, idle));
    return peer.steps(1);
  },

  /** Records steps, for `replay` on the next visit; resolves when they are all committed. */
  async record(count) {
    globalThis.done = 0;
    await durably.jobs.replayed.trigger({ count });
    while (globalThis.done < count) await new Promise((resolve) => setTimeout(resolve, 20));
  },

  /** After a reload: resolves with {milliseconds, calls} when the run that `record` left has been replayed. */
  async replay() {
    while (!globalThis.replay) await new Promise((resolve) => setTimeout(resolve, 20));
    return globalThis.replay;
  },
};
document.title = "loaded";
