// @ts-check
/**
 * The frames of a watch on their way to the page's own code: bounded in memory, and bounded in time.
 *
 * The engine sends frames against credit, which is given back when the page's code has taken them; so no more than
 * `WINDOW` characters of a watch are ever in the page or on their way to it, however slow the page is. And whatever the page does
 * with them, all watches together take at most `BUDGET` milliseconds of an animation frame; then the page may paint and
 * hear the person before they go on. A frame that comes alone is handed out at once.
 */

/** @typedef {import("./connection.js").DurableError} DurableError */
/** @typedef {Record<string, any> & {id: number, seq: number}} Frame */
/** @typedef {{frames: Frame[], size: number, cursor?: number}} Batch `size` is in characters, as the engine counts them */
/** @typedef {{jobs?: string | string[], labels?: Record<string, string>, kinds?: string | string[]}} FrameFilter */
/** @typedef {{runId: string} | {filters: FrameFilter}} Subject */
/**
 * @typedef {object} Line to the engine
 * @property {(credit: number) => void} grant
 * @property {(isOver: boolean) => void} leave told whether the watch came to its end
 */

/** How many characters of a watch may be in the page or on their way to it. */
const WINDOW = 1024 * 1024;
/** How many characters are given back together, so that giving back costs little. */
const RETURN = WINDOW / 4;
/** How many frames `nextBatch()` gives at most. */
const BATCH_FRAMES = 256;
/** How long the page's code may work on frames before the page has its turn. Milliseconds. */
const BUDGET = 8;
/** Animation frames do not come while a page cannot be seen. Milliseconds. */
const LONGEST_FRAME = 100;

/** Shares out the time of the page's thread among all watches. */
class Pace {
  #spent = 0;
  /** Resolves when there is time again. @type {Promise<void> | undefined} */
  #renewal;

  get isExhausted() {
    return this.#spent >= BUDGET;
  }

  /** @param {number} milliseconds */
  spend(milliseconds) {
    this.#spent += milliseconds;
    this.#renewal ??= nextTurn().then(() => {
      this.#spent = 0;
      this.#renewal = undefined;
    });
  }

  rest() {
    return this.#renewal;
  }
}

const pace = new Pace();

/** The next animation frame; in a page that cannot be seen, the next turn of its event loop. @returns {Promise<void>} */
function nextTurn() {
  return new Promise((resolve) => {
    if (document.hidden) {
      const { port1, port2 } = new MessageChannel(); // timers of hidden pages come once a second, or once a minute
      port1.onmessage = () => {
        port1.close();
        resolve();
      };
      port2.postMessage(null);
    } else {
      const timer = setTimeout(resolve, LONGEST_FRAME); // it may be hidden by then, or be in a frame out of sight
      requestAnimationFrame(() => {
        clearTimeout(timer);
        resolve();
      });
    }
  });
}

/** The frames of one run, or of all runs, for one `for await` loop. */
export class Watch {
  /** What is watched. @type {Subject} */
  subject;
  /** The number of the last frame that arrived; `null` for "now", until the engine has said which that is. @type {number | null} */
  cursor;

  #key;
  #line;
  /** What has arrived and was not taken. @type {Batch[]} */
  #batches = [];
  /** How many frames of the first batch were taken. */
  #taken = 0;
  /** Characters that were taken and not given back yet. */
  #due = 0;
  /** When frames were handed out last; the page's code has been at work since. @type {number | undefined} */
  #handedOut;
  /** @type {{error?: DurableError} | undefined} */
  #ended;
  /** Wakes a waiting `next()`. */
  #wake = () => {};
  #news = Promise.resolve();

  /** @param {Subject} subject @param {number | null} from @param {Line} line */
  constructor(subject, from, line) {
    this.subject = subject;
    this.cursor = from;
    this.#key = "runId" in subject ? "seq" : "id";
    this.#line = line;
    this.#expectNews();
  }

  /** What to ask an engine for that knows nothing of this watch. */
  request() {
    this.#due = 0;
    const held = this.#batches.reduce((sum, { size }) => sum + size, 0);
    return { ...this.subject, from: this.cursor, credit: WINDOW - held };
  }

  /** @param {Batch} batch */
  push({ frames, size, cursor }) {
    const last = this.cursor ?? 0;
    const fresh = frames.filter((frame) => frame[this.#key] > last);
    this.cursor = fresh.at(-1)?.[this.#key] ?? cursor ?? this.cursor;
    if (this.#ended) return;
    if (!fresh.length) return this.#giveBack(size);
    this.#batches.push({ frames: fresh, size });
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
    const [value] = this.#take(1);
    return value ? { value, done: false } : { value: undefined, done: true };
  }

  /** The frames that have arrived: at least one and at most 256, or none when the run has ended. @returns {Promise<Frame[]>} */
  async nextBatch() {
    await this.#settled();
    return this.#take(BATCH_FRAMES);
  }

  /** @returns {Promise<IteratorResult<Frame, undefined>>} */
  async return() {
    this.#batches = [];
    this.#taken = 0;
    if (!this.#ended) this.#finish({}, false);
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** Waits until there is a frame, and time for it, or the end; an error that ended the watch is thrown once. */
  async #settled() {
    if (this.#handedOut !== undefined) pace.spend(performance.now() - this.#handedOut);
    this.#handedOut = undefined;
    while (this.#batches.length ? pace.isExhausted : !this.#ended) {
      await (this.#batches.length ? pace.rest() : this.#news);
    }
    const error = this.#ended?.error;
    if (this.#batches.length || !error) return;
    this.#ended = {};
    throw error;
  }

  /** @param {number} limit */
  #take(limit) {
    /** @type {Frame[]} */
    const taken = [];
    while (this.#batches.length && taken.length < limit) {
      const { frames, size } = this.#batches[0];
      const until = Math.min(frames.length, this.#taken + limit - taken.length);
      for (; this.#taken < until; this.#taken += 1) taken.push(frames[this.#taken]);
      if (until < frames.length) break;
      this.#batches.shift();
      this.#taken = 0;
      this.#giveBack(size);
    }
    if (taken.length) this.#handedOut = performance.now();
    return taken;
  }

  /** @param {number} size */
  #giveBack(size) {
    this.#due += size;
    if (this.#due < RETURN || this.#ended) return;
    this.#line.grant(this.#due);
    this.#due = 0;
  }

  /** @param {{error?: DurableError}} how @param {boolean} isOver */
  #finish(how, isOver) {
    this.#ended = how;
    this.#line.leave(isOver);
    this.#wake();
  }

  #expectNews() {
    this.#news = new Promise((resolve) => (this.#wake = resolve));
  }
}
