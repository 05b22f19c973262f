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
 * The jobs run in a worker that lives as long as the page. Of all tabs that connect to one database, one runs it: the leader, elected by a
 * Web Lock. In the others the client is "blocked" and its calls fail, until the leader goes away and one of them takes over.
 *
 * Whatever goes wrong is a `DurableError`, whose `code` says what. The codes made here (others come from the worker and from Python):
 *
 *     InvalidNameError        the database's name is not 1 to 64 letters, digits, dots, hyphens and underscores
 *     AlreadyConnectedError   this page is connected to that database already, with other options
 *     LocksUnavailableError   there are no Web Locks here
 *     AnotherTabError         another tab runs the database
 *     SerializationError      the input is not JSON; the message names the place
 *     WorkerError             the worker could not be loaded, or crashed
 *     EngineStoppedError      the engine stopped before it answered, because the page was put aside
 *     ClosedError             the client was closed
 */

/** @typedef {"starting" | "ready" | "blocked" | "failed" | "closed"} Status */
/** @typedef {{status: Status, message: string, phase?: string}} StatusDetail `phase` while starting: "storage", "pyodide", "packages" or "jobs" */
/** @typedef {{jobs: string[], durability?: "full" | "normal", onstatus?: (detail: StatusDetail) => void}} Options */
/** @typedef {{type: "start", name: string, jobs: string[], options: object}} Start */
/** @typedef {{code: string, message: string, traceback?: string}} ErrorDescription */
/** @typedef {Record<string, any> & {seq: number}} Frame */
/** @typedef {{name: string, path: string, size: number}} FileInfo where a job finds the file, and how many bytes it has */

const WORKER_URL = new URL("./engine-worker.js", import.meta.url);
/** How long `close()` waits for the engine to put its things away. Nothing is lost when it cannot. Milliseconds. */
const STOP_TIMEOUT = 5000;
/** @type {Record<string, string>} */
const PHASES = { storage: "opening the database", pyodide: "loading Python", packages: "loading packages", jobs: "loading the jobs" };

export class DurableError extends Error {
  /** @param {ErrorDescription} description further fields of it become properties */
  constructor({ message, traceback, ...details }) {
    super(message);
    this.name = "DurableError";
    this.code = details.code;
    /** Python's, where the error comes from there. */
    this.traceback = traceback;
    if (traceback) this.stack = `${this.stack}\n\n${traceback}`;
    Object.assign(this, details);
  }
}

/** @param {string} code @param {string} message */
const failure = (code, message) => new DurableError({ code, message });

/** The open clients of this page, by name. @type {Map<string, Durable>} */
const clients = new Map();

/**
 * Connects to the database `name`, which is made if it is not there. Resolves when the engine is ready or another tab runs it (see
 * `status`); rejects when the engine cannot start. A second call with the same name and options gives the same client.
 *
 * @param {string} name 1 to 64 letters, digits, dots, hyphens and underscores
 * @param {Options} options `jobs` are URLs of Python modules, relative to the page; `durability` "full" survives a power cut, "normal" is
 *   faster and survives any death of the browser; `onstatus` is told the status now, and every change of it until this client is closed
 * @returns {Promise<Durable>}
 */
export async function connect(name, { jobs, durability = "full", onstatus }) {
  if (!/^(?!\.+$)[A-Za-z0-9._-]{1,64}$/.test(name)) {
    throw failure("InvalidNameError", `A database cannot be called ${JSON.stringify(name)}: use 1 to 64 letters, digits, dots, hyphens and underscores.`);
  }
  if (!navigator.locks) {
    throw failure("LocksUnavailableError", "There are no Web Locks here, which keep two tabs from using one database. Open the page over https:// or on localhost, in a browser from 2022 or later.");
  }
  /** @type {Start} */
  const start = { type: "start", name, jobs: jobs.map((url) => new URL(url, document.baseURI).href), options: { durability } };
  if (clients.get(name)?.status === "closed") await clients.get(name)?.close();
  const client = clients.get(name) ?? new Durable(start);
  clients.set(name, client);
  if (!client.startsLike(start)) {
    throw failure("AlreadyConnectedError", `This page is connected to ${JSON.stringify(name)} already, with other jobs or another durability. Use the same options, or close() that client first.`);
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
 *     "engine"   detail: {state: "running" | "storage_full", message?}
 *     "error"    detail: a DurableError that no call was waiting for
 */
export class Durable extends EventTarget {
  /** @type {StatusDetail} */
  detail = { status: "starting", message: PHASES.storage, phase: "storage" };
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
   * Starts a run of a job.
   *
   * @param {string} job
   * @param {unknown} [input] a JSON value
   * @returns {Promise<any>} the run
   */
  async trigger(job, input = null) {
    refuseWhatIsNotJson(input, "input");
    return this.#call("trigger", { job, input });
  }

  runs = {
    /** @param {string} id @returns {Promise<any>} */
    get: (id) => this.#call("runs.get", { id }),
    /** @param {{status?: string, job?: string, limit?: number}} [filter] @returns {Promise<any[]>} */
    list: (filter = {}) => this.#call("runs.list", filter),
    /** @param {string} id @returns {Promise<any>} */
    cancel: (id) => this.#call("runs.cancel", { id }),
    /** @param {string} id @returns {Promise<any[]>} */
    steps: (id) => this.#call("runs.steps", { id }),
    /**
     * The frames of a run's timeline after the one numbered `from`, each exactly once: those that are there, then new ones as they are
     * committed. It ends by itself when the run has ended; leaving the loop unsubscribes.
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

  /** How often each file of the database was flushed to the disk since the engine started. @returns {Promise<Record<string, number>>} */
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
   * A page in the back/forward cache is frozen, but would still hold the lock: it gives way, and comes back when it is shown again. Watches go
   * on from where they were.
   *
   * @param {PageTransitionEvent} event
   */
  handleEvent({ type, persisted }) {
    if (!persisted || this.error) return;
    if (type === "pagehide") {
      this.#become({ status: "starting", message: "this page was put aside", phase: "storage" });
      this.#election.abort();
      this.#engine?.terminate(failure("EngineStoppedError", "The page was put aside before the engine answered; whether the call took effect is not known."));
    } else {
      this.#leading = this.#leading.then(() => this.#lead());
    }
  }

  /** Waits for the lock, and holds it while the engine lives. */
  async #lead() {
    const { signal } = (this.#election = new AbortController());
    const lock = `durable-web:${this.name}`;
    const whileHeld = () => (signal.aborted ? undefined : this.#runEngine());
    try {
      const isTaken = await navigator.locks.request(lock, { ifAvailable: true }, (granted) => (granted ? whileHeld() : true));
      if (!isTaken || signal.aborted) return;
      this.#become({ status: "blocked", message: "another tab runs this database" });
      await navigator.locks.request(lock, { signal }, whileHeld);
    } catch (error) {
      if (signal.aborted) return;
      this.#end("failed", error instanceof DurableError ? error : failure("LocksUnavailableError", `The browser refused a Web Lock: ${error}`));
    }
  }

  /** Resolves when the engine was stopped, rejects when it failed. */
  #runEngine() {
    this.#become({ status: "starting", message: PHASES.storage, phase: "storage" });
    this.#engine = new EngineWorker(this.#start, (message) => this.#hear(message));
    return this.#engine.ended;
  }

  /** @param {any} message */
  #hear(message) {
    const { type, id } = message;
    if (type === "boot") this.#become({ status: "starting", message: PHASES[message.phase] ?? message.phase, phase: message.phase });
    else if (type === "frames") this.#watches.get(id)?.push(message.frames);
    else if (type === "end") this.#endWatch(id, message.error && new DurableError(message.error));
    else if (type === "engine") this.#tell("engine", { state: message.state, message: message.message });
    else if (type === "error") {
      console.error(message.error.traceback ?? message.error.message);
      this.#tell("error", new DurableError(message.error));
    } else if (type === "ready") {
      this.#become({ status: "ready", message: "ready" });
      for (const [id, watch] of this.#watches) this.#subscribe(id, watch);
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
    const watch = new Watch(runId, from, () => {
      if (this.#watches.delete(id) && this.status === "ready") this.#engine?.post({ type: "unwatch", id });
    });
    this.#watches.set(id, watch);
    if (this.status === "ready") this.#subscribe(id, watch);
    else if (this.status !== "starting") watch.end(this.#refusal());
    return watch;
  }

  /** @param {number} id @param {DurableError} [error] */
  #endWatch(id, error) {
    const watch = this.#watches.get(id);
    this.#watches.delete(id);
    watch?.end(error);
  }

  /** @param {number} id @param {Watch} watch */
  #subscribe(id, watch) {
    this.#engine?.post({ type: "watch", id, runId: watch.runId, from: watch.seq });
  }

  /** Why a call cannot be made now. */
  #refusal() {
    return this.error ?? failure("AnotherTabError", `Another tab runs the database ${JSON.stringify(this.name)}. Use that one, or close it: this one takes over then.`);
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

/** One life of the worker: its calls, and its end. */
class EngineWorker {
  /** Resolves when it was stopped, rejects with a DurableError when it failed. @type {Promise<void>} */
  ended;
  /** @type {Map<number, {resolve: (result: any) => void, reject: (error: DurableError) => void}>} */
  #calls = new Map();
  /** @type {(error?: DurableError) => void} */
  #finish = () => {};
  #isReady = false;
  #worker;
  #hear;

  /** @param {Start} start @param {(message: any) => void} hear what is no answer to a call */
  constructor(start, hear) {
    this.#hear = hear;
    this.ended = new Promise((resolve, reject) => (this.#finish = (error) => (error ? reject(error) : resolve())));
    this.#worker = new Worker(WORKER_URL, { type: "module", name: `durable-web ${start.name}` });
    this.#worker.onmessage = ({ data }) => this.#receive(typeof data === "string" ? JSON.parse(data) : data);
    this.#worker.onmessageerror = () => this.#fail(failure("WorkerError", "The engine's worker sent a message that could not be read."));
    this.#worker.onerror = ({ message, filename, lineno }) =>
      this.#fail(failure("WorkerError", message ? `The engine's worker crashed: ${message} (${filename}:${lineno})` : `The engine's worker could not be loaded from ${WORKER_URL}.`));
    this.post(start);
  }

  /** @param {object} message */
  post(message) {
    this.#worker.postMessage(message);
  }

  /** @param {string} method @param {object} params @returns {Promise<any>} */
  request(method, params) {
    const id = nextId();
    return new Promise((resolve, reject) => {
      this.post({ type: "request", id, method, params });
      this.#calls.set(id, { resolve, reject });
    });
  }

  /** Lets the engine finish what it is writing. */
  async stop() {
    const closed = failure("ClosedError", "The client was closed before the engine answered; whether the call took effect is not known.");
    if (!this.#isReady) return this.terminate(closed);
    this.post({ type: "stop" });
    const timer = setTimeout(() => this.terminate(closed), STOP_TIMEOUT);
    await this.ended.catch(() => {}); // its failure is told elsewhere
    clearTimeout(timer);
    this.terminate(closed);
  }

  /** @param {DurableError} reason for the calls that have no answer yet */
  terminate(reason) {
    this.#worker.terminate();
    for (const { reject } of this.#calls.values()) reject(reason);
    this.#calls.clear();
    this.#finish();
  }

  /** @param {DurableError} error */
  #fail(error) {
    this.#finish(error);
    this.terminate(error);
  }

  /** @param {any} message */
  #receive(message) {
    const { type, id, error, result } = message;
    if (type === "failed") return this.#fail(new DurableError(error));
    if (type === "stopped") return this.#finish();
    if (type === "response") {
      const call = this.#calls.get(id);
      this.#calls.delete(id);
      return error ? call?.reject(new DurableError(error)) : call?.resolve(result);
    }
    if (type === "ready") this.#isReady = true;
    this.#hear(message);
  }
}

/** The frames of one run, for one `for await` loop. */
class Watch {
  /** @type {Frame[]} */
  #frames = [];
  /** @type {{error?: DurableError} | undefined} */
  #ended;
  #leave;
  /** Wakes whoever waits in `next()`. */
  #wake = () => {};
  #news = Promise.resolve();

  /** @param {string} runId @param {number} from @param {() => void} leave */
  constructor(runId, from, leave) {
    this.runId = runId;
    /** The number of the last frame that arrived. */
    this.seq = from;
    this.#leave = leave;
    this.#expectNews();
  }

  /** @param {Frame[]} frames */
  push(frames) {
    for (const frame of frames) {
      if (frame.seq <= this.seq) continue;
      this.seq = frame.seq;
      this.#frames.push(frame);
    }
    this.#wake();
    this.#expectNews();
  }

  /** @param {DurableError} [error] */
  end(error) {
    this.#ended ??= { error };
    this.#leave();
    this.#wake();
  }

  /** @returns {Promise<IteratorResult<Frame, undefined>>} */
  async next() {
    await this.#settled();
    const value = this.#frames.shift();
    return value ? { value, done: false } : { value: undefined, done: true };
  }

  /** All the frames that have arrived: at least one, or none when the run has ended. @returns {Promise<Frame[]>} */
  async nextBatch() {
    await this.#settled();
    const frames = this.#frames;
    this.#frames = [];
    return frames;
  }

  /** Waits until there is a frame or the end; an error that ended the watch is thrown once. */
  async #settled() {
    while (!this.#frames.length && !this.#ended) await this.#news;
    const error = this.#ended?.error;
    if (this.#frames.length || !error) return;
    this.#ended = {};
    throw error;
  }

  /** @returns {Promise<IteratorResult<Frame, undefined>>} */
  async return() {
    this.#frames = [];
    this.#ended = {};
    this.end();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  #expectNews() {
    this.#news = new Promise((resolve) => (this.#wake = resolve));
  }
}

let lastId = 0;
const nextId = () => (lastId += 1);

/**
 * JSON.stringify would leave out a function, and turn NaN into null and a Date into text; the input of a job is never altered silently.
 *
 * @param {unknown} value
 * @param {string} path
 * @param {unknown[]} ancestors
 */
function refuseWhatIsNotJson(value, path, ancestors = []) {
  if (value === null || typeof value === "string" || typeof value === "boolean" || Number.isFinite(value)) return;
  if (typeof value !== "object") throw notJson(path, typeof value === "number" || value === undefined ? String(value) : `a ${typeof value}`);
  if (ancestors.includes(value)) throw notJson(path, "an object that contains itself");
  if (!Array.isArray(value) && !isPlain(value)) throw notJson(path, `an instance of ${value.constructor?.name ?? "a class"}`);
  if (Object.getOwnPropertySymbols(value).length) throw notJson(path, "an object with a symbol for a key");
  const inner = [...ancestors, value];
  if (Array.isArray(value)) Array.from(value, (item, index) => refuseWhatIsNotJson(item, `${path}[${index}]`, inner));
  else for (const [key, item] of Object.entries(value)) refuseWhatIsNotJson(item, `${path}.${key}`, inner);
}

/** Also an object of another frame's. @param {object} value */
const isPlain = (value) => [null, Object.prototype].includes(Object.getPrototypeOf(value)) || Object.getPrototypeOf(Object.getPrototypeOf(value)) === null;

/** @param {string} path @param {string} kind */
const notJson = (path, kind) =>
  failure("SerializationError", `${path} is ${kind}, which JSON cannot hold. A job's input is made of objects, arrays, strings, finite numbers, booleans and null.`);
