// @ts-check
/**
 * The worker that hosts the engine: starts Python, mounts the database's storage, starts `durable_web._browser` and passes
 * messages between it and its clients: the page that has started it, and other tabs, which ask for a channel as
 * client/connection.js says. The pages' side is `durable-web.js`.
 *
 *     page → worker   first {type: "start", name, jobs, options, protocol, ends}; when it is ready {type: "request" | "watch" |
 *                     "credit" | "unwatch", id, ...}; at last {type: "stop"}
 *     worker → page   first {type: "boot", phase, ...detail} several times; then {type: "ready"} or {type: "failed", error};
 *                     then {type: "response" | "frames" | "end", id, ...} and {type: "engine", state, message}; at any
 *                     time {type: "error", error}; at last {type: "stopped"}
 *
 * Python's own messages arrive as JSON text. An error on the way is always `{code, message, traceback}`.
 */
import { mountStorage } from "./opfs-filesystem.js";
import { MOUNT_POINT, OpfsStorage } from "./opfs-storage.js";
import { giveWay, startPython, turnsOf } from "./pyodide-start.js";

/** @typedef {{storage: OpfsStorage, host: any, python: {start: string, reason?: string}}} Engine */
/**
 * @typedef {{name: string, jobs: string[], options: {durability: string | null, snapshot?: boolean, maxRecoveries?: number},
 *   protocol: number, ends?: Record<string, string>}} Start `ends` as client/ends.js has them
 */
/**
 * @typedef {{post: (message: any) => void, session?: any, receive?: any}} Client `session` is Python's side of it, once
 *   there is one, and `receive` that one's method
 */

/** Tells this life of the engine from others. */
const LEADER = crypto.randomUUID();

/** The page that has started this worker. @type {Client} */
const owner = { post: (message) => postMessage(message) };
/** Other tabs. @type {Set<Client>} */
const followers = new Set();
/** Where other tabs ask for a channel. @type {BroadcastChannel | undefined} */
let lobby;
/** What a new client is told first. @type {object} */
let standing = { type: "boot", phase: "storage", leader: LEADER };

/** @type {Promise<OpfsStorage> | undefined} */
let opening;
/** @type {Promise<Engine> | undefined} */
let booting;
/** Once it has started. @type {Engine | undefined} */
let engine;

self.onmessage = ({ data: message }) => {
  switch (message.type) {
    case "start":
      openLobby(message);
      booting = boot(message);
      booting.then(
        (booted) => {
          engine = booted;
          tell({ type: "ready", leader: LEADER, jobs: message.jobs, durability: durabilityOf(message) });
          engine.host.greet();
        },
        (error) => end({ type: "failed", error: described(error) }),
      );
      break;
    case "stop":
      void stop();
      break;
    default:
      void receive(owner, message);
  }
};

self.addEventListener("unhandledrejection", ({ reason }) => postMessage({ type: "error", error: described(reason) }));

/** Tells every client where the engine stands, and those who come later. @param {object} message */
function tell(message) {
  standing = message;
  for (const client of [owner, ...followers]) client.post(message);
}

/** @param {string} phase of starting @param {object} [detail] */
const report = (phase, detail = {}) => tell({ type: "boot", phase, ...detail, leader: LEADER });

/** @param {Start} start */
function openLobby(start) {
  lobby = new BroadcastChannel(`durable-web:${start.name}`);
  lobby.onmessage = ({ data }) => {
    if (data.type === "hello") admit(data.client, data.start, start);
  };
  lobby.postMessage({ type: "leading", leader: LEADER });
}

/** Sends the other tabs to the next engine. */
function closeLobby() {
  lobby?.postMessage({ type: "left", leader: LEADER });
  lobby?.close();
  lobby = undefined;
}

/**
 * Gives another tab a channel of its own, until it lets go of the lock with the channel's name.
 *
 * @param {string} id
 * @param {Start} theirs
 * @param {Start} ours
 */
function admit(id, theirs, ours) {
  const name = `durable-web:${ours.name}:${id}`;
  const channel = new BroadcastChannel(name);
  const error = refusal(theirs, ours);
  if (error) {
    channel.postMessage({ type: "refused", leader: LEADER, error });
    channel.close();
    return;
  }
  /** @type {Client} */
  const client = { post: (message) => channel.postMessage(message) };
  followers.add(client);
  channel.onmessage = ({ data }) => void receive(client, data);
  client.post(standing);
  const greet = (/** @type {Engine} */ { host }) => followers.has(client) && sessionOf(client, host).greet();
  booting?.then(greet, () => {}); // the client hears of it
  void navigator.locks.request(name, () => {
    followers.delete(client);
    channel.close();
    client.session?.close();
    client.receive?.destroy();
    client.session?.destroy();
  });
}

/** Why another tab cannot use this engine, if so. @param {Start} theirs @param {Start} ours */
function refusal(theirs, ours) {
  const what = `The tab that runs the database ${JSON.stringify(ours.name)}`;
  if (theirs.protocol !== ours.protocol) {
    const message = `${what} has another release of this site's files. Close it, or reload it, and then reload this page.`;
    return { code: "OtherReleaseError", message };
  }
  const sorted = (/** @type {string[]} */ jobs) => JSON.stringify([...jobs].sort());
  const hasSameJobs = !theirs.jobs || sorted(theirs.jobs) === sorted(ours.jobs);
  if (hasSameJobs && [null, durabilityOf(ours)].includes(theirs.options.durability)) return undefined;
  const message = `${what} was given other jobs or another durability. Give the same in every tab, or close that one first.`;
  return { code: "OtherOptionsError", message };
}

/** @param {Start} start */
const durabilityOf = ({ options: { durability } }) => durability ?? "full";

/** @param {Client} client @param {any} host */
function sessionOf(client, host) {
  client.session ??= client === owner ? host : host.connect(client.post);
  return client.session;
}

/**
 * @param {Start} message
 * @returns {Promise<Engine>}
 */
async function boot({ ends, ...start }) {
  const { name, jobs } = start;
  const { snapshot, maxRecoveries } = start.options;
  report("storage");
  opening = OpfsStorage.open(name);
  let isOpen = false;
  const sources = fetchAll(jobs);
  /** @type {Parameters<typeof report>} */
  let loaded = ["pyodide"];
  const starting = startPython({
    snapshot,
    report(...news) {
      loaded = news;
      if (isOpen) report(...news);
    },
  });
  starting.catch(() => {}); // the storage's error comes first
  const storage = await opening;
  isOpen = true;

  report(...loaded);
  const { pyodide, ...python } = await starting;
  pyodide._api.on_fatal = failed;
  mountStorage(pyodide, storage);
  pyodide.registerJsModule("durable_worker", {
    fetch: async (/** @type {string} */ url) => (await sources.get(url))?.clone(),
    askForTurn: turnsOf(pyodide),
    giveWay,
  });

  report("jobs", python);
  const browser = pyodide.pyimport("durable_web._browser");
  const settings = {
    database: `${MOUNT_POINT}/database.sqlite3`,
    jobs,
    durability: durabilityOf(start),
    maxRecoveries,
    life: LEADER,
    ends,
  };
  const files = {
    create: (/** @type {string} */ name) => storage.create(name),
    remove: (/** @type {string} */ name) => storage.remove(name),
  };
  const send = (/** @type {string} */ text) => postMessage(text);
  const host = await browser.start(send, JSON.stringify(settings), files);
  return { storage, host, python };
}

/** Asks for the job modules, while Python starts. @param {string[]} urls @returns {Map<string, Promise<Response>>} */
function fetchAll(urls) {
  const responses = new Map(urls.map((url) => [url, fetch(url, { cache: "no-cache" })]));
  for (const response of responses.values()) response.catch(() => {}); // told to Python, which awaits it
  return responses;
}

/** @param {Client} client @param {any} message a request, watch, credit or unwatch */
function receive(client, message) {
  if (engine) return serve(client, message, engine); // in this turn
  return booting?.then((booted) => serve(client, message, booted));
}

/** @param {Client} client @param {any} message @param {Engine} engine */
async function serve(client, message, engine) {
  if (!/^(files|debug)\./.test(message.method)) {
    if (client === owner || followers.has(client)) {
      client.receive ??= sessionOf(client, engine.host).receive; // looked up once: it is a proxy of Python's each time
      client.receive(JSON.stringify(message));
    }
    return;
  }
  const { id, method, params } = message;
  try {
    client.post({ type: "response", id, result: await answer(engine, method, params) });
  } catch (error) {
    client.post({ type: "response", id, error: described(error) });
  }
}

/** What is answered without Python. @param {Engine} engine @param {string} method @param {any} params */
function answer({ storage, python }, method, params) {
  switch (method) {
    case "files.put":
      return storage.put(params.name, params.blob);
    case "files.get":
      return { name: params.name, blob: storage.get(params.name) };
    case "files.list":
      return storage.list();
    case "files.delete":
      return storage.remove(params.name);
    case "debug.flushes":
      return storage.flushes();
    case "debug.start":
      return python;
    default:
      throw new TypeError(`There is no method ${method}.`);
  }
}

async function stop() {
  closeLobby();
  try {
    const engine = await booting;
    await engine?.host.stop();
  } catch (error) {
    postMessage({ type: "error", error: described(error) });
  }
  await end({ type: "stopped" });
}

/** Python has crashed: nothing that it executes goes on. @param {unknown} error */
function failed(error) {
  const message = `The engine's Python crashed: ${error}`;
  void end({ type: "failed", error: { code: "WorkerError", message } });
}

/** Releases the files, then says the last word. @param {object} message */
async function end(message) {
  closeLobby();
  await opening?.then(
    (storage) => storage.close(),
    () => {},
  ); // one that could not be opened holds nothing
  postMessage(message);
}

/** @param {any} error @returns {{code: string, message: string, traceback?: string}} */
function described(error) {
  if (error?.name === "PythonError") {
    return { code: error.type, message: lastWords(error.type, error.message), traceback: error.message };
  }
  const isForeseen = typeof error?.code === "string";
  if (isForeseen) return { code: error.code, message: error.message };
  if (!(error instanceof Error)) return { code: "Error", message: String(error) };
  return { code: error.name, message: error.message, traceback: error.stack };
}

/** What follows the exception's name at the end of a traceback. @param {string} type @param {string} traceback */
function lastWords(type, traceback) {
  const parts = traceback.split(new RegExp(`^(?:[\\w.<>]+\\.)?${type}(?:: |$)`, "m"));
  return (parts.length > 1 ? parts[parts.length - 1] : traceback).trim();
}
