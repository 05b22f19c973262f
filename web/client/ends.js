// @ts-check
/**
 * How the engines of a database ended, as their pages saw it: for the next engine, which has to know whether a run is to
 * blame. A worker in the middle of a step cannot be told that its page goes away, so the page notes it.
 *
 *     closed   the page went away, or closed its client: a shutdown in good order
 *     died     the page lived on, and saw the worker die
 *
 * An engine that has ended in no way which a page has seen, because the browser was killed or the tab discarded, is not in
 * there. The notes are kept in localStorage by the id of the engine's life. Where localStorage is blocked or full, nothing
 * is noted.
 */

/** @typedef {Record<string, "closed" | "died">} Ends by the id of an engine's life */

/** No next engine has read more notes than this; they are forgotten when one has started. */
const MOST = 50;

/** @param {string} name of the database */
const keyOf = (name) => `durable-web:ends:${name}`;

/** @param {string} name of the database @returns {Ends} */
export function endsOf(name) {
  try {
    return JSON.parse(localStorage.getItem(keyOf(name)) ?? "{}");
  } catch {
    return {};
  }
}

/**
 * Notes how an engine ended; the first note about it counts.
 *
 * @param {string} name of the database
 * @param {string} life the engine's id
 * @param {"closed" | "died"} end
 */
export function noteEnd(name, life, end) {
  const known = Object.entries({ [life]: end, ...endsOf(name) });
  write(name, Object.fromEntries(known.slice(0, MOST)));
}

/** Forgets the ends that an engine has read and acted on. @param {string} name of the database @param {Ends} ends */
export function forgetEnds(name, ends) {
  write(name, Object.fromEntries(Object.entries(endsOf(name)).filter(([life]) => !(life in ends))));
}

/** @param {string} name of the database @param {Ends} ends */
function write(name, ends) {
  try {
    if (Object.keys(ends).length) localStorage.setItem(keyOf(name), JSON.stringify(ends));
    else localStorage.removeItem(keyOf(name));
  } catch {} // blocked or full
}
