// @ts-check
/**
 * The files of one database in the Origin Private File System (OPFS): everything about them that has to be awaited.
 *
 * OPFS is synchronous only through a `FileSystemSyncAccessHandle`, and opening one is not. So every file is opened before
 * Python can see it, and stays open while the worker lives. On disk they are in `durable-web/<database name>/` of the
 * origin's private file system, beside `incoming/`, which holds an empty file for every upload that is not complete yet.
 *
 *     const storage = await OpfsStorage.open("my-database");
 *     const { name, path } = await storage.put("table.csv", blob);
 *
 * A sync access handle is exclusive, so holding the database's handle is also what keeps a second engine out.
 */

/** Where the storage appears in Python. */
export const MOUNT_POINT = "/durable";

const LOG = "database.sqlite3-wal";
/** SQLite's files, and the engine's own, which names the step begun last. */
const DATABASE_FILES = ["database.sqlite3", LOG, "database.sqlite3-journal", "database.sqlite3-step"];
/** What SQLite writes for each page of its write-ahead log: this header, and then the page. Bytes. */
const FRAME_HEADER_SIZE = 24;
const HELD_FRAMES = 256 * 1024; // bytes; more than one frame of the largest pages
/** A dying tab may hold its handles for a moment longer; up to 2 s have been reported after a reload. Milliseconds. */
const OPEN_TIMEOUT = 5000;
/** Uploads and downloads are copied in pieces of this many bytes, so that memory stays bounded. */
const SLICE_SIZE = 4 * 1024 * 1024;

/** An error with a code that a program can act on and a message that a person can act on. */
export class StorageError extends Error {
  /**
   * @param {"DatabaseInUseError" | "StorageUnavailableError" | "StorageFullError" | "StorageUnsyncedError" |
   *   "FileNotFoundError" | "FileChangedError" | "InvalidNameError"} code
   * @param {string} message
   * @param {unknown} [cause]
   */
  constructor(code, message, cause) {
    super(message, { cause });
    this.name = code;
    this.code = code;
  }
}

/** A file whose handle we hold. Python sees it while it is `visible`. */
export class OpenFile {
  /** @param {string} name @param {FileSystemSyncAccessHandle} handle @param {boolean} visible */
  constructor(name, handle, visible) {
    this.name = name;
    this.visible = visible;
    /** How often the file was flushed to the disk. */
    this.flushes = 0;
    /** @type {any} The inode that Python has open; replaced when the file is deleted and created again. */
    this.node = null;
    /** @protected For subclasses only: what is held back is not in there. */
    this.handle = handle;
  }

  /** In bytes. */
  get size() {
    this.writeOut();
    return this.handle.getSize();
  }

  /** Fills `bytes` from the position `at`. @param {Uint8Array<ArrayBuffer>} bytes @param {number} at @returns {number} how many there were */
  read(bytes, at) {
    this.writeOut();
    return this.handle.read(bytes, { at });
  }

  /** All of `bytes`, or an error. @param {Uint8Array<ArrayBuffer>} bytes @param {number} at */
  write(bytes, at) {
    writeFully(this.handle, bytes, at);
  }

  /** Writes out what is held back: of an ordinary file, nothing is. */
  writeOut() {}

  /** @param {number} size in bytes */
  truncate(size) {
    this.writeOut();
    this.handle.truncate(size);
  }

  flush() {
    this.writeOut();
    this.handle.flush();
    this.flushes += 1;
  }

  hide() {
    this.visible = false;
    this.node = null;
  }

  /** Stands in for deleting, which OPFS cannot do here and now. Deleting a journal commits: hence the flush. */
  empty() {
    this.truncate(0);
    this.flush();
    this.hide();
  }

  /** Lets go of the file, as the death of the worker would: what is held back stays unwritten. */
  close() {
    this.handle.close();
  }
}

/**
 * SQLite's write-ahead log, in which the frames of a transaction are written at once.
 *
 * SQLite writes each frame in two: its header, and at once the page right behind it. Through a handle, a write costs nearly
 * the same for 24 bytes as for 16 KiB, so frames are held back until the last one of the transaction is complete, which
 * says so in its header, or until there is no more room for them. Anything else that is done to the file writes out what
 * is held first; when that fails, it is that operation which fails.
 *
 * Nothing is held back when SQLite's commit returns, with or without a flush. Only what follows the write before it is
 * held: a header, and then its page. (SQLite does write headers alone, to correct the checksums of frames that a large
 * transaction wrote twice; those are not in sequence.) So a worker's death can cost no more than frames of a transaction
 * that was not committed.
 */
class WriteAheadLog extends OpenFile {
  #held = new Uint8Array(HELD_FRAMES);
  #length = 0;
  /** Whether the last thing that is held is a header. */
  #awaitsPage = false;
  /** Where the last write ended, as SQLite sees it: the position of the next frame, while frames are appended. */
  #end = NaN;

  /** @param {Uint8Array<ArrayBuffer>} bytes @param {number} at */
  write(bytes, at) {
    if (at !== this.#end || this.#length + bytes.length > HELD_FRAMES) this.writeOut();
    const isHeader = at === this.#end && bytes.length === FRAME_HEADER_SIZE;
    if (isHeader || this.#awaitsPage) {
      this.#held.set(bytes, this.#length);
      this.#length += bytes.length;
      this.#end = at + bytes.length;
      const isTransaction = this.#awaitsPage && this.#isCommit(this.#length - bytes.length - FRAME_HEADER_SIZE);
      this.#awaitsPage = isHeader;
      if (isTransaction) this.writeOut();
    } else {
      this.writeOut();
      super.write(bytes, at);
      this.#end = at + bytes.length;
    }
  }

  writeOut() {
    const [length, at] = [this.#length, this.#end - this.#length];
    if (!length) return;
    [this.#length, this.#awaitsPage] = [0, false]; // also when it fails: then the caller is told, and reads what there was before
    super.write(this.#held.subarray(0, length), at);
  }

  /** Whether a held frame is the last of a transaction: its header has the size of the database then, else 0. @param {number} frame */
  #isCommit(frame) {
    return this.#held.subarray(frame + 4, frame + 8).some((byte) => byte !== 0);
  }
}

/** The open files of one database: everything about OPFS that has to be awaited. */
export class OpfsStorage {
  /** @type {Map<string, OpenFile>} */ database = new Map();
  /** @type {Map<string, OpenFile>} */ files = new Map();
  /** How often a directory was synced; there is nothing to do then, but it shows that the call arrives. */
  directorySyncs = 0;
  /** Creations and removals wait for each other. @type {Promise<unknown>} */
  #turn = Promise.resolve();
  #filesDirectory;
  #incomingDirectory;

  /** @param {FileSystemDirectoryHandle} filesDirectory @param {FileSystemDirectoryHandle} incomingDirectory */
  constructor(filesDirectory, incomingDirectory) {
    this.#filesDirectory = filesDirectory;
    this.#incomingDirectory = incomingDirectory;
  }

  /**
   * Opens the storage of the database `name` for this worker alone, and removes what half-finished uploads left.
   *
   * @param {string} name
   * @returns {Promise<OpfsStorage>}
   * @throws {StorageError} DatabaseInUseError, StorageUnavailableError or StorageFullError; no handle is held then.
   */
  static async open(name) {
    const root = await privateRoot();
    /** @type {OpfsStorage | undefined} */
    let storage;
    try {
      const directory = await subdirectory(await subdirectory(root, "durable-web"), name);
      storage = new OpfsStorage(await subdirectory(directory, "files"), await subdirectory(directory, "incoming"));
      const deadline = performance.now() + OPEN_TIMEOUT;
      for (const fileName of DATABASE_FILES) {
        const handle = await openExclusively(directory, fileName, deadline);
        const Kind = fileName === LOG ? WriteAheadLog : OpenFile;
        storage.database.set(fileName, new Kind(fileName, handle, handle.getSize() > 0));
      }
      for (const unfinished of await namesIn(storage.#incomingDirectory)) await storage.#abandon(unfinished);
      for (const fileName of await namesIn(storage.#filesDirectory)) await storage.#attach(fileName, deadline);
      return storage;
    } catch (error) {
      storage?.close();
      throw explained(error, name);
    }
  }

  /** Lets go of every file. Later calls of Python on them fail with EIO. */
  close() {
    for (const file of this.#all()) file.close();
  }

  /** How often each file was flushed to the disk since it was opened. @returns {Record<string, number>} */
  flushes() {
    return Object.fromEntries(this.#all().map((file) => [file.name, file.flushes]));
  }

  /** @returns {{name: string, path: string, size: number}[]} by name, which for uploads is by time */
  list() {
    const names = [...this.files.keys()].sort();
    return names.map((name) => this.#describe(name));
  }

  /**
   * An empty file of this name. One that is there already is emptied.
   *
   * @param {string} name
   * @returns {Promise<string>} the path for Python
   */
  async create(name) {
    if (!/^[^/\\\0]{1,200}$/.test(name) || name === "." || name === "..") {
      const message = `${JSON.stringify(name)} cannot be the name of a file: it needs 1 to 200 characters, and no slashes.`;
      throw new StorageError("InvalidNameError", message);
    }
    return this.#inTurn(async () => {
      try {
        if (!this.files.has(name)) await this.#attach(name);
        this.#file(name).truncate(0);
      } catch (error) {
        throw explained(error, name);
      }
      return this.#describe(name).path;
    });
  }

  /** Removes a file for good; nothing happens if there is none. @param {string} name */
  remove(name) {
    const file = this.files.get(name);
    if (!file) return Promise.resolve();
    file.hide();
    file.close();
    this.files.delete(name);
    return this.#inTurn(() => removeIfPresent(this.#filesDirectory, name));
  }

  /**
   * Makes an upload durable under a new name `<id>-<name>`, whose ids sort by time. The name appears only when every byte
   * is on the disk: until then an empty file in `incoming/` marks it as unfinished, and the next boot removes both.
   *
   * @param {string} name what the person calls the file
   * @param {Blob} blob
   * @returns {Promise<{name: string, path: string, size: number}>}
   * @throws {StorageError} StorageFullError, or FileChangedError when the file is not the one any more that was chosen;
   *   nothing is left behind.
   */
  async put(name, blob) {
    const unique = `${timeSortableId()}-${sanitised(name)}`;
    try {
      await this.#incomingDirectory.getFileHandle(unique, { create: true });
      const handle = await openExclusively(this.#filesDirectory, unique);
      try {
        for (let offset = 0; offset < blob.size; offset += SLICE_SIZE) {
          writeFully(handle, await readSlice(blob, offset, name), offset);
        }
        handle.flush();
      } finally {
        handle.close();
      }
      await removeIfPresent(this.#incomingDirectory, unique);
    } catch (error) {
      await this.#abandon(unique).catch(() => {}); // the next boot does it
      throw explained(error, name);
    }
    await this.#attach(unique);
    return this.#describe(unique);
  }

  /** The bytes of a file as they are now. @param {string} name @returns {Blob} */
  get(name) {
    const file = this.#file(name);
    const { size } = file;
    const slice = new Uint8Array(Math.min(size, SLICE_SIZE));
    const parts = [];
    for (let offset = 0; offset < size; offset += slice.length) {
      parts.push(new Blob([slice.subarray(0, file.read(slice, offset))]));
    }
    return new Blob(parts);
  }

  #all() {
    return [...this.database.values(), ...this.files.values()];
  }

  /** @param {string} name @returns {OpenFile} */
  #file(name) {
    const file = this.files.get(name);
    if (file) return file;
    const message = `There is no file ${JSON.stringify(name)}; files.list() names those that there are.`;
    throw new StorageError("FileNotFoundError", message);
  }

  /** @param {string} name */
  #describe(name) {
    return { name, path: `${MOUNT_POINT}/files/${name}`, size: this.#file(name).size };
  }

  /** @param {string} name @param {number} [deadline] */
  async #attach(name, deadline) {
    this.files.set(name, new OpenFile(name, await openExclusively(this.#filesDirectory, name, deadline), true));
  }

  /** The mark goes last, so that a crash in between is tidied up by the next boot. @param {string} name */
  async #abandon(name) {
    await removeIfPresent(this.#filesDirectory, name);
    await removeIfPresent(this.#incomingDirectory, name);
  }

  /** @template T @param {() => Promise<T>} operation @returns {Promise<T>} */
  #inTurn(operation) {
    const turn = this.#turn.then(operation);
    this.#turn = turn.catch(() => {});
    return turn;
  }
}

async function privateRoot() {
  const unavailable =
    "This browser offers no private file system (OPFS) here, so nothing could be kept. The private windows of some " +
    "browsers switch it off; it also needs a secure context (https:// or localhost) and a browser from 2023 or later.";
  const isThere = "createSyncAccessHandle" in (globalThis.FileSystemFileHandle?.prototype ?? {});
  if (!isThere || !navigator.storage?.getDirectory) throw new StorageError("StorageUnavailableError", unavailable);
  try {
    return await navigator.storage.getDirectory();
  } catch (error) {
    throw new StorageError("StorageUnavailableError", `${unavailable} The browser says: ${error}`, error);
  }
}

/** @param {FileSystemDirectoryHandle} directory @param {string} name */
const subdirectory = (directory, name) => directory.getDirectoryHandle(name, { create: true });

/** @param {FileSystemDirectoryHandle} directory */
async function namesIn(directory) {
  const names = [];
  for await (const name of directory.keys()) names.push(name);
  return names;
}

/** @param {FileSystemDirectoryHandle} directory @param {string} name */
async function removeIfPresent(directory, name) {
  try {
    await directory.removeEntry(name);
  } catch (error) {
    if (!hasName(error, "NotFoundError")) throw error;
  }
}

/**
 * Opens a file for this worker alone, creating it if need be. While someone else holds it, tries again after a pause that
 * doubles, with jitter so that two waiting workers do not stay in step.
 *
 * @param {FileSystemDirectoryHandle} directory
 * @param {string} name
 * @param {number} [deadline] on the clock of `performance.now()`, in milliseconds
 */
async function openExclusively(directory, name, deadline = performance.now() + OPEN_TIMEOUT) {
  const file = await directory.getFileHandle(name, { create: true });
  for (let pause = 10; ; pause = Math.min(2 * pause, 500)) {
    try {
      return await file.createSyncAccessHandle();
    } catch (error) {
      if (!hasName(error, "NoModificationAllowedError") || performance.now() > deadline) throw error;
    }
    const jittered = pause * (0.5 + Math.random());
    await new Promise((resolve) => setTimeout(resolve, jittered));
  }
}

/** @param {FileSystemSyncAccessHandle} handle @param {Uint8Array<ArrayBuffer>} bytes @param {number} offset */
function writeFully(handle, bytes, offset) {
  for (let done = 0; done < bytes.length;) {
    const written = handle.write(bytes.subarray(done), { at: offset + done });
    if (written === 0) throw new DOMException("The browser wrote nothing.", "QuotaExceededError");
    done += written;
  }
}

/**
 * Turns what the browser threw into what a person can act on.
 *
 * @param {unknown} error
 * @param {string} name of the database or file
 */
function explained(error, name) {
  if (error instanceof StorageError) return error;
  const quoted = JSON.stringify(name);
  if (isQuotaExceeded(error)) {
    const message =
      `The browser's storage for this site is full, so ${quoted} could not be written. What was there before is ` +
      "unharmed. Delete files that are no longer needed, or free disk space, and try again.";
    return new StorageError("StorageFullError", message, error);
  }
  if (hasName(error, "NoModificationAllowedError")) {
    const message = `Another tab or program on this site holds ${quoted}. Close the other tabs of this site, then reload this page.`;
    return new StorageError("DatabaseInUseError", message, error);
  }
  const message = `The browser's private file system failed for ${quoted}: ${error}`;
  return new StorageError("StorageUnavailableError", message, error);
}

/** @param {unknown} error @param {string} name */
const hasName = (error, name) => error instanceof Error && error.name === name;

/** @param {unknown} error */
export const isQuotaExceeded = (error) => hasName(error, "QuotaExceededError");

/** Milliseconds since the epoch, then 64 random bits; both in base 36 and of fixed width, so text order is time order. */
function timeSortableId() {
  const random = [...crypto.getRandomValues(new Uint32Array(2))].map((word) => word.toString(36).padStart(7, "0"));
  return [Date.now().toString(36).padStart(9, "0"), ...random].join("");
}

/**
 * Reads a slice of an upload; browsers refuse that once the file is another one than was chosen.
 *
 * @param {Blob} blob
 * @param {number} offset
 * @param {string} name
 */
async function readSlice(blob, offset, name) {
  const slice = blob.slice(offset, offset + SLICE_SIZE);
  try {
    const bytes = new Uint8Array(await slice.arrayBuffer());
    if (bytes.length === slice.size) return bytes;
  } catch (error) {
    if (!hasName(error, "NotReadableError") && !hasName(error, "NotFoundError")) throw error;
  }
  const message =
    `The file ${JSON.stringify(name)} was edited, truncated, replaced or deleted after you chose it, so nothing of it ` +
    "was kept. Choose it again.";
  throw new StorageError("FileChangedError", message);
}

/** Keeps letters and digits of every script, and of a long name the end, with its extension. @param {string} name */
function sanitised(name) {
  return [...name.normalize("NFC").replace(/[^\p{L}\p{N}._-]+/gu, "_")].slice(-48).join("");
}
