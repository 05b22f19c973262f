"""The demo's jobs: types, tables, statistics, and an import that survives being killed at any moment."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conftest import IN_PYODIDE

if IN_PYODIDE:
    pytest.skip("on CPython only: the demo's files are not in the other home", allow_module_level=True)

from hypothesis import given, settings
from hypothesis import strategies as st
from watching import finish, timeline

from durable_web import Engine, InvalidInput, Run

sys.path.insert(0, str(Path(__file__).parents[3] / "web" / "demo"))

import jobs
from csv_import import exported_cells, summarise_column
from csv_values import KINDS, Reading, choose_column, choose_type, convert_column, count_kinds, interpret

from expected_statistics import differences, expected_statistics


@pytest.fixture
def saved(tmp_path: Path):
    """``saved(content)``: the path of a file with that content."""

    def save(content: bytes | str, name: str = "input.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return save


@pytest.fixture
def imported(running, database_path):
    """``await imported(path, option=...)``: the run that imported a file, and a connection to look at its tables."""
    connections = []

    async def run_import(path: str, **options: Any) -> tuple[Run, sqlite3.Connection]:
        async with running(jobs.import_csv) as engine:
            run = await finish(
                engine, await engine.trigger("import-csv", {"path": path, "name": "input.csv"} | options)
            )
        connections.append(sqlite3.connect(database_path))
        return run, connections[-1]

    yield run_import
    for connection in connections:
        connection.close()


def rows_of(connection: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {table} ORDER BY source_line").fetchall()


def written(rows: list[list[Any]], **options: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, **options).writerows(rows)
    return buffer.getvalue()


def types_of(output: dict[str, Any]) -> list[str]:
    return [column["type"] for column in output["columns"]]


# --- Types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        ("0", "integer", 0),
        ("-12", "integer", -12),
        ("+7", "plus", 7),
        (" 42 ", "integer", 42),
        (str(2**63 - 1), "integer", 2**63 - 1),
        (str(2**63), "huge", float(2**63)),
        ("1" * 5000, "text", "1" * 5000),
        ("00501", "code", "00501"),
        ("1.5", "number", 1.5),
        (".5", "number", 0.5),
        ("1.", "number", 1.0),
        ("-2.5e-3", "number", -0.0025),
        ("1e999", "text", "1e999"),
        ("00.5", "code", "00.5"),
        ("1_000", "text", "1_000"),
        ("1,5", "text", "1,5"),
        ("٣", "text", "٣"),
        ("nan", "missing", None),
        ("inf", "infinity", math.inf),
        ("-Infinity", "infinity", -math.inf),
        (".", "missing", None),
        ("+", "text", "+"),
        ("0x10", "text", "0x10"),
        ("2024-02-29", "date", "2024-02-29"),
        ("2023-02-29", "text", "2023-02-29"),
        ("2024-02-29T23:59:59.5Z", "date", "2024-02-29T23:59:59.5Z"),
        ("2024-02-29 12:00", "date", "2024-02-29 12:00"),
        ("2024-02-29T25:00", "text", "2024-02-29T25:00"),
        ("20240229", "integer", 20240229),
        ("True", "boolean", 1),
        ("FALSE", "boolean", 0),
        ("yes", "text", "yes"),
        ("fal\u017fe", "text", "fal\u017fe"),
        ("None", "missing", None),
        ("NULL", "missing", None),
        ("12E3", "exponent", 12000.0),
        ("1e-05", "number", 1e-05),
        ("2024-01-01 10:00:00.123456789+00", "date", "2024-01-01 10:00:00.123456789+00"),
        ("=1+1", "text", "=1+1"),
        (" padded ", "text", " padded "),
    ],
)
def test_a_value_is_of_the_narrowest_kind_that_loses_nothing(value, kind, stored):
    assert interpret(value) == (kind, stored)


@given(st.text())
def test_any_text_is_of_some_kind_and_what_is_stored_can_be(value):
    kind, stored = interpret(value)
    assert kind in {"missing", *KINDS}
    assert not isinstance(stored, int) or abs(stored) < 2**63


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1"] * 99 + ["x"], "integer"),
        (["1"] * 98 + ["x", "y"], "text"),
        (["1"] * 99 + ["2.5"], "number"),
        (["1"] * 99 + [str(10**30)], "text"),
        (["1.5"] * 99 + [str(10**30)], "number"),
        (["1.5", "inf"], "number"),
        (["1.5", "NA", "null", " ", "-"], "number"),
        (["NA", "null"], "text"),
        (["+491701234567", "+33123456789"], "text"),
        (["+1.5", "-2.5"], "number"),
        (["12E3", "10E2"], "text"),
        (["1.5", "2.25", "1E5"], "number"),
        (["3.9", "3.10", "3.11"], "text"),
        (["2.50", "3.10", "12.99"], "number"),
        (["1", "2.5"], "number"),
        (["2024-01-01", "2024-01-01T10:00"], "date"),
        (["true", "False"], "boolean"),
        (["1", "true"], "text"),
        (["", "", "5"], "integer"),
        (["", ""], "text"),
        ([], "text"),
        (["12345"] * 999 + ["00501"], "text"),
        (["1.5"] * 999 + ["007"], "text"),
    ],
)
def test_a_column_has_the_narrowest_type_that_99_of_100_values_fit(values, expected):
    assert choose_type(count_kinds(values)) == expected


# --- Tables and statistics --------------------------------------------------------------------------------------------


async def test_rows_are_typed_and_an_odd_cell_is_kept_as_text_in_its_row(imported, saved):
    good = [[number, number / 4, "2024-01-01", "true", f"text {number}"] for number in range(1, 201)]
    content = written([["i", "n", "d", "b", "t"], *good])
    content += "x,1.5,2024-01-01,false,a\r\n1,2.5\r\n2,2.5,2024-13-01,maybe,b\r\n,,,,\r\n1,2,3,4,5,6\r\n"

    run, connection = await imported(saved(content), chunk_bytes=500)

    assert types_of(run.output) == ["integer", "number", "date", "boolean", "text"]
    rows = rows_of(connection, run.output["table"])
    assert rows[0] == (2, 1, 0.25, "2024-01-01", 1, "text 1", None)
    assert rows[-4:] == [
        (202, None, 1.5, "2024-01-01", 0, "a", '{"0": "x"}'),
        (203, 1, 2.5, None, None, None, None),
        (204, 2, 2.5, None, None, "b", '{"2": "2024-13-01", "3": "maybe"}'),
        (205, None, None, None, None, None, None),
    ]
    assert (run.output["rows"], run.output["bad_rows"], run.output["short_rows"]) == (204, 1, 1)
    assert run.output["odd_cells"] == 3
    assert run.output["first_odd_cells"] == [
        {"line": 202, "column": "i", "text": "x"},
        {"line": 204, "column": "d", "text": "2024-13-01"},
        {"line": 204, "column": "b", "text": "maybe"},
    ]
    assert rows_of(connection, run.output["bad_table"]) == [
        (206, "fields", "5 fields expected, 6 found", "1,2,3,4,5,6")
    ]
    assert [bad["line"] for bad in run.output["first_bad_rows"]] == [206]


async def test_words_for_a_missing_value_are_null_in_a_typed_column_and_text_in_a_column_of_text(imported, saved):
    run, connection = await imported(saved('a,b\nNone,1\nNULL,NA\n"",3\nn/a,NA\nx,\n'))
    assert rows_of(connection, run.output["table"]) == [
        (2, "None", 1, None),
        (3, "NULL", None, None),
        (4, None, 3, None),
        (5, "n/a", None, None),
        (6, "x", None, '{"1": ""}'),
    ]
    assert run.output["columns"][1]["missing"] == {"NA": 2}
    assert (run.output["columns"][1]["count"], run.output["columns"][1]["nulls"]) == (2, 3)


async def test_the_words_for_a_missing_value_can_be_set(imported, saved):
    run, _ = await imported(saved("a,b\nx,1\ny,none of your business\nz,3\n"), missing=["None of your business"])
    assert types_of(run.output) == ["text", "integer"]


async def test_numbers_beyond_64_bits_lose_no_digit(imported, saved):
    run, connection = await imported(saved(f"id,large\n1,{2**63 - 1}\n{10**30},5\n"))
    assert types_of(run.output) == ["text", "integer"]
    assert rows_of(connection, run.output["table"]) == [(2, "1", 2**63 - 1, None), (3, str(10**30), 5, None)]
    assert run.output["columns"][1]["max"] == str(2**63 - 1)
    assert run.output["preview"] == [["1", str(2**63 - 1)], [str(10**30), 5]]


async def test_extreme_numbers_give_statistics_that_json_can_hold(imported, saved):
    run, _ = await imported(saved(f"a,b,c\n1.5e308,5e-324,{2**63 - 1}\n-1.5e308,0.0,-{2**63 - 1}\n1.5e308,,0\n"))
    assert types_of(run.output) == ["number", "number", "integer"]
    assert json.loads(json.dumps(run.output, allow_nan=False)) == run.output
    assert sum(bin["count"] for bin in run.output["columns"][2]["histogram"]) == 3


async def test_formulas_and_hostile_column_names_are_data(imported, saved):
    names = ['"; DROP TABLE csv_imports; --', "select", "rowid", "a b", "[x]", "count", "value", "c'd", "?", ":low"]
    rows = [["=HYPERLINK(1)", "+1+1", 3, 4.5, "@SUM", 6, "true", "8", 9, 10]] * 3
    run, connection = await imported(saved(written([names, *rows])))
    assert [column["name"] for column in run.output["columns"]] == names
    assert rows_of(connection, run.output["table"])[0][1:3] == ("=HYPERLINK(1)", "+1+1")
    assert run.output["columns"][6]["top"] == [{"value": True, "count": 3}]
    assert run.output["columns"][5]["histogram"] == [{"from": 6, "to": 7, "count": 3}]


async def test_the_statistics_of_a_file_with_every_type_are_those_of_an_independent_computation(imported, saved):
    generator = random.Random(7)
    header = ["integer", "number", "date", "moment", "boolean", "text", "zip code", "mostly empty", "old date", "same"]
    rows = [
        [
            generator.randrange(-50, 50),
            round(generator.gauss(1e6, 1e-2), 6),
            f"20{generator.randrange(25):02}-0{generator.randrange(1, 10)}-1{generator.randrange(10)}",
            f"2024-05-06T0{generator.randrange(10)}:00:00Z",
            generator.choice(["true", "False"]),
            generator.choice(["a", 'say "b"', "c\nd", "é" * 100, "None", "="]),
            f"{generator.randrange(100_000):05}",
            generator.choice(["", "", "", "1.25"]),
            f"{generator.randrange(1, 10)}00{generator.randrange(10)}-01-01",
            5,
        ]
        for _ in range(3000)
    ]
    rows[100][0] = rows[200][3] = "wrong"
    rows[300] = rows[300][:4]
    rows[400] = rows[400] + ["too many"]
    rows[500][1] = "NA"
    path = saved(written([header, *rows]))

    run, _ = await imported(path, chunk_bytes=10_000)

    assert differences(expected_statistics(path), run.output) == []
    assert (run.output["bad_rows"], run.output["odd_cells"], run.output["short_rows"]) == (1, 2, 1)


def test_a_difference_is_noticed():
    assert differences({"a": [1, 2.0]}, {"a": [1, 2.0 + 1e-12], "b": 1}) == []
    assert differences({"a": [1, 2.0]}, {"a": [1, 2.1]}) == ["output.a[1] is 2.1 instead of 2.0"]
    assert differences({"a": [1]}, {"a": []}) == ["output.a has 0 entries instead of 1"]
    assert differences({"a": 1}, {}) == ["output has no 'a'"]
    assert differences({"a": None}, {"a": 0}) == ["output.a is 0 instead of None"]


@given(st.lists(st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-20, 20), min_size=1, max_size=40))
def test_every_integer_is_in_one_bin_of_the_histogram(numbers):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (c INTEGER)")
    connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in numbers])
    summary = summarise_column(connection, "t", "c", "integer")
    connection.close()
    assert sum(bin["count"] for bin in summary["histogram"]) == len(numbers)
    assert len(summary["histogram"]) <= 16
    if max(numbers) - min(numbers) < 2**53:
        for bin in summary["histogram"]:
            assert bin["count"] == sum(bin["from"] <= number < bin["to"] for number in numbers)


async def test_a_hundred_columns_make_a_result_below_200_kilobytes(imported, saved):
    generator = random.Random(3)
    header = [f"column {number} with a rather long name" for number in range(100)]
    rows = [
        [generator.random() * 1e9 if number % 2 else f"{generator.random()} " * 5 for number in range(100)]
        for _ in range(200)
    ]
    run, _ = await imported(saved(written([header, *rows])))
    assert (run.output["rows"], len(run.output["columns"])) == (200, 100)
    assert len(json.dumps(run.output)) < 200_000


async def test_as_many_columns_as_sqlite_holds_can_be_imported(imported, saved):
    run, _ = await imported(saved(written([["x"] * 1998, range(1998)])))
    assert (run.status, run.output["rows"], run.output["columns"][1997]["max"]) == ("completed", 1, 1997)


async def test_a_header_alone_is_an_import_of_no_rows(imported, saved):
    run, _ = await imported(saved("a,b\n"))
    assert (run.output["rows"], run.output["bad_rows"], run.output["preview"]) == (0, 0, [])
    assert run.output["columns"][0] == {
        "name": "a",
        "type": "text",
        "count": 0,
        "nulls": 0,
        "odd": 0,
        "missing": {},
        "distinct": 0,
        "top": [],
    }


async def test_a_file_whose_rows_are_all_bad_is_an_import_of_no_rows(imported, saved):
    run, _ = await imported(saved('a,b\n1,"\n"2\n3,4,5\n'))
    assert (run.output["rows"], run.output["bad_rows"]) == (0, 3)


# --- The whole job ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty (0 bytes)."),
        (b"PK\x03\x04", "Excel"),
        (
            ("name,city\nA,B\n" + "Zoë,Malmö\n" * 50).encode("cp1252"),
            "in line 3, the byte 0xEB, which is not text in this encoding, stands in column 1, and 50 rows are",
        ),
        (
            b"a,b\n\xeb,1\n",
            "Choose another encoding and import it again.",
        ),
    ],
)
async def test_a_file_that_cannot_be_imported_fails_the_run_with_a_plain_sentence(imported, saved, content, words):
    run, _ = await imported(saved(content), encoding="utf-8")
    assert (run.status, run.error.type) == ("failed", "FatalError")
    assert words in run.error.message
    assert "Step" not in run.error.message


@pytest.mark.parametrize("input", [None, []])
async def test_an_input_that_is_no_object_starts_no_run(running, input):
    async with running(jobs.import_csv) as engine:
        with pytest.raises(InvalidInput, match="is not an object"):
            await engine.trigger("import-csv", input)
        assert await engine.runs.list() == []


@pytest.mark.parametrize("input", [{}, {"path": 5}, {"path": ""}, {"path": "x", "chunk_bytes": 0}])
async def test_an_unusable_input_fails_the_run_with_what_is_expected(running, input):
    async with running(jobs.import_csv) as engine:
        run = await finish(engine, await engine.trigger("import-csv", input))
    assert run.error.type == "FatalError"
    assert "path" in run.error.message or "chunk_bytes" in run.error.message


async def test_a_few_rows_in_another_encoding_are_bad_rows(imported, saved):
    content = b"a,b\n" + b"fine,1\n" * 500 + b"caf\xe9,2\n" + b"fine,3\n" * 500
    run, _ = await imported(saved(content), chunk_bytes=1000, encoding="utf-8")
    assert (run.output["rows"], run.output["bad_rows"]) == (1000, 1)
    assert run.output["first_bad_rows"] == [
        {
            "line": 502,
            "kind": "encoding",
            "reason": "the byte 0xE9, which is not text in this encoding, stands in column 1",
            "raw": "caf\\xe9,2",
        }
    ]


async def test_the_encoding_that_was_asked_for_is_used(imported, saved):
    path = saved("a,b\ncafé,1\n".encode("cp1252"))
    run, _ = await imported(path, encoding="windows-1252")
    assert run.output["preview"] == [["café", 1]]


async def test_the_timeline_tells_what_happens_and_twenty_bad_rows(running, saved):
    path = saved("a,b\n" + "1,2\n" * 300 + "1,2,3\n" * 30)
    async with running(jobs.import_csv) as engine:
        frames = await timeline(engine, await engine.trigger("import-csv", {"path": path, "chunk_bytes": 200}))
    messages = [frame.message for frame in frames if frame.kind == "log"]
    assert messages[0] == "input.csv: 1,384 bytes of utf-8, 2 columns, delimiter ,"
    assert "Types found: a: integer, b: integer" in messages
    assert messages[-1] == "300 rows imported, 30 put aside"
    assert sum("is put aside: 2 fields expected, 3 found" in message for message in messages) == 20
    progress = [frame for frame in frames if frame.kind == "progress"]
    assert progress[-1].current == progress[-1].total == 2.5 * 1384


async def test_the_statistics_of_many_columns_tell_how_far_they_are(running, saved, monkeypatch):
    monkeypatch.setattr(jobs, "CELLS_PER_SUMMARY", 1)
    monkeypatch.setattr("durable_web._execution.reporting.PROGRESS_SECONDS", 0)
    async with running(jobs.import_csv) as engine:
        frames = await timeline(engine, await engine.trigger("import-csv", {"path": saved("a,b,c,d\n1,2,3,4\n")}))
    told = {frame.message: frame.current / frame.total for frame in frames if frame.kind == "progress"}
    assert [told[f"Statistics of {name}: 1 rows"] for name in "abcd"] == [0.85, 0.9, 0.95, 1]


async def test_killed_at_any_moment_the_import_ends_with_exactly_the_same_rows(
    running, database_path, saved, tmp_path, monkeypatch
):
    """A copy of the database and its log, in the middle of a step, is what a killed process leaves behind."""
    snapshots = []

    def leave_behind() -> None:
        snapshots.append(tmp_path / f"snapshot-{len(snapshots)}")
        snapshots[-1].mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(database_path + suffix, snapshots[-1] / ("database" + suffix))

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            leave_behind()
            result = function(*arguments, **options)
            leave_behind()
            return result

        return call

    expected = [(number, 'line\n"two"') for number in range(300)]
    path = saved(written([["n", "t"], *expected]) + 'x,y,z\n"y\n')
    with monkeypatch.context() as patch:
        for name in ("inspect_file", "scan_chunk", "create_tables", "insert_rows", "summarise_column"):
            patch.setattr(jobs, name, watched(getattr(jobs, name)))
        async with running(jobs.import_csv, durability="normal") as engine:
            run = await finish(engine, await engine.trigger("import-csv", {"path": path, "chunk_bytes": 700}))
    assert (run.output["rows"], run.output["bad_rows"]) == (300, 2)
    assert len(snapshots) > 30

    for snapshot in snapshots:
        async with Engine(snapshot / "database", [jobs.import_csv], exclusive=True, durability="normal") as engine:
            assert (await finish(engine, run)).output == run.output
        connection = sqlite3.connect(snapshot / "database")
        rows = rows_of(connection, run.output["table"])
        connection.close()
        assert [row[1:] for row in rows] == [(*row, None) for row in expected]


# --- Export -----------------------------------------------------------------------------------------------------------


async def test_an_export_is_the_imported_rows_as_they_were(running, saved):
    rows = [["b", "n", "t", "z"], ["true", 1.25, '=1+1, "x"', "007"], ["false", 2.5, "a\nb", ""], ["", "", "é", "1"]]
    path = saved(written(rows) + "1,2,3,4,5\r\n")
    async with running(jobs.import_csv, jobs.export_csv) as engine:
        run = await finish(engine, await engine.trigger("import-csv", {"path": path, "name": "in.csv"}))
        export = {"table": run.output["table"], "name": "cleaned.csv"}
        first = await finish(engine, await engine.trigger("export-csv", export))
        again = await finish(engine, await engine.trigger("export-csv", export))
        bad = {"table": run.output["bad_table"], "name": "bad.csv"}
        bad_rows = await finish(engine, await engine.trigger("export-csv", bad))
    content = Path(first.output["path"]).read_bytes()
    assert content.decode() == written(rows)
    assert (
        first.output
        == again.output
        == {
            "path": first.output["path"],
            "name": "cleaned.csv",
            "rows": 3,
            "size": len(content),
        }
    )
    assert Path(bad_rows.output["path"]).read_text().splitlines() == [
        "source_line,kind,reason,raw",
        '6,fields,"4 fields expected, 5 found","1,2,3,4,5"',
    ]


@pytest.mark.parametrize("table", ["durable_runs", "csv_imports", "sqlite_master", "csv_other", '"; DROP TABLE x'])
async def test_only_tables_of_imports_are_exported(running, tmp_path, table):
    async with running(jobs.export_csv) as engine:
        run = await finish(engine, await engine.trigger("export-csv", {"table": table, "name": "out.csv"}))
    assert (run.status, run.error.type) == ("failed", "FatalError")
    assert "is not a table that import-csv has made" in run.error.message


async def test_an_import_that_is_not_complete_is_not_exported(running, saved, database_path):
    async with running(jobs.import_csv, jobs.export_csv) as engine:
        run = await finish(engine, await engine.trigger("import-csv", {"path": saved("a\n1\n")}))
    connection = sqlite3.connect(database_path)
    connection.execute("UPDATE csv_imports SET complete = 0")
    connection.commit()
    connection.close()
    async with running(jobs.export_csv) as engine:
        export = await engine.trigger("export-csv", {"table": run.output["table"], "name": "out.csv"})
        export = await finish(engine, export)
    assert "is not complete yet" in export.error.message


FORMS = {
    "telephone numbers": ["name,phone", "Ada,+491701234567", "Bob,+3312345678"],
    "part numbers": ["code,n", "12E3,1", "10E2,2"],
    "versions": ["version,n", "3.9,1", "3.10,2", "3.11,3"],
    "money": ["price,n", "2.50,1", "12.99,2", "3.10,3"],
    "numbers of several forms": ["x,n", "2.50,1", "3.1,2", "1e-5,3", ".5,4", "4.,5", "-0,6", "1.7976931348623157,7"],
    "zeros before": ["zip,n", "00501,1", "12345,2"],
    "more digits than a number has": ["x,n", "0.1234567890123456789,1", "2.5,2"],
    "identifiers beyond 64 bits": ["id,n", f"{2**70},1", "5,2"],
    "true and false": ["yes,n", "True,1", "FALSE,2", "true,3", "True,4"],
    "blanks around numbers": ["n, m", "1, 1", "2,  2", "3,3 "],
    "words for missing values": ["n,m", "NA,1", "2,NA", ",null", "4,"],
    "odd cells": ["n,m", *(f"{number},1" for number in range(200)), "many,2"],
    "infinities": ["x,n", "inf,1", "-Infinity,2", "1.5,3"],
    "dates that begin with the day": ["when,n", "31/12/2024,1", "01/02/2024,2", "1/2/2024,3"],
    "times": ["when,n", "2024-01-01 10:00:00.123456+00,1", "2024-01-02T10:00Z,2"],
    "headers that are the same, empty or long": ["a,a,,A," + "q" * 700, "1,2,3,4,5"],
    "no header": ["1,2.5,x", "3,4.5,y", "5,6.5,z"],
    "text that looks like formulas": ["a,b", "=1+1,x", "@SUM,y"],
    "a NUL": ["id,name", "1,Ada", "2,Bob\0", "3,Cyd"],
}


@pytest.mark.parametrize("kind", FORMS)
async def test_an_export_has_every_value_in_the_form_that_it_had(running, saved, kind):
    lines = FORMS[kind]
    assert await exported(running, saved("\n".join(lines))) == list(csv.reader(lines))


cells = st.sampled_from(
    [
        "",
        "NA",
        "1",
        "2.50",
        "3.1",
        "-0",
        "007",
        "+1",
        "1e5",
        "True",
        "2024-01-31",
        " 5",
        "x",
        "inf",
        "9" * 20,
        "a,b",
        "é",
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=5)


@given(st.lists(cells, min_size=1, max_size=30), st.sampled_from([".", ","]))
@settings(max_examples=300)
def test_whatever_a_column_holds_is_written_as_it_was(texts, mark):
    reading = Reading(mark)
    column = choose_column(count_kinds(texts, reading), mark, len(texts))
    converted = convert_column(texts, column, reading)
    written = exported_cells(converted.values, column)
    assert [converted.beside.get(index, text or "") for index, text in enumerate(map(as_text, written))] == texts


def as_text(value: Any) -> str:
    return "" if value is None else str(value)


async def exported(running, path: str, **options: Any) -> list[list[str]]:
    """The rows of the file that an import of that file is exported to."""
    async with running(jobs.import_csv, jobs.export_csv) as engine:
        run = await finish(engine, await engine.trigger("import-csv", {"path": path} | options))
        assert run.output["bad_rows"] == 0
        export = {"table": run.output["table"], "name": "out.csv"}
        export = await finish(engine, await engine.trigger("export-csv", export))
    return list(csv.reader(Path(export.output["path"]).read_text("utf-8").splitlines()))


REAL_FILES = [
    path
    for pattern in ("*.csv", "*.tsv")
    for path in sorted((Path(__file__).parents[3] / "web/node_modules/vega-datasets/data").glob(pattern))
    if path.stat().st_size < 1_500_000
]


@pytest.mark.skipif(not REAL_FILES, reason="the packages of web/ are not installed")
async def test_the_export_of_a_real_file_has_every_cell_in_the_form_that_it_had(running, tmp_path):
    """Files that others have made, against the csv module: no row is lost, and no cell differs."""
    different = []
    async with running(jobs.import_csv, jobs.export_csv) as engine:
        for path in REAL_FILES:
            run = await finish(engine, await engine.trigger("import-csv", {"path": str(path)}))
            export = {"table": run.output["table"], "name": path.name}
            export = await finish(engine, await engine.trigger("export-csv", export))
            delimiter = "\t" if path.suffix == ".tsv" else ","
            expected = csv.reader(path.read_text("utf-8-sig").splitlines(keepends=True), delimiter=delimiter)
            found = csv.reader(Path(export.output["path"]).read_bytes().decode().splitlines(keepends=True))
            if list(found) != list(expected) or run.output["bad_rows"]:
                different.append(path.name)
    assert different == []


# --- Files that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["scan_chunk", "typed_chunk"])
@pytest.mark.parametrize("change", ["edited", "truncated", "deleted"])
async def test_a_file_that_changes_ends_the_import_with_a_code_of_its_own_and_leaves_nothing_behind(
    running, saved, database_path, monkeypatch, step, change
):
    path = saved("a,b\n" + "1,2\n" * 500)
    original, calls = getattr(jobs, step), []

    def change_it(*arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == 2:
            if change == "deleted":
                Path(path).unlink()
            else:
                saved("a,b\n" + ("1,3\n" if change == "edited" else "1\n") * 500)
        return original(*arguments)

    monkeypatch.setattr(jobs, step, change_it)
    async with running(jobs.import_csv) as engine:
        run = await finish(engine, await engine.trigger("import-csv", {"path": path, "chunk_bytes": 400}))
    assert (run.status, run.error.type) == ("failed", "FileChangedError")
    assert "was changed" in run.error.message or "not there any more" in run.error.message
    with closing(sqlite3.connect(database_path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'csv@_0%' ESCAPE '@'").fetchall()
    assert tables == []


# --- Before an import, and after it -----------------------------------------------------------------------------------


async def test_a_preview_shows_the_guess_and_the_first_rows_and_imports_nothing(running, saved, database_path):
    path = saved("Bericht\n\nName;Größe\nZoë;1,5\nJosé;2,5\n".encode("cp1252"))
    async with running(jobs.preview_csv) as engine:
        run = await finish(engine, await engine.trigger("preview-csv", {"path": path}))
        other = await finish(engine, await engine.trigger("preview-csv", {"path": path, "delimiter": ","}))
    assert run.output["guess"] == {
        "encoding": "windows-1252",
        "delimiter": ";",
        "quote": '"',
        "header": True,
        "decimal": ",",
        "date_order": "ymd",
        "missing": None,
    }
    assert run.output["columns"] == [{"name": "Name", "type": "text"}, {"name": "Größe", "type": "number"}]
    assert (run.output["rows"], run.output["above"]) == ([["Zoë", "1,5"], ["José", "2,5"]], ["Bericht"])
    assert run.output["beyond_ascii"] == ["Größe", "Zoë", "José"]
    assert other.output["guess"]["delimiter"] == ","
    with closing(sqlite3.connect(database_path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'csv%'").fetchall() == []


@pytest.mark.parametrize(
    "option",
    [{"delimiter": ",,"}, {"quote": 5}, {"header": -1}, {"decimal": "x"}, {"missing": "NA"}, {"date_order": ""}],
)
async def test_an_option_that_makes_no_sense_fails_the_run_with_what_it_may_be(running, saved, option):
    async with running(jobs.import_csv) as engine:
        run = await finish(engine, await engine.trigger("import-csv", {"path": saved("a\n1\n")} | option))
    (name,) = option
    assert run.error.type == "FatalError"
    assert run.error.message.startswith(f"{name} is ")


async def test_a_record_that_was_put_aside_is_mended_and_imported(running, saved, database_path):
    path = saved("a,b\n1,x\n2,y,z\n3,w\n")
    async with running(jobs.import_csv, jobs.mend) as engine:
        run = await finish(engine, await engine.trigger("import-csv", {"path": path}))
        mending = {"table": run.output["table"], "line": 3}
        wrong = await finish(engine, await engine.trigger("mend-record", mending | {"text": "2,y,z"}))
        right = await finish(engine, await engine.trigger("mend-record", mending | {"text": '2,"y,z"'}))
        again = await finish(engine, await engine.trigger("mend-record", mending | {"text": '2,"y,z"'}))
    assert wrong.output == {"is_mended": False, "reason": "2 fields expected, 3 found", "bad_rows": 1}
    assert right.output == {"is_mended": True, "reason": None, "bad_rows": 0}
    assert again.error.message == "There is no record of line 3 that was put aside."
    with closing(sqlite3.connect(database_path)) as connection:
        assert [row[1:3] for row in rows_of(connection, run.output["table"])] == [(1, "x"), (2, "y,z"), (3, "w")]


# --- Forgetting -------------------------------------------------------------------------------------------------------


async def test_a_forgotten_import_leaves_no_tables_and_others_keep_theirs(running, saved, database_path):
    async with running(jobs.import_csv, jobs.forget_import) as engine:
        first = await finish(engine, await engine.trigger("import-csv", {"path": saved("a\n1\n", "first.csv")}))
        other = await finish(engine, await engine.trigger("import-csv", {"path": saved("a\n2\n", "other.csv")}))
        forgetting = {"run_id": first.id, "file": "first.csv"}
        forgotten = await finish(engine, await engine.trigger("forget-import", forgetting))
        again = await finish(engine, await engine.trigger("forget-import", forgetting))
    assert (forgotten.output, again.output) == ({"tables": 2}, {"tables": 0})
    with closing(sqlite3.connect(database_path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'csv@_%' ESCAPE '@'")
        kept = {name for (name,) in tables}
    assert kept >= {other.output["table"], other.output["bad_table"], "csv_imports"}
    assert not kept & {first.output["table"], first.output["bad_table"]}
