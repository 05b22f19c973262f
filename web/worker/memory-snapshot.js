// @ts-check
/**
 * A memory snapshot: what Python's memory holds once it has started and imported the engine, as changes to the memory of
 * a Pyodide that has not started yet. `build_scripts/snapshot.py` makes the file and describes its format.
 *
 *     const snapshot = await MemorySnapshot.open(url, (loaded, total) => {});   // the first bytes are here
 *     const pyodide = await loadPyodide({ _loadSnapshot: ..., createPyodideModule: snapshot.restoredBy(...) });
 *
 * Only changes are kept: they are less, and a WebAssembly memory also holds what belongs to one browser, such as the
 * addresses of functions that not every browser has, which must stay as it is.
 */

const MAGIC = "DWSNAP01";
const PREAMBLE_SIZE = 64;
/** A size in a broken file must not make us ask for all of the computer's memory. Bytes. */
const LARGEST = 256 * 1024 * 1024;

/** @typedef {(settings: any) => Promise<any>} Factory the default export of pyodide.asm.mjs */
/**
 * `stackSwitching` are the words to write where Python can be suspended (`run_sync`); `hiwire` is Pyodide's own.
 *
 * @typedef {{buildId: string, wheelSha256: string, wheelPath: string, memorySize: number, tableSize: number,
 *   stackSwitching: [number, number][], hiwire: {hiwireKeys: unknown[], immortalKeys: string[]}}} Description
 */

/** @typedef {{runs: Uint32Array, words: Uint32Array, wheel: Uint8Array}} Changes */

/** Why a snapshot cannot be used. Python starts without it then. */
export class SnapshotError extends Error {}

export class MemorySnapshot {
  /** @type {Description} */
  #description;
  #readChanges;

  /** @param {Description} description @param {() => Promise<Changes>} readChanges */
  constructor(description, readChanges) {
    this.#description = description;
    this.#readChanges = readChanges;
  }

  /**
   * Resolves when the snapshot's description has arrived.
   *
   * @param {string} url
   * @param {(loaded: number, total: number | undefined) => void} progress bytes as they come from the network
   * @returns {Promise<MemorySnapshot>}
   * @throws {SnapshotError} if there is none, or it is not one
   */
  static async open(url, progress) {
    const response = await fetch(url);
    if (!response.ok || !response.body) throw new SnapshotError(`the server answered ${response.status}`);
    const bytes = new ByteReader(await inflated(response, progress));

    const preamble = await bytes.read(PREAMBLE_SIZE);
    if (new TextDecoder("latin1").decode(preamble.subarray(0, 8)) !== MAGIC) throw new SnapshotError("it is not a snapshot");
    const sizes = [...new Uint32Array(preamble.buffer, 8, 4)];
    const size = sizes.reduce((sum, each) => sum + each, 0);
    if (size > LARGEST || sizes.some((each) => each % 4)) throw new SnapshotError("its sizes make no sense");

    const sections = new Uint8Array(size);
    const description = JSON.parse(new TextDecoder().decode(await bytes.readInto(sections, 0, sizes[0])));
    return new MemorySnapshot(description, () => readChanges(bytes, sections, sizes, preamble.subarray(32)));
  }

  /**
   * A factory for `loadPyodide({ createPyodideModule })` that puts the snapshot into the module's memory.
   *
   * @param {Factory} factory
   * @param {Promise<void>} compiling resolves when the browser compiles the WebAssembly; inflating keeps this thread busy
   * @returns {Factory} rejects with a SnapshotError when the snapshot is broken or was made for other files
   */
  restoredBy(factory, compiling) {
    return async (settings) => {
      const { buildId, wheelSha256, wheelPath, memorySize, tableSize, stackSwitching, hiwire } = this.#description;
      if (settings.API.config.BUILD_ID !== buildId) throw new SnapshotError("it was made with another Pyodide");
      settings.noInitialRun = true;
      settings.INITIAL_MEMORY = memorySize;
      const [module, { runs, words, wheel }, lock] = await Promise.all([
        factory(settings),
        compiling.then(() => this.#readChanges()),
        settings.API.lockFilePromise,
      ]);
      const isOther = lock.packages["durable-web"]?.sha256 !== wheelSha256;
      if (isOther) throw new SnapshotError("it was made with another version of durable-web");
      const hasRoom = module.HEAPU8.length === memorySize && module.wasmTable.length >= tableSize;
      if (!hasRoom) throw new SnapshotError("this browser lays out the memory in another way");
      module.FS.writeFile(wheelPath, wheel);
      module.API.restoreSnapshot = () => {
        module.API.restoreSnapshot = undefined; // lets go of the snapshot's bytes
        apply(runs, words, module.HEAPU32);
        if (module.jspiSupported) for (const [index, word] of stackSwitching) module.HEAPU32[index] = word;
        return hiwire;
      };
      return module;
    };
  }
}

/**
 * @param {ByteReader} bytes @param {Uint8Array<ArrayBuffer>} sections the first is there, the others follow
 * @param {number[]} sizes @param {Uint8Array} expected SHA-256 of all sections
 * @returns {Promise<Changes>}
 */
async function readChanges(bytes, sections, [described, runs, words, wheel], expected) {
  await bytes.readInto(sections, described, runs + words + wheel);
  await bytes.expectEnd();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", sections));
  if (digest.some((byte, index) => byte !== expected[index])) throw new SnapshotError("its bytes are damaged");
  return {
    runs: new Uint32Array(sections.buffer, described, runs / 4),
    words: new Uint32Array(sections.buffer, described + runs, words / 4),
    wheel: sections.subarray(described + runs + words),
  };
}

/** @param {Uint32Array} runs pairs: how many words to leave, how many to write @param {Uint32Array} words @param {Uint32Array} memory */
function apply(runs, words, memory) {
  let position = 0;
  let taken = 0;
  for (let index = 0; index < runs.length; index += 2) {
    position += runs[index];
    const length = runs[index + 1];
    memory.set(words.subarray(taken, taken + length), position);
    position += length;
    taken += length;
  }
}

/**
 * The response's bytes, inflated while they arrive. A server that knows what `.gz` means may have declared it as an
 * encoding, and the browser has inflated it already: so the bytes themselves decide.
 *
 * @param {Response} response @param {(loaded: number, total: number | undefined) => void} progress
 * @returns {Promise<ReadableStream<Uint8Array<ArrayBuffer>>>}
 */
async function inflated(response, progress) {
  const isEncoded = response.headers.get("Content-Encoding") !== null;
  const total = (!isEncoded && Number(response.headers.get("Content-Length"))) || undefined;
  const reader = /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body).getReader();
  let loaded = 0;
  const next = async () => {
    const { value } = await reader.read();
    if (value) progress((loaded += value.length), total);
    return value;
  };
  const first = await next();
  /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */
  const stream = new ReadableStream({
    start: (controller) => (first ? controller.enqueue(first) : controller.close()),
    async pull(controller) {
      const chunk = await next();
      if (chunk) controller.enqueue(chunk);
      else controller.close();
    },
  });
  const isGzip = first?.[0] === 0x1f && first[1] === 0x8b;
  return isGzip ? stream.pipeThrough(new DecompressionStream("gzip")) : stream;
}

/** Reads a stream in pieces of chosen sizes. */
class ByteReader {
  #reader;
  #rest = new Uint8Array(0);

  /** @param {ReadableStream<Uint8Array<ArrayBuffer>>} stream */
  constructor(stream) {
    this.#reader = stream.getReader();
  }

  /** @param {number} size */
  read(size) {
    return this.readInto(new Uint8Array(size), 0, size);
  }

  /** @param {Uint8Array<ArrayBuffer>} target @param {number} offset @param {number} size @returns {Promise<Uint8Array<ArrayBuffer>>} */
  async readInto(target, offset, size) {
    for (let done = 0; done < size;) {
      if (!this.#rest.length && !(await this.#more())) throw new SnapshotError("it ends too early");
      const piece = this.#rest.subarray(0, size - done);
      target.set(piece, offset + done);
      done += piece.length;
      this.#rest = this.#rest.subarray(piece.length);
    }
    return target.subarray(offset, offset + size);
  }

  /** Also lets the decompression compare its own checksum. */
  async expectEnd() {
    if (this.#rest.length || (await this.#more())) throw new SnapshotError("it goes on after its end");
  }

  async #more() {
    const { value } = await this.#reader.read();
    this.#rest = value ?? new Uint8Array(0);
    return value !== undefined;
  }
}
