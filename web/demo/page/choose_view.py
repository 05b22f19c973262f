"""The first view: a file is chosen, dropped, or taken from the samples; saved files are listed."""

import js
from durable_page import DurableError
from elements import find, listen, make, show, write
from notices import start
from pyscript import document
from wording import size

PRIVATE = "The file stays on this device. Nothing is uploaded."


class ChooseView:
    """Calls ``begin(blob, name)`` for a file to import, ``look(file, name)`` for one that is saved already, and
    ``forget(file)`` for one that is to be deleted; all three are asynchronous.
    """

    def __init__(self, begin, look, forget):
        self._begin = begin
        self._look = look
        self._forget = forget
        listen(find("choose"), "click", lambda event: find("file").click())
        listen(find("file"), "change", self._on_chosen)
        for button in document.querySelectorAll("[data-sample]"):
            listen(button, "click", self._on_sample)
        for kind in ("dragover", "dragleave", "drop"):
            listen(document, kind, self._on_drag)

    def enable(self, enabled, note):
        """Let files be chosen, or say why not."""
        find("controls").disabled = not enabled
        write("chooser-note", note or PRIVATE)
        show("boot-progress", False)
        show("slow-note", False)

    def show_saving(self, name):
        """Say that a file is being made durable."""
        find("controls").disabled = True
        write("chooser-note", f"Saving {name} on this device.")
        find("boot-progress").removeAttribute("value")
        show("boot-progress")

    def show_saved(self, files):
        """List files that are saved and not imported; ``files`` are pairs of a file and what it is called."""
        show("saved", bool(files))
        find("saved-list").replaceChildren(*[self._row_of_file(file, name) for file, name in files])

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_chosen(self, event):
        files = find("file").files
        if files.length:
            file = files.item(0)
            start(self._begin(file, file.name))
        find("file").value = ""  # so that the same file can be chosen again

    def _on_drag(self, event):
        """A file may be dropped anywhere: opening it instead of the page is never what was meant."""
        event.preventDefault()
        find("dropzone").classList.toggle("is-over", event.type == "dragover")
        if event.type != "drop" or find("controls").disabled or find("choose-view").hidden:
            return
        files = event.dataTransfer.files
        if files.length == 1:
            start(self._begin(files.item(0), files.item(0).name))
        elif files.length:
            start(_refuse("Drop one file at a time: each import is of one file."))

    def _on_sample(self, event):
        start(self._begin_sample(event.currentTarget.getAttribute("data-sample")))

    async def _begin_sample(self, name):
        self.show_saving(name)
        try:
            blob = await _fetch_sample(name)
        except DurableError:
            self.enable(True, "")
            raise
        await self._begin(blob, name)

    def _row_of_file(self, file, name):
        begin = make("button", {"type": "button", "class": "button button-secondary button-small"}, "Import")
        forget = make("button", {"type": "button", "class": "button button-secondary button-small"}, "Delete")
        for button, word in ((begin, "Import"), (forget, "Delete")):
            button.setAttribute("aria-label", f"{word} {name}")
        listen(begin, "click", lambda event: start(self._look(file, name)))
        listen(forget, "click", lambda event: start(self._forget(file)))
        buttons = make("span", {"class": "buttons"}, begin, forget)
        return make("li", {"class": "row"}, _row_text(name, size(file.size)), buttons)


async def _refuse(message):
    raise DurableError("Refused", message)


async def _fetch_sample(name):
    """A sample of this site, as a Blob."""
    try:
        response = await js.fetch(f"./data/{name}")
        blob = await response.blob()
    except Exception:
        message = f"The sample {name} could not be fetched. See whether the network is there, and try again."
        raise DurableError("FetchError", message) from None
    if not response.ok:
        message = f"The sample {name} could not be fetched: the server answered {response.status}."
        raise DurableError("FetchError", message)
    return blob


def _row_text(title, facts):
    title = make("span", {"class": "row-title"}, title)
    return make("span", {"class": "row-text"}, title, make("span", {"class": "muted"}, facts))
