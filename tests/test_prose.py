"""The prose of the code is plain technical English: it names mechanisms, not actors."""

import re
from pathlib import Path

import pytest

from environment import ROOT

WORDS = ("whoever", "nobody", "somebody", "anybody", "everybody", "under way", "on a desk")
# A phrase may be broken by the end of a line and the mark of a comment: `#`, `//` or `*`.
GAP = r"[\s#*/]+"
WORST = re.compile("|".join(rf"\b{GAP.join(word.split())}\b" for word in WORDS), re.IGNORECASE)

FILES = {
    path.relative_to(ROOT).as_posix(): path
    for folder, kinds in (("durable_web", ["py", "sql"]), ("web", ["js", "py", "html", "css", "md"]), (".", ["md"]))
    for kind in kinds
    for path in (ROOT / folder).glob(f"**/*.{kind}" if folder != "." else f"*.{kind}")
    if "node_modules" not in path.parts
}


def worst_words_in(path: Path) -> list[str]:
    """File, line and word of each match. Names in code are matched as well: they are prose too."""
    text = path.read_text(encoding="utf-8")
    return [
        f"{path.relative_to(ROOT).as_posix()}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]!r}"
        for found in WORST.finditer(text)
    ]


def test_the_prose_of_the_code_has_none_of_the_worst_words():
    found = [line for path in sorted(FILES.values()) for line in worst_words_in(path)]

    assert found == [], "Name the mechanism instead (the next run, each watcher, the caller):\n" + "\n".join(found)


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
