// @ts-check
/**
 * Durable jobs in a page.
 *
 *     import { connect } from "./durable-web.js";
 *
 *     const durable = await connect("accounts", { jobs: ["./jobs.py"] });
 *     const run = await durable.trigger("import-csv", { path });
 *     for await (const frame of durable.runs.watch(run.id)) console.log(frame);
 *
 * The jobs run in a worker that lives as long as the page. Of all tabs that connect to one database, one runs it: the
 * leader, elected by a Web Lock. In the others the client is "blocked" and its calls fail, until the leader goes away and
 * one of them takes over.
 *
 * Whatever goes wrong is a `DurableError`, whose `code` says what. The codes made here; others come from Python and from
 * opfs-filesystem.js:
 *
 *     InvalidNameError        the database's name is not 1 to 64 letters, digits, dots, hyphens and underscores
 *     AlreadyConnectedError   this page is connected to that database already, with other options
 *     LocksUnavailableError   there are no Web Locks here
 *     AnotherTabError         another tab runs the database
 *     SerializationError      the input is not JSON; the message names the place
 *     WorkerError             the worker could not be loaded or started, or crashed
 *     EngineStoppedError      the engine stopped before it answered, because the page was put aside
 *     ClosedError             the client was closed
 */
import { DurableError, EngineWorker, Watch, failure, nextId, unanswered } from "./engine-connection.js";

export { DurableError };

/** @typedef {"starting" | "ready" | "blocked" | "failed" | "closed"} Status */
/**
 * @typedef {{status: Status, message: string, phase?: string, loaded?: number, total?: number, start?: string,
 *   reason?: string}} StatusDetail while starting: `phase` is a key of PHASES; while Python is loaded, `loaded` of `total`
 *   bytes are there; after it, `start` says whether it came from the "snapshot" or was "plain", for that `reason`
 */
/**
 * @typedef {{jobs: string[], durability?: "full" | "normal", snapshot?: boolean,
 *   onstatus?: (detail: StatusDetail) => void}} Options
 */
/**
 * @typedef {{idempotencyKey?: string, concurrencyKey?: string, coalesce?: "skip" | "active", labels?: Record<string, string>,
 *   priority?: number, runAt?: number, deadline?: number}} TriggerOptions times are milliseconds since 1970 UTC
 */
/**
 * @typedef {{status?: string | string[], job?: string | string[], labels?: Record<string, string>, search?: string,
 *   createdAfter?: number, createdBefore?: number, order?: "newest" | "oldest", cursor?: string, limit?: number}} Filter
 *   `cursor` is the id of the last run of the page before
 */
/** @typedef {import("./engine-connection.js").Start} Start */
/** @typedef {import("./engine-connection.js").FileInfo} FileInfo */

/** @type {Record<string, string>} */
const PHASES = {
  storage: "opening the database",
  pyodide: "loading Python",
  packages: "loading packages",
  jobs: "loading the jobs",
};
/** @type {StatusDetail} */
const STARTING = { status: "starting", message: PHASES.storage, phase: "storage" };

/** The open clients of this page, by name. @type {Map<string, Durable>} */
const clients = new Map();

/**
 * Connects to the database `name`, which is made if it is not there. Resolves when the engine is ready or another tab
 * runs it (see `status`); rejects when the engine cannot start. A second call with the same name and options gives the
 * same client.
 *
 * @param {string} name 1 to 64 letters, digits, dots, hyphens and underscores
 * @param {Options} options `jobs` are URLs of Python modules, relative to the page; `durability` "full" survives a power
 *   cut, "normal" is faster and survives any death of the browser; `snapshot: false` starts Python without the
 *   memory snapshot, for comparison; `onstatus` is told the status now, and every change
 * @returns {Promise<Durable>}
 */
export async function connect(name, { jobs, durability = "full", snapshot = true, onstatus }) {
  if (!/^(?!\.+$)[A-Za-z0-9._-]{1,64}$/.test(name)) {
    throw failure(
      "InvalidNameError",
      `A database cannot be called ${JSON.stringify(name)}: ` +
        "use 1 to 64 letters, digits, dots, hyphens and underscores, and not only dots.",
    );
  }
  if (!navigator.locks) {
    throw failure(
      "LocksUnavailableError",
      "There are no Web Locks here, which keep two tabs from using one database. " +
        "Open the page over https:// or on localhost, in a browser from 2022 or later.",
    );
  }
  /** @type {Start} */
  const start = {
    type: "start",
    name,
    jobs: jobs.map((url) => new URL(url, document.baseURI).href),
    options: { durability, snapshot },
  };
  if (clients.get(name)?.status === "closed") await clients.get(name)?.close();
  const client = clients.get(name) ?? new Durable(start);
  clients.set(name, client);
  if (!client.startsLike(start)) {
    throw failure(
      "AlreadyConnectedError",
      `This page is connected to ${JSON.stringify(name)} already, with other jobs or another durability. ` +
        "Use the same options, or close() that client first.",
    );
  }
  if (onstatus) {
    client.addEventListener("status", (event) => onstatus(/** @type {CustomEvent<StatusDetail>} */ (event).detail));
    onstatus(client.detail);
  }
  await client.settled();
  if (client.error) throw client.error;
  return client;
}

/**
 * A connection to one database; `connect` makes it. Its events are CustomEvents:
 *
 *     "status"   detail: StatusDetail
 *     "engine"   detail: {state: "running" | "storage_full" | "storage_error", message?}
 *     "error"    detail: a DurableError that no call was waiting for
 */
export class Durable extends EventTarget {
  /** @type {StatusDetail} */
  detail = STARTING;
  /** Why the status is "failed" or "closed". @type {DurableError | undefined} */
  error;
  /** Resolves when the engine is ready in this tab; rejects when it never will be. @type {Promise<Durable>} */
  ready;

  #start;
  #election = new AbortController();
  /** Resolves when this client neither leads nor waits to. @type {Promise<void>} */
  #leading;
  /** @type {EngineWorker | undefined} */
  #engine;
  /** @type {Map<number, Watch>} */
  #watches = new Map();

  /** @param {Start} start */
  constructor(start) {
    super();
    this.#start = start;
    this.#leading = this.#lead();
    this.ready = this.#whenReady();
    this.ready.catch(() => {}); // whoever asks for it is told
    addEventListener("pagehide", this);
    addEventListener("pageshow", this);
  }

  get name() {
    return this.#start.name;
  }

  get status() {
    return this.detail.status;
  }

  get statusMessage() {
    return this.detail.message;
  }

  /**
   * Makes a run of a job; it begins as soon as it is its turn.
   *
   * @param {string} job
   * @param {unknown} [input] a JSON value
   * @param {TriggerOptions} [options]
   * @returns {Promise<any>} the run, with its `disposition`: "created", or "idempotent" or "coalesced" where one was there
   */
  async trigger(job, input = null, options = {}) {
    refuseWhatIsNotJson(input, "input");
    return this.#call("trigger", { ...options, job, input });
  }

  runs = {
    /** @param {string} id @returns {Promise<any>} */
    get: (id) => this.#call("runs.get", { runId: id }),
    /** @param {Filter} [filter] @returns {Promise<any[]>} */
    list: (filter = {}) => this.#call("runs.list", filter),
    /** @param {string} id @returns {Promise<any>} */
    cancel: (id) => this.#call("runs.cancel", { runId: id }),
    /** How many runs there are for each "status" or "job". @param {string} [by] @returns {Promise<Record<string, number>>} */
    count: (by = "status") => this.#call("runs.count", { by }),
    /** @param {string} id @returns {Promise<any[]>} */
    steps: (id) => this.#call("runs.steps", { runId: id }),
    /** What the run has published last under a key. @param {string} id @param {string} key @returns {Promise<any>} */
    event: (id, key) => this.#call("runs.event", { runId: id, key }),
    /** Lets a run that did not complete go on from its failed step. @param {string} id @returns {Promise<any>} */
    retry: (id) => this.#call("runs.retry", { runId: id }),
    /** The same on another input. @param {string} id @param {unknown} input @returns {Promise<any>} */
    retryWithInput: async (id, input) => {
      refuseWhatIsNotJson(input, "input");
      return this.#call("runs.retryWithInput", { runId: id, input });
    },
    /** Makes a new run with the same input and labels. @param {string} id @returns {Promise<any>} */
    retrigger: (id) => this.#call("runs.retrigger", { runId: id }),
    /** Makes a new run that has the steps before the one named. @param {string} id @param {string} fromStep @returns {Promise<any>} */
    fork: (id, fromStep) => this.#call("runs.fork", { runId: id, fromStep }),
    /** Deletes a run that has ended, and everything of it. @param {string} id @returns {Promise<void>} */
    delete: (id) => this.#call("runs.delete", { runId: id }),
    /**
     * The frames of a run's timeline after the one numbered `from`, each exactly once: those that are there, then new
     * ones as they are committed. It ends by itself when the run has ended; leaving the loop unsubscribes.
     *
     * @param {string} id
     * @param {{from?: number}} [options]
     */
    watch: (id, { from = 0 } = {}) => this.#watch(id, from),
  };

  files = {
    /**
     * Makes a file durable: resolves when every byte is on the disk. Its name is made unique.
     *
     * @param {Blob} blob
     * @param {string} [name] by default that of the File
     * @returns {Promise<FileInfo>}
     */
    put: async (blob, name = blob instanceof File ? blob.name : "file") => {
      if (!(blob instanceof Blob)) throw failure("TypeError", "files.put() takes a File or a Blob.");
      return this.#call("files.put", { name, blob });
    },
    /** @param {string} name @returns {Promise<Blob>} */
    get: async (name) => (await this.#call("files.get", { name })).blob,
    /** @returns {Promise<FileInfo[]>} */
    list: () => this.#call("files.list", {}),
    /** @param {string} name @returns {Promise<void>} */
    delete: (name) => this.#call("files.delete", { name }),
  };

  /** How often each file was flushed to the disk since the engine started. @returns {Promise<Record<string, number>>} */
  flushes() {
    return this.#call("debug.flushes", {});
  }

  /** Stops the engine, or leaves the queue for it. Runs that have not ended go on when someone connects again. */
  async close() {
    if (this.status === "starting" || this.status === "ready" || this.status === "blocked") {
      this.#end("closed", failure("ClosedError", "This client was closed; connect() makes a new one."));
      this.#election.abort();
      await this.#engine?.stop();
    }
    await this.#leading;
    if (clients.get(this.name) === this) clients.delete(this.name);
  }

  /** Resolves when the engine is not starting, or no longer. */
  async settled() {
    while (this.status === "starting") await this.#nextStatus();
  }

  /** @param {Start} start */
  startsLike(start) {
    return JSON.stringify(start) === JSON.stringify(this.#start);
  }

  /**
   * A page in the back/forward cache is frozen, but would still hold the lock: so it gives way, and comes back when it is
   * shown again. Watches go on from where they were.
   *
   * @param {PageTransitionEvent} event
   */
  handleEvent({ type, persisted }) {
    if (!persisted || this.error) return;
    if (type === "pagehide") {
      this.#become({ status: "starting", message: "this page was put aside", phase: "storage" });
      this.#election.abort();
      this.#engine?.terminate(unanswered("EngineStoppedError", "The page was put aside"));
    } else {
      this.#leading = this.#leading.then(() => this.#lead());
    }
  }

  /** Waits for the lock, and holds it while the engine lives. */
  async #lead() {
    if (this.error) return;
    const { signal } = (this.#election = new AbortController());
    const lock = `durable-web:${this.name}`;
    const whileHeld = () => (signal.aborted ? undefined : this.#runEngine());
    try {
      const ifFree = (/** @type {Lock | null} */ granted) => (granted ? whileHeld() : true);
      const isTaken = await navigator.locks.request(lock, { ifAvailable: true }, ifFree);
      if (!isTaken || signal.aborted) return;
      this.#become({ status: "blocked", message: "another tab runs this database" });
      await navigator.locks.request(lock, { signal }, whileHeld);
    } catch (error) {
      if (signal.aborted) return;
      const isOurs = error instanceof DurableError;
      this.#end("failed", isOurs ? error : failure("WorkerError", `The browser refused to start the engine: ${error}`));
    }
  }

  /** Resolves when the engine was stopped, rejects when it failed. */
  #runEngine() {
    this.#become(STARTING);
    this.#engine = new EngineWorker(this.#start, (message) => this.#hear(message));
    return this.#engine.ended;
  }

  /** @param {any} message */
  #hear(message) {
    const { type, id } = message;
    const error = message.error && new DurableError(message.error);
    switch (type) {
      case "boot": {
        const { type: _, ...detail } = message;
        return this.#become({ status: "starting", message: PHASES[detail.phase], ...detail });
      }
      case "ready":
        this.#become({ status: "ready", message: "ready" });
        return this.#watches.forEach((watch, id) => this.#subscribe(id, watch));
      case "frames":
        return this.#watches.get(id)?.push(message.frames);
      case "end":
        return this.#watches.get(id)?.end(error);
      case "engine":
        return this.#tell("engine", { state: message.state, message: message.message });
      case "error":
        console.error(error);
        return this.#tell("error", error);
    }
  }

  /** @param {string} method @param {object} params */
  async #call(method, params) {
    await this.settled();
    if (this.status !== "ready") throw this.#refusal();
    return /** @type {EngineWorker} */ (this.#engine).request(method, params);
  }

  /** @param {string} runId @param {number} from */
  #watch(runId, from) {
    const id = nextId();
    const watch = new Watch(runId, from, (isOver) => {
      this.#watches.delete(id);
      if (!isOver && this.status === "ready") this.#engine?.post({ type: "unwatch", id });
    });
    this.#watches.set(id, watch);
    if (this.status === "ready") this.#subscribe(id, watch);
    else if (this.status !== "starting") watch.end(this.#refusal());
    return watch;
  }

  /** @param {number} id @param {Watch} watch */
  #subscribe(id, watch) {
    this.#engine?.post({ type: "watch", id, runId: watch.runId, from: watch.seq });
  }

  /** Why a call cannot be made now. */
  #refusal() {
    const message = `Another tab runs the database ${JSON.stringify(this.name)}. Use that one, or close it: this one takes over then.`;
    return this.error ?? failure("AnotherTabError", message);
  }

  /** @param {"failed" | "closed"} status @param {DurableError} error */
  #end(status, error) {
    if (this.error) return;
    this.error = error;
    removeEventListener("pagehide", this);
    removeEventListener("pageshow", this);
    if (status === "failed") clients.delete(this.name);
    for (const watch of this.#watches.values()) watch.end(error);
    this.detail = { status, message: error.message };
    this.#tell("status", this.detail);
  }

  /** @param {StatusDetail} detail */
  #become(detail) {
    if (this.error || JSON.stringify(detail) === JSON.stringify(this.detail)) return;
    this.detail = detail;
    this.#tell("status", detail);
  }

  /** @param {string} type @param {unknown} detail */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async #whenReady() {
    while (this.status === "starting" || this.status === "blocked") await this.#nextStatus();
    if (this.error) throw this.error;
    return this;
  }

  #nextStatus() {
    return new Promise((resolve) => this.addEventListener("status", resolve, { once: true }));
  }
}

/**
 * JSON.stringify would leave out a function, and turn NaN into null and a Date into text; but the input of a job is never
 * altered silently.
 *
 * @param {unknown} value
 * @param {string} path
 * @param {unknown[]} ancestors
 */
function refuseWhatIsNotJson(value, path, ancestors = []) {
  if (value === null || typeof value === "string" || typeof value === "boolean" || Number.isFinite(value)) return;
  if (typeof value !== "object")
    throw notJson(path, typeof value === "number" || value === undefined ? String(value) : `a ${typeof value}`);
  if (ancestors.includes(value)) throw notJson(path, "an object that contains itself");
  if (!Array.isArray(value) && !isPlain(value))
    throw notJson(path, `an instance of ${value.constructor?.name ?? "a class"}`);
  if (Object.getOwnPropertySymbols(value).length) throw notJson(path, "an object with a symbol for a key");
  const inner = [...ancestors, value];
  if (Array.isArray(value)) Array.from(value, (item, index) => refuseWhatIsNotJson(item, `${path}[${index}]`, inner));
  else for (const [key, item] of Object.entries(value)) refuseWhatIsNotJson(item, `${path}.${key}`, inner);
}

/** Also an object of another frame's. @param {object} value */
const isPlain = (value) =>
  [null, Object.prototype].includes(Object.getPrototypeOf(value)) ||
  Object.getPrototypeOf(Object.getPrototypeOf(value)) === null;

/** @param {string} path @param {string} kind */
const notJson = (path, kind) =>
  failure(
    "SerializationError",
    `${path} is ${kind}, which JSON cannot hold. ` +
      "A job's input is made of objects, arrays, strings, finite numbers, booleans and null.",
  );
