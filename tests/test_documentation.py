"""The pages in web/docs/ and the README name what is there: paths, names of the interface, layers, lanes of tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable_web
from durable_web import Context, Engine, LocalFiles
from environment import ROOT

PROJECT = ROOT / "web" / "docs" / "project"
PAGES = [ROOT / "README.md", *sorted((ROOT / "web" / "docs").rglob("*.md"))]

CODE = re.compile(r"^```.*?^```$|(?<!`)`[^`\n]+`(?!`)", re.MULTILINE | re.DOTALL)
"""A block of code, or code between backticks."""
PATH = re.compile(r"(?<![\w/.-])(?:durable_web|web|tests|build_scripts)/[\w./-]*")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)\s]*\)")
NAME = re.compile(r"(?<![\w/.-])(engine|ctx)\.([a-z_]+(?:\.[a-z_]+)*)(?!\.\w|/)")
LAYER = re.compile(r"^\d+\. (`durable_web/.+)$", re.MULTILINE)
LANE = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
ONLY_IN_A_BROWSER = {"js", "pyodide", "pyodide_js", "pyscript", "durable_worker"}

OBJECTS = {"engine": Engine(":memory:"), "ctx": Context(None, LocalFiles("files"))}
"""What the names in the pages stand for: neither is started."""


def code_of(page: Path) -> str:
    """The code in a page, one piece a line."""
    return "\n".join(CODE.findall(page.read_text(encoding="utf-8")))


def section(page: str, title: str) -> str:
    """The text of a section of one of the project's pages, up to the next heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", (PROJECT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no section {title!r}"
    return found[1]


def is_there(root: str, name: str) -> bool:
    """``True`` when an attribute of an engine or a context, or of a part of it, exists."""
    owner: object = OBJECTS[root]
    *parts, last = name.split(".")
    for part in parts:
        if part not in dir(owner):
            return False
        owner = getattr(owner, part)
    return last in dir(owner)


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request) -> Path:
    return request.param


def test_the_four_pages_of_the_project_are_found():
    assert {path.name for path in PAGES} >= {"architecture.md", "changelog.md", "contributing.md", "glossary.md"}


def test_every_path_that_a_page_names_exists(page):
    missing = [path for path in PATH.findall(code_of(page)) if not (ROOT / path.rstrip(".")).exists()]
    assert missing == []


def test_every_link_to_another_file_leads_to_one(page):
    assert [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()] == []


def test_every_name_of_the_engine_and_of_the_context_exists(page):
    named = NAME.findall(code_of(page))
    assert [f"{root}.{name}" for root, name in named if not is_there(root, name)] == []


def test_paths_and_names_are_found_in_the_pages():
    texts = {path.name: code_of(path) for path in PAGES}
    assert "durable_web/_execution/steps.py" in PATH.findall(texts["architecture.md"])
    assert ("engine", "runs.cancel_many") in NAME.findall(texts["changelog.md"])
    assert ("ctx", "log.info") in NAME.findall(texts["README.md"])


# --- architecture -----------------------------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    """The modules and packages of each layer that the architecture names, from the bottom up."""
    rows = LAYER.findall(section("architecture.md", "Layers"))
    return [re.findall(r"`durable_web/(\w+)(?:\.py|/)`", row) for row in rows]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports, anywhere in its code: ("durable_web", module) of the package, (module, "") of others."""
    inside = len(path.relative_to(ROOT / "durable_web").parts)  # so many dots lead to the package
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == inside:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (("durable_web", name.partition(".")[0]) for name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], ""


def sources(name: str) -> list[Path]:
    """The files of a module or package of durable_web."""
    package = ROOT / "durable_web" / name
    return sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]


def test_the_layers_name_every_module_once():
    named = [name for row in layers() for name in row]
    there = {path.stem for path in (ROOT / "durable_web").iterdir() if path.suffix == ".py" or path.is_dir()}
    there -= {"__init__", "__pycache__"}
    assert sorted(named) == sorted(there)


def test_every_module_imports_only_from_the_layers_below_its_own():
    below: set[str] = set()
    wrong = []
    for row in layers():
        for name in row:
            for path in sources(name):
                used = {module for package, module in imports(path) if package == "durable_web"}
                wrong += [f"{path.relative_to(ROOT)}: {module}" for module in sorted(used - below - {name})]
        below |= set(row)
    assert wrong == []


def test_only_the_browser_package_imports_what_exists_in_a_browser_alone():
    found = {
        path.relative_to(ROOT / "durable_web").parts[0]
        for path in (ROOT / "durable_web").rglob("*.py")
        if ONLY_IN_A_BROWSER & {package for package, _ in imports(path)}
    }
    assert found == {"_browser"}


# --- contributing, changelog ------------------------------------------------------------------------------------------


def lanes() -> set[str]:
    """The lanes of build_scripts/test.py."""
    tree = ast.parse((ROOT / "build_scripts" / "test.py").read_text("utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["LANES"]
    )
    return set(ast.literal_eval(value))


def test_the_lanes_are_those_of_the_command_that_runs_them():
    assert set(LANE.findall(section("contributing.md", "Tests"))) == lanes()


def test_the_latest_version_in_the_changelog_is_that_of_the_package():
    titles = re.findall(r"^## (.+)$", (PROJECT / "changelog.md").read_text("utf-8"), re.MULTILINE)
    assert next(title for title in titles if title != "Unreleased") == durable_web.__version__


def test_the_words_of_the_glossary_are_in_alphabetical_order_and_have_a_sentence_each():
    rows = re.findall(r"^\| ([a-z].+?) \| (.+) \|$", (PROJECT / "glossary.md").read_text("utf-8"), re.MULTILINE)[1:]
    assert [word for word, _ in rows] == sorted({word for word, _ in rows}, key=lambda word: word.replace("-", " "))
    assert [word for word, meaning in rows if not meaning.endswith(".")] == []
