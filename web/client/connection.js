// @ts-check
/**
 * One life of an engine, as a page sees it: the calls that wait for an answer, what else the engine tells, and the end.
 *
 * The leader's page has started the engine's worker and talks to it directly (`EngineWorker`). A follower asks for a
 * channel of its own in the engine's lobby, a BroadcastChannel that every tab knows by the database's name, and then talks
 * to the same worker over that channel (`EngineChannel`). The messages are the same.
 *
 *     lobby   follower → worker   {type: "hello", client, start}
 *             worker → all        {type: "leading", leader}, when it begins to start, and {type: "left", leader}
 *     channel worker → follower   {type: "boot", phase, leader}, {type: "ready", leader, jobs, durability} or {type: "refused", error}, then as
 *                                 worker/engine-worker.js says
 *
 * A follower holds a Web Lock with the name of its channel; the worker waits for it, and so learns when the follower is
 * gone, however it went.
 */
import { endsOf, forgetEnds, noteEnd } from "./ends.js";

/** @typedef {{code: string, message: string, traceback?: string}} ErrorDescription */
/** @typedef {{name: string, path: string, size: number}} FileInfo `path` is for jobs; `size` is in bytes */
/**
 * @typedef {{type: "start", name: string, jobs: string[] | null, protocol: number,
 *   options: {durability: string | null, snapshot: boolean, maxRecoveries: number}}} Start to a worker, with `ends`: how
 *   earlier engines of the database ended; null is what the page did not give
 */

/** Raised with every change after which two tabs of different releases would misunderstand each other. */
export const PROTOCOL = 3;

const WORKER_URL = new URL("../worker/engine-worker.js", import.meta.url);
/** How long `close()` waits for the engine to put its things away. Nothing is lost when it cannot. Milliseconds. */
const STOP_TIMEOUT = 5000;

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
export const failure = (code, message) => new DurableError({ code, message });

/** @param {string} code @param {string} event */
export const unanswered = (code, event) =>
  failure(code, `${event} before the engine answered; whether the call took effect is not known.`);

/** The calls to one engine, and their answers. */
class Connection {
  /** @type {Map<number, {resolve: (result: any) => void, reject: (error: DurableError) => void}>} */
  #calls = new Map();
  #hear;

  /** @param {(message: any) => void} hear what is no answer to a call */
  constructor(hear) {
    this.#hear = hear;
  }

  /** @param {object} message */
  post(message) {
    throw new TypeError(`${message} has nowhere to go.`);
  }

  /** @param {string} method @param {object} params @returns {Promise<any>} */
  request(method, params) {
    const id = nextId();
    return new Promise((resolve, reject) => {
      this.post({ type: "request", id, method, params });
      this.#calls.set(id, { resolve, reject });
    });
  }

  /** Called when this page goes away for good. */
  pageGoes() {}

  /** @param {DurableError} reason for the calls that have no answer yet */
  abandonCalls(reason) {
    for (const { reject } of this.#calls.values()) reject(reason);
    this.#calls.clear();
  }

  /** @param {any} data a message of the engine's, which may be JSON text */
  receive(data) {
    const message = typeof data === "string" ? JSON.parse(data) : data;
    const { type, id, error, result } = message;
    if (type !== "response") return this.#hear(message);
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    return error ? call?.reject(new DurableError(error)) : call?.resolve(result);
  }
}

/** The engine's worker, in the page that has started it. */
export class EngineWorker extends Connection {
  role = /** @type {const} */ ("leader");
  /** Resolves when it was stopped, rejects with a DurableError when it failed. @type {Promise<void>} */
  ended;
  /** @type {(error?: DurableError) => void} */
  #finish = () => {};
  #isReady = false;
  #worker;
  /** The id of this life of the engine; `undefined` until the worker has begun to start it. @type {string | undefined} */
  #life;
  #name;
  #ends;

  /** @param {Start} start @param {(message: any) => void} hear what is no answer to a call */
  constructor(start, hear) {
    super(hear);
    this.ended = new Promise((resolve, reject) => (this.#finish = (error) => (error ? reject(error) : resolve())));
    this.#worker = new Worker(WORKER_URL, { type: "module", name: `durable-web ${start.name}` });
    this.#worker.onmessage = ({ data }) => this.receive(data);
    this.#worker.onmessageerror = () => this.#crash("sent a message that could not be read");
    this.#worker.onerror = ({ message, filename, lineno }) =>
      this.#crash(message ? `crashed: ${message} (${filename}:${lineno})` : `could not be loaded from ${WORKER_URL}`);
    this.#name = start.name;
    this.#ends = endsOf(start.name);
    this.post({ ...start, ends: this.#ends });
  }

  /** @param {object} message */
  post(message) {
    this.#worker.postMessage(message);
  }

  /** @param {any} data */
  receive(data) {
    if (data.type === "failed") return this.#fail(new DurableError(data.error));
    if (data.type === "stopped") return this.#finish();
    if (data.leader) this.#life = data.leader;
    if (data.type === "ready") {
      this.#isReady = true;
      forgetEnds(this.#name, this.#ends);
    }
    super.receive(data);
  }

  /** Lets the engine finish what it is writing. */
  async stop() {
    const closed = unanswered("ClosedError", "The client was closed");
    if (!this.#isReady) return this.terminate(closed);
    this.post({ type: "stop" });
    const timer = setTimeout(() => this.terminate(closed), STOP_TIMEOUT);
    await this.ended.catch(() => {}); // its failure is told elsewhere
    clearTimeout(timer);
    this.terminate(closed);
  }

  /** @param {DurableError} reason for the calls that have no answer yet */
  terminate(reason) {
    this.#noteEnd("closed");
    this.#worker.terminate();
    this.abandonCalls(reason);
    this.#finish();
  }

  pageGoes() {
    this.#noteEnd("closed");
  }

  /** @param {"closed" | "died"} end */
  #noteEnd(end) {
    if (this.#life) noteEnd(this.#name, this.#life, end);
  }

  /** @param {string} what */
  #crash(what) {
    this.#fail(failure("WorkerError", `The engine's worker ${what}`));
  }

  /** @param {DurableError} error */
  #fail(error) {
    this.#noteEnd("died"); // first: when this has finished, another tab may start the next engine
    this.#finish(error);
    this.terminate(error);
  }
}

/** The way to an engine that another tab runs. */
export class EngineChannel extends Connection {
  role = /** @type {const} */ ("follower");
  /** The engine that has answered; `undefined` while none has. @type {string | undefined} */
  leader;

  #channel;
  /** Lets go of the lock by which the engine knows that this tab is there. */
  #leave = new AbortController();

  /** @param {Start} start @param {BroadcastChannel} lobby @param {(message: any) => void} hear */
  constructor(start, lobby, hear) {
    super(hear);
    const client = crypto.randomUUID();
    const name = `${lobbyName(start.name)}:${client}`;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.receive(data);
    const { signal } = this.#leave;
    const untilLeft = () => new Promise((resolve) => signal.addEventListener("abort", resolve));
    const held = navigator.locks.request(name, { signal }, () => {
      lobby.postMessage({ type: "hello", client, start });
      return untilLeft();
    });
    held.catch(() => {}); // left before the lock was granted
  }

  /** @param {object} message */
  post(message) {
    this.#channel.postMessage(message);
  }

  /** @param {any} data */
  receive(data) {
    if (this.#leave.signal.aborted) return;
    if (data.leader) this.leader = data.leader;
    super.receive(data);
  }

  async stop() {
    this.terminate(unanswered("ClosedError", "The client was closed"));
  }

  /** @param {DurableError} reason for the calls that have no answer yet */
  terminate(reason) {
    this.#leave.abort();
    this.#channel.close();
    this.abandonCalls(reason);
  }
}

/** Where the tabs of a database meet; also the name of the lock that its leader holds. @param {string} name */
export const lobbyName = (name) => `durable-web:${name}`;

let lastId = 0;
export const nextId = () => (lastId += 1);
