"""Taking the result away: as CSV, which a job of its own writes, and as JSON, which is the output of the import."""

import durable_page
import js
from durable_page import DurableError
from elements import find, listen, write
from notices import start
from pyscript.js_modules import durable_web_bridge as bridge

#: What `export-csv` writes for a download begins with this; uploads begin with the time.
TEMPORARY = "export-"

BUTTONS = ("download-rows", "download-bad", "download-summary")


class Downloads:
    """The download buttons, for the import that is shown."""

    def __init__(self):
        self._durable = None
        self._run = None
        listen(find("download-rows"), "click", lambda event: start(self._save_table("table", "cleaned")))
        listen(find("download-bad"), "click", lambda event: start(self._save_table("bad_table", "put-aside")))
        listen(find("download-summary"), "click", lambda event: start(self._save_summary()))

    def offer(self, durable, run):
        """Offer the result of a completed import."""
        self._durable = durable
        self._run = run
        write("download-status", "")

    async def _save_table(self, key, suffix):
        table = self._run.output[key]
        file_name = f"{TEMPORARY}{table}.csv"
        saved_as = f"{self._stem()}-{suffix}.csv"
        durable = self._durable
        _enable(False)
        write("download-status", f"Preparing {saved_as}.")
        try:
            exporting = durable_page.job(durable, "export-csv", auto_resume=False, follow_latest=False)
            run = await exporting.trigger_and_wait({"table": table, "name": file_name})
            exporting.close()
            if run.status != "completed":
                message = run.error.message if run.error else "The export was cancelled. Try again."
                raise DurableError("ExportError", message)
            bridge.download(await durable.files.get(file_name), saved_as)
            await durable.files.delete(file_name)
            write("download-status", f"{saved_as} was handed to the browser.")
        except DurableError:
            write("download-status", "")
            raise
        finally:
            _enable(True)

    async def _save_summary(self):
        """The output as the database has it; MicroPython would lose the order of its fields."""
        run = await bridge.bindActions(self._durable.client).get(self._run.id)
        blob = await js.Response.new(js.JSON.stringify(run.output, None, 2)).blob()
        bridge.download(blob, f"{self._stem()}-summary.json")

    def _stem(self):
        name = self._run.output["name"]
        stem = name.rpartition(".")[0]
        return stem or name


def _enable(enabled):
    for id in BUTTONS:
        find(id).disabled = not enabled
