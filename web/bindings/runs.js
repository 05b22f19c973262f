// @ts-check
/** Bindings that are about many runs: a list of them, a page at a time, and what a person may do with them. */
import { Binding, coalesced, describe, follow, isNews, nextFrame } from "./binding.js";
import { DurableError } from "../client/connection.js";
import { sentence, visible } from "./text.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {import("../durable-web.js").Filter} Filter */
/** @typedef {import("../client/watch.js").Frame} Frame */
/** @typedef {import("../durable-bindings.js").Run} Run */
/** @typedef {Filter & {pageSize?: number, realtime?: boolean}} ListOptions */

/**
 * The runs that pass a filter, a page at a time. A page after the first begins where the one before it ended, so new runs
 * move nothing there; they appear on the first. As a page is read again with every change, its runs come without their
 * input and output, unless `payloads` asks for them.
 */
export class RunsBinding extends Binding {
  /** @type {Run[]} */
  items = [];
  /** The number of the page that is shown, from 1. */
  page = 1;
  hasMore = false;
  #filter;
  #pageSize;
  /** Of each page up to the one that is shown: after which run it begins. @type {(string | undefined)[]} */
  #cursors = [undefined];
  #turning = Promise.resolve();

  /** @param {Durable} durable @param {ListOptions} [options] */
  constructor(durable, { pageSize = 20, realtime = true, payloads = false, ...filter } = {}) {
    super(durable);
    this.#filter = { ...filter, payloads };
    this.#pageSize = pageSize;
    const jobs = typeof filter.job === "string" ? filter.job : null;
    if (realtime) this.whenClosed(follow(durable, jobs, (frames) => this.#hear(frames)));
    void this.refresh();
  }

  get text() {
    return this.items.map((run) => `${visible(run.job)}  ${sentence(run)}`).join("\n");
  }
  get hasPrevious() {
    return this.page > 1;
  }

  /** Reads the page that is shown again. */
  refresh = coalesced(() => this.#read());

  /** Shows the runs after those that are shown. */
  next() {
    return this.#turn(async () => {
      const last = this.items.at(-1);
      if (!this.hasMore || !last) return;
      this.#cursors = [...this.#cursors.slice(0, this.page), last.id];
      this.page += 1;
      await this.refresh();
    });
  }

  /** Shows the runs before those that are shown. */
  previous() {
    return this.goToPage(this.page - 1);
  }

  /** Shows a page, or the last one where there are not so many. @param {number} page from 1 */
  async goToPage(page) {
    if (page > this.page) {
      while (this.page < page && this.hasMore && !this.problem) await this.next();
      return;
    }
    return this.#turn(async () => {
      this.page = Math.max(1, Math.min(page, this.page));
      await this.refresh();
    });
  }

  /** One page is turned after the other. @param {() => Promise<void>} work */
  #turn(work) {
    return (this.#turning = this.#turning.then(work));
  }

  /** @returns {Promise<void>} */
  async #read() {
    const { page } = this;
    try {
      const cursor = this.#cursors[page - 1];
      const found = await this.durable.runs.list({ ...this.#filter, cursor, limit: this.#pageSize + 1 });
      if (page !== this.page) return;
      if (!found.length && page > 1) {
        this.page -= 1; // all that was here is gone
        return await this.#read();
      }
      this.items = found.slice(0, this.#pageSize);
      [this.hasMore, this.isHydrated, this.problem] = [found.length > this.#pageSize, true, null];
      this.changed();
    } catch (error) {
      this.fail(error);
    }
  }

  /** Progress is taken as it comes; whatever else happens may change which runs there are. @param {Frame[]} frames */
  #hear(frames) {
    for (const frame of frames) {
      if (frame.kind === "progress") this.#takeProgress(frame);
      else void this.#refreshSoon();
    }
  }

  /** At most once per animation frame, however many runs there are. */
  #refreshSoon = coalesced(async () => {
    await nextFrame();
    if (!this.isClosed) await this.refresh();
  });

  /** @param {Frame} frame */
  #takeProgress(frame) {
    const index = this.items.findIndex((run) => run.id === frame.runId);
    if (index < 0 || !isNews(this.items[index], frame)) return;
    const { seq, ts, current, total = null, message = null } = frame;
    const updated = { ...this.items[index], progress: { current, total, message }, updatedAt: ts, lastSeq: seq };
    this.items = this.items.with(index, updated);
    this.changed();
  }
}

/** What a person may do with runs: while one is being done `isBusy`, and then `error` says whether it went wrong. */
export class ActionsBinding extends Binding {
  /** @type {DurableError | null} */
  error = null;
  #underWay = 0;

  get isBusy() {
    return this.#underWay > 0;
  }
  get text() {
    return this.error ? visible(this.error.message) : "";
  }

  /**
   * Lets a run that did not complete go on from its failed step.
   *
   * @param {string} id
   * @param {{input?: unknown}} [options] another `input`
   * @returns {Promise<Run>}
   */
  retry(id, options) {
    return this.#do(this.durable.runs.retry(id, options));
  }
  /** Makes a new run with the same input and labels. @param {string} id @returns {Promise<Run>} */
  retrigger(id) {
    return this.#do(this.durable.runs.retrigger(id));
  }
  /** Makes a new run that has the steps before the one named. @param {string} id @param {string} fromStep @returns {Promise<Run>} */
  fork(id, fromStep) {
    return this.#do(this.durable.runs.fork(id, fromStep));
  }
  /** With `compensate`, its completed steps are undone first. @param {string} id @param {{compensate?: boolean}} [options] @returns {Promise<Run>} */
  cancel(id, options) {
    return this.#do(this.durable.runs.cancel(id, options));
  }
  /** Lets a run start no further step until it is resumed. @param {string} id @returns {Promise<Run>} */
  pause(id) {
    return this.#do(this.durable.runs.pause(id));
  }
  /** Lets a run go on that is paused, or stands at a breakpoint. @param {string} id @returns {Promise<Run>} */
  resume(id) {
    return this.#do(this.durable.runs.resume(id));
  }
  /** Sends a signal; false when one of that id was delivered before. @param {string} id @param {string} name @param {unknown} [payload] @param {{signalId?: string}} [options] @returns {Promise<boolean>} */
  signal(id, name, payload, options) {
    return this.#do(this.durable.runs.signal(id, name, payload, options));
  }
  /** Deletes a run that has ended, and everything of it. @param {string} id @returns {Promise<void>} */
  delete(id) {
    return this.#do(this.durable.runs.delete(id));
  }
  /** @param {string} id @returns {Promise<Run>} */
  get(id) {
    return this.#do(this.durable.runs.get(id));
  }
  /** @param {string} id @returns {Promise<any[]>} */
  steps(id) {
    return this.#do(this.durable.runs.steps(id));
  }

  /** @template Result @param {Promise<Result>} work @returns {Promise<Result>} */
  async #do(work) {
    this.#underWay += 1;
    this.changed();
    try {
      const result = await work;
      this.error = null;
      return result;
    } catch (error) {
      this.error = describe(error);
      throw error;
    } finally {
      this.#underWay -= 1;
      this.changed();
    }
  }
}
