// @ts-check
/**
 * The Origin Private File System (OPFS) as a directory that Python can use with `sqlite3` and `open()`.
 *
 * Python's file calls are synchronous. OPFS is synchronous only through a `FileSystemSyncAccessHandle`, and opening one
 * is not. So every file is opened before Python can see it and stays open while the worker lives:
 *
 *     /durable/database.sqlite3, -wal, -journal   reserved: opened at boot; SQLite creates and deletes them as it likes
 *     /durable/files/<name>                       attached: made and removed by awaited calls (create, put, remove)
 *
 * In the origin's private file system this is `durable-web/<database name>/`, together with a folder `incoming/`, which
 * holds an empty file for every upload that is not complete yet.
 *
 *     const storage = await OpfsStorage.open("my-database");
 *     const pyodide = await loadPyodide({ createPyodideModule: withDurableSync(factory) });
 *     mountStorage(pyodide, storage);
 *
 * A sync access handle is exclusive, so holding the database's handle is also what keeps a second engine out.
 */

/** Where the storage appears in Python. */
export const MOUNT_POINT = "/durable";

const DATABASE_FILES = ["database.sqlite3", "database.sqlite3-wal", "database.sqlite3-journal"];
/** A dying tab may hold its handles for a moment longer; up to 2 s have been reported after a reload. Milliseconds. */
const OPEN_TIMEOUT = 5000;
/** Uploads and downloads are copied in pieces of this many bytes, so that memory stays bounded. */
const SLICE_SIZE = 4 * 1024 * 1024;

/** @typedef {Record<string, (...parameters: any[]) => any>} Operations as Emscripten names and calls them */

/** An error with a code that a program can act on and a message that a person can act on. */
export class StorageError extends Error {
  /**
   * @param {"DatabaseInUseError" | "StorageUnavailableError" | "StorageFullError" | "StorageUnsyncedError" |
   *   "FileNotFoundError" | "InvalidNameError"} code
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
class OpenFile {
  /** @param {string} name @param {FileSystemSyncAccessHandle} handle @param {boolean} visible */
  constructor(name, handle, visible) {
    this.name = name;
    this.handle = handle;
    this.visible = visible;
    /** How often the file was flushed to the disk. */
    this.flushes = 0;
    /** @type {any} The inode that Python has open; replaced when the file is deleted and created again. */
    this.node = null;
  }

  flush() {
    this.handle.flush();
    this.flushes += 1;
  }

  hide() {
    this.visible = false;
    this.node = null;
  }

  /** Stands in for deleting, which OPFS cannot do here and now. Deleting a journal commits: hence the flush. */
  empty() {
    this.handle.truncate(0);
    this.flush();
    this.hide();
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
        storage.database.set(fileName, new OpenFile(fileName, handle, handle.getSize() > 0));
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
    for (const { handle } of this.#all()) handle.close();
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
        this.#file(name).handle.truncate(0);
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
    file.handle.close();
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
   * @throws {StorageError} StorageFullError, and nothing is left behind.
   */
  async put(name, blob) {
    const unique = `${timeSortableId()}-${sanitised(name)}`;
    try {
      await this.#incomingDirectory.getFileHandle(unique, { create: true });
      const handle = await openExclusively(this.#filesDirectory, unique);
      try {
        for (let offset = 0; offset < blob.size; offset += SLICE_SIZE) {
          writeFully(handle, new Uint8Array(await blob.slice(offset, offset + SLICE_SIZE).arrayBuffer()), offset);
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
    const { handle } = this.#file(name);
    const size = handle.getSize();
    const slice = new Uint8Array(Math.min(size, SLICE_SIZE));
    const parts = [];
    for (let offset = 0; offset < size; offset += slice.length) {
      parts.push(new Blob([slice.subarray(0, handle.read(slice, { at: offset }))]));
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
    return { name, path: `${MOUNT_POINT}/files/${name}`, size: this.#file(name).handle.getSize() };
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

/**
 * Shows the storage to Python at `mountPoint`, and proves that Python's syncs arrive there.
 *
 * The maps of the storage are the only truth about which files there are: nodes never enter Emscripten's name table.
 *
 * @param {any} pyodide
 * @param {OpfsStorage} storage
 * @param {string} [mountPoint]
 * @throws {StorageError} StorageUnsyncedError, if this Pyodide was not loaded with `withDurableSync`.
 */
export function mountStorage(pyodide, storage, mountPoint = MOUNT_POINT) {
  const { FS } = pyodide;
  FS.mkdirTree(mountPoint);
  FS.mount({ mount: (/** @type {any} */ mount) => makeTree(pyodide, storage, mount) }, {}, mountPoint);

  const before = storage.directorySyncs;
  pyodide.runPython("import os; fd = os.open(path, os.O_RDONLY); os.fdatasync(fd); os.close(fd)", {
    globals: pyodide.toPy({ path: mountPoint }),
  });
  if (storage.directorySyncs === before) {
    const message =
      "This build of Pyodide does not pass fdatasync on to the file system, so a commit would not be durable. " +
      "Use the Pyodide that durable-web was made with.";
    throw new StorageError("StorageUnsyncedError", message);
  }
}

/**
 * Makes the two directories, as Emscripten's file system wants them: nodes with `node_ops` and `stream_ops`.
 *
 * @param {any} pyodide
 * @param {OpfsStorage} storage
 * @param {object} mount
 */
function makeTree({ FS, ERRNO_CODES }, storage, mount) {
  /** @param {string} code */
  const errno = (code) => new FS.ErrnoError(ERRNO_CODES[code]);

  /** Runs what the browser may refuse; says so in Python's terms. @template T @param {() => T} operation @returns {T} */
  const guarded = (operation) => {
    try {
      return operation();
    } catch (error) {
      if (error instanceof FS.ErrnoError) throw error;
      if (isQuotaExceeded(error)) throw errno("ENOSPC");
      console.error("durable-web: the browser refused an operation on a file:", error);
      throw errno("EIO");
    }
  };

  /** @param {any} node @returns {OpenFile} */
  const fileOf = (node) => {
    if (node.file.node !== node) throw errno("ESTALE"); // deleted while it was open
    return node.file;
  };

  /** @param {any} node @param {number} size */
  const attributes = (node, size) => {
    const [atime, mtime, ctime] = [node.atime, node.mtime, node.ctime].map((time) => new Date(time));
    const blocks = Math.ceil(size / 512);
    const { id: ino, mode } = node;
    return { dev: 1, ino, mode, nlink: 1, uid: 0, gid: 0, rdev: 0, size, blksize: 4096, blocks, atime, mtime, ctime };
  };

  /** @param {any} node @param {any} changes */
  const setModeAndTimes = (node, changes) => {
    for (const key of ["mode", "atime", "mtime", "ctime"]) if (changes[key] != null) node[key] = changes[key];
  };

  /** @param {any} stream @param {number} offset @param {number} whence @param {number} size */
  const seek = (stream, offset, whence, size) => {
    const position = offset + [0, stream.position, size][whence];
    if (position < 0) throw errno("EINVAL");
    return position;
  };

  /** @type {Operations} */
  const fileNodeOperations = {
    getattr: (node) =>
      attributes(
        node,
        guarded(() => fileOf(node).handle.getSize()),
      ),
    setattr(node, changes) {
      setModeAndTimes(node, changes);
      if (changes.size === undefined) return;
      guarded(() => fileOf(node).handle.truncate(changes.size));
      node.mtime = node.ctime = Date.now();
    },
  };

  /** @type {Operations} */
  const fileStreamOperations = {
    read: ({ node }, buffer, offset, length, at) =>
      guarded(() => fileOf(node).handle.read(buffer.subarray(offset, offset + length), { at })),
    write({ node }, buffer, offset, length, at) {
      node.mtime = node.ctime = Date.now();
      return guarded(() => fileOf(node).handle.write(buffer.subarray(offset, offset + length), { at }));
    },
    llseek(stream, offset, whence) {
      const size = guarded(() => fileOf(stream.node).handle.getSize());
      return seek(stream, offset, whence, size);
    },
    fsync({ node }) {
      guarded(() => fileOf(node).flush());
      return 0;
    },
  };

  /** @type {Operations} */
  const directoryStreamOperations = {
    llseek: (stream, offset, whence) => seek(stream, offset, whence, 0),
    fsync() {
      storage.directorySyncs += 1;
      return 0;
    },
  };

  /**
   * @param {any} parent
   * @param {string} name
   * @param {Map<string, OpenFile>} files
   * @param {(file: OpenFile) => void} unlink
   * @param {Map<string, object>} subdirectories
   */
  const makeDirectory = (parent, name, files, unlink, subdirectories) => {
    /** @type {Operations} */
    const node_ops = {
      getattr: (node) => attributes(node, 4096),
      setattr: setModeAndTimes,
      lookup(directory, name) {
        const file = files.get(name);
        if (file?.visible) return (file.node ??= makeFile(directory, file));
        const subdirectory = subdirectories.get(name);
        if (!subdirectory) throw errno("ENOENT");
        return subdirectory;
      },
      readdir() {
        const visible = [...files.values()].filter((file) => file.visible);
        return [".", "..", ...subdirectories.keys(), ...visible.map((file) => file.name)];
      },
      mknod(directory, name, mode) {
        const file = files.get(name); // here and now, only a reserved name can be created
        if (!file || !FS.isFile(mode)) throw errno("EPERM");
        file.visible = true;
        return node_ops.lookup(directory, name);
      },
      unlink: (_directory, name) => guarded(() => unlink(/** @type {OpenFile} */ (files.get(name)))),
    };
    const operations = { node_ops, stream_ops: directoryStreamOperations };
    return Object.assign(new FS.FSNode(parent, name, 0o40777, 0), { ...operations, mount });
  };

  /** @param {any} directory @param {OpenFile} file */
  const makeFile = (directory, file) => {
    const operations = { node_ops: fileNodeOperations, stream_ops: fileStreamOperations };
    return Object.assign(new FS.FSNode(directory, file.name, 0o100666, 0), { ...operations, file });
  };

  const subdirectories = new Map();
  const root = makeDirectory(null, "/", storage.database, (file) => file.empty(), subdirectories);
  const remove = (/** @type {OpenFile} */ file) => void storage.remove(file.name);
  subdirectories.set("files", makeDirectory(root, "files", storage.files, remove, new Map()));
  return root;
}

/**
 * Wraps Pyodide's module factory so that `fdatasync`, which SQLite calls for every commit, reaches `stream_ops.fsync`.
 * Emscripten's own `__syscall_fdatasync` does nothing and reports success.
 *
 * @param {(settings: any) => Promise<any>} factory the default export of pyodide.asm.mjs
 * @returns {(settings: any) => Promise<any>} for `loadPyodide({ createPyodideModule })`
 */
export function withDurableSync(factory) {
  return (settings) => {
    const { instantiateWasm } = settings;
    /** @param {WebAssembly.Imports} imports @param {unknown} receive */
    settings.instantiateWasm = (imports, receive) => {
      /** @param {number} fd */
      imports.env.__syscall_fdatasync = (fd) => {
        try {
          const stream = settings.FS.getStreamChecked(fd);
          return stream.stream_ops.fsync?.(stream) ?? 0;
        } catch (error) {
          if (!(error instanceof settings.FS.ErrnoError)) throw error;
          return -(/** @type {any} */ (error).errno);
        }
      };
      return instantiateWasm(imports, receive);
    };
    return factory(settings);
  };
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
const isQuotaExceeded = (error) => hasName(error, "QuotaExceededError");

/** Milliseconds since the epoch, then 64 random bits; both in base 36 and of fixed width, so text order is time order. */
function timeSortableId() {
  const random = [...crypto.getRandomValues(new Uint32Array(2))].map((word) => word.toString(36).padStart(7, "0"));
  return [Date.now().toString(36).padStart(9, "0"), ...random].join("");
}

/** Keeps letters and digits of every script, and of a long name the end, with its extension. @param {string} name */
function sanitised(name) {
  return [...name.normalize("NFC").replace(/[^\p{L}\p{N}._-]+/gu, "_")].slice(-48).join("");
}
