// @ts-check
/** What the bindings of `durable-bindings.js` are made of. */
import { DurableError } from "../client/connection.js";
import { visible } from "./text.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../client/watch.js").Frame} Frame */

/** How many characters the kept log lines have together; the latest line is always kept. */
const MOST_CHARACTERS = 16_000_000;
/** What the runs of a page are followed by. */
const FOLLOWED_KINDS = ["run_status", "run_deleted", "progress"];
/** A hidden page is never painted: there a frame is so long. Milliseconds. */
const HIDDEN_FRAME = 100;

/** Whether a frame tells something that the store had not told yet when the run was read. @param {{lastSeq: number}} run @param {Frame} frame */
export const isNews = (run, frame) => frame.seq > run.lastSeq;

/** What all bindings have in common: the event "changed", `bind`, and the end. */
export class Binding extends EventTarget {
  isClosed = false;
  /** Whether the store was asked for all that it shows. */
  isHydrated = false;
  /** Why it cannot show what it should: such as that there is no such run. @type {DurableError | null} */
  problem = null;
  #isDue = false;
  /** @type {AbortController} */
  #closing = new AbortController();

  /** @param {Durable} durable */
  constructor(durable) {
    super();
    this.durable = durable;
  }

  /** What `bind` writes into an element. */
  get text() {
    return "";
  }

  /** Resolves when it shows what is in the store, or says why it cannot. @returns {Promise<void>} */
  async hydrated() {
    while (!this.isHydrated && !this.problem && !this.isClosed) {
      await new Promise((resolve) => {
        this.addEventListener("changed", resolve, { once: true });
        this.whenClosed(() => resolve(undefined));
      });
    }
  }

  /**
   * Renders it into an element, now and whenever it changes: always as text, never as HTML. A `<progress>` shows how far
   * the run has come.
   *
   * @param {Element} element
   * @returns {() => void} ends that
   */
  bind(element) {
    const end = new AbortController();
    const render = () => this.renderInto(element);
    this.addEventListener("changed", render, { signal: AbortSignal.any([end.signal, this.#closing.signal]) });
    render();
    return () => end.abort();
  }

  /** Ends it: it follows nothing any more, and says no more that it has changed. */
  close() {
    this.isClosed = true;
    this.#closing.abort();
  }

  /** @protected @param {Element} element */
  renderInto(element) {
    const text = this.problem ? visible(this.problem.message) : this.text;
    if (element.textContent !== text) element.textContent = text;
  }

  /** @protected @param {() => void} end called when it is closed */
  whenClosed(end) {
    this.#closing.signal.addEventListener("abort", end, { once: true });
  }

  /** @protected */
  changed() {
    if (this.#isDue || this.isClosed) return;
    this.#isDue = true;
    void nextFrame().then(() => {
      this.#isDue = false;
      if (!this.isClosed) this.dispatchEvent(new Event("changed"));
    });
  }

  /** @protected @param {unknown} error */
  fail(error) {
    this.problem = describe(error);
    this.changed();
  }
}

/** The latest of what is pushed: at most so many, and so many characters. */
export class Latest {
  /** @type {Frame[]} */
  items = [];
  dropped = 0;
  /** @type {number[]} */
  #sizes = [];
  #size = 0;

  /** @param {number} max */
  constructor(max) {
    this.max = max;
  }

  /** @param {Frame} item @param {number} [size] in characters */
  push(item, size = 0) {
    this.items.push(item);
    this.#sizes.push(size);
    this.#size += size;
    if (this.items.length > 2 * this.max || this.#size > 2 * MOST_CHARACTERS) this.trim();
  }

  clear() {
    [this.items, this.#sizes, this.#size, this.dropped] = [[], [], 0, 0];
  }

  /** Not done with every item that is pushed: what is taken from the front of an array moves all that is behind it. */
  trim() {
    if (this.items.length <= this.max && this.#size <= MOST_CHARACTERS) return;
    let first = Math.max(0, this.items.length - this.max);
    let size = this.#sizes.slice(first).reduce((sum, one) => sum + one, 0);
    for (; size > MOST_CHARACTERS && first < this.items.length - 1; first += 1) size -= this.#sizes[first];
    [this.items, this.#sizes, this.#size] = [this.items.slice(first), this.#sizes.slice(first), size];
    this.dropped += first;
  }
}

/** @typedef {{listeners: Set<(frames: Frame[]) => void>, end: () => void}} Follow */
/** The one way in which a page follows all runs: a subscription per client and job, for all who listen. @type {WeakMap<Durable, Map<string | null, Follow>>} */
const follows = new WeakMap();

/**
 * Calls `listener` with what happens from now on to the runs of a job, or of all.
 *
 * @param {Durable} durable
 * @param {string | null} job
 * @param {(frames: Frame[]) => void} listener
 * @returns {() => void} ends that
 */
export function follow(durable, job, listener) {
  const ofClient = follows.get(durable) ?? new Map();
  follows.set(durable, ofClient);
  const found = ofClient.get(job) ?? followAll(durable, job, () => ofClient.delete(job));
  ofClient.set(job, found);
  found.listeners.add(listener);
  return () => {
    found.listeners.delete(listener);
    if (found.listeners.size || ofClient.get(job) !== found) return;
    ofClient.delete(job);
    found.end();
  };
}

/** @param {Durable} durable @param {string | null} job @param {() => void} whenOver @returns {Follow} */
function followAll(durable, job, whenOver) {
  const jobs = job === null ? undefined : [job];
  const watch = durable.runs.watchAll({ from: "now", jobs, kinds: FOLLOWED_KINDS });
  /** @type {Follow} */
  const made = { listeners: new Set(), end: () => void watch.return() };
  void (async () => {
    try {
      for (let frames; (frames = await watch.nextBatch()).length;) {
        for (const listener of made.listeners) listener(frames);
      }
    } catch {
      // The client has failed or was closed: it says so itself, with more than could be said here.
    } finally {
      whenOver();
    }
  })();
  return made;
}

/**
 * Does `work` after every call, one at a time: calls that come while it is being done share the next time.
 *
 * @param {() => Promise<void>} work
 * @returns {() => Promise<void>} resolves when there is nothing left to do
 */
export function coalesced(work) {
  /** @type {Promise<void> | undefined} */
  let underWay;
  let isWanted = false;
  const workOff = async () => {
    try {
      while (isWanted) {
        isWanted = false;
        await work();
      }
    } finally {
      underWay = undefined;
    }
  };
  return () => {
    isWanted = true;
    return (underWay ??= workOff());
  };
}

/** @param {unknown} error @returns {DurableError} */
export const describe = (error) =>
  error instanceof DurableError ? error : new DurableError({ code: "Error", message: String(error) });

/** @type {Promise<void> | undefined} */
let frame;

/** Resolves when the browser is about to paint; in a page that is hidden, after a moment. */
export function nextFrame() {
  frame ??= new Promise((resolve) => {
    const pass = () => {
      cancelAnimationFrame(painting);
      clearTimeout(timer);
      frame = undefined;
      resolve();
    };
    const painting = requestAnimationFrame(pass);
    const timer = setTimeout(pass, HIDDEN_FRAME);
  });
  return frame;
}
