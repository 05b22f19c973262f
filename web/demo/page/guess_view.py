"""How a file would be read: the guess with its first rows, before anything is imported, and what can be changed."""

from elements import find, listen, make, make_table, show, write
from notices import start
from wording import count, number

#: As in csv_encodings.py.
ENCODINGS = (
    "utf-8",
    "windows-1252",
    "iso-8859-1",
    "iso-8859-15",
    "macintosh",
    "ibm850",
    "windows-1250",
    "windows-1251",
    "koi8-r",
    "windows-1253",
    "windows-1254",
    "windows-1255",
    "windows-1256",
    "windows-1257",
    "gb18030",
    "big5",
    "shift_jis",
    "euc-jp",
    "euc-kr",
    "utf-16-le",
    "utf-16-be",
)
DELIMITERS = (
    (",", "comma"),
    (";", "semicolon"),
    ("\t", "tab"),
    ("|", "bar"),
    (" ", "blanks"),
    ("\x1f", "none: a single column"),
)
CHOICES = {
    "encoding": [(name, name) for name in ENCODINGS],
    "delimiter": DELIMITERS,
    "quote": (('"', "double quotes"), ("'", "single quotes"), ("", "nothing")),
    "header": ((True, "in its first line"), (False, "not in the file")),
    "decimal": ((".", "point: 1.5"), (",", "comma: 1,5")),
    "date_order": (("ymd", "2026-01-31"), ("dmy", "31/01/2026"), ("mdy", "01/31/2026")),
}


class GuessView:
    """Calls ``preview(file, options)``, which returns the output of `preview-csv`, ``begin(file, name, options)`` for
    an import as it is shown, and ``leave()``; all three are asynchronous.
    """

    def __init__(self, preview, begin, leave):
        self._preview = preview
        self._begin = begin
        self._leave = leave
        self._file = self._name = self._guess = None
        self._changed = {}
        for name in CHOICES:
            listen(find(f"guess-{name}"), "change", self._on_change)
        listen(find("guess-missing"), "change", self._on_change)
        listen(find("guess-import"), "click", lambda event: start(self._import()))
        listen(find("guess-leave"), "click", lambda event: start(self._leave()))

    async def open(self, file, name, options):
        """Show how the file would be read. Raises what `preview` raises when it cannot be read at all."""
        self._file, self._name, self._changed = file, name, dict(options)
        preview = await self._preview(file, self._changed)
        write("guess-title", f"How to read {name}")
        self._show(preview)
        show("guess")
        find("guess-title").focus()

    def close(self):
        show("guess", False)

    async def _import(self):
        options = dict(self._guess)
        if options.get("missing") is None:
            options.pop("missing")
        await self._begin(self._file, self._name, options)

    def _on_change(self, event):
        name = event.currentTarget.id.partition("-")[2]
        value = event.currentTarget.value
        if name == "missing":
            self._changed[name] = [word.strip() for word in value.split(",") if word.strip()]
        else:
            self._changed[name] = CHOICES[name][int(value)][0]
        if name == "encoding":  # what was guessed of another text says nothing
            self._changed = {"encoding": self._changed[name]}
        start(self._look_again())

    async def _look_again(self):
        find("guess-import").disabled = True
        try:
            preview = await self._preview(self._file, self._changed)
        except Exception as error:
            message = getattr(error, "message", None)
            if message is None:
                raise
            write("guess-problem", message)
            return
        self._show(preview)

    def _show(self, preview):
        self._guess = preview["guess"]
        write("guess-problem", "")
        find("guess-import").disabled = False
        for name, choices in CHOICES.items():
            self._fill(name, choices)
        find("guess-missing").value = ", ".join(self._guess["missing"] or [])
        write("guess-text", _said(preview))
        rows = preview["rows"]
        names = [f"{column['name']} ({column['type']})" for column in preview["columns"]]
        numeric = [index for index, column in enumerate(preview["columns"]) if column["type"] in ("integer", "number")]
        table = make_table(f"The first {count(len(rows), 'row')}, as they would be read", names, rows, numeric)
        find("guess-rows").replaceChildren(table)

    def _fill(self, name, choices):
        """The choices of one selector, with the guess selected; a guess that is none of them is one more."""
        select, value = find(f"guess-{name}"), self._guess[name]
        known = [choice for choice, _ in choices]
        if value not in known:
            choices = list(choices) + [(value, value)]  # noqa: RUF005
            CHOICES[name] = choices
            known.append(value)
        select.replaceChildren(*[make("option", {"value": index}, text) for index, (_, text) in enumerate(choices)])
        select.value = str(known.index(value))


def _said(preview):
    """What was guessed, and what a wrong guess would be seen by, in sentences."""
    said = [f"{number(preview['column_count'])} columns."]
    if preview["above"]:
        said.append(f"Above the table, and no part of it: {' / '.join(preview['above'])}.")
    if preview["bad_rows"]:
        bad = preview["bad_rows"][0]
        said.append(f"Line {number(bad['line'])} would be put aside: {bad['reason']}.")
    if preview["beyond_ascii"]:
        words = ", ".join(preview["beyond_ascii"])
        is_sure = "The encoding is" if preview["is_certain"] else "The encoding is a guess:"
        said.append(f"{is_sure} {preview['guess']['encoding']}. Are these words right? {words}")
    return " ".join(said)
