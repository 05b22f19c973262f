"""Files under /durable are plain files, and a frame of SQLite's log is one write, done before the commit returns."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from chromium import launch

PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="module">
let number = 0;
globalThis.run = (source, parameters) => new Promise((resolve) => {
  const worker = new Worker("worker.js", { type: "module", name: `test-${number++}` });
  worker.onmessage = ({ data }) => { worker.terminate(); resolve(data); };
  worker.postMessage({ source, parameters });
});
</script>"""

WORKER = """
import { mountStorage, withDurableSync } from "../../worker/opfs-filesystem.js";
import { OpfsStorage } from "../../worker/opfs-storage.js";

const PYODIDE = new URL("../../vendor/pyodide/", import.meta.url).href;

const handles = {};
const { createSyncAccessHandle } = FileSystemFileHandle.prototype;
FileSystemFileHandle.prototype.createSyncAccessHandle = async function () {
  return (handles[this.name] = await createSyncAccessHandle.call(this));
};

let writes = [];
let limit = Infinity;
let refuses = false;
const { write, read } = FileSystemSyncAccessHandle.prototype;
FileSystemSyncAccessHandle.prototype.write = function (bytes, { at }) {
  if (refuses) throw new DOMException("no room", "QuotaExceededError");
  if (this === handles["database.sqlite3-wal"]) writes.push([at, bytes.length]);
  return write.call(this, bytes.subarray(0, limit), { at });
};

async function start() {
  const { loadPyodide } = await import(`${PYODIDE}pyodide.mjs`);
  const { default: factory } = await import(`${PYODIDE}pyodide.asm.mjs`);
  const pyodide = await loadPyodide({ indexURL: PYODIDE, createPyodideModule: withDurableSync(factory) });
  let storage = await OpfsStorage.open(self.name);
  mountStorage(pyodide, storage);
  pyodide.registerJsModule("browser", {
    arrived(name) {
      const bytes = new Uint8Array(handles[name].getSize());
      read.call(handles[name], bytes, { at: 0 });
      return bytes;
    },
    take_writes: () => pyodide.toPy(writes.splice(0)),
    write_at_most: (bytes) => { limit = bytes; },
    refuse_writes: (whether) => { refuses = whether; },
    create: (name) => storage.create(name),
    async reopen() {
      storage.close();
      pyodide.FS.unmount("/durable");
      storage = await OpfsStorage.open(self.name);
      mountStorage(pyodide, storage);
    },
  });
  return pyodide;
}

onmessage = async ({ data: { source, parameters } }) => {
  try {
    const pyodide = await start();
    const globals = pyodide.toPy({ __name__: "test", ...parameters });
    const result = await pyodide.runPythonAsync(source, { globals });
    postMessage({ result: result?.toJs?.({ dict_converter: Object.fromEntries }) ?? result });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
"""

DATABASE = """
import sqlite3
import tempfile
from pathlib import Path

import browser

FRAME = 24 + 4096

def connect(synchronous="NORMAL"):
    connection = sqlite3.connect("/durable/database.sqlite3", isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, content)")
    browser.take_writes()
    return connection

def frames():
    return (len(browser.arrived("database.sqlite3-wal").to_py()) - 32) // FRAME

def survivors():
    # what the next worker would find, were this one dead by now
    folder = Path(tempfile.mkdtemp())
    for name in ("database.sqlite3", "database.sqlite3-wal"):
        (folder / name).write_bytes(browser.arrived(name).to_py())
    copy = sqlite3.connect(folder / "database.sqlite3")
    try:
        copy.execute("PRAGMA locking_mode = EXCLUSIVE")
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return copy.execute("SELECT number, content FROM item ORDER BY number").fetchall()
    finally:
        copy.close()
"""

Run = Callable[..., object]


@pytest.fixture(scope="module")
def run(playwright, tmp_path_factory, server, pages) -> Iterator[Run]:
    """Run Python in a new worker, which has a new /durable; its last expression is the result."""
    folder = pages / "opfs-filesystem"
    folder.mkdir()
    (folder / "index.html").write_text(PAGE)
    (folder / "worker.js").write_text(WORKER)
    with launch(playwright, tmp_path_factory.mktemp("opfs-filesystem") / "profile") as chromium:
        page = chromium.open(f"{server.url}tests/opfs-filesystem/index.html")

        def run(source: str, **parameters: object) -> object:
            told = page.evaluate("([source, parameters]) => run(source, parameters)", [source, parameters])
            assert "error" not in told, told["error"]
            return told.get("result")

        yield run


def test_the_frames_of_a_transaction_are_one_write_to_the_log(run):
    found = run(f"""{DATABASE}
connection = connect()
ends = [frames()]
for number in range(100):
    connection.execute("INSERT INTO item VALUES (?, ?)", (number, "x" * 100))
    ends.append(frames())
{{"writes": browser.take_writes(), "ends": ends}}
""")
    frame, ends = 24 + 4096, found["ends"]
    assert max(after - before for before, after in itertools.pairwise(ends)) > 1
    assert found["writes"] == [
        [32 + before * frame, (after - before) * frame] for before, after in itertools.pairwise(ends)
    ]


def test_of_a_transaction_that_is_too_large_to_be_held_back_nothing_is_lost(run):
    found = run(f"""{DATABASE}
connection = connect()
connection.execute("BEGIN")
connection.executemany("INSERT INTO item VALUES (?, ?)", ((number, "x" * 3000) for number in range(200)))
connection.execute("COMMIT")
assert survivors() == [(number, "x" * 3000) for number in range(200)]
browser.take_writes()
""")
    assert 2 < len(found) < 10
    assert max(length for _, length in found) <= 256 * 1024


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL", "OFF"])
def test_whatever_is_committed_has_left_python_when_the_commit_returns(run, synchronous):
    run(
        f"""{DATABASE}
connection = connect(synchronous)
expected = []
for number in range(20):
    connection.execute("INSERT INTO item VALUES (?, ?)", (number, "x" * 5000 * (number % 3)))
    expected.append((number, "x" * 5000 * (number % 3)))
    assert survivors() == expected
connection.execute("PRAGMA wal_checkpoint(RESTART)")
connection.execute("DELETE FROM item WHERE number = 7")
del expected[7]
assert survivors() == expected
""",
        synchronous=synchronous,
    )


def test_a_transaction_larger_than_the_cache_has_left_python_when_its_commit_returns(run):
    """SQLite then writes pages to the log twice, and at the end it corrects headers of frames, without their pages."""
    found = run(f"""{DATABASE}
connection = connect()
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN")
for content in ("first", "second"):
    for number in range(100):
        connection.execute("INSERT OR REPLACE INTO item VALUES (?, ?)", (number, content + "x" * 3000))
connection.execute("COMMIT")
assert survivors() == [(number, "second" + "x" * 3000) for number in range(100)]
browser.take_writes()
""")
    assert sum(length == 24 for _, length in found) > 1


def test_a_transaction_that_is_rolled_back_leaves_the_log_fit_for_the_next(run):
    run(f"""{DATABASE}
connection = connect()
connection.execute("PRAGMA cache_size = 5")
for number in range(5):
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO item VALUES (?, ?)", ((1000 + each, "x" * 3000) for each in range(50)))
    connection.execute("SAVEPOINT later")
    connection.executemany("INSERT INTO item VALUES (?, ?)", ((2000 + each, "x" * 3000) for each in range(50)))
    connection.execute("ROLLBACK TO later")
    connection.execute("ROLLBACK" if number < 4 else "COMMIT")
assert survivors() == [(1000 + each, "x" * 3000) for each in range(50)]
""")


MODEL = """
import os
import random

import browser

class Plain:
    # a file in memory
    def __init__(self):
        self.content = bytearray()

    def write(self, data, at):
        if data:
            self.content.extend(bytes(max(0, at - len(self.content))))
            self.content[at:at + len(data)] = data

    def truncate(self, size):
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

def check(path, seed, count):
    choose = random.Random(seed)
    plain, end, done = Plain(), 0, []
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(count):
        kind = choose.choice(["write"] * 8 + ["read", "truncate", "size", "flush", "reopen", "append", "second"])
        size = choose.choice([0, 1, 23, 24, 24, 24, 24, 25, 32, 4096, 4096, 65536, 65537])
        at = choose.choice([end, end, end, end, end - min(end, 24), choose.randrange(100_000)])
        done.append((kind, at, size))
        data = choose.choice([choose.randbytes(size), bytes(size)])  # zeros: of a frame within a transaction
        if kind == "write":
            assert os.pwrite(fd, data, at) == size
            plain.write(data, at)
            end = at + size
        elif kind == "append":
            at = os.lseek(fd, 0, os.SEEK_END)
            assert at == len(plain.content), done
            assert os.write(fd, data) == size
            plain.write(data, at)
            end = at + size
        elif kind == "second":  # through another descriptor
            other = os.open(path, os.O_RDWR)
            os.pwrite(other, data, at)
            plain.write(data, at)
            os.close(other)
        elif kind == "read":
            assert os.pread(fd, size, at) == bytes(plain.content[at:at + size]), done
        elif kind == "truncate":
            os.ftruncate(fd, at)
            plain.truncate(at)
        elif kind == "size":
            assert os.fstat(fd).st_size == os.stat(path).st_size == len(plain.content), done
        elif kind == "flush":
            choose.choice([os.fsync, os.fdatasync])(fd)
            assert browser.arrived(os.path.basename(path)).to_bytes() == plain.content, done
        elif kind == "reopen":
            os.close(fd)
            assert browser.arrived(os.path.basename(path)).to_bytes() == plain.content, done
            fd = os.open(path, os.O_RDWR)
    os.close(fd)
    assert browser.arrived(os.path.basename(path)).to_bytes() == plain.content, done
    with open(path, "rb") as file:
        assert file.read() == plain.content, done
    os.truncate(path, 0)
"""


@pytest.mark.parametrize("name", ["database.sqlite3-wal", "database.sqlite3", "files/data.bin"])
def test_a_file_holds_what_a_plain_file_would_after_any_sequence_of_operations(run, name):
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    run(
        f"""{MODEL}
await browser.create("data.bin")
for number in range(100):
    check("/durable/" + name, f"{{seed}} {{number}}", 60)
""",
        name=name,
        seed=seed,
    )


REFUSED = """
import errno
import os

import browser

def refused(operation, *parameters):
    browser.refuse_writes(True)
    try:
        operation(*parameters)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        browser.refuse_writes(False)

log = os.open("/durable/database.sqlite3-wal", os.O_RDWR | os.O_CREAT)
os.pwrite(log, b"a" * 32, 0)
"""

AFTERWARDS = {
    "the page": "os.pwrite, log, b'p' * 4096, 56",
    "a write elsewhere": "os.pwrite, log, b'p' * 4096, 0",
    "a read": "os.pread, log, 4, 0",
    "its size": "os.fstat, log",
    "its end": "os.lseek, log, 0, os.SEEK_END",
    "truncating it": "os.ftruncate, log, 40",
    "fsync": "os.fsync, log",
    "fdatasync": "os.fdatasync, log",
    "closing it": "os.close, log",
}


@pytest.mark.parametrize("afterwards", AFTERWARDS.values(), ids=AFTERWARDS)
def test_a_header_that_finds_no_room_fails_what_is_done_next(run, afterwards):
    assert run(f"{REFUSED}\nos.pwrite(log, b'h' * 24, 32)\nrefused({afterwards})") == "ENOSPC"


def test_a_header_that_found_no_room_is_not_written_later(run):
    found = run(f"""{REFUSED}
os.pwrite(log, b"h" * 24, 32)
before = refused(os.fsync, log)
os.pwrite(log, b"x" * 8, 0)
os.fsync(log)
[before, os.fstat(log).st_size]
""")
    assert found == ["ENOSPC", 32]


def test_a_commit_that_finds_no_room_fails_and_the_next_one_succeeds(run):
    run(f"""{DATABASE}
connection = connect()
connection.execute("INSERT INTO item VALUES (1, 'before')")
for number in range(3):
    browser.refuse_writes(True)
    try:
        connection.execute("INSERT INTO item VALUES (2, 'refused')")
    except sqlite3.OperationalError as error:
        assert str(error) == "database or disk is full", error
    else:
        raise AssertionError("nothing was refused")
    assert survivors() == [(1, "before")]
    browser.refuse_writes(False)
connection.execute("INSERT INTO item VALUES (3, 'after')")
assert survivors() == [(1, "before"), (3, "after")]
""")


def test_what_the_browser_writes_in_part_is_written_to_the_end(run):
    run(f"""{DATABASE}
connection = connect()
for size in (7, 24, 1000, 4100):
    browser.write_at_most(size)
    connection.execute("INSERT INTO item VALUES (?, ?)", (size, "x" * size))
browser.write_at_most(float("inf"))
assert survivors() == [(size, "x" * size) for size in (7, 24, 1000, 4100)]
""")


def test_a_storage_that_is_closed_within_a_transaction_reopens_with_what_was_committed(run):
    found = run(f"""{DATABASE}
connection = connect()
connection.execute("PRAGMA cache_size = 5")
connection.execute("INSERT INTO item VALUES (1, 'committed')")
connection.execute("BEGIN")
connection.executemany("INSERT INTO item VALUES (?, ?)", ((1000 + each, "x" * 3000) for each in range(50)))
await browser.reopen()
again = sqlite3.connect("/durable/database.sqlite3")
again.execute("PRAGMA locking_mode = EXCLUSIVE")
again.execute("SELECT number, content FROM item").fetchall()
""")
    assert found == [[1, "committed"]]


def test_a_deleted_log_holds_nothing_back(run):
    found = run(f"""{REFUSED}
os.pwrite(log, b"h" * 24, 32)
os.unlink("/durable/database.sqlite3-wal")
os.close(log)
again = os.open("/durable/database.sqlite3-wal", os.O_RDWR | os.O_CREAT)
[os.fstat(again).st_size, browser.arrived("database.sqlite3-wal").length]
""")
    assert found == [0, 0]
