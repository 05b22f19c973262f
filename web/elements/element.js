// @ts-check
/**
 * The base of the elements of `durable-elements.js`: how an element finds its client, and follows it.
 */
import { visible } from "../bindings/text.js";
import { DurableError } from "../client/connection.js";
import { connect, release } from "../durable-web.js";
import { make, makeButton } from "./parts.js";
import { styles } from "./styles.js";

/** @typedef {import("../durable-web.js").Durable} Durable */
/** @typedef {HTMLElement & {client?: Durable | null}} Provider an element that has a client, or will have one */

/**
 * The base of all elements that show something: it begins when there is a client, and again whenever that is another one
 * or an attribute changes.
 *
 * The client is that of the property `client`, or of the attributes `database` and `jobs` (URLs of Python modules), of this
 * element or of the nearest element around it that has them.
 */
export class DurableElement extends HTMLElement {
  root = this.attachShadow({ mode: "open" });
  /** @type {Durable | null} */
  #client = null;
  #visit = 0;
  /** What it has its client of. @type {Provider | null} */
  #provider = null;
  /** What has to be done before it begins again. @type {(() => void)[]} */
  #endings = [];

  constructor() {
    super();
    this.root.adoptedStyleSheets = [styles];
    takeOver(this, "client");
  }

  /** @returns {Durable | null} the client that was given to this element */
  get client() {
    return this.#client;
  }
  set client(client) {
    this.#client = client;
    this.#beginAnew();
  }

  connectedCallback() {
    void this.#move();
  }
  disconnectedCallback() {
    void this.#move();
  }
  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (before !== now) this.#beginAnew();
  }

  /** @protected @param {Durable} client @returns {() => void} what ends it */
  begin(client) {
    throw new TypeError(`There is no beginning for ${this.localName} and ${client.name}.`);
  }

  /** Whether it was moved inside its client, put elsewhere or removed, is known when the page's script has had its turn. */
  async #move() {
    await null;
    if (!this.isConnected || !this.#provider || this.#provider !== providerOf(this)) this.#beginAnew();
  }

  #beginAnew = () => void this.#restart();

  /** Once for all that changes in one go. */
  async #restart() {
    const visit = (this.#visit += 1);
    await null;
    if (visit !== this.#visit) return;
    this.#provider = null;
    for (const end of this.#endings.splice(0)) end();
    if (!this.isConnected) return;
    const isCurrent = () => visit === this.#visit;
    try {
      const client = await this.#find(isCurrent);
      if (!isCurrent()) return;
      if (client) this.#endings.push(this.begin(client));
      else this.root.replaceChildren();
    } catch (error) {
      if (isCurrent()) this.#refuse(/** @type {Error} */ (error));
    }
  }

  /** The client; null while the element around this one has none. @param {() => boolean} isCurrent */
  async #find(isCurrent) {
    const provider = providerOf(this);
    if (!provider) throw noClient(this);
    this.#provider = provider;
    provider.addEventListener("client", this.#beginAnew);
    this.#endings.push(() => provider.removeEventListener("client", this.#beginAnew));
    if (provider.client || provider.localName === "durable-client") return provider.client ?? null;
    this.root.replaceChildren();
    const client = await connect(provider.getAttribute("database") ?? "", optionsOf(provider));
    if (isCurrent()) this.#endings.push(() => void releaseLater(client));
    else void releaseLater(client);
    return client;
  }

  /** @param {Error} error why it cannot begin */
  #refuse(error) {
    const problem = make("p", { class: "problem text", part: "problem", role: "alert" }, visible(error.message));
    this.root.replaceChildren(problem, makeButton("Try again", this.#beginAnew));
  }
}

/** An element that is moved in the page, or begins again, needs the client again at once. @param {Durable} client */
async function releaseLater(client) {
  await new Promise((resolve) => setTimeout(resolve));
  await release(client);
}

/**
 * Gives a property that a page has set before the element was defined to the element's own accessor.
 *
 * @param {HTMLElement} element @param {string} property
 */
export function takeOver(element, property) {
  const given = /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (element));
  if (!Object.hasOwn(given, property)) return;
  const value = given[property];
  delete given[property];
  given[property] = value;
}

/**
 * The element that has, or will have, the client of an element: that one itself, or one around it.
 *
 * @param {Element} element
 */
function providerOf(element) {
  for (let place = /** @type {Element | null} */ (element); place; place = parentOf(place)) {
    const provider = /** @type {Provider} */ (place);
    if (provider.client || provider.hasAttribute("database") || provider.localName === "durable-client") return provider;
  }
  return null;
}

/** @param {Element} element */
function noClient(element) {
  const message =
    `<${element.localName}> belongs to no database. ` +
    "Give it the attributes database and jobs, put it into a <durable-client> that has them, or set its client property.";
  return new DurableError({ code: "NoClientError", message });
}

/** Also out of a shadow root. @param {Element} element @returns {Element | null} */
function parentOf(element) {
  if (element.parentElement) return element.parentElement;
  const root = element.getRootNode();
  return root instanceof ShadowRoot ? root.host : null;
}

/** What `connect` takes, by the attributes of an element. @param {Element} element */
export function optionsOf(element) {
  const durability = element.getAttribute("durability");
  const most = element.getAttribute("max-recoveries");
  return {
    jobs: words(element, "jobs"),
    durability: /** @type {"full" | "normal" | undefined} */ (durability ?? undefined),
    maxRecoveries: most === null ? undefined : Number(most),
  };
}

/** The words of an attribute; undefined where it is not there. @param {Element} element @param {string} name */
export const words = (element, name) => element.getAttribute(name)?.split(/\s+/).filter(Boolean);

/** The JSON of an attribute; undefined where it is not there. @param {Element} element @param {string} name */
export function json(element, name) {
  const text = element.getAttribute(name);
  if (text === null) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    const message = `The attribute ${name} of <${element.localName}> is not JSON: ${/** @type {Error} */ (error).message}`;
    throw new DurableError({ code: "AttributeError", message });
  }
}
