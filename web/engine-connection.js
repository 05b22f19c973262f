// @ts-check
/**
 * One life of the engine's worker, as the page sees it: the calls that wait for an answer, the watches, and the end.
 */

/** @typedef {{code: string, message: string, traceback?: string}} ErrorDescription */
/** @typedef {Record<string, any> & {seq: number}} Frame */
/** @typedef {{name: string, path: string, size: number}} FileInfo `path` is for jobs; `size` is in bytes */
/** @typedef {{type: "start", name: string, jobs: string[], options: object}} Start */

const WORKER_URL = new URL("./engine-worker.js", import.meta.url);
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

/** One life of the worker: its calls, and its end. */
export class EngineWorker {
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
    this.#worker.onmessageerror = () => this.#crash("sent a message that could not be read");
    this.#worker.onerror = ({ message, filename, lineno }) =>
      this.#crash(message ? `crashed: ${message} (${filename}:${lineno})` : `could not be loaded from ${WORKER_URL}`);
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
    this.#worker.terminate();
    for (const { reject } of this.#calls.values()) reject(reason);
    this.#calls.clear();
    this.#finish();
  }

  /** @param {string} what */
  #crash(what) {
    this.#fail(failure("WorkerError", `The engine's worker ${what}`));
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
export class Watch {
  /** @type {Frame[]} */
  #frames = [];
  /** @type {{error?: DurableError} | undefined} */
  #ended;
  #leave;
  /** Wakes whoever waits in `next()`. */
  #wake = () => {};
  #news = Promise.resolve();

  /** @param {string} runId @param {number} from @param {(isOver: boolean) => void} leave told whether it came to its end */
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
    this.#finish({ error }, true);
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
    if (!this.#ended) this.#finish({}, false);
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** @param {{error?: DurableError}} how @param {boolean} isOver */
  #finish(how, isOver) {
    this.#ended = how;
    this.#leave(isOver);
    this.#wake();
  }

  #expectNews() {
    this.#news = new Promise((resolve) => (this.#wake = resolve));
  }
}

let lastId = 0;
export const nextId = () => (lastId += 1);
