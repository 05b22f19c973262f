"""A machine without Chromium gets one: Playwright's own, else the package manager's, each stood in for by a command."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import chromium
from progress import SetupError

PLAYWRIGHT = SimpleNamespace(chromium=SimpleNamespace(executable_path="nowhere/chrome"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder in which alone commands are looked for: machine(name, script) puts one there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.delenv(chromium.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(chromium, "_is_root", lambda: True)
    monkeypatch.setattr(chromium.sys, "platform", "linux")

    def put(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\necho {name} $* >> {tmp_path}/called\n{script}\n")
        path.chmod(0o755)
        return path

    put.called = lambda: (tmp_path / "called").read_text().splitlines() if (tmp_path / "called").exists() else []
    put.folder = folder
    return put


@pytest.fixture
def download(machine, monkeypatch):
    """What is started in place of `python -m playwright install chromium`."""

    def put(script: str) -> None:
        monkeypatch.setattr(chromium.sys, "executable", str(machine("python", script)))

    put("exit 7")
    return put


def brings(machine, name="chromium"):
    """A script that installs a Chromium."""
    return f"echo '#!/bin/sh' > {machine.folder}/{name}; /bin/chmod +x {machine.folder}/{name}"


def test_where_there_is_one_nothing_is_installed(machine, download):
    there = machine("chromium", "")
    assert chromium.ensure_chromium(PLAYWRIGHT) == there
    assert machine.called() == []


def test_playwrights_own_is_tried_first_and_that_is_said(machine, download, capsys):
    download(brings(machine))
    machine("apt-get", "exit 1")
    assert chromium.ensure_chromium(PLAYWRIGHT) == machine.folder / "chromium"
    assert machine.called() == ["python -m playwright install chromium"]
    assert "No Chromium was found; trying: " in capsys.readouterr().out


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "apk", "pacman", "zypper"])
def test_else_the_package_manager_is_asked_as_root(machine, download, manager):
    machine(manager, brings(machine))
    assert chromium.ensure_chromium(PLAYWRIGHT) == machine.folder / "chromium"
    assert machine.called()[0] == "python -m playwright install chromium"
    assert machine.called()[-1].startswith(manager)
    assert machine.called()[-1].endswith("chromium")


def test_a_download_that_takes_too_long_is_given_up(machine, download, monkeypatch):
    monkeypatch.setattr(chromium, "DOWNLOAD_SECONDS", 0.2)
    download("exec /bin/sleep 60")
    machine("apt-get", brings(machine))
    assert chromium.ensure_chromium(PLAYWRIGHT) == machine.folder / "chromium"


def test_without_being_root_the_package_manager_is_left_alone(machine, download, monkeypatch):
    monkeypatch.setattr(chromium, "_is_root", lambda: False)
    machine("apt-get", brings(machine))
    with pytest.raises(SetupError, match=r"No Chromium was found\. Install one"):
        chromium.ensure_chromium(PLAYWRIGHT)
    assert machine.called() == ["python -m playwright install chromium"]


def test_where_nothing_works_the_error_says_what_was_tried_and_what_came_of_it(machine, download):
    download("echo no network >&2; exit 7")
    machine("apt-get", "echo E: no such package; exit 100")
    with pytest.raises(SetupError) as failed:
        chromium.ensure_chromium(PLAYWRIGHT)
    message = str(failed.value)
    assert "apt-get install chromium" in message.partition("What was tried:")[0]
    assert "playwright install chromium failed with exit code 7: no network" in message
    assert "apt-get update failed with exit code 100: E: no such package" in message


def test_one_that_a_person_has_chosen_is_never_replaced(machine, download, monkeypatch):
    monkeypatch.setenv(chromium.ENVIRONMENT_VARIABLE, "my-browser")
    machine("apt-get", brings(machine))
    with pytest.raises(SetupError, match="my-browser"):
        chromium.ensure_chromium(PLAYWRIGHT)
    assert machine.called() == []
