// @ts-check
/**
 * The Origin Private File System (OPFS) as a directory that Python can use with `sqlite3` and `open()`.
 *
 * Python's file calls are synchronous; they go straight to the open handles of an `OpfsStorage`:
 *
 *     /durable/database.sqlite3, -wal, -journal, -step   reserved names: opened at boot; Python creates and deletes them at will
 *     /durable/files/<name>                              attached names: made and removed by an awaited call (create, put, remove)
 *
 *     const storage = await OpfsStorage.open("my-database");
 *     const pyodide = await loadPyodide({ createPyodideModule: withDurableSync(factory) });
 *     mountStorage(pyodide, storage);
 */
import { MOUNT_POINT, StorageError, isQuotaExceeded } from "./opfs-storage.js";

/** @typedef {import("./opfs-storage.js").OpenFile} OpenFile */
/** @typedef {import("./opfs-storage.js").OpfsStorage} OpfsStorage */
/** @typedef {Record<string, (...parameters: any[]) => any>} Operations as Emscripten names and calls them */

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

  /** @param {any} stream @param {number} offset @param {number} whence @param {() => number} size */
  const seek = (stream, offset, whence, size) => {
    const position = offset + (whence === 0 ? 0 : whence === 1 ? stream.position : size());
    if (position < 0) throw errno("EINVAL");
    return position;
  };

  /** @type {Operations} */
  const fileNodeOperations = {
    getattr: (node) =>
      attributes(
        node,
        guarded(() => fileOf(node).size),
      ),
    setattr(node, changes) {
      setModeAndTimes(node, changes);
      if (changes.size === undefined) return;
      guarded(() => fileOf(node).truncate(changes.size));
      node.mtime = node.ctime = Date.now();
    },
  };

  /** @type {Operations} */
  const fileStreamOperations = {
    read: ({ node }, buffer, offset, length, at) =>
      guarded(() => fileOf(node).read(buffer.subarray(offset, offset + length), at)),
    write({ node }, buffer, offset, length, at) {
      node.mtime = node.ctime = Date.now();
      guarded(() => fileOf(node).write(buffer.subarray(offset, offset + length), at));
      return length;
    },
    llseek(stream, offset, whence) {
      const file = fileOf(stream.node);
      return seek(stream, offset, whence, () => guarded(() => file.size)); // SQLite seeks before each read and write
    },
    fsync({ node }) {
      guarded(() => fileOf(node).flush());
      return 0;
    },
    close({ node }) {
      const isDeleted = node.file.node !== node;
      if (!isDeleted) guarded(() => node.file.writeOut());
    },
  };

  /** @type {Operations} */
  const directoryStreamOperations = {
    llseek: (stream, offset, whence) => seek(stream, offset, whence, () => 0),
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
