/**
 * The official SQLite WebAssembly build on its fastest file system, `opfs-sahpool`: raw single-row commits, the second
 * reference. Bundled by build_scripts/bench.py.
 */
import sqlite3InitModule from "@sqlite.org/sqlite-wasm";

/** @type {any} */
let database;
let version = "";

const methods = {
  async open({ name, synchronous }) {
    const sqlite3 = await sqlite3InitModule({ print: () => {}, printErr: () => {} });
    const pool = await sqlite3.installOpfsSAHPoolVfs({ name: `pool-${name}`, directory: `/sahpool-${name}` });
    database = new pool.OpfsSAHPoolDb(`/${name}.sqlite3`);
    database.exec("PRAGMA locking_mode = EXCLUSIVE");
    const mode = database.selectValue("PRAGMA journal_mode = WAL");
    database.exec(`PRAGMA synchronous = ${synchronous}`);
    database.exec("CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY, text TEXT NOT NULL)");
    if (mode !== "wal") throw new Error(`The journal mode is ${mode}.`);
    version = sqlite3.version.libVersion;
  },

  version: () => version,

  /** Milliseconds for so many transactions of one row each. */
  commits({ count }) {
    const [begin, insert, commit] = ["BEGIN IMMEDIATE", "INSERT INTO row (text) VALUES (?)", "COMMIT"].map((text) =>
      database.prepare(text),
    );
    const began = performance.now();
    for (let number = 0; number < count; number += 1) {
      begin.stepReset();
      insert.bind(1, String(number)).stepReset();
      commit.stepReset();
    }
    const milliseconds = performance.now() - began;
    for (const statement of [begin, insert, commit]) statement.finalize();
    return milliseconds;
  },
};

self.onmessage = async ({ data: { id, method, params } }) => {
  try {
    postMessage({ id, result: await methods[method](params) });
  } catch (error) {
    postMessage({ id, error: String(error?.stack ?? error) });
  }
};
