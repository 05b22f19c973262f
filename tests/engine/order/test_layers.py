"""The owners of state in ``durable_web._execution``: each module imports only what stands before it, also for types."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import durable_web._execution

OWNERS = [
    "history",
    "run_loop",
    "tenure",
    "reporting",
    "outcomes",
    "steps",
    "writes",
    "waits",
    "children",
    "compensation",
    "parking",
    "run",
]
SERVING = {"commits", "services", "leaving"}
"""What all of them may use; these import of the owners only the run loop."""


def imported_modules(name: str) -> set[str]:
    """The names of the modules of the package that one of them imports, anywhere in its code."""
    tree = ast.parse(Path(durable_web._execution.__path__[0], f"{name}.py").read_text("utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {alias.name for alias in node.names} if node.module is None else {node.module.split(".")[0]}
    return names


def test_every_module_of_the_package_is_an_owner_of_state_or_serves_them():
    modules = {path.stem for path in Path(durable_web._execution.__path__[0]).glob("*.py")} - {"__init__"}
    assert modules == {*OWNERS, *SERVING}


@pytest.mark.parametrize("name", OWNERS)
def test_an_owner_imports_only_what_stands_before_it(name):
    importlib.import_module(f"durable_web._execution.{name}")
    assert imported_modules(name) <= {*OWNERS[: OWNERS.index(name)], *SERVING}


@pytest.mark.parametrize("name", sorted(SERVING))
def test_what_serves_all_of_them_knows_of_none_but_the_run_loop(name):
    assert imported_modules(name) <= {*SERVING, "run_loop"}


@pytest.mark.parametrize("name", OWNERS)
def test_no_part_writes_the_state_of_another(name):
    """An assignment, or a call that changes a container, goes to ``self``, to a local or to a call of its own."""
    tree = ast.parse(Path(durable_web._execution.__path__[0], f"{name}.py").read_text("utf-8"))
    parts = {
        "history",
        "_history",
        "loop",
        "_loop",
        "_reporting",
        "reporting",
        "_steps",
        "_waits",
        "_outcomes",
        "_writes",
    }
    written = [
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Attribute)
        and target.value.attr in {*parts, "tenure", "_tenure", "waits", "steps"}
    ]
    assert written == []
