"""The server that stands in for an author's static host is as plain as one."""

import http.client
from email.utils import formatdate

import pytest

from static_server import StaticServer


@pytest.fixture
def site(tmp_path):
    """A small site to serve."""
    folder = tmp_path / "site"
    (folder / "demo").mkdir(parents=True)
    (folder / "index.html").write_text("home")
    (folder / "demo" / "index.html").write_text("demo")
    (tmp_path / "secret.txt").write_text("not served")
    return folder


def get(server: StaticServer, path: str, method: str = "GET", **headers: str):
    """The response to one request, with its body read, sent exactly as it is written here."""
    connection = http.client.HTTPConnection(server.origin.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        response.body = response.read()
        return response
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("page.html", "text/html; charset=utf-8"),
        ("client.js", "text/javascript; charset=utf-8"),
        ("pyodide.mjs", "text/javascript; charset=utf-8"),
        ("pyodide.asm.wasm", "application/wasm"),
        ("jobs.py", "text/x-python; charset=utf-8"),
        ("durable_web-0.1.0-py3-none-any.whl", "application/octet-stream"),
        ("lock.json", "application/json"),
        ("data.unheard-of", "application/octet-stream"),
    ],
)
def test_files_have_the_content_type_of_their_suffix(site, name, content_type):
    (site / name).write_bytes(b"content")
    with StaticServer(site) as server:
        response = get(server, f"/{name}")
    assert (response.status, response.body) == (200, b"content")
    assert response.headers["Content-Type"] == content_type


def test_nothing_makes_a_page_cross_origin_isolated(site):
    with StaticServer(site) as server:
        headers = get(server, "/").headers
    assert not [name for name in headers if name.lower().startswith("cross-origin-")]


def test_a_folder_is_its_index_page_and_is_reached_with_a_slash(site):
    with StaticServer(site) as server:
        redirect = get(server, "/demo?run=1")
        page = get(server, "/demo/?run=1")
    assert (redirect.status, redirect.headers["Location"]) == (301, "/demo/?run=1")
    assert (page.status, page.body) == (200, b"demo")


def test_a_prefix_is_where_the_site_begins_and_nothing_is_beside_it(site):
    with StaticServer(site, prefix="/app/durable/") as server:
        assert server.url == f"{server.origin}/app/durable/"
        assert get(server, "/app/durable/demo/").body == b"demo"
        assert get(server, "/app/durable").headers["Location"] == "/app/durable/"
        assert get(server, "/demo/").status == 404


def test_an_overlay_comes_before_the_site_and_lets_the_rest_through(site, tmp_path):
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "index.html").write_text("laid over")
    (site / "demo" / "jobs.py").write_text("below")
    with StaticServer(site, prefix="/app/", overlays={"demo/": overlay}) as server:
        assert get(server, "/app/demo/").body == b"laid over"
        assert get(server, "/app/demo/jobs.py").body == b"below"


def test_given_headers_are_sent_with_every_answer(site):
    with StaticServer(site, headers={"Content-Security-Policy": "default-src 'self'"}) as server:
        answers = [get(server, path) for path in ("/", "/demo", "/missing")]
    assert [answer.status for answer in answers] == [200, 301, 404]
    assert {answer.headers["Content-Security-Policy"] for answer in answers} == {"default-src 'self'"}


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/demo/../../secret.txt", "//etc/hostname"])
def test_no_path_leads_out_of_the_site(site, path):
    with StaticServer(site) as server:
        assert get(server, path).status == 404


def test_an_unchanged_file_is_not_sent_again(site):
    page = site / "index.html"
    with StaticServer(site) as server:
        etag = get(server, "/").headers["ETag"]
        unchanged = get(server, "/", If_None_Match=f'"other", W/{etag}')
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert get(server, "/", If_Modified_Since=formatdate(page.stat().st_mtime, usegmt=True)).status == 304
        assert get(server, "/", If_Modified_Since=formatdate(page.stat().st_mtime - 1, usegmt=True)).status == 200
        page.write_text("a new home")
        assert get(server, "/", If_None_Match=etag).body == b"a new home"


def test_head_has_the_headers_alone(site):
    with StaticServer(site) as server:
        response = get(server, "/", method="HEAD")
    assert (response.status, response.headers["Content-Length"], response.body) == (200, "4", b"")


def test_requests_are_recorded_with_their_status(site):
    with StaticServer(site) as server:
        get(server, "/demo/?run=1")
        get(server, "/missing")
    assert [(each.method, each.path, each.status) for each in server.requests] == [
        ("GET", "/demo/?run=1", 200),
        ("GET", "/missing", 404),
    ]


def test_one_connection_serves_many_requests(site):
    with StaticServer(site) as server:
        connection = http.client.HTTPConnection(server.origin.removeprefix("http://"), timeout=10)
        bodies = []
        for path in ("/", "/missing", "/demo/"):
            connection.request("GET", path)
            bodies.append(connection.getresponse().read())
        connection.close()
    assert bodies == [b"home", b"404 Not Found\n", b"demo"]


def test_every_file_that_an_author_needs_is_served_under_a_sub_path(dist, serve):
    server = serve(prefix="/app/durable/")
    shipped = [path.relative_to(dist).as_posix() for path in dist.rglob("*") if path.is_file()]
    assert {get(server, f"/app/durable/{name}", method="HEAD").status for name in shipped} == {200}
