"""Measure the engine, its limits and its peers in one run: python3 build_scripts/bench.py [--quick] [--only NAME].

Sets itself up, lets the subjects of every measurement take turns in one Chromium (and on one CPython), and prints
medians with minimum and maximum, their ratios, and which targets were reached. `--json` and `--html` write the same to
files, `--markdown` the targets alone. Numbers of different runs are not compared: what the machine did in between is
not known.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from distribution import build
from environment import BUILD, ROOT, run_in_environment
from progress import write_atomically

sys.path.insert(0, str(ROOT / "tests"))

if TYPE_CHECKING:
    from playwright.sync_api import Playwright

    from benchmarks.report import Report
    from benchmarks.scale import Scale
    from benchmarks.series import Bench, Measurement

NAMES = ("steps", "runs", "parallel", "latency", "replay", "starts", "frames", "growth", "memory", "profile", "desk")

Work = Callable[[], "Measurement | list[Measurement]"]


def main() -> int:
    """Measure and report; returns 1 when something could not be measured."""
    arguments = _parse_arguments()
    report = _measure(arguments)
    print(f"\n{report.to_text()}", flush=True)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(report.to_dict(), indent=1).encode())
    if arguments.html:
        from benchmarks.html_report import to_html

        write_atomically(arguments.html, to_html(report).encode())
    if arguments.markdown:
        write_atomically(arguments.markdown, report.to_markdown().encode())
    return 1 if report.failures else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine, its limits and its peers in one run.")
    parser.add_argument("--quick", action="store_true", help="smaller counts and fewer rounds: about 4 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page with plots")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the targets as the README shows them")
    parser.add_argument("--only", choices=NAMES, action="append", help="measure this alone; may be given several times")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> "Report":
    from benchmarks.peers import build_browser_peers, install_dbos
    from benchmarks.scale import FULL, QUICK
    from benchmarks.series import Bench
    from chromium import start_playwright

    wanted = set(arguments.only or NAMES)
    scale = QUICK if arguments.quick else FULL
    dist = build()
    bundles = build_browser_peers()
    dbos = install_dbos() if "desk" in wanted else None
    bench = Bench(scale.rounds, tell=_tell)
    began = time.monotonic()
    with start_playwright() as playwright:
        report = _new_report(bench.run, scale.name, playwright)
        _measure_in_browser(wanted, report, playwright, dist, bundles, bench, scale)
    if dbos is not None:
        from benchmarks.on_desk import measure_desk

        _attempt(report, "desk", lambda: measure_desk(bench, dbos, scale))
    if "profile" in wanted:
        _attempt(report, "profile on CPython", lambda: _profile_on_desk(bench, scale))
    report.seconds = time.monotonic() - began
    report.facts |= bench.facts
    return report


def _measure_in_browser(
    wanted: set[str],
    report: "Report",
    playwright: "Playwright",
    dist: Path,
    bundles: Path,
    bench: "Bench",
    scale: "Scale",
) -> None:
    from benchmarks import growth, in_browser, latency, where
    from benchmarks.laboratory import laboratory
    from benchmarks.starting import measure_starts

    in_laboratory = {
        "steps": in_browser.measure_steps,
        "runs": in_browser.measure_runs,
        "parallel": in_browser.measure_parallel,
        "latency": latency.measure_latency,
        "replay": in_browser.measure_replay,
        "frames": latency.measure_frames,
        "growth": growth.measure_growth,
        "memory": growth.measure_memory,
        "profile": where.profile_in_browser,
    }
    for name, measure in in_laboratory.items():
        if name in wanted:

            def work(measure: Callable[..., object] = measure) -> "Measurement | list[Measurement]":
                with laboratory(playwright, dist, bundles, fine_clock=measure is latency.measure_frames) as lab:
                    return measure(bench, lab, scale)

            _attempt(report, name, work)
    if "starts" in wanted:
        _attempt(report, "starts", lambda: measure_starts(bench, playwright, dist, bundles, scale))


def _profile_on_desk(bench: "Bench", scale: "Scale") -> "list[Measurement]":
    from benchmarks.where import profile_on_desk

    with tempfile.TemporaryDirectory(dir=BUILD, prefix="benchmark-") as folder:
        return profile_on_desk(bench, folder, scale)


def _attempt(report: "Report", name: str, work: Work) -> None:
    """Measure one thing; when that fails, go on with the next."""
    began = time.monotonic()
    print(f"\n{name}", flush=True)
    try:
        found = work()
    except Exception as error:  # whatever it is, it is told at the end
        report.failures[name] = f"{type(error).__name__}: {error}"
        print(f"  failed: {error}", flush=True)
        return
    for measurement in found if isinstance(found, list) else [found]:
        report.add(measurement)
    print(f"  measured ({time.monotonic() - began:.0f} s)", flush=True)


def _new_report(run: str, scale: str, playwright: "Playwright") -> "Report":
    from benchmarks.machine import describe_machine
    from benchmarks.report import Report
    from chromium import find_chromium

    facts = describe_machine() | _versions() | {"Chromium": _chromium_version(find_chromium(playwright))}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    command = shlex.join(["python3", "build_scripts/bench.py", *sys.argv[1:]])
    return Report(run, started, command, scale, facts)


def _chromium_version(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()


def _versions() -> dict[str, str]:
    from benchmarks.peers import node_version, peer_versions
    from packages import NODE_MODULES, project_version

    pyodide = json.loads((NODE_MODULES / "pyodide" / "package.json").read_text(encoding="utf-8"))["version"]
    return {"durable-web": project_version(), "Pyodide": pyodide, "Node.js": node_version()} | peer_versions()


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


if __name__ == "__main__":
    run_in_environment(main)
