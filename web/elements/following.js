// @ts-check
/**
 * How the elements that show the same run share one binding.
 */
import { JobBinding, RunBinding } from "../durable-bindings.js";
import { DurableError } from "../client/connection.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {JobBinding | RunBinding} FollowedRun */

/** @type {WeakMap<Durable, Map<string, {binding: FollowedRun, users: number}>>} */
const shared = new WeakMap();

/**
 * Calls `render` with what the attributes `run-id` or `job` of an element name, now and whenever it changes.
 *
 * @param {Element} element
 * @param {Durable} client
 * @param {(binding: FollowedRun) => void} render
 * @returns {() => void} ends that
 */
export function show(element, client, render) {
  const { key, make } = wanted(element, client);
  const ofClient = shared.get(client) ?? new Map();
  shared.set(client, ofClient);
  const share = ofClient.get(key) ?? { binding: make(), users: 0 };
  ofClient.set(key, share);
  share.users += 1;
  const draw = () => render(share.binding);
  share.binding.addEventListener("changed", draw);
  draw();
  return () => {
    share.binding.removeEventListener("changed", draw);
    share.users -= 1;
    if (share.users) return;
    ofClient.delete(key);
    share.binding.close();
  };
}

/** @param {Element} element @param {Durable} client @returns {{key: string, make: () => FollowedRun}} */
function wanted(element, client) {
  const [id, job] = [element.getAttribute("run-id"), element.getAttribute("job")];
  if (id) return { key: `run ${id}`, make: () => new RunBinding(client, id) };
  if (job) {
    const autoResume = element.getAttribute("auto-resume") !== "false";
    const followLatest = element.getAttribute("follow-latest") !== "false";
    const key = `job ${autoResume} ${followLatest} ${job}`;
    return { key, make: () => new JobBinding(client, job, { autoResume, followLatest }) };
  }
  const message = `<${element.localName}> has nothing to show: give it the attribute run-id, or job.`;
  throw new DurableError({ code: "AttributeError", message });
}
