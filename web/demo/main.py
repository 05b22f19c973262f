"""The demo page: choose a CSV file, watch its import survive whatever happens to the tab, look at the result.

There are two views, told apart by the address: `#run=<id>` shows one import, anything else the choice of a file and the
recent imports. A reload therefore shows what was there before; and a page that is opened anew shows the import that was
under way when it was opened. Nothing else is remembered here: all that is shown comes from the database.
"""

import sys

import js
import notices
from choose_view import ChooseView
from downloads import TEMPORARY, Downloads
from durable_page import TERMINAL, DurableError, connect
from elements import find, listen, make, next_frame, show, write
from notices import start
from pyscript import document
from result_view import ResultView
from run_view import RunView

#: In MicroPython, `pyscript.window` is the module `js`, whose functions know no `this`: it cannot be listened to.
window = document.defaultView

DATABASE = "durable-web-demo"
JOBS = ["./csv_records.py", "./csv_import.py", "./jobs.py"]
TITLE = document.title
ACTIVE = ["pending", "leased", "waiting", "cancelling"]
RECENT = 10
PHASES = ("page", "storage", "pyodide", "packages", "jobs", "ready")


class Demo:
    """The page as a whole: its connection to the engine, and which of the two views it shows."""

    def __init__(self):
        self._durable = None
        self._watch = None
        self._result = None
        self._choose = ChooseView(self._begin, self._begin_saved, self._forget)
        self._downloads = Downloads()
        self._visit = 0
        listen(find("reload"), "click", lambda event: window.location.reload())
        listen(find("cancel"), "click", lambda event: start(self._cancel(_run_in_address())))
        listen(find("chart-column"), "change", lambda event: self._result.draw_chart())
        listen(window, "resize", lambda event: self._result and not find("result").hidden and self._result.draw_chart())
        listen(window, "hashchange", lambda event: start(self._route()))

    async def run(self):
        """Connect, wait for the turn of this tab, and show what there is."""
        opened = js.Date.now()
        try:
            self._durable = await connect(DATABASE, JOBS, on_status=self._hear_status, on_engine=notices.tell_storage)
            await self._durable.when_ready()
        except DurableError as error:
            notices.tell_start_failed(error)
            return
        self._hear_status("ready", "", None)
        runs = await self._durable.list_runs(job="import-csv", limit=RECENT)
        under_way = [run.id for run in runs if run.status in ACTIVE or (run.completed_at or 0) > opened]
        if under_way and not _run_in_address():
            window.location.hash = f"#run={under_way[0]}"  # and on with the event of that
        else:
            start(self._route())
        await self._clear_away()

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _hear_status(self, status, message, phase):
        """Show how the engine is; called with every change."""
        texts = {"ready": "Ready", "blocked": "Another tab is at work", "failed": "Failed", "closed": "Stopped"}
        is_ready = status == "ready" and self._durable is not None
        find("engine").setAttribute("data-status", status)
        write("engine-text", texts.get(status, f"Starting: {message}"))
        show("blocked", status == "blocked")
        notes = {"blocked": "Another tab is running the imports.", "failed": "There is no engine to import with."}
        if status == "starting":
            find("boot-progress").value = PHASES.index(phase) + 1
            write("chooser-note", "The engine is starting. You can choose a file in a moment.")
            show("boot-progress")
        elif status != "ready" or is_ready:
            self._choose.enable(is_ready, notes.get(status, ""))
        if status in ("ready", "blocked"):
            write("announcement", texts[status])
        if status == "failed" and self._durable is not None:
            notices.tell_start_failed(DurableError("Failed", message))

    async def _clear_away(self):
        """Delete what a tab that died has left: half-made downloads, and files that were imported but not deleted."""
        for run in await self._durable.list_runs(job="export-csv", status=ACTIVE):
            await self._cancel(run.id)
        completed = await self._durable.list_runs(job="import-csv", status="completed", limit=RECENT)
        imported = [run.input["path"] for run in completed]
        for file in await self._durable.list_files():
            if file.name.startswith(TEMPORARY) or file.path in imported:
                await self._durable.delete_file(file.name)

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
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        document.title = TITLE
        window.scrollTo(0, 0)
        return self._visit

    async def _find_run(self, run_id):
        try:
            return await self._durable.get_run(run_id)
        except DurableError as error:
            if error.code != "RunNotFound":
                raise
            notices.tell(error)
            return None

    async def _show_choice(self, visit):
        show("run-view", False)
        show("choose-view")
        runs = await self._durable.list_runs(job="import-csv", limit=RECENT)
        saved = await self._saved_files(runs)
        if visit != self._visit:
            return
        self._choose.show_runs(runs)
        self._choose.show_saved(saved)
        self._choose.enable(True, "")
        for run in runs:
            if run.status in ACTIVE:
                start(self._show_choice_after(run, visit))

    async def _show_choice_after(self, run, visit):
        """List the imports anew when this one has ended, if they are still shown then."""
        async for _ in self._durable.watch(run.id):
            pass
        if visit == self._visit:
            await self._show_choice(visit)

    async def _saved_files(self, runs):
        """The files that are neither imported nor being imported, each with what the person calls it."""
        active = await self._durable.list_runs(job="import-csv", status=ACTIVE)
        in_use = [run.input["path"] for run in active]
        names = {run.input["path"]: run.input.get("name") for run in runs}
        files = await self._durable.list_files()
        saved = [file for file in files if file.path not in in_use and not file.name.startswith(TEMPORARY)]
        return [(file, names.get(file.path) or file.name.partition("-")[2]) for file in saved]

    async def _show_run(self, run, visit):
        show("choose-view", False)
        show("run-view")
        show("result", False)
        view = RunView(run)
        find("run-title").focus()
        if run.status in TERMINAL:
            await self._show_end(run, visit)
        if visit == self._visit:
            await self._follow(run, view, visit)

    async def _follow(self, run, view, visit):
        watch = self._watch = self._durable.watch(run.id)
        was_active = run.status in ACTIVE
        try:
            while visit == self._visit:
                view.take(await watch.next_batch())
                await next_frame()
                if visit == self._visit:
                    view.render()
                    document.title = f"{view.percent()} {view.name}" if was_active else view.name
        except StopAsyncIteration:
            pass
        if visit == self._visit and was_active:
            run = await self._durable.get_run(run.id)
            write("announcement", f"The import of {view.name} has ended: {run.status}.")
            await self._show_end(run, visit)

    async def _show_end(self, run, visit):
        """Show what a run that has ended came to."""
        file = await self._saved_file(run)
        if file is not None and run.status == "completed":
            await self._durable.delete_file(file.name)
        if visit != self._visit:
            return
        document.title = run.input.get("name") or TITLE
        if run.status == "completed":
            show("result")
            self._result = ResultView(run.output)
            self._downloads.offer(self._durable, run)
        else:
            notices.tell_run_ended(run, None if file is None else self._again(run, file))

    # --- what a person asks for ---------------------------------------------------------------------------------------

    async def _begin(self, blob, name):
        notices.clear()
        self._choose.show_saving(name)
        try:
            file = await self._durable.put_file(blob, name)
        except DurableError:
            self._choose.enable(True, "")
            raise
        await self._begin_saved(file, name, self._choose.encoding())

    async def _begin_saved(self, file, name, encoding):
        notices.clear()
        try:
            request = {"path": file.path, "name": name, "encoding": encoding}
            run = await self._durable.trigger("import-csv", request)
        finally:
            self._choose.enable(True, "")
        window.location.hash = f"#run={run.id}"

    async def _forget(self, file):
        notices.clear()
        await self._durable.delete_file(file.name)
        await self._show_choice(self._visit)

    async def _cancel(self, run_id):
        try:
            await self._durable.cancel(run_id)
        except DurableError as error:
            if error.code != "RunNotActive":  # it has ended just now
                raise

    async def _saved_file(self, run):
        """The durable copy of the file of an import, as long as it is there."""
        for file in await self._durable.list_files():
            if file.path == run.input["path"]:
                return file
        return None

    def _again(self, run, file):
        """A choice of the encoding, and a button to import the file once more."""
        select = find("encoding").cloneNode(True)
        select.id = "encoding-again"
        select.value = run.input.get("encoding") or "utf-8"
        button = make("button", {"type": "button", "class": "button"}, "Import again")

        name = run.input.get("name")
        listen(button, "click", lambda event: start(self._begin_saved(file, name, select.value)))
        label = make("label", {"for": "encoding-again"}, "Encoding")
        return make("p", {"class": "field"}, label, select, button)


def _run_in_address():
    key, _, run_id = str(window.location.hash).partition("=")
    return run_id if key == "#run" and run_id else None


def _mark_interpreter():
    """Say which of the two Pythons runs this page."""
    page = "index.html" if sys.implementation.name == "micropython" else "pyodide.html"
    document.querySelector(f'nav a[href="./{page}"]').setAttribute("aria-current", "page")


_mark_interpreter()
start(Demo().run())
