"""A static web server like the plainest of hosts: no special headers, only files.

It is what `serve.py` runs and what the tests run in a thread, on a free port, under a sub-path, with a
Content-Security-Policy or with pages of their own laid over the served folder:

    with StaticServer(DIST, prefix="/app/durable/", overlays={"tests/": folder}) as server:
        browser.open(server.url + "demo/")
        assert all(request.status < 400 for request in server.requests)
"""

import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".py": "text/x-python; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".whl": "application/octet-stream",
    ".zip": "application/zip",
}
"""By file name suffix, and the same on every machine; anything else is application/octet-stream."""

_COPY_BYTES = 256 * 1024
_REQUESTS_KEPT = 10_000


@dataclass(frozen=True)
class Request:
    """One request as it was answered: `path` is as sent, with the query."""

    method: str
    path: str
    status: int


class StaticServer:
    """Serves a folder over HTTP/1.1, each connection in its own thread.

    :param directory: what is served.
    :param prefix: the path under which it is served; begins and ends with a slash. All else is 404.
    :param overlays: more folders, by their path below the prefix (such as "tests/"); they come before the directory.
    :param headers: sent with every answer, such as a Content-Security-Policy.
    :param port: 0 takes any free port.
    :raises OSError: when the port cannot be listened on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: str = "/",
        overlays: Mapping[str, Path] | None = None,
        headers: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if not (prefix.startswith("/") and prefix.endswith("/")):
            raise ValueError(f"the prefix must begin and end with a slash: {prefix!r}")
        self.prefix = prefix
        self.headers = dict(headers or {})
        self.requests: deque[Request] = deque(maxlen=_REQUESTS_KEPT)
        self._folders = {**{prefix + path: folder for path, folder in (overlays or {}).items()}, prefix: directory}
        self._http = _HttpServer((host, port), self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), name="static server", daemon=True)

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as "http://127.0.0.1:8000"."""
        host, port = self._http.server_address[:2]
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"

    @property
    def url(self) -> str:
        """The address of the served folder; ends with a slash."""
        return self.origin + self.prefix

    def start(self) -> Self:
        """Serve in a thread until `stop()`."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening. Answers that have begun are finished by their own threads."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def wait(self) -> None:
        """Block while serving, as a command does."""
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def find_file(self, path: str) -> Path | None:
        """The file for a URL path, or None where there is none or the path leads out of what is served."""
        for prefix, folder in self._folders.items():
            if path.startswith(prefix) and "\0" not in path:
                file = (folder / path.removeprefix(prefix)).resolve()
                if file.is_file() and file.is_relative_to(folder.resolve()):
                    return file
        return None


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], static: StaticServer) -> None:
        super().__init__(address, _Handler)
        self.static = static

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that is killed or leaves drops its connections: no reason for a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        file = self._answer_headers()
        if file is not None:
            with file.open("rb") as content:
                while chunk := content.read(_COPY_BYTES):
                    self.wfile.write(chunk)

    def do_HEAD(self) -> None:
        self._answer_headers()

    def _answer_headers(self) -> Path | None:
        """Send the status and the headers; returns the file whose content is to follow, if any."""
        path = unquote(urlsplit(self.path).path)
        file = self.server.static.find_file(path + "index.html" if path.endswith("/") else path)
        if file is not None:
            return self._describe(file)
        if not path.endswith("/") and self.server.static.find_file(path + "/index.html"):
            self._redirect(quote(path) + "/")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)
        return None

    def _describe(self, file: Path) -> Path | None:
        """Answer for a file that is there: with its content to follow, or that the browser's copy is still good."""
        status = file.stat()
        etag = f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
        known = self._browser_has(etag, int(status.st_mtime))
        self.send_response(HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK)
        if not known:
            self.send_header("Content-Type", CONTENT_TYPES.get(file.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(status.st_size))
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", formatdate(status.st_mtime, usegmt=True))
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        return None if known else file

    def _browser_has(self, etag: str, modified: int) -> bool:
        """Conditional requests, RFC 9110 section 13: If-None-Match decides, and without it If-Modified-Since."""
        tags = self.headers.get("If-None-Match")
        if tags is not None:
            return tags.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))
        try:
            return modified <= parsedate_to_datetime(self.headers.get("If-Modified-Since", "")).timestamp()
        except ValueError:
            return False

    def _redirect(self, path: str) -> None:
        query = urlsplit(self.path).query
        self.send_response(HTTPStatus.MOVED_PERMANENTLY)
        self.send_header("Location", path + (f"?{query}" if query else ""))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self) -> None:
        for name, value in self.server.static.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.server.static.requests.append(Request(self.command, self.path, int(code)))

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed: who wants to know reads `StaticServer.requests`."""
