"""The main job, end to end, in a real Chromium: python3 build_scripts/demo.py [--sample NAME] [--headed | --serve].

Imports a real CSV file on the demo page, kills the page's renderer in the middle, opens the page again, watches the
import finish from its last committed step, and compares what came out with an independent computation. Exits with 0
only if all of that held. `--headed` shows the browser at work and leaves it open; `--serve` only serves the page, for
a person to try.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distribution import build
from environment import run_in_environment
from progress import SetupError, stage

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from chromium import Chromium

SAMPLES = ("birdstrikes.csv", "zipcodes.csv")
KILL_AFTER = "rows 5"
"""The step after whose commit the renderer is killed; the samples have about forty of these."""

CONNECT = """async () => {
    const { connect } = await import("../durable-web.js");  // the page's own client: the same name and options
    const jobs = document.querySelector("durable-client").getAttribute("jobs").split(" ");
    globalThis.durable = await connect("durable-web-demo", { jobs });
    await durable.ready;
}"""

COMMITTED = """async (name) => {
    for (;;) {
        const [run] = await durable.runs.list({ job: "import-csv", limit: 1 });
        if (!run) continue;
        const names = [];
        for await (const frame of durable.runs.watch(run.id)) {
            if (frame.kind === "step_status" && frame.status === "completed") names.push(frame.name);
            if (names.at(-1) === name) return { id: run.id, names };
        }
        return { id: run.id, names };
    }
}"""

FINISHED = """async (id) => {
    const frames = [];
    for await (const frame of durable.runs.watch(id)) frames.push(frame);
    return { run: await durable.runs.get(id), frames };
}"""

EXPORTED = """async (table) => {
    const run = await durable.trigger("export-csv", { table, name: "demo-check.csv" });
    for await (const frame of durable.runs.watch(run.id));
    return (await durable.files.get("demo-check.csv")).text();
}"""


class Proof:
    """What was claimed and whether it held; prints each as it is decided."""

    def __init__(self) -> None:
        self.failed = False

    def claim(self, text: str, holds: bool, otherwise: object = "") -> None:
        """Note whether a claim holds; `otherwise` is what was found instead."""
        print(f"  {'proven ' if holds else 'BROKEN '} {text}", flush=True)
        if not holds:
            self.failed = True
            print(f"          found: {otherwise}", flush=True)


def main() -> int:
    """Run the demo; returns the exit code."""
    arguments = _parse_arguments()
    folder = build()
    if arguments.serve:
        import serve

        return serve.serve(folder, "127.0.0.1", arguments.port)
    return _in_chromium(folder, arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The main job, end to end, in a real Chromium.")
    parser.add_argument("--sample", choices=SAMPLES, default=SAMPLES[0], help=f"the file to import ({SAMPLES[0]})")
    parser.add_argument("--headed", action="store_true", help="show the browser, and leave it open at the end")
    parser.add_argument("--serve", action="store_true", help="only serve the page, for a person")
    parser.add_argument("--port", type=int, default=8000, help="where --serve listens (8000)")
    return parser.parse_args()


def _in_chromium(folder: Path, arguments: argparse.Namespace) -> int:
    from chromium import ensure_chromium, launch, start_playwright
    from static_server import StaticServer

    with start_playwright() as playwright:
        ensure_chromium(playwright)
        with (
            StaticServer(folder) as server,
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
            launch(playwright, Path(profile) / "profile", headed=arguments.headed) as chromium,
        ):
            proof = Proof()
            _demonstrate(chromium, server.url + "demo/", folder / "demo" / "data" / arguments.sample, proof)
            proof.claim(
                "no request left the page's own origin",
                not chromium.requests_outside(server.origin),
                chromium.requests_outside(server.origin),
            )
            proof.claim("no error was written to the console", not chromium.console_errors, chromium.console_errors)
            print("\nEverything held." if not proof.failed else "\nSomething did not hold.", flush=True)
            if arguments.headed:
                input("The browser stays open. Press Enter to end. ")
        return 1 if proof.failed else 0


def _demonstrate(chromium: "Chromium", url: str, sample: Path, proof: Proof) -> None:
    page = _open(chromium, url, "the page and the engine start")
    with stage(f"import of {sample.name}") as progress:
        page.click(f'button[data-sample="{sample.name}"]')
        page.click("#guess-import")
        committed = page.evaluate(COMMITTED, KILL_AFTER)
        address = page.url  # which by now names the run
        chromium.crash(page)
        progress.result = f"renderer killed after {len(committed['names'])} committed steps"

    page = _open(chromium, address, "the page is opened again")
    with stage("import goes on") as progress:
        finished = page.evaluate(FINISHED, committed["id"])
        page.wait_for_selector("#result:not([hidden])")
        progress.result = finished["run"]["status"]
    exported = page.evaluate(EXPORTED, finished["run"]["output"]["table"]) if finished["run"]["output"] else ""

    _print_timeline(finished["frames"])
    print("\nWhat was proven:", flush=True)
    _check_run(finished["run"], finished["frames"], committed["names"], proof)
    _check_result(sample, finished["run"]["output"] or {}, exported, proof)


def _open(chromium: "Chromium", url: str, what: str) -> "Page":
    with stage(what):
        page = chromium.open(url)
        page.evaluate(CONNECT)
    return page


def _check_run(run: dict[str, Any], frames: list[dict[str, Any]], committed: list[str], proof: Proof) -> None:
    steps = [frame for frame in frames if frame["kind"] == "step_status" and frame["status"] == "completed"]
    before = {frame["name"] for frame in steps if frame["seq"] < _second_attempt(frames)}
    names = [frame["name"] for frame in steps]
    proof.claim("the import completed", run["status"] == "completed", run["error"])
    proof.claim("it was interrupted in the middle", run["attempt"] == 2 and len(before) < len(names), run["attempt"])
    proof.claim(f"all {len(committed)} steps seen to commit before the kill were kept", set(committed) <= before)
    proof.claim(f"each of its {len(names)} steps ran to its commit once", len(names) == len(set(names)), names)
    numbers = [frame["seq"] for frame in frames]
    proof.claim("the timeline has no gap and no duplicate", numbers == list(range(1, len(frames) + 1)), numbers)


def _second_attempt(frames: list[dict[str, Any]]) -> int:
    began = [frame["seq"] for frame in frames if frame["kind"] == "run_status" and frame["status"] == "running"]
    return began[1] if len(began) > 1 else 0


def _check_result(sample: Path, output: dict[str, Any], exported: str, proof: Proof) -> None:
    from expected_statistics import differences, expected_statistics

    expected = expected_statistics(sample)
    proof.claim(f"{expected['rows']:,} rows, as counted independently", output.get("rows") == expected["rows"], output)
    different = differences(expected, output) if output else ["there is no output"]
    columns = len(expected["columns"])
    proof.claim(f"the statistics of {columns} columns equal an independent computation", not different, different)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "exported.csv")
        path.write_text(exported, encoding="utf-8", newline="")
        different = differences(expected_statistics(path), output) if exported else ["nothing was exported"]
    proof.claim("so do those of the cleaned file that the page offers for download", not different, different)


def _print_timeline(frames: list[dict[str, Any]]) -> None:
    print("\nThe timeline:", flush=True)
    start = frames[0]["ts"]
    for frame in _shortened(frames):
        if isinstance(frame, int):
            print(f"              ... {frame} more steps", flush=True)
            continue
        describe = DESCRIPTIONS[frame["kind"]]
        print(f"  {(frame['ts'] - start) / 1000:8.3f} s  {frame['seq']:4}  {describe(frame)}", flush=True)


def _shortened(frames: list[dict[str, Any]]) -> list[dict[str, Any] | int]:
    """Without progress, and with only the first and the last of several steps in a row; the rest are counted."""
    shown: list[dict[str, Any] | int] = []
    row: list[dict[str, Any]] = []
    for frame in frames:
        if frame["kind"] == "step_status" and frame["status"] == "completed":
            row.append(frame)
        elif frame["kind"] == "run_status":
            shown += [*_ends(row), frame]
            row = []
    return shown + _ends(row)


def _ends(row: list[dict[str, Any]]) -> list[dict[str, Any] | int]:
    return row if len(row) <= 4 else [*row[:2], len(row) - 4, *row[-2:]]


def _describe_status(frame: dict[str, Any]) -> str:
    reason = f" ({frame['reason']})" if frame.get("reason") else ""
    attempt = f", attempt {frame['attempt']}" if frame["status"] == "running" else ""
    return f"run {frame['status']}{attempt}{reason}"


def _describe_step(frame: dict[str, Any]) -> str:
    return f"step {frame['name']!r} {frame['status']} in {frame['duration']:.3f} s"


DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "run_status": _describe_status,
    "step_status": _describe_step,
}


if __name__ == "__main__":
    try:
        run_in_environment(main)
    except SetupError as error:
        sys.exit(str(error))
