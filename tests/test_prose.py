"""The prose of the code is plain technical English: it names mechanisms, not actors."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from environment import ROOT

WORDS = ("whoever", "nobody", "somebody", "anybody", "everybody", "under way", "on a desk")
# A phrase may be broken by the end of a line and the mark of a comment: `#`, `//` or `*`.
GAP = r"[\s#*/]+"
WORST = re.compile("|".join(rf"\b{GAP.join(word.split())}\b" for word in WORDS), re.IGNORECASE)

FILES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [*(ROOT / "durable_web").rglob("*.py"), *(ROOT / "web").glob("*.js"), *(ROOT / "web").glob("*.py")]
}

EXEMPT = (
    "durable_web/_codec/*",
    "durable_web/_execution/*",
    "durable_web/_store/journal.py",
    "durable_web/_store/steps.py",
    "web/durable-binding.js",
    "web/durable-web.js",
    "web/opfs-storage.js",
    "web/pyodide-start.js",
    "web/watch.js",
)
"""Files that are still to be rewritten, as patterns."""


def worst_words_in(path: Path) -> list[str]:
    """File, line and word of each match. Names in code are matched as well: they are prose too."""
    text = path.read_text(encoding="utf-8")
    return [
        f"{path.relative_to(ROOT).as_posix()}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]!r}"
        for found in WORST.finditer(text)
    ]


def test_the_prose_of_the_code_has_none_of_the_worst_words():
    checked = [path for name, path in FILES.items() if not any(fnmatch(name, pattern) for pattern in EXEMPT)]

    found = [line for path in sorted(checked) for line in worst_words_in(path)]

    assert found == [], "Name the mechanism instead (the next run, each watcher, the caller):\n" + "\n".join(found)


@pytest.mark.parametrize("pattern", EXEMPT)
def test_each_exempt_file_still_has_one_of_the_worst_words(pattern):
    exempt = [path for name, path in FILES.items() if fnmatch(name, pattern)]

    assert any(worst_words_in(path) for path in exempt), f"{pattern} is clean or gone: remove it from EXEMPT."


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1  # nobody\n", 1),
        ('"""One.\n\nOn a\n    desk.\n"""\n', 3),
        ("/**\n * It is under\n * way.\n */\n", 2),
    ],
)
def test_a_worst_word_is_found_with_its_line(text, line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "some.py"
    file.write_text(text)

    assert [found.split(":")[1] for found in worst_words_in(file)] == [str(line)]
