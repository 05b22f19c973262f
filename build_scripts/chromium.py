"""A Chromium with a profile of its own: found on the machine, started, watched, crashed, killed and started again.

    with start_playwright() as playwright, launch(playwright, profile) as chromium:
        page = chromium.open(server.url + "demo/")
        chromium.crash(page)
        page = chromium.open(server.url + "demo/")
        chromium.kill()

An ordinary Playwright context is incognito and keeps the Origin Private File System in memory, so everything here runs
in a persistent context; a profile can be launched again after `kill()` and holds what had been written.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from progress import SetupError

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Playwright

ENVIRONMENT_VARIABLE = "DURABLE_WEB_CHROMIUM"

TIMEOUT_MS = 60_000
"""How long a page may take for anything: Python alone starts in 3 to 6 s, on two busy cores in more."""

_PLAYWRIGHT_NODE = "PLAYWRIGHT_NODEJS_PATH"
_COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MACOS_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
_WINDOWS_FOLDERS = ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
_WINDOWS_PLACES = ("Chromium/Application/chrome.exe", "Google/Chrome/Application/chrome.exe")

_PACKAGE_MANAGERS = {
    "apt-get": ("update", "install --yes --no-install-recommends chromium"),
    "dnf": ("install --assumeyes chromium",),
    "apk": ("add chromium",),
    "pacman": ("--sync --noconfirm chromium",),
    "zypper": ("--non-interactive install chromium",),
}
DOWNLOAD_SECONDS = 60
"""How long Playwright's own Chromium may take to be downloaded."""

_QUIET = (
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
_NO_SANDBOX = """\
Chromium has no sandbox that it may use here, and without one it only runs as root.
On Debian: apt-get install chromium-sandbox. In a container, allow user namespaces or run as root."""
_LOCAL_SCHEMES = {"about", "blob", "chrome", "data"}


@contextlib.contextmanager
def start_playwright() -> Iterator["Playwright"]:
    """Playwright, driven by the Node.js that it brings or, where that one cannot run, by the system's.

    (The one it brings needs libatomic, which a small Debian does not have.)

    :raises SetupError: when neither can run.
    """
    import playwright
    from playwright.sync_api import sync_playwright

    if _PLAYWRIGHT_NODE not in os.environ:
        bundled = Path(playwright.__file__).parent / "driver" / ("node.exe" if os.name == "nt" else "node")
        node = next((node for node in (str(bundled), shutil.which("node")) if node and _runs(node)), None)
        if node is None:
            raise SetupError(
                f"Playwright's Node.js ({bundled}) does not run, and there is no other. Install Node.js 20."
            )
        os.environ[_PLAYWRIGHT_NODE] = node
    with sync_playwright() as running:
        yield running


def _runs(program: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    return False


def find_chromium(playwright: "Playwright") -> Path:
    """The Chromium to use: $DURABLE_WEB_CHROMIUM, else the system's, else the one that Playwright has downloaded.

    :raises SetupError: when there is none; the message says what to install.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise SetupError(f"${ENVIRONMENT_VARIABLE} is {chosen!r}, which is not a program.")
        return Path(found)
    for candidate in (*_system_places(), Path(playwright.chromium.executable_path)):
        if candidate.exists():
            return candidate
    raise SetupError(
        "No Chromium was found. Install one and start again:\n"
        "  Debian:          apt-get install chromium\n"
        f"  anywhere else:   {sys.executable} -m playwright install --with-deps chromium\n"
        f"or set ${ENVIRONMENT_VARIABLE} to a Chromium or Chrome that is already there."
    )


def ensure_chromium(playwright: "Playwright") -> Path:
    """The Chromium to use, as `find_chromium` has it; where there is none it is installed, and that is said.

    Playwright's own is tried first, for a minute; then, as root, that of the system's package manager.

    :raises SetupError: when neither works; the message says what was tried, and what to install.
    """
    with contextlib.suppress(SetupError):
        return find_chromium(playwright)
    if os.environ.get(ENVIRONMENT_VARIABLE):  # a person has chosen one: nothing else is put in its place
        return find_chromium(playwright)
    problems = []
    for commands in _ways_to_install():
        print(f"\nNo Chromium was found; trying: {' && '.join(map(' '.join, commands))}", flush=True)
        problem = next(filter(None, map(_install_problem, commands)), None)
        with contextlib.suppress(SetupError):
            return find_chromium(playwright)
        problems.append(problem or f"{' '.join(commands[-1])} has brought none.")
    try:
        return find_chromium(playwright)
    except SetupError as missing:
        raise SetupError("\n".join([str(missing), "", "What was tried:", *problems])) from None


def _ways_to_install() -> Iterator[list[list[str]]]:
    """The commands that may bring a Chromium, the best first."""
    yield [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if _is_root():
        for manager, commands in _PACKAGE_MANAGERS.items():
            if shutil.which(manager):
                yield [[manager, *command.split()] for command in commands]


def _install_problem(command: list[str]) -> str | None:
    """Run a command; why it has failed, if so."""
    seconds = DOWNLOAD_SECONDS if "playwright" in command else None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} took longer than {seconds} s."
    except OSError as error:
        return f"{' '.join(command)} cannot be started: {error.strerror}."
    if done.returncode == 0:
        return None
    last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
    return f"{' '.join(command)} failed with exit code {done.returncode}: {last}"


def _system_places() -> Iterator[Path]:
    yield from (Path(found) for name in _COMMANDS if (found := shutil.which(name)))
    if sys.platform == "darwin":
        yield from map(Path, _MACOS_PLACES)
    if sys.platform == "win32":
        folders = [os.environ[name] for name in _WINDOWS_FOLDERS if name in os.environ]
        yield from (Path(folder, place) for folder in folders for place in _WINDOWS_PLACES)


def launch(playwright: "Playwright", profile: Path, *, headed: bool = False, **options: Any) -> "Chromium":
    """Start Chromium on a profile folder, which is made if it is not there.

    :param options: more of Playwright's `launch_persistent_context`, such as viewport or color_scheme.
    :raises SetupError: when there is no Chromium, or no sandbox for it.
    """
    from playwright.sync_api import Error

    options["args"] = [*_QUIET, *options.get("args", [])]
    try:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=find_chromium(playwright),
            headless=not headed,
            chromium_sandbox=not _is_root(),  # as root, Chromium refuses to start with its sandbox
            **options,
        )
    except Error as error:
        if "No usable sandbox" in error.message:
            raise SetupError(_NO_SANDBOX) from error
        raise
    return Chromium(context)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


class Chromium:
    """A running Chromium, and what its pages said and asked for; `context` is Playwright's."""

    def __init__(self, context: "BrowserContext") -> None:
        self.context = context
        self.requests: list[str] = []
        self.console_errors: list[str] = []
        self.page_errors: list[str] = []
        self._closed = False
        self._unused = list(context.pages)
        self._process = _browser_process(context)
        context.set_default_timeout(TIMEOUT_MS)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", self._note_console_message)
        context.on("weberror", lambda error: self.page_errors.append(str(error.error)))
        context.on("close", self._note_close)

    def open(self, url: str) -> "Page":
        """Open an address in a new tab and wait for its load event."""
        page = self._unused.pop() if self._unused else self.context.new_page()
        page.goto(url)
        return page

    def requests_outside(self, origin: str) -> list[str]:
        """The addresses that were asked for from anywhere but this origin (and not from the page itself)."""
        return [url for url in self.requests if not _is_within(url, origin)]

    def crash(self, page: "Page") -> None:
        """Crash the process that renders a page, with its workers, and close the dead tab.

        Tabs of one origin may share that process; they crash with it.
        """
        from playwright.sync_api import Error

        with page.expect_event("crash"), contextlib.suppress(Error):
            page.goto("chrome://crash")
        page.close()

    def kill(self) -> None:
        """SIGKILL the browser and all its processes at once, as the operating system or a power cut would."""
        with self.context.expect_event("close"):
            self.kill_processes()

    def kill_processes(self) -> None:
        """The same from any thread, without waiting: what is being asked of the browser then fails."""
        with contextlib.suppress(ProcessLookupError):
            _kill_tree(self._process)

    def close(self) -> None:
        """Close the browser in good order; does nothing when it is gone already."""
        if not self._closed:
            self.context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _note_console_message(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location['url']}:{message.location['lineNumber']})")

    def _note_close(self, context: "BrowserContext") -> None:
        self._closed = True


def _is_within(url: str, origin: str) -> bool:
    return urlsplit(url).scheme in _LOCAL_SCHEMES or url.startswith(origin + "/")


def _browser_process(context: "BrowserContext") -> int:
    """The process id of the browser itself, which only the DevTools protocol tells."""
    session = context.browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return next(process["id"] for process in processes if process["type"] == "browser")


def _kill_tree(process: int) -> None:
    if os.name == "nt":
        os.kill(process, signal.SIGTERM)  # TerminateProcess; Chromium's job object ends its children with it
        return
    group = os.getpgid(process)
    if group == os.getpgid(0):
        os.kill(process, signal.SIGKILL)
    else:
        os.killpg(group, signal.SIGKILL)  # Playwright starts each browser in a process group of its own
