"""The demo page, under both of PyScript's interpreters, as a person meets it.

Most tests share one page per interpreter, because Pyodide takes seconds to start.
"""

import csv
import io
import json
import re
import zipfile

import pytest
from playwright.sync_api import expect

from chromium import TIMEOUT_MS, launch

PAGES = {"micropython": "demo/index.html", "pyodide": "demo/pyodide.html"}
STATUS = "durable-run [part~=status]"
PERCENT = "durable-run [part~=percent]"
SURVIVED = "durable-run [part~=survived]"
ROOM_FOR_THE_FILE_ALONE = 13_000_000
"""Bytes: there are 3 MB of empty database, and to a file that grows Chromium gives room by doubling."""
LIST_FILES = """async () => {
  let folder = await navigator.storage.getDirectory();
  for (const name of ["durable-web", "durable-web-demo", "files"]) folder = await folder.getDirectoryHandle(name);
  return await Array.fromAsync(folder.keys());
}"""
UNREADABLE = b"Stadt,Einwohner\n" + "Köln,1\n".encode() * 300 + "München,1\n".encode("latin-1") * 100
"""Most of it is UTF-8, but not all."""


def workbook() -> bytes:
    """Something that begins like an Excel workbook."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


class Demo:
    """The demo page in one Chromium."""

    def __init__(self, chromium, url):
        self.chromium = chromium
        self.url = url
        self.dialogs = []
        self.open()

    def open(self):
        """Open the page in a new tab."""
        self.page = self.chromium.open(self.url)
        self.page.on("dialog", self._note_dialog)

    def _note_dialog(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def wait_for(self, selector, pattern):
        """Wait until the text of an element, also one inside of an element of ours, matches."""
        expect(self.page.locator(selector)).to_have_text(re.compile(pattern), timeout=TIMEOUT_MS)

    def choose(self, name, content):
        """Choose a file."""
        self.page.locator("#choose:enabled").wait_for()
        self.page.set_input_files("#file", {"name": name, "mimeType": "text/csv", "buffer": content})

    def begin(self, name, content, **options):
        """Choose a file, change what is guessed of it, and wait until its import is shown."""
        self.choose(name, content)
        self.wait_for("#guess-title", f"^How to read {re.escape(name)}$")
        for option, label in options.items():
            self.page.select_option(f"#guess-{option}", label=label)
            self.page.locator("#guess-import:enabled").wait_for()
        self.page.click("#guess-import")
        self.wait_for("#run-title", f"^{re.escape(name)}$")

    def begin_large(self, path):
        """Choose the file, and wait until its import has written many rows."""
        self.page.locator("#choose:enabled").wait_for()
        self.page.set_input_files("#file", path)
        self.page.click("#guess-import")
        self.wait_for("#run-title", "^large.csv$")
        self.wait_for(PERCENT, r"^[1-9]\d %")

    def text(self, selector):
        """What can be read in an element."""
        return self.page.inner_text(selector)

    def figure(self, label):
        """One of the figures of the result."""
        return self.page.locator("#figures > div", has_text=label).locator("dd").inner_text()

    def show_choice(self):
        """Go back to the choice of a file."""
        if self.page.locator("#run-view").is_visible():
            self.page.click(".back a")
        self.page.locator("#choose:enabled").wait_for()


@pytest.fixture(scope="module")
def large(dist, tmp_path_factory):
    """A file of 50,000 rows and 6 MB, whose import takes long enough to be interrupted."""
    head, rows = (dist / "demo" / "data" / "birdstrikes.csv").read_bytes().split(b"\n", 1)
    path = tmp_path_factory.mktemp("data") / "large.csv"
    path.write_bytes(head + b"\n" + (rows.rstrip(b"\n") + b"\n") * 5)
    return path


@pytest.fixture(scope="module", params=["micropython", pytest.param("pyodide", marks=pytest.mark.deep)])
def shared(request, playwright, server, tmp_path_factory):
    with launch(playwright, tmp_path_factory.mktemp("profile")) as chromium:
        yield Demo(chromium, server.url + PAGES[request.param])


@pytest.fixture
def demo(shared, server):
    """The page that tests share, ready for a file. Whatever a test does, it stays within its site and its policy."""
    shared.show_choice()
    yield shared
    assert shared.chromium.requests_outside(server.origin) == []
    assert shared.chromium.console_errors == []
    assert shared.chromium.page_errors == []
    assert shared.dialogs == []


def test_importing_a_sample_shows_its_rows_columns_and_chart(demo):
    demo.page.click("text=Bird strikes")
    demo.page.click("#guess-import")
    demo.page.locator("#result").wait_for()
    assert demo.figure("Rows imported") == "10,000"
    assert demo.figure("Rows put aside") == "0"
    assert demo.page.locator("#columns tbody tr").count() == 14
    assert demo.page.locator("#preview tbody tr").count() == 20
    assert demo.page.get_attribute("#chart svg", "aria-label").startswith("Rows by year. Most: 2001, with ")
    assert demo.text(STATUS) == "Done"
    assert demo.page.evaluate(LIST_FILES) == []  # what is imported is in the database


def test_the_other_sample_is_imported_and_taken_away_again(demo):
    demo.page.click("text=US zip codes")
    demo.page.click("#guess-import")
    demo.wait_for("#figures", "42,049")
    with demo.page.expect_download() as download:
        demo.page.click("text=Download the cleaned CSV")
    rows = list(csv.reader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    assert (download.value.suggested_filename, len(rows)) == ("zipcodes-cleaned.csv", 42_050)
    assert rows[1] == ["00501", "40.922326", "-72.637078", "Holtsville", "NY", "Suffolk"]
    with demo.page.expect_download() as download:
        demo.page.click("text=Summary, as JSON")
    assert json.loads(download.value.path().read_text(encoding="utf-8"))["rows"] == 42_049
    demo.wait_for("#download-status", "handed to the browser")
    assert demo.page.evaluate(LIST_FILES) == []


def test_a_reload_in_the_middle_follows_the_import_again(demo, large):
    demo.begin_large(large)
    demo.page.reload()
    demo.wait_for(SURVIVED, "^Survived 1 interruption: ")
    demo.wait_for("#figures", "50,000")
    demo.show_choice()
    expect(demo.page.get_by_role("link", name="large.csv").first).to_be_visible()
    assert demo.page.locator("#saved").is_hidden()


def test_a_cancelled_import_says_so_and_can_be_begun_again(demo, large):
    demo.begin_large(large)
    demo.page.get_by_role("button", name="Cancel", exact=True).click()
    demo.wait_for("#run-ended", "cancelled")
    demo.page.click("text=Import again")
    demo.page.click("#guess-import")
    demo.page.locator("#result").wait_for()  # not only the figures, which an earlier import has left there
    demo.wait_for("#figures", "50,000")


NASTY = {
    "empty.csv": (b"", "0 bytes"),
    "blank.csv": (b"\n\n\n", "no header"),
    "sheet.xlsx": (workbook(), "Excel"),
}


@pytest.mark.parametrize("name", NASTY)
def test_a_file_that_cannot_be_read_is_explained_in_an_alert_and_not_kept(demo, name):
    content, explanation = NASTY[name]
    demo.choose(name, content)
    demo.wait_for("#alert", explanation)
    assert "could not be read" in demo.text("#alert")
    assert demo.page.locator("#guess").is_hidden()
    demo.page.locator("#choose:enabled").wait_for()
    assert not [file for file in demo.page.evaluate(LIST_FILES) if file.endswith(name)]


def test_the_guess_is_shown_with_the_first_rows_and_can_be_changed(demo):
    demo.choose("cities.csv", ("Stadt;Größe\n" + "München;1,5\n" * 30).encode("latin-1"))
    demo.wait_for("#guess-text", "The encoding is a guess: windows-1252. Are these words right\\? Größe, München")
    assert demo.page.locator("#guess-delimiter option:checked").inner_text() == "semicolon"
    assert demo.page.locator("#guess-decimal option:checked").inner_text() == "comma: 1,5"
    assert demo.page.locator("#guess-rows thead th").all_inner_texts() == ["Stadt (text)", "Größe (number)"]
    demo.page.select_option("#guess-delimiter", label="comma")
    expect(demo.page.locator("#guess-rows thead th").first).to_have_text("Stadt;Größe (text)")
    demo.page.select_option("#guess-delimiter", label="semicolon")
    demo.page.select_option("#guess-header", label="not in the file")
    expect(demo.page.locator("#guess-rows thead th").first).to_have_text("column_1 (text)")
    demo.page.click("#guess-import")
    demo.wait_for("#run-title", "^cities.csv$")
    demo.page.locator("#result").wait_for()
    assert demo.figure("Rows imported") == "31"


def test_a_file_that_is_not_imported_now_stays_for_another_time(demo):
    demo.choose("later.csv", b"a,b\n1,2\n")
    demo.page.click("#guess-leave")
    expect(demo.page.locator("#saved-list")).to_contain_text("later.csv")
    demo.page.get_by_role("button", name="Import later.csv").click()
    demo.page.click("#guess-import")
    demo.wait_for("#run-title", "^later.csv$")
    demo.page.locator("#result").wait_for()
    assert demo.figure("Rows imported") == "1"


def test_a_file_that_was_changed_after_it_was_chosen_is_not_imported(demo, tmp_path):
    path = tmp_path / "changing.csv"
    path.write_text("a,b\n1,2\n")
    demo.page.locator("#choose:enabled").wait_for()
    demo.page.evaluate(HOLD_FILE)
    demo.page.set_input_files("#held", path)
    path.write_text("a,b\n1,2\n3,4\n")
    demo.page.evaluate(DROP_HELD)
    demo.wait_for("#alert", "was edited, truncated, replaced or deleted after you chose it")
    assert not [file for file in demo.page.evaluate(LIST_FILES) if file.endswith("changing.csv")]
    demo.page.evaluate("() => document.getElementById('held').remove()")


HOLD_FILE = """() => {
  const input = document.createElement("input");
  input.type = "file";
  input.id = "held";
  document.body.append(input);
}"""

DROP_HELD = """() => {
  const transfer = new DataTransfer();
  transfer.items.add(document.getElementById("held").files[0]);
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def test_rows_with_broken_quoting_are_shown_with_line_and_reason_and_can_be_mended(demo):
    demo.begin("quoting.csv", b"a,b\n" + b'"1","2"\n' * 50 + b'3,"4\n' + b"5,6\n" * 50 + b"7,8,9\n")
    demo.page.locator("#result").wait_for()
    assert demo.figure("Rows put aside") == "2"
    lines = demo.page.locator("#bad-rows tbody th").all_inner_texts()
    assert lines == ["52", "103"]
    demo.page.get_by_label("Text of line 52").fill("3,4")
    demo.page.get_by_role("button", name="Import line 52").click()
    expect(demo.page.locator("#bad-rows tbody tr").first).to_contain_text("Imported")
    with demo.page.expect_download() as download:
        demo.page.click("text=Download the cleaned CSV")
    rows = list(csv.reader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    assert (len(rows), rows[51]) == (102, ["3", "4"])


def test_cells_that_are_not_of_their_columns_type_are_shown_and_kept(demo):
    demo.begin("odd.csv", b"a,b\n" + b"1,2\n" * 200 + b"many,3\n")
    demo.page.locator("#result").wait_for()
    assert (demo.figure("Rows imported"), demo.figure("Cells kept as text")) == ("201", "1")
    assert demo.page.locator("#odd-cells tbody tr > *").all_inner_texts() == ["202", "a", "many"]


def test_a_file_with_a_hundred_columns_is_shown(demo):
    names = ",".join(f"c{number}" for number in range(100))
    demo.begin("hundred.csv", f"{names}\n{names}\n{names}\n".encode())
    demo.page.locator("#result").wait_for()
    assert demo.figure("Columns") == "100"
    assert demo.page.locator("#columns tbody tr").count() == 100


TABLES = """async () => {
  const { connect } = await import("../durable-web.js");
  const jobs = document.querySelector("durable-client").getAttribute("jobs").split(" ");
  const durable = await connect("durable-web-demo", { jobs });
  const runs = await durable.runs.list({ limit: 1000 });
  return runs.map(({ job, input }) => [job, input.name ?? input.run_id]);
}"""


def test_an_import_is_deleted_with_its_run_and_its_file(demo):
    demo.begin("deleted.csv", UNREADABLE)  # in UTF-8 from the second half on: so the import fails and the file stays
    demo.wait_for(STATUS, "^Failed$")
    demo.show_choice()
    expect(demo.page.locator("#saved-list")).to_contain_text("deleted.csv")
    demo.page.get_by_role("button", name="Delete deleted.csv", exact=True).last.click()
    demo.page.get_by_role("button", name="Delete deleted.csv for good").click()
    expect(demo.page.get_by_role("link", name="deleted.csv")).to_have_count(0)
    expect(demo.page.locator("#saved-list")).not_to_contain_text("deleted.csv")
    runs = demo.page.evaluate(TABLES)
    assert "deleted.csv" not in [name for _, name in runs]
    assert "forget-import" not in [job for job, _ in runs]
    assert not [name for name in demo.page.evaluate(LIST_FILES) if name.endswith("deleted.csv")]


def test_the_page_asks_for_lasting_storage_when_a_file_is_chosen_and_shows_the_answer(demo):
    demo.begin("kept.csv", b"a,b\n1,2\n")
    demo.show_choice()
    is_kept = demo.page.evaluate("() => navigator.storage.persisted()")
    demo.wait_for("#kept", "has promised to keep" if is_kept else "may delete what is stored here")


def test_markup_in_names_and_values_is_text(demo):
    markup = "<img src=x onerror=alert(1)>"
    demo.begin(f"{markup}.csv", f"{markup},b\n{markup},😀 <script>alert(2)</script>\n".encode())
    demo.page.locator("#result").wait_for()
    assert demo.text("#run-title") == f"{markup}.csv"
    assert demo.page.locator("#preview tbody tr > *").all_inner_texts() == [markup, "😀 <script>alert(2)</script>"]
    demo.show_choice()
    expect(demo.page.get_by_role("link", name=f"{markup}.csv")).to_be_visible()
    assert demo.page.locator("main img, main script").count() == 0


@pytest.mark.parametrize("interpreter", ["micropython", pytest.param("pyodide", marks=pytest.mark.deep)])
def test_a_second_tab_shows_the_same_and_takes_over_when_the_first_is_closed(browser, server, interpreter, large):
    chromium = browser()
    first = Demo(chromium, server.url + PAGES[interpreter])
    first.page.locator("#choose:enabled").wait_for()
    second = Demo(chromium, server.url + PAGES[interpreter])
    second.page.locator("#choose:enabled").wait_for()
    first.begin_large(large)
    second.page.get_by_role("link", name="large.csv").click()
    second.wait_for(PERCENT, r"^[1-9]\d %")
    first.page.close()
    second.wait_for(SURVIVED, "^Survived 1 interruption: ")
    second.wait_for("#figures", "50,000")
    assert chromium.console_errors == []


def test_after_a_crash_the_page_shows_the_import_that_was_running(browser, server, large):
    chromium = browser()
    demo = Demo(chromium, server.url + PAGES["micropython"])
    demo.begin_large(large)
    chromium.crash(demo.page)
    demo.open()  # without the address of the import
    demo.wait_for(SURVIVED, "^Survived 1 interruption: ")
    demo.wait_for("#figures", "50,000")


def test_full_storage_is_told_and_the_import_goes_on_when_there_is_room(browser, server, large):
    demo = Demo(browser(), server.url + PAGES["micropython"])
    demo.page.locator("#choose:enabled").wait_for()
    session = demo.chromium.context.new_cdp_session(demo.page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": server.origin, "quotaSize": ROOM_FOR_THE_FILE_ALONE})
    demo.page.set_input_files("#file", large)
    demo.page.click("#guess-import")
    demo.wait_for("#storage", "The storage of this browser is full")
    session.send("Storage.overrideQuotaForOrigin", {"origin": server.origin})
    demo.wait_for("#figures", "50,000")
    assert demo.page.locator("#storage").is_hidden()


def test_an_engine_that_cannot_start_is_explained_with_its_traceback(browser, server):
    chromium = browser()
    chromium.context.route("**/jobs.py", lambda route: route.fulfill(body="import a_package_that_is_not_there\n"))
    demo = Demo(chromium, server.url + PAGES["micropython"])
    demo.wait_for("#failed-message", "a_package_that_is_not_there")
    demo.page.click("#failed summary")
    assert 'File "/durable-jobs/jobs.py", line 1' in demo.text("#failed pre")
    assert demo.page.locator("#choose").is_disabled()


@pytest.mark.parametrize("interpreter", ["pyodide", pytest.param("micropython", marks=pytest.mark.deep)])
def test_the_page_works_under_a_sub_path_and_its_policy_holds_for_the_worker_too(browser, dist, serve, interpreter):
    (policy,) = re.findall(r'content="(default-src[^"]*)"', (dist / "demo" / "index.html").read_text(encoding="utf-8"))
    site = serve(prefix="/app/durable/", headers={"Content-Security-Policy": policy})
    chromium = browser()
    demo = Demo(chromium, site.url + PAGES[interpreter])
    demo.begin("two.csv", b"a,b\n1,2\n3,4\n")
    demo.wait_for(STATUS, "^Done$")
    assert "unsafe-eval" not in policy.replace("'wasm-unsafe-eval'", "")
    assert "unsafe-inline" not in policy
    assert chromium.console_errors == []
    assert chromium.requests_outside(site.origin) == []
