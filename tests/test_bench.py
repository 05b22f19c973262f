"""The benchmark command keeps its own promises: turns, medians, ratios within one run, targets, reports.

Nothing here measures a time, and none of the peers is needed.
"""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.html_report import to_html
from benchmarks.report import Report, bound
from benchmarks.scale import FULL, QUICK
from benchmarks.series import Bench, DifferentRunsError, Measurement, ratio
from benchmarks.starting import has_snapshot
from benchmarks.targets import LIMITS, TARGETS, Target, Verdict, judge
from benchmarks.web import history
from durable_web import Engine

README = Path(__file__).parents[1] / "README.md"


def a_bench(rounds: int = 3) -> Bench:
    return Bench(rounds)


def a_report(bench: Bench, **facts: str) -> Report:
    return Report(bench.run, "2026-01-01T00:00:00+00:00", "python3 build_scripts/bench.py", "full", facts)


def measured(bench: Bench, name: str, unit: str = "steps/s", **values: float) -> Measurement:
    series = [bench.series(subject.replace("_", " "), unit, [value]) for subject, value in values.items()]
    return Measurement(name, f"Title of {name}", series)


def test_subjects_take_turns_and_every_other_round_goes_backwards():
    turns: list[str] = []
    subjects = {name: lambda name=name: turns.append(name) or float(len(turns)) for name in ("a", "b", "c")}
    taken = a_bench(rounds=3).take_turns("ms", subjects)
    assert "".join(turns) == "abc" + "cba" + "abc"
    assert taken["a"].values == (1.0, 6.0, 7.0)


def test_a_turn_may_give_several_values():
    taken = a_bench(rounds=2).take_turns("ms", {"a": lambda: [1.0, 2.0], "b": lambda: 5.0})
    assert taken["a"].values == (1.0, 2.0, 1.0, 2.0)
    assert taken["b"].values == (5.0, 5.0)


@pytest.mark.parametrize(("values", "median"), [([3.0], 3.0), ([9.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 100.0, 2.0], 3.0)])
def test_what_is_told_is_the_median_with_minimum_and_maximum(values, median):
    series = a_bench().series("engine", "ms", values)
    assert (series.median, series.minimum, series.maximum) == (median, min(values), max(values))


def test_a_ratio_is_that_of_the_medians():
    bench = a_bench()
    assert ratio(bench.series("a", "ms", [1, 10, 30]), bench.series("b", "ms", [4, 5, 6])) == 2.0


def test_numbers_of_different_runs_are_not_compared():
    one, other = a_bench(), a_bench()
    with pytest.raises(DifferentRunsError, match=f"{one.run}.*{other.run}.*Measure both again"):
        ratio(one.series("engine", "ms", [1.0]), other.series("engine", "ms", [2.0]))


def test_a_report_takes_in_no_numbers_of_another_run():
    report = a_report(a_bench())
    with pytest.raises(DifferentRunsError, match="steps was measured in run"):
        report.add(measured(a_bench(), "steps", engine=1.0))
    assert report.measurements == {}


def test_numbers_in_different_units_are_not_compared():
    bench = a_bench()
    with pytest.raises(ValueError, match="is in ms"):
        ratio(bench.series("a", "ms", [1.0]), bench.series("b", "s", [1.0]))


def target(bound: float | None, **options: bool) -> Target:
    return Target("text", "x", "engine", "peer", bound, **options)


@pytest.mark.parametrize(
    ("wanted", "found", "is_reached", "share"),
    [
        (target(50), 60.0, True, 1.2),
        (target(50), 25.0, False, 0.5),
        (target(5, at_most=True), 4.0, True, 1.25),
        (target(5, at_most=True), 10.0, False, 0.5),
        (target(5), None, False, None),
        (target(None), 4.0, False, None),
    ],
)
def test_a_target_is_reached_or_missed_by_a_share(wanted, found, is_reached, share):
    verdict = Verdict(wanted, found)
    assert (verdict.is_reached, verdict.share) == (is_reached, share)


def test_every_target_is_judged_and_times_count_the_other_way_round():
    bench = a_bench()
    steps = measured(bench, "steps", **{"engine,_full": 1000.0, "peer": 20.0, "raw_commits,_full": 4000.0})
    replay = measured(bench, "replay", unit="ms", engine=10.0, peer=3000.0)
    verdicts = judge({"steps": steps, "replay": replay})
    assert [verdict.target for verdict in verdicts] == list(TARGETS)
    found = {verdict.target.text: verdict.measured for verdict in verdicts if verdict.measured is not None}
    assert found == {
        "durable steps, full durability, against raw single-row commits": 0.25,
        "durable steps against the peer": 50.0,
        "replay of 1,000 steps, against the peer": 300.0,
    }


def test_a_target_without_its_subject_says_why():
    visit = measured(a_bench(), "repeat-visit", unit="ms", plain=2000.0)
    visit.notes.append("dist/ has no memory snapshot")
    (verdict,) = [each for each in judge({"repeat-visit": visit}) if each.target.measurement == "repeat-visit"]
    assert (verdict.measured, verdict.why) == (None, "dist/ has no memory snapshot")


def test_the_targets_of_the_project_are_these():
    wanted = {target.text: target.bound for target in TARGETS}
    assert wanted["durable steps, full durability, against raw single-row commits"] is None
    assert wanted["the same, against raw commits that come after a pause"] == 0.4
    assert wanted["`async def` steps that do not suspend, against synchronous ones"] == 0.8
    assert wanted["durable steps against the peer"] == 50
    assert wanted["one-step runs against the peer"] == 50
    assert wanted["trigger to completed, against the peer at a 50 ms poll"] == 15
    assert wanted["replay of 1,000 steps, against the peer"] == 100
    assert wanted["100 runs in parallel against one, steps"] == 2
    assert wanted["steps with 100,000 finished runs against none"] == 0.9
    assert wanted["repeat visit, snapshot against plain start"] == 4
    assert wanted["CPython: steps against raw single-row commits"] is None
    assert wanted["CPython: the same, one run, against raw commits that come after a pause"] == 0.55
    assert wanted["CPython: the same, 10 runs at a time"] == 0.5
    assert wanted["CPython: steps against dbos on SQLite"] == 10
    assert [limit for *_, limit in LIMITS] == [1200.0, 50.0, 15.0, 60.0]


@pytest.fixture
def report() -> Report:
    bench = a_bench()
    made = a_report(bench, processor="<b>fast</b>", cores="2")
    made.add(measured(bench, "steps", **{"engine,_full": 1234.5, "peer": 20.0, "raw_commits,_full": 4000.0}))
    made.add(measured(bench, "replay", unit="ms", engine=10.0, peer=500.0))
    made.failures["growth"] = "TimeoutError: <script>never answered</script>"
    return made


def test_the_text_tells_medians_ratios_targets_and_failures(report):
    text = report.to_text()
    assert re.search(r"engine, full +1,234 +1,234 +1,234 +steps/s", text)
    assert re.search(r"peer +20 +20 +20 +steps/s +61\.7", text)
    assert re.search(r"durable steps against the peer +at least 50 +61\.7 +reached", text)
    assert re.search(r"replay of 1,000 steps, against the peer +at least 100 +50 +missed: 50% of it", text)
    assert "growth could not be measured: TimeoutError" in text
    assert report.run in text
    assert "processor  <b>fast</b>" in text


def test_the_json_carries_the_run_the_machine_the_values_and_the_targets(report):
    told = json.loads(json.dumps(report.to_dict()))
    assert told["run"] == report.run
    assert told["facts"]["cores"] == "2"
    steps = told["measurements"][0]
    assert steps["series"][0]["values"] == [1234.5]
    (replay,) = [target for target in told["targets"] if target["text"] == "replay of 1,000 steps, against the peer"]
    assert {"measured": 50.0, "outcome": "missed: 50% of it"}.items() <= replay.items()
    assert told["failures"] == report.failures


class _Page(HTMLParser):
    """What a page is made of, and whether every element is closed."""

    VOID = frozenset({"meta", "line", "rect", "link", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag


def test_where_a_target_is_missed_the_report_says_why_and_what_was_tried():
    bench = a_bench()
    report = a_report(bench)
    commits = {"raw_commits,_full": 9000.0, "raw_commits,_full,_after_a_pause": 5000.0}
    report.add(measured(bench, "steps", **{"engine,_full": 1000.0, "peer": 10.0}, **commits))
    (missed,) = [each for each in report.verdicts if each.share is not None and each.share < 1]
    beginning = missed.target.tried[:60]
    assert beginning
    for told in (report.to_text(), report.to_markdown(), to_html(report)):
        assert f"Missed: {missed.target.text}" in told
        assert beginning in told
        assert "Missed: durable steps against the peer" not in told


def test_a_ratio_without_a_target_is_shown_and_not_judged(report):
    text = "durable steps, full durability, against raw single-row commits"
    assert re.search(rf"{text} +0\.309\n", report.to_text())
    assert f"| {text} |  | 0.309 |  |\n" in report.to_markdown()
    (told,) = [each for each in report.to_dict()["targets"] if each["text"] == text]
    assert {"bound": None, "reached": None, "outcome": ""}.items() <= told.items()
    judged = sum(each.bound is not None for each in TARGETS)
    assert f"<p>1 of {judged} targets reached." in to_html(report)


def test_the_readme_can_show_every_target_and_how_it_was_measured(report):
    told = report.to_markdown()
    assert report.command in told
    assert report.started[:10] in told
    assert [line.count("|") for line in told.splitlines() if line.startswith("|")] == [5] * (2 + len(list(shown(told))))
    assert {text for text, _ in shown(told)} >= {verdict.target.text for verdict in report.verdicts}


def test_the_readme_shows_what_became_of_the_targets_that_there_are():
    found = dict(shown(README.read_text("utf-8").partition("<!-- measured -->")[2].partition("<!-- /measured -->")[0]))
    bounds = {each.text: bound(Verdict(each, None)) for each in TARGETS}
    bounds |= {text: f"under {limit:g} ms" for text, _, _, limit in LIMITS}
    assert found == bounds


def shown(markdown: str) -> Iterator[tuple[str, str]]:
    """What each row of a table is about, and what it asks for."""
    for line in markdown.splitlines():
        if line.startswith("| ") and not line.startswith(("| what ", "| ---")):
            _, text, bound, *_ = (cell.strip() for cell in line.split("|"))
            yield text, bound


def test_the_page_has_a_plot_for_every_measurement_and_needs_no_other_file(report):
    page = _Page(to_html(report))
    assert page.elements.count("svg") == 2
    assert page.addresses == []
    assert "script" not in page.elements


def test_the_page_shows_everything_as_text(report):
    html = to_html(report)
    assert "<b>fast" not in html
    assert "<script>never" not in html
    assert "&lt;b&gt;fast" in html


def test_the_page_follows_light_and_dark(report):
    html = to_html(report)
    assert "color-scheme: light dark" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r'(?:fill|stroke)="#', html), "a plot's colours are the page's"


def test_a_quick_look_asks_the_same_questions_of_smaller_numbers():
    assert (QUICK.rounds, QUICK.steps, QUICK.pasts[-1]) < (FULL.rounds, FULL.steps, FULL.pasts[-1])
    assert FULL.peer_steps == FULL.steps
    assert FULL.peer_runs == FULL.runs
    assert FULL.peer_replayed == FULL.replayed == 1000
    assert FULL.pasts == (0, 10_000, 100_000)


def test_a_snapshot_in_dist_is_noticed(tmp_path):
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "snapshot.js").touch()
    assert not has_snapshot(tmp_path)
    (tmp_path / "vendor" / "snapshot-0123.bin").touch()
    assert has_snapshot(tmp_path)


async def test_a_database_with_a_past_is_one_that_the_engine_takes_for_its_own(tmp_path):
    path = str(tmp_path / "past.sqlite3")
    counted = await history.fill(path, 25, exclusive=False)
    assert counted == {"runs": 25, "steps": 175, "frames": 250}
    async with Engine(path, [history.past]) as engine:
        assert await engine.runs.count() == {"completed": 25}
        runs = await engine.runs.list(order="oldest")
        frames = [frame async for frame in engine.runs.watch(runs[-1].id)]
        assert [frame.seq for frame in frames] == list(range(1, 11))
        assert len(await engine.runs.steps(runs[-1].id)) == 7
        fresh = await engine.trigger_and_wait("past")
        assert fresh.id > runs[-1].id
