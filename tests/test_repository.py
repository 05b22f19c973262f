"""The repository can be cloned anywhere: every version is pinned, and nothing in it belongs to one machine."""

import inspect
import json
import re
import subprocess
from pathlib import Path

import pytest

import durable_web
from durable_web import testing
from environment import ROOT, pinned_packages
from packages import WEB

NPM_FOLDERS = (WEB, ROOT / "tests" / "benchmarks" / "web")
REQUIREMENTS = ROOT / "tests" / "benchmarks" / "requirements.txt"

MACHINE_PATH = re.compile(r"/(?:work|farm|root)/|/(?:tmp/[a-z]|home/[a-z]|Users/[a-zA-Z])[/\w]")
REGISTRY_HOST = re.compile(r"registry[.]npmjs|pypi[.]org|pythonhosted[.]org|deb[.]debian", re.IGNORECASE)


@pytest.fixture(scope="module")
def tracked() -> dict[str, str]:
    """The text of every file that git has or would take, by its path."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = {name: ROOT / name for name in names if name and (ROOT / name).is_file()}
    return {name: path.read_text(encoding="utf-8", errors="ignore") for name, path in paths.items()}


def test_no_file_names_a_place_on_one_machine(tracked):
    assert found_in(tracked, MACHINE_PATH) == []


def test_no_file_names_a_package_registry(tracked):
    assert found_in(tracked, REGISTRY_HOST) == []


def test_nothing_that_a_command_makes_is_tracked(tracked):
    made = ("dist/", ".venv/", ".build/", "web/node_modules/")
    assert [name for name in tracked if name.startswith(made) or name.endswith((".whl", ".pyc"))] == []


def test_python_packages_are_pinned_to_one_version():
    pinned = re.compile(r"[a-z-]+==[0-9.]+(?:; sys_platform .+)?")
    assert [pin for pin in pinned_packages() if not pinned.fullmatch(pin)] == []


def test_the_python_packages_of_the_benchmarks_are_pinned_to_one_version():
    pins = REQUIREMENTS.read_text().split()
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z_-]+==[0-9.]+", pin)] == []


@pytest.mark.parametrize("folder", NPM_FOLDERS, ids=("web", "benchmarks"))
def test_npm_packages_are_pinned_to_one_version(folder):
    dependencies = json.loads((folder / "package.json").read_text())["dependencies"]
    pinned = re.compile(r"[0-9.]+(?:-build[0-9]+)?")
    assert {name: version for name, version in dependencies.items() if not pinned.fullmatch(version)} == {}


@pytest.mark.parametrize("folder", NPM_FOLDERS, ids=("web", "benchmarks"))
def test_the_npm_lock_file_pins_contents_and_no_addresses(folder):
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    locked = {name: package for name, package in packages.items() if name}
    assert [name for name, package in locked.items() if "integrity" not in package] == []
    assert [name for name, package in locked.items() if "resolved" in package] == []


def test_the_package_needs_nothing_at_run_time_and_its_licence_is_there():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []
    assert project["license"] == "MIT"
    assert "MIT License" in Path(ROOT / "LICENSE").read_text()


def public_members() -> dict[str, object]:
    """Every public class, function, method and property of the package and its testing module, by its name."""
    exported = {name: getattr(durable_web, name) for name in durable_web.__all__}
    exported |= {name: getattr(testing, name) for name in testing.__all__}
    members = dict(exported)
    for name, item in exported.items():
        if inspect.isclass(item):
            ours = [part for part in reversed(item.__mro__) if part.__module__.startswith("durable_web")]
            own = {key: value for part in ours for key, value in vars(part).items() if not key.startswith("_")}
            callables = {key: value for key, value in own.items() if inspect.isroutine(value) or _is_property(value)}
            members |= {f"{name}.{key}": value for key, value in callables.items()}
    return members


def _is_property(value: object) -> bool:
    return isinstance(value, property)


def test_every_public_name_says_what_it_is_for():
    members = public_members()
    assert {"Engine.trigger", "Context.step_ref", "MockClock.advance", "Run.queue_time"} <= members.keys()
    assert [name for name, item in members.items() if len((item.__doc__ or "").split()) < 3 or _is_made_up(item)] == []


def _is_made_up(item: object) -> bool:
    """Whether a docstring is only the signature that ``dataclass`` writes where there is none."""
    return inspect.isclass(item) and (item.__doc__ or "").startswith(f"{item.__name__}(")


def found_in(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    """Where a pattern occurs, as "path: line"."""
    lines = ((name, line) for name, text in texts.items() for line in text.splitlines())
    return [f"{name}: {line.strip()[:120]}" for name, line in lines if pattern.search(line)]
