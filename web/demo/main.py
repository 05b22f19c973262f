"""The demo page: choose a CSV file, watch its import survive whatever happens to the tab, look at the result.

There are two views, told apart by the address: `#run=<id>` shows one import, anything else the choice of a file and the
imports. A reload therefore shows what was there before; and a page that is opened anew shows the import that was
running when it was opened. Nothing else is remembered here: all that is shown comes from the database, most of it by
the elements of `durable-elements.js` alone.
"""

import sys

import durable_page
import js
import notices
from choose_view import ChooseView
from connection import Connection
from downloads import TEMPORARY, Downloads
from durable_page import TERMINAL, DurableError
from elements import find, listen, make, show, write
from guess_view import GuessView
from notices import start
from pyscript import document
from result_view import ResultView

#: In MicroPython, `pyscript.window` is the module `js`, whose functions know no `this`: it cannot be listened to.
window = document.defaultView

DATABASE = "durable-web-demo"
MODULES = ("csv_encodings", "csv_values", "csv_records", "csv_layout", "csv_import", "csv_preview", "jobs")
JOBS = [f"./{module}.py" for module in MODULES]
TITLE = document.title
ACTIVE = ["pending", "running", "waiting", "cancelling"]
RECENT = 10
MOST_RUNS = 50
PHASES = ("page", "storage", "pyodide", "packages", "jobs", "ready")


class Demo:
    """The page as a whole: its connection to the engine, and which of the two views it shows."""

    def __init__(self):
        self._connection = Connection(self._hear_status)
        self._imports = None  # the latest, live
        self._statuses = []
        self._shown = None
        self._result = None
        self._choose = ChooseView(self._begin, self._look, self._forget_file)
        self._guess = GuessView(self._preview, self._import, self._leave_guess)
        self._downloads = Downloads()
        self._visit = 0
        self._again_with = None  # the file that is to be looked at once the choice is shown
        listen(find("chart-column"), "change", lambda event: self._result.draw_chart())
        listen(find("history-list"), "durable-action", self._on_action)
        listen(window, "resize", lambda event: self._result and not find("result").hidden and self._result.draw_chart())
        listen(window, "hashchange", lambda event: start(self._route()))

    async def run(self):
        """Connect, and show what there is."""
        opened = js.Date.now()
        if not await self._connection.open(DATABASE, JOBS, "What was imported before is unharmed."):
            return
        self._imports = durable_page.runs(self._durable, job="import-csv", page_size=RECENT, payloads=True)
        await self._imports.hydrated()
        under_way = [run.id for run in self._imports.items if run.status in ACTIVE or (run.completed_at or 0) > opened]
        if under_way and not _run_in_address():
            window.location.hash = f"#run={under_way[0]}"  # and on with the event of that
        else:
            start(self._route())
        await self._clear_away()
        self._imports.changed.add_listener(self._hear_of_imports)

    @property
    def _durable(self):
        return self._connection.durable

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _hear_status(self, status, phase):
        """Let files be chosen when the engine is ready, and say how far it is."""
        if status == "starting":
            if phase in PHASES:
                find("boot-progress").value = PHASES.index(phase) + 1
            write("chooser-note", "The engine is starting. You can choose a file in a moment.")
            show("boot-progress")
            return
        is_ready = status == "ready"
        self._choose.enable(is_ready, "" if is_ready else "There is no engine to import with.")
        if is_ready:
            write("announcement", "Ready")

    async def _clear_away(self):
        """Delete what tabs that died have left: half-made downloads, files that were imported but not deleted, and
        imports of which only the tables are gone. Where another tab leads, it may be about to use them."""
        if self._durable.role == "follower":
            return
        for run in await self._read_runs({"job": "export-csv", "status": ACTIVE}):
            await durable_page.actions(self._durable).cancel(run.id)
        for run in await self._read_runs({"job": "forget-import", "status": "completed"}):
            await self._delete_forgotten(run)
        for run in await self._read_runs({"job": "preview-csv", "status": ["completed", "failed"]}):
            await self._delete_run(run.id)
        imported = [run.input["path"] for run in self._imports.items if run.status == "completed"]
        for file in await self._durable.files.list():
            if file.name.startswith(TEMPORARY) or file.path in imported:
                await self._durable.files.delete(file.name)

    async def _read_runs(self, filters):
        """The latest runs that pass the filters, as they are now."""
        found = durable_page.runs(self._durable, **filters, page_size=MOST_RUNS, realtime=False, payloads=True)
        await found.hydrated()
        found.close()
        if found.problem is not None:
            raise found.problem
        return found.items

    # --- the two views ------------------------------------------------------------------------------------------------

    async def _route(self):
        """Show what the address asks for."""
        if self._durable is None or self._durable.status != "ready":
            return
        visit = self._leave()
        run_id = _run_in_address()
        run = None if run_id is None else await self._find_run(run_id)
        if visit == self._visit:
            await (self._show_choice(visit) if run is None else self._show_run(run, visit))

    def _leave(self):
        """Stop following the run that is shown; what was begun for it sees by the visit's number that it is over."""
        self._visit += 1
        if self._shown is not None:
            self._shown.close()
            self._shown = None
        self._guess.close()
        document.title = TITLE
        window.scrollTo(0, 0)
        return self._visit

    async def _find_run(self, run_id):
        try:
            return await durable_page.actions(self._durable).get(run_id)
        except DurableError as error:
            if error.code != "RunNotFound":
                raise
            notices.tell(error)
            return None

    async def _show_choice(self, visit):
        show("run-view", False)
        show("choose-view")
        show("history")
        await self._show_saved()
        write("kept", _promise_of_storage(await js.navigator.storage.persisted()))
        if visit == self._visit:
            self._choose.enable(True, "")
            if self._again_with is not None:
                again, self._again_with = self._again_with, None
                await self._look(*again)

    def _hear_of_imports(self, imports):
        """Which files are free depends on which imports have ended."""
        statuses = [(run.id, run.status) for run in imports.items]
        if statuses != self._statuses and not find("choose-view").hidden:
            start(self._show_saved())
        self._statuses = statuses

    async def _show_saved(self):
        """List the files that are neither imported nor being imported, each with what the person calls it."""
        runs = self._imports.items
        in_use = [run.input["path"] for run in runs if run.status in ACTIVE]
        names = {run.input["path"]: run.input.get("name") for run in runs}
        files = await self._durable.files.list()
        saved = [file for file in files if file.path not in in_use and not file.name.startswith(TEMPORARY)]
        self._choose.show_saved([(file, names.get(file.path) or file.name.partition("-")[2]) for file in saved])

    async def _show_run(self, run, visit):
        for id in ("run", "log"):
            find(id).setAttribute("run-id", run.id)
        name = run.input.get("name") or run.input["path"]
        write("run-title", name)
        find("run-ended").replaceChildren()
        show("choose-view", False)
        show("run-view")
        show("result", False)
        find("run-title").focus()
        document.title = name
        if run.status in TERMINAL:
            await self._show_end(run, visit)
            return
        self._shown = durable_page.run(self._durable, run.id)
        self._shown.changed.add_listener(self._follow)

    def _follow(self, shown):
        """Take the title of the window along, and show the result as soon as there is one."""
        if shown is not self._shown or shown.run is None:
            return
        name = find("run-title").textContent
        document.title = name if shown.percentage is None else f"{shown.percentage} % {name}"
        if shown.is_terminal:
            shown.close()
            start(self._show_end(shown.run, self._visit))

    async def _show_end(self, run, visit):
        """Show what a run that has ended came to."""
        file = await self._saved_file(run)
        if file is not None and run.status == "completed":
            await self._durable.files.delete(file.name)
        if visit != self._visit:
            return
        document.title = run.input.get("name") or TITLE
        if run.status == "completed":
            show("result")
            self._result = ResultView(run.output, self._mend)
            self._downloads.offer(self._durable, run)
        else:
            notices.tell_run_ended(run, None if file is None else self._again(run, file))

    # --- what a person asks for ---------------------------------------------------------------------------------------

    async def _begin(self, blob, name):
        notices.clear()
        self._choose.show_saving(name)
        start(_ask_for_storage())  # now, because browsers answer a person's wish rather than a page's
        try:
            file = await self._durable.files.put(blob, name)
        except DurableError:
            self._choose.enable(True, "")
            raise
        try:
            await self._look(file, name)
        except DurableError:
            await self._durable.files.delete(file.name)  # it is no table
            raise
        finally:
            self._choose.enable(True, "")

    async def _look(self, file, name, options=()):
        """Show how a saved file would be read."""
        notices.clear()
        if _run_in_address():
            window.location.hash = "#all"
            self._again_with = (file, name)
            return
        await self._guess.open(file, name, options)
        await self._show_saved()

    async def _preview(self, file, options):
        request = {"path": file.path, "name": file.name}
        request.update(options)
        return await self._output_of("preview-csv", request, "UnreadableFile")

    async def _import(self, file, name, options):
        """Import a saved file as it was shown."""
        notices.clear()
        request = {"path": file.path, "name": name}
        request.update(options)
        starting = durable_page.job(self._durable, "import-csv", auto_resume=False, follow_latest=False)
        try:
            run = await starting.trigger(request)
        finally:
            starting.close()
        window.location.hash = f"#run={run.id}"

    async def _leave_guess(self):
        """The file stays where it is, for another time."""
        self._guess.close()
        await self._show_saved()
        find("choose").focus()

    async def _mend(self, output, line, text):
        """Import a record that was put aside, as it was mended; returns the output of the job."""
        request = {"table": output["table"], "line": line, "text": text}
        return await self._output_of("mend-record", request, "MendError")

    async def _output_of(self, job, request, code):
        """Run a job, delete its run, and return its output.

        :raises DurableError: with ``code``, when the run did not complete.
        """
        binding = durable_page.job(self._durable, job, auto_resume=False, follow_latest=False)
        try:
            run = await binding.trigger_and_wait(request)
        finally:
            binding.close()
        await self._delete_run(run.id)
        if run.status != "completed":
            raise DurableError(code, run.error.message if run.error else "It was cancelled. Try again.")
        return run.output

    async def _forget_file(self, file):
        notices.clear()
        await self._durable.files.delete(file.name)
        await self._show_saved()

    def _on_action(self, event):
        """To delete an import is more than to delete its run, so the element leaves that to this page."""
        if event.detail.action == "delete":
            event.preventDefault()
            start(self._forget_import(event.detail.run.id))

    async def _forget_import(self, run_id):
        """Delete the tables and the file of an import, then its run; if the tab dies, `_clear_away` does the rest."""
        notices.clear()
        run = await durable_page.actions(self._durable).get(run_id)
        file = await self._saved_file(run)
        used = await self._read_runs({"job": "import-csv", "status": ACTIVE})
        is_free = file is not None and file.path not in [other.input["path"] for other in used]
        request = {"run_id": run_id, "file": file.name if is_free else None}
        forgetting = durable_page.job(self._durable, "forget-import", auto_resume=False, follow_latest=False)
        try:
            done = await forgetting.trigger_and_wait(request)
        finally:
            forgetting.close()
        if done.status != "completed":
            raise DurableError("ForgetError", done.error.message if done.error else "It was cancelled. Try again.")
        await self._delete_forgotten(done)
        await self._imports.refresh()
        await self._show_saved()

    async def _delete_forgotten(self, done):
        """Delete the run of an import whose tables are gone, and that of the job which saw to it."""
        for run_id in (done.input["run_id"], done.id):
            await self._delete_run(run_id)

    async def _delete_run(self, run_id):
        try:
            await durable_page.actions(self._durable).delete(run_id)
        except DurableError as error:
            if error.code != "RunNotFound":
                raise

    async def _saved_file(self, run):
        """The durable copy of the file of an import, as long as it is there."""
        for file in await self._durable.files.list():
            if file.path == run.input["path"]:
                return file
        return None

    def _again(self, run, file):
        """A button to look at the file once more, and import it otherwise."""
        button = make("button", {"type": "button", "class": "button"}, "Import again")
        name = run.input.get("name")
        listen(button, "click", lambda event: start(self._look(file, name)))
        return make("p", {"class": "field"}, button)


async def _ask_for_storage():
    """Ask the browser to keep what is stored here, and tell what it says."""
    write("kept", _promise_of_storage(await js.navigator.storage.persist()))


def _promise_of_storage(is_persistent):
    if is_persistent:
        return "Your browser has promised to keep what is stored here until you delete it."
    return "Your browser may delete what is stored here when this device runs out of room. Download what you need."


def _run_in_address():
    key, _, run_id = str(window.location.hash).partition("=")
    return run_id if key == "#run" and run_id else None


def _mark_interpreter():
    """Say which of the two Pythons runs this page."""
    page = "index.html" if sys.implementation.name == "micropython" else "pyodide.html"
    document.querySelector(f'nav a[href="./{page}"]').setAttribute("aria-current", "page")


_mark_interpreter()
start(Demo().run())
