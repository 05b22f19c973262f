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
 * leader, elected by a Web Lock. The others are followers, whose calls and watches go to the leader's worker; when the
 * leader goes away, one of them takes over. The client is the same in every tab; `role` says which one this is.
 *
 * When the leader goes, watches go on by themselves from the last frame that arrived. A call that has no answer then is
 *
 *     made again     where it only reads (runs.get, list, count, steps, logs, value; files.get, list; schedules.list),
 *                    where making it again changes nothing (runs.pause, resume; schedules.create, pause, resume;
 *                    deliverWebhook; files.delete), and where the engine knows it again: a trigger that has an
 *                    `idempotencyKey`, a signal, an update or an event that has an id
 *     failed         all others (trigger without a key, runs.cancel, retry, retrigger, fork, delete;
 *                    schedules.delete; files.put): EngineStoppedError, for whether it took effect is not known; look,
 *                    and then decide
 *
 * A call that is made while no engine is ready waits for the next one.
 *
 * All tabs of a database have to give the same `jobs` and `durability`, or none, and come from the same release of these
 * files. The `maxRecoveries` that counts is that of the tab which runs the engine.
 *
 * Whatever goes wrong is a `DurableError`, whose `code` says what. The codes made here; others come from Python and from
 * worker/opfs-filesystem.js:
 *
 *     InvalidNameError        the database's name is not 1 to 64 letters, digits, dots, hyphens and underscores
 *     InvalidOptionError      an option of connect() is unknown or wrong; the message names it
 *     NoJobsError             no other tab runs the database, and this page gave no jobs
 *     AbortedError            the signal given to connect() was aborted before the client was ready
 *     AlreadyConnectedError   this page is connected to that database already, with other options
 *     LocksUnavailableError   there are no Web Locks here
 *     OtherOptionsError       the tab that runs the database was given other jobs or another durability
 *     OtherReleaseError       the tab that runs the database has another release of these files
 *     SerializationError      the input is not JSON; the message names the place
 *     WorkerError             the worker could not be loaded or started, or crashed
 *     EngineStoppedError      the engine stopped before it answered, because its page went away or was put aside
 *     ClosedError             the client was closed
 */
import { fileCalls, isRepeatable, refuseWrongParameters, runCalls, scheduleCalls } from "./client/calls.js";
import {
  DurableError,
  EngineChannel,
  EngineWorker,
  failure,
  lobbyName,
  nextId,
  unanswered,
} from "./client/connection.js";
import { startOf } from "./client/options.js";
import { Watch } from "./client/watch.js";

export { DurableError };

/** @typedef {"starting" | "ready" | "failed" | "closed"} Status */
/** @typedef {"leader" | "follower"} Role */
/**
 * @typedef {{status: Status, message: string, role?: Role, phase?: string, loaded?: number, total?: number,
 *   start?: string, reason?: string}} StatusDetail `role` is there when the status is "ready". While starting: `phase` is a
 *   key of PHASES; while Python is loaded, `loaded` of `total` bytes are there; after it, `start` says whether it came from
 *   the "snapshot" or was "plain", for that `reason`
 */
/**
 * @typedef {{jobs?: (string | URL)[], durability?: "full" | "normal", snapshot?: boolean, maxRecoveries?: number,
 *   onstatus?: (detail: StatusDetail) => void, signal?: AbortSignal}} Options
 */
/**
 * @typedef {{idempotencyKey?: string, concurrencyKey?: string, coalesce?: "skip" | "active", labels?: Record<string, string>,
 *   priority?: number, runAt?: number, deadline?: number}} TriggerOptions times are milliseconds since 1970 UTC
 */
/**
 * @typedef {{status?: string | string[], job?: string | string[], labels?: Record<string, string>, search?: string,
 *   createdAfter?: number, createdBefore?: number, parent?: string, order?: "newest" | "oldest", cursor?: string,
 *   limit?: number, payloads?: boolean}} Filter `parent` is the id of the run that has started them; `cursor` that of the
 *   last run of the page before; without `payloads`, `input` and `output` are left out: null
 */
/** @typedef {import("./client/watch.js").FrameFilter} FrameFilter */
/** @typedef {import("./client/connection.js").Start} Start */
/** @typedef {import("./client/watch.js").Subject} Subject */
/** @typedef {import("./client/connection.js").FileInfo} FileInfo */

/** @type {Record<string, string>} */
const PHASES = {
  leader: "reaching the tab that runs the database",
  storage: "opening the database",
  pyodide: "loading Python",
  packages: "loading packages",
  jobs: "loading the jobs",
};
/** @type {StatusDetail} */
const STARTING = { status: "starting", message: PHASES.storage, phase: "storage" };

/** How long the leader may be silent before the person is told. Milliseconds. */
const LEADER_TIMEOUT = 3000;
const SILENCE =
  "the tab that runs the database does not answer: it is busy, or has an older release of these files; " +
  "this tab takes over when that one is closed";


/** The open clients of this page, by name. @type {Map<string, Durable>} */
const clients = new Map();

/** How many calls of `connect` have each client, and have not released it. @type {WeakMap<Durable, number>} */
const uses = new WeakMap();

/**
 * Connects to the database `name`, which is made if it is not there. Resolves when the engine is ready, in this tab or in
 * another; rejects when it cannot start. A second call with the same name and options gives the same client. Without
 * `jobs`, the page uses the engine of another tab, with that tab's jobs; if there is none, it is refused: NoJobsError.
 *
 * @param {string} name 1 to 64 letters, digits, dots, hyphens and underscores
 * @param {Options} [options] `jobs` are URLs of Python modules, relative to the page; `durability` "full" (the default)
 *   survives a power cut, "normal" is faster and survives any death of the browser; `snapshot: false` starts Python
 *   without the memory snapshot, for comparison; a run is dead when more than `maxRecoveries` (5) deaths of the engine in
 *   one of its steps count against it; `onstatus` is told the status now, and every change; aborting `signal` before the
 *   client is ready gives it up: AbortedError
 * @returns {Promise<Durable>}
 */
export async function connect(name, options = {}) {
  const start = startOf(name, options);
  const { onstatus, signal } = options;
  if (signal?.aborted) throw aborted(name);
  if (!navigator.locks) {
    throw failure(
      "LocksUnavailableError",
      "There are no Web Locks here, which keep two tabs from using one database. " +
        "Open the page over https:// or on localhost, in a browser from 2022 or later.",
    );
  }
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
  uses.set(client, (uses.get(client) ?? 0) + 1);
  if (onstatus) {
    const hear = (/** @type {Event} */ event) => onstatus(/** @type {CustomEvent<StatusDetail>} */ (event).detail);
    client.addEventListener("status", hear, { signal });
    onstatus(client.detail);
  }
  await Promise.race([client.settled(), whenAborted(signal)]);
  if (signal?.aborted && client.status === "starting") {
    await release(client);
    throw aborted(name);
  }
  if (client.error) throw client.error;
  return client;
}

/**
 * Takes one call of `connect` back: the client is closed when every call that gave it was taken back. For parts of a page
 * that share a client without knowing of each other.
 *
 * @param {Durable} client
 */
export async function release(client) {
  const left = (uses.get(client) ?? 1) - 1;
  uses.set(client, left);
  if (left <= 0) await client.close();
}

/** @param {AbortSignal | undefined} signal */
const whenAborted = (signal) => new Promise((resolve) => signal?.addEventListener("abort", resolve, { once: true }));

/** @param {string} name */
const aborted = (name) => failure("AbortedError", `The page gave up connecting to ${JSON.stringify(name)}.`);

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
  /** Resolves when the engine is ready, in this tab or in another; rejects when it never will be. @type {Promise<Durable>} */
  ready;

  #start;
  #election = new AbortController();
  /** Resolves when this client neither leads nor waits to. @type {Promise<void>} */
  #leading;
  /** Where the tabs of this database meet, while another one leads. @type {BroadcastChannel | undefined} */
  #lobby;
  /** @type {EngineWorker | EngineChannel | undefined} */
  #engine;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #silence;
  /** @type {Map<number, Watch>} */
  #watches = new Map();

  /** @param {Start} start */
  constructor(start) {
    super();
    this.#start = start;
    this.#leading = this.#lead();
    this.ready = this.#whenReady();
    this.ready.catch(() => {}); // rejected for those who await it
    addEventListener("pagehide", this);
    addEventListener("pageshow", this);
  }

  get name() {
    return this.#start.name;
  }

  get status() {
    return this.detail.status;
  }

  /** Whether this tab runs the engine; `undefined` while the status is not "ready". */
  get role() {
    return this.detail.role;
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
    return this.#call("trigger", { ...options, job, input });
  }

  /**
   * Makes a run of a job, or finds the one that stands for it, and sends it a signal, all or nothing.
   *
   * @param {string} job
   * @param {unknown} input a JSON value
   * @param {{name: string, payload?: unknown, signalId?: string}} signal
   * @param {TriggerOptions} [options]
   * @returns {Promise<any>} the run
   */
  async triggerWithSignal(job, input, { name, payload = null, signalId }, options = {}) {
    return this.#call("triggerWithSignal", { ...options, job, input, name, payload, signalId });
  }

  /**
   * Lets an event reach every run that waits for it, and starts the jobs that it starts.
   *
   * @param {string} topic
   * @param {unknown} [payload] a JSON value
   * @param {{eventId?: string}} [options] a second event of one id within 30 days is not delivered
   * @returns {Promise<string[]>} the ids of these runs
   */
  async publish(topic, payload = null, { eventId } = {}) {
    return this.#call("publish", { topic, payload, eventId });
  }

  /**
   * Delivers what was sent to a webhook of a run; false when it was delivered before.
   *
   * @param {string} token
   * @param {unknown} [body] a JSON value
   * @returns {Promise<boolean>}
   */
  async deliverWebhook(token, body = null) {
    return this.#call("deliverWebhook", { token, body });
  }

  runs = runCalls(
    (method, params) => this.#call(method, params),
    (subject, from) => this.#watch(subject, from),
  );
  schedules = scheduleCalls((method, params) => this.#call(method, params));
  files = fileCalls((method, params) => this.#call(method, params));

  /** How often each file was flushed to the disk since the engine started. @returns {Promise<Record<string, number>>} */
  flushes() {
    return this.#call("debug.flushes", {});
  }

  /** How many watches each tab that is connected has open in the engine. @returns {Promise<number[]>} */
  watches() {
    return this.#call("engine.watches", {});
  }

  /** Stops the engine, or leaves the one of another tab. Runs that have not ended go on when someone connects again. */
  async close() {
    if (this.status === "starting" || this.status === "ready") {
      this.#end("closed", failure("ClosedError", "This client was closed; connect() makes a new one."));
      this.#election.abort();
      this.#leaveLobby();
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
    const { jobs, options } = this.#start;
    const isSame = (/** @type {unknown} */ given, /** @type {unknown} */ own) =>
      given === null || JSON.stringify(given) === JSON.stringify(own);
    return isSame(start.jobs, jobs) && isSame({ ...options, ...given(start.options) }, options);
  }

  /**
   * A page in the back/forward cache is frozen, but would still hold the lock: so it gives way, and comes back when it is
   * shown again. Watches go on from where they were. The engine of a page that goes away for good ends with it.
   *
   * @param {PageTransitionEvent} event
   */
  handleEvent({ type, persisted }) {
    if (this.error) return;
    if (!persisted) {
      if (type === "pagehide") this.#engine?.pageGoes();
    } else if (type === "pagehide") {
      this.#become({ status: "starting", message: "this page was put aside", phase: "storage" });
      this.#election.abort();
      this.#leaveLobby();
      this.#engine?.terminate(unanswered("EngineStoppedError", "The page was put aside"));
    } else {
      this.#leading = this.#leading.then(() => this.#lead());
    }
  }

  /** Waits for the lock, and holds it while the engine lives; until it comes, follows the tab that has it. */
  async #lead() {
    if (this.error) return;
    const { signal } = (this.#election = new AbortController());
    const lock = lobbyName(this.name);
    const whileHeld = () => (signal.aborted ? undefined : this.#runEngine());
    try {
      const ifFree = (/** @type {Lock | null} */ granted) => (granted ? whileHeld() : true);
      const isTaken = await navigator.locks.request(lock, { ifAvailable: true }, ifFree);
      if (!isTaken || signal.aborted) return;
      this.#enterLobby();
      await navigator.locks.request(lock, { signal }, whileHeld);
    } catch (error) {
      if (signal.aborted) return;
      const isOurs = error instanceof DurableError;
      this.#end("failed", isOurs ? error : failure("WorkerError", `The browser refused to start the engine: ${error}`));
    }
  }

  /** Resolves when the engine was stopped, rejects when it failed. */
  #runEngine() {
    this.#leaveLobby();
    if (!this.#start.jobs) throw noJobs(this.name);
    this.#become(STARTING);
    this.#engine?.terminate(leaderLost());
    const engine = new EngineWorker(this.#start, (message) => this.#hear(message));
    this.#engine = engine;
    return engine.ended;
  }

  #enterLobby() {
    this.#lobby = new BroadcastChannel(lobbyName(this.name));
    this.#lobby.onmessage = ({ data: { type, leader } }) => {
      const isOurs = this.#engine instanceof EngineChannel && this.#engine.leader === leader;
      if (type === (isOurs ? "left" : "leading")) this.#follow();
    };
    this.#follow();
  }

  #leaveLobby() {
    this.#lobby?.close();
    this.#lobby = undefined;
    clearTimeout(this.#silence);
  }

  /** Asks the tab that leads, or will, for a channel. */
  #follow() {
    const lobby = /** @type {BroadcastChannel} */ (this.#lobby);
    const detail = /** @type {StatusDetail} */ ({ status: "starting", message: PHASES.leader, phase: "leader" });
    this.#become(detail);
    this.#engine?.terminate(leaderLost());
    this.#engine = new EngineChannel(this.#start, lobby, (message) => this.#hear(message));
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#become({ ...detail, message: SILENCE }), LEADER_TIMEOUT);
  }

  /** @param {any} message */
  #hear(message) {
    clearTimeout(this.#silence);
    const { type, id } = message;
    const error = message.error && new DurableError(message.error);
    switch (type) {
      case "boot": {
        const { type: _, leader: __, ...detail } = message;
        return this.#become({ status: "starting", message: PHASES[detail.phase], ...detail });
      }
      case "ready":
        this.#adopt(message);
        this.#become({ status: "ready", message: "ready", role: this.#engine?.role });
        return this.#watches.forEach((watch, id) => this.#subscribe(id, watch));
      case "refused":
        this.#end("failed", error);
        this.#election.abort();
        this.#leaveLobby();
        return this.#engine?.terminate(error);
      case "frames":
        this.#watches.get(id)?.push(message);
        if (message.end) this.#watches.get(id)?.end();
        return;
      case "end":
        return this.#watches.get(id)?.end(error);
      case "engine":
        return this.#tell("engine", { state: message.state, message: message.message });
      case "error":
        console.error(error);
        return this.#tell("error", error);
    }
  }

  /** What this page did not give is that of the engine which it uses, also when it takes over. @param {any} message */
  #adopt({ jobs = null, durability = null }) {
    const { options } = this.#start;
    this.#start = {
      ...this.#start,
      jobs: this.#start.jobs ?? jobs,
      options: { ...options, durability: options.durability ?? durability },
    };
  }

  /** @param {string} method @param {Record<string, any>} params */
  async #call(method, params) {
    refuseWrongParameters(params);
    const mayRepeat = isRepeatable(method, params);
    for (;;) {
      await this.settled();
      if (this.error) throw this.error;
      const engine = /** @type {EngineWorker | EngineChannel} */ (this.#engine);
      try {
        return await engine.request(method, params);
      } catch (error) {
        const isUnanswered = error instanceof DurableError && error.code === "EngineStoppedError";
        if (!isUnanswered || !mayRepeat) throw error;
      }
    }
  }

  /** @param {Subject} subject @param {number | null} from */
  #watch(subject, from) {
    const id = nextId();
    const watch = new Watch(subject, from, {
      grant: (credit) => this.#post({ type: "credit", id, credit }),
      leave: (isOver) => {
        this.#watches.delete(id);
        if (!isOver) this.#post({ type: "unwatch", id });
      },
    });
    this.#watches.set(id, watch);
    if (this.status === "ready") this.#subscribe(id, watch);
    else if (this.error) watch.end(this.error);
    return watch;
  }

  /** @param {number} id @param {Watch} watch */
  #subscribe(id, watch) {
    this.#post({ type: "watch", id, ...watch.request() });
  }

  /** Says something that only the engine of now has to hear. @param {object} message */
  #post(message) {
    if (this.status === "ready") this.#engine?.post(message);
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
    await this.settled();
    if (this.error) throw this.error;
    return this;
  }

  #nextStatus() {
    return new Promise((resolve) => this.addEventListener("status", resolve, { once: true }));
  }
}

/** The options that are not null. @param {object} options */
const given = (options) => Object.fromEntries(Object.entries(options).filter(([, value]) => value !== null));

/** @param {string} name */
const noJobs = (name) =>
  failure(
    "NoJobsError",
    `No other tab runs the database ${JSON.stringify(name)}, and this page gave no jobs to run it with. ` +
      'Give a list of addresses: connect(name, { jobs: ["./jobs.py"] }).',
  );

const leaderLost = () => unanswered("EngineStoppedError", "The tab that ran the database went away");
