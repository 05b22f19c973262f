# ruff: noqa: RUF001
"""Reading delimited text in chunks: every line is either in a row or in a bad row, whatever the file and the chunks."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import IN_PYODIDE

if IN_PYODIDE:
    pytest.skip("on CPython only: the demo's files are not in the other home", allow_module_level=True)

from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[3] / "web" / "demo"))

import csv_records
from csv_encodings import ENCODINGS, guess_encoding
from csv_layout import column_names, inspect_file
from csv_records import (
    Chunk,
    Dialect,
    FileHasChangedError,
    Lines,
    Reader,
    UnreadableFileError,
    read_chunk,
    read_layout,
)

START = {"offset": 0, "line": 1}


def read_bytes(data: bytes, dialect: Dialect, size: int, fields: int | None) -> list[Chunk]:
    """All chunks of some bytes."""
    file, position, chunks = io.BytesIO(data), START, []
    while position["offset"] < len(data):
        chunks.append(read_chunk(file, dialect, position, size, fields))
        assert chunks[-1].offset > position["offset"]
        position = chunks[-1].position
    return chunks


def read_text(text: str, fields: int | None = None, size: int = 1 << 20, newline: str = "\n") -> Chunk:
    """All records of a text that is separated by commas, as one chunk."""
    whole = Chunk()
    for chunk in read_bytes(text.encode("utf-8", "surrogateescape"), Dialect("utf-8", ",", newline), size, fields):
        for name in ("lines", "rows", "bad", "short"):
            getattr(whole, name).extend(getattr(chunk, name))
    return whole


@pytest.fixture
def saved(tmp_path: Path):
    """``saved(content)``: the path of a file with that content."""

    def save(content: bytes | str) -> str:
        path = tmp_path / "input.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return save


def whole_file(path: str, **options: Any) -> tuple[dict[str, Any], Chunk]:
    layout = inspect_file(path, **options)
    return layout, read_layout(layout, layout["start"], 1 << 20)


# --- Properties -------------------------------------------------------------------------------------------------------

values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.text(
    '",;\r\n a', max_size=8
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=12))


@given(
    table=tables(),
    size=st.integers(1, 200),
    delimiter=st.sampled_from(",;\t|"),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    last_ends=st.booleans(),
)
def test_what_csv_writer_wrote_comes_back_with_its_line_numbers_in_chunks_of_any_size(
    table, size, delimiter, ending, last_ends
):
    newline = ending[-1]
    text, lines = "", []
    for row in table:
        lines.append(1 + text.count(newline))
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL).writerow(row)
        text += buffer.getvalue()
    if not last_ends:
        text = text[: -len(ending)]

    chunks = read_bytes(text.encode(), Dialect("utf-8", delimiter, newline), size, len(table[0]))

    assert [row for chunk in chunks for row in chunk.rows] == table
    assert [line for chunk in chunks for line in chunk.lines] == lines
    assert not any(chunk.bad for chunk in chunks)


@given(table=tables(), size=st.integers(1, 200))
def test_minimal_quoting_comes_back_too(table, size):
    buffer = io.StringIO()
    csv.writer(buffer).writerows(table)
    assert read_text(buffer.getvalue(), len(table[0]), size).rows == table


odd_texts = st.lists(st.sampled_from(['"', '"', ",", "\n", "\r\n", "a", " ", "\\"]), max_size=60).map("".join)


@given(text=odd_texts, size=st.integers(1, 20), fields=st.integers(1, 3), newline=st.sampled_from(["\n", ""]))
@example(text='"a\n1,2\n3,"\n', size=1, fields=2, newline="\n")
@settings(max_examples=500)
def test_no_line_of_any_text_is_swallowed_and_the_chunks_do_not_matter(text, size, fields, newline):
    whole, in_chunks = read_text(text, fields, newline=newline), read_text(text, fields, size, newline)
    assert in_chunks == whole

    covered = {bad.line for bad in whole.bad}
    for line, row in zip(whole.lines, whole.rows, strict=True):
        covered |= set(range(line, line + 1 + sum(value.count("\n") for value in row)))
    not_blank = {number for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
    assert not_blank <= covered


@given(text=odd_texts, fields=st.integers(1, 3), escape=st.booleans())
@settings(max_examples=500)
def test_the_fast_reading_is_that_of_one_record_after_the_other(text, fields, escape):
    dialect = Dialect("utf-8", ",", "\n", escape=escape)
    lines = Lines(io.BytesIO(text.encode()), dialect, 0)
    lines.read(1 << 20)
    slow = Reader(lines, dialect, 1, fields)
    index = 0
    while index < len(lines.texts):
        index = slow._read_one(index)
    fast = read_bytes(text.encode(), dialect, 1 << 20, fields)
    assert [(slow._chunk.lines, slow._chunk.rows, slow._chunk.bad)] * len(fast) == [
        (chunk.lines, chunk.rows, chunk.bad) for chunk in fast
    ]


@given(data=st.binary(max_size=200), size=st.integers(1, 50))
def test_no_bytes_make_the_reading_fail(data, size):
    for encoding in ENCODINGS.values():
        for newline in ("\n", "\r", ""):
            read_bytes(data, Dialect(encoding, ",", newline), size, 2)


@given(table=tables(), encoding=st.sampled_from(["utf-16-le", "utf-16-be"]), size=st.integers(1, 50))
def test_utf_16_is_read_in_chunks_too(table, encoding, size):
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows(table)
    chunks = read_bytes(buffer.getvalue().encode(encoding), Dialect(encoding, ",", "\n"), size, len(table[0]))
    assert [row for chunk in chunks for row in chunk.rows] == table


# --- Broken records ---------------------------------------------------------------------------------------------------


def test_a_quote_that_is_never_closed_costs_its_own_line_and_no_other():
    found = read_text('1,"abc\n2,def\n3,ghi\n', 2)
    assert found.rows == [["2", "def"], ["3", "ghi"]]
    assert [(bad.line, bad.kind, bad.raw) for bad in found.bad] == [(1, "quoting", '1,"abc')]
    assert "never closed" in found.bad[0].reason


def test_a_quote_that_is_closed_by_accident_far_below_costs_its_own_line_and_no_other():
    lines = ['1,"abc', *(f"{number},x" for number in range(2, 100)), '100","y']
    found = read_text("\n".join(lines), 2)
    assert found.rows == [[str(number), "x"] for number in range(2, 100)]
    assert [bad.line for bad in found.bad] == [1, 100]


def test_an_accidental_closing_quote_with_the_wrong_number_of_fields_swallows_nothing():
    found = read_text('1,"abc\n2,def\n3,",",4\n5,6\n', 2)
    assert found.rows == [["2", "def"], ["5", "6"]]
    assert [bad.line for bad in found.bad] == [1, 3]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ('5" pipe,x', ['5" pipe', "x"]),
        ('6,y 3" z', ["6", 'y 3" z']),
        ('"abc"def,x', ['"abc"def', "x"]),
        ('"He said "hi" to me",x', ['He said "hi" to me', "x"]),
        ('41, "Youngstown, OH"', ["41", "Youngstown, OH"]),
        (' "a" , "b" ', ["a", "b"]),
        ('"a""b",c', ['a"b', "c"]),
        ('a"b"c,d', ['a"b"c', "d"]),
        (" a , b ", [" a ", " b "]),
        ('"",""', ["", ""]),
    ],
)
def test_quotes_in_any_place_are_read_as_people_mean_them(record, row):
    assert read_text(f"1,2\n{record}\ngood,row\n", 2).rows == [["1", "2"], row, ["good", "row"]]


def test_a_record_with_too_many_fields_is_put_aside_and_one_that_lacks_some_is_not():
    found = read_text("1,2\n1\n1,2,3\n1,2,, \n", 2)
    assert found.rows == [["1", "2"], ["1", ""], ["1", "2"]]
    assert found.short == [(2, 1)]
    assert [(bad.line, bad.reason, bad.raw) for bad in found.bad] == [(3, "2 fields expected, 3 found", "1,2,3")]


def test_blank_lines_are_not_records_but_count_as_lines():
    found = read_text("\n1,2\r\n\r\n3,4\n", 2)
    assert (found.lines, found.rows) == ([2, 4], [["1", "2"], ["3", "4"]])


def test_embedded_newlines_belong_to_the_field_and_count_as_lines():
    found = read_text('1,"a\nb\r\nc"\r\n2,d\r\n', 2, size=3)
    assert (found.lines, found.rows) == ([1, 4], [["1", "a\nb\r\nc"], ["2", "d"]])


def test_a_field_of_a_megabyte_is_read_in_small_chunks():
    large = 'x"\n' * 350_000
    text = '1,"' + large.replace('"', '""') + '"\n2,' + "y" * 1_000_000 + "\n3,z\n"
    assert read_text(text, 2, size=4096).rows == [["1", large], ["2", "y" * 1_000_000], ["3", "z"]]


def test_a_record_beyond_all_measure_is_a_bad_row(monkeypatch):
    monkeypatch.setattr(csv_records, "MAXIMUM_RECORD", 1000)
    monkeypatch.setattr(csv_records, "LOOKAHEAD_BYTES", 100)
    long_line, long_field = "1," + "x" * 9000, '2,"' + "y\n" * 900 + '"'
    found = read_text(f"{long_line}\n{long_field}\n3,z\n", 2, size=50)
    assert found.rows[-1] == ["3", "z"]
    assert [bad.line for bad in found.bad][:2] == [1, 2]
    assert "longer than 1,000 characters" in found.bad[0].reason
    assert len(found.bad[0].raw) < 9000


def test_a_file_of_nothing_but_broken_lines_is_read_in_linear_time():
    """A quadratic search would take hours here."""
    found = read_text('1,"a"b,c\n2,"c\n' * 100_000, 2, size=1 << 16)
    assert (len(found.rows), len(found.bad)) == (0, 200_000)


def test_a_file_in_which_every_line_opens_a_quote_is_read_in_linear_time():
    found = read_text('a","b\n' * 100_000, 2, size=1 << 20)
    assert len(found.rows) + len(found.bad) == 100_000


def test_a_row_with_a_byte_that_does_not_decode_says_which_and_where():
    found = read_text("1,2\n3,caf\udce9\n4,5\n", 2)
    assert found.rows == [["1", "2"], ["4", "5"]]
    assert (found.bad[0].line, found.bad[0].kind) == (2, "encoding")
    assert found.bad[0].reason == "the byte 0xE9, which is not text in this encoding, stands in column 2"


def test_a_nul_is_a_character_like_any_other():
    assert read_text("1,2\n3,a\0\n", 2).rows == [["1", "2"], ["3", "a\0"]]


# --- Looking at a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(saved, delimiter):
    layout, found = whole_file(saved(f"a{delimiter}b{delimiter}c\n1{delimiter}2{delimiter}3\n"))
    assert (layout["delimiter"], layout["names"], found.rows) == (delimiter, ["a", "b", "c"], [["1", "2", "3"]])


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("name;price\nA, B;1,5\nC, D;2,5\n", ";"),
        ('name,note\nA,"x; y; z"\nB,"p; q; r"\n', ","),
        ('"a;b",c\n"1;2",3\n', ","),
        ('"a,b";c\n"1,2";3\n', ";"),
        ("a,b\n1|2,3\n4|5,6\n", ","),
        ("a\tb\n1,5\t2\n3,5\t4\n", "\t"),
        ('a,b\n"x\ny;z",1\n"x\ny;z",2\n', ","),
        ("a,b,c\n1,2,3\n1,2\n4;5;6\n7,8,9\n", ","),
        ("id\tplace, country\n1\tParis, FR\n2\tRome, IT\n", "\t"),
        ("name;a, b\nx;1\ny;2\n", ";"),
        ("x y  z\n1 2  3\n10 20 30\n", " "),
        ("sep=|\na|b,c,d\n1|2,3,4\n", "|"),
    ],
)
def test_the_delimiter_is_the_one_that_fits_the_records_not_the_most_frequent(saved, content, delimiter):
    assert inspect_file(saved(content))["delimiter"] == delimiter


def test_a_single_column_is_not_split_at_what_is_in_its_values(saved):
    layout, found = whole_file(saved("comment\nhello, world\nbye, world\n"))
    assert (layout["names"], found.rows) == (["comment"], [["hello, world"], ["bye, world"]])


LAYOUTS = {
    "carriage returns before the line feed": ("name,age\r\r\nAda,36\r\r\n", ["name", "age"], [["Ada", "36"]]),
    "a stray carriage return": ("id,desc\rription,n\n1,x,2\n", ["id", "desc\rription", "n"], [["1", "x", "2"]]),
    "lines that end in several ways": ("a,b\r1,2\n3,4\r\n5,6", ["a", "b"], [["1", "2"], ["3", "4"], ["5", "6"]]),
    "blanks before quotes": ('"LatD", "City"\n41, "Y, OH"\n', ["LatD", "City"], [["41", "Y, OH"]]),
    "quotes that are escaped": (r"a,b" + "\n" + r'"x \"y\", z",1' + "\n", ["a", "b"], [['x "y", z', "1"]]),
    "a path in quotes": ('a,b\n"C:\\dir\\","x"\n', ["a", "b"], [["C:\\dir\\", "x"]]),
    "single quotes": ("'a','b'\n'1,5','x'\n'2,5','y'\n", ["a", "b"], [["1,5", "x"], ["2,5", "y"]]),
    "delimiters at the end of rows": ("a,b\n1,2,\n3,4,\n", ["a", "b"], [["1", "2"], ["3", "4"]]),
    "a delimiter at the end of the header": ("a,b,\n1,2\n3,4\n", ["a", "b"], [["1", "2"], ["3", "4"]]),
    "R's names of rows": (
        '"mpg","cyl"\n"Mazda",21,6\n"Fiat",32,4\n',
        [None, "mpg", "cyl"],
        [["Mazda", "21", "6"], ["Fiat", "32", "4"]],
    ),
    "a title": ("Sales report\n\na,b,c\n1,2,3\n", ["a", "b", "c"], [["1", "2", "3"]]),
    "a title with delimiters": (
        "Sales report,,\na,b,c\n1,2,3\n4,5,6\n",
        ["a", "b", "c"],
        [["1", "2", "3"], ["4", "5", "6"]],
    ),
    "comments": ("# made, by hand, in May\n# (again)\na,b\n1,2\n", ["a", "b"], [["1", "2"]]),
    "a header that begins like a comment": ("#id,name\n1,x\n2,y\n", ["#id", "name"], [["1", "x"], ["2", "y"]]),
    "no header": ("1,2.5,x\n3,4.5,y\n", [None, None, None], [["1", "2.5", "x"], ["3", "4.5", "y"]]),
    "years for a header": ("name,2019,2020\nx,1,2\n", ["name", "2019", "2020"], [["x", "1", "2"]]),
    "rows without their last fields": (
        "a,b,c\n1,2,3\n1\n1,2,3\n",
        ["a", "b", "c"],
        [["1", "2", "3"], ["1", "", ""], ["1", "2", "3"]],
    ),
    "blanks between fields": ("  x   y\n  1  20\n 10   2\n", ["x", "y"], [["1", "20"], ["10", "2"]]),
    "a declared delimiter": ("sep=;\na,b;c\n1,5;2\n", ["a,b", "c"], [["1,5", "2"]]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_table_is_read_however_it_is_written_down(saved, kind):
    content, header, rows = LAYOUTS[kind]
    layout, found = whole_file(saved(content))
    assert (layout["header"], found.rows, found.bad) == (header, rows, [])


def test_what_the_user_knows_better_is_taken_as_it_is(saved):
    path = saved("x;y\n1;2\n3;4\n")
    assert whole_file(path, header=False)[1].rows == [["x", "y"], ["1", "2"], ["3", "4"]]
    assert whole_file(path, header=2)[0]["header"] == ["1", "2"]
    assert whole_file(path, delimiter=",")[1].rows == [["1;2"], ["3;4"]]
    assert whole_file(saved("a,b\n'1,2\n"), quote="")[1].rows == [["'1", "2"]]


@pytest.mark.parametrize(
    ("content", "mark", "order"),
    [
        ("a;b\n1,5;31/12/2024\n", ",", "dmy"),
        ("a;b\n1.5;12/31/2024\n", ".", "mdy"),
        ("a;b\n1;01/02/2024\n", ".", "ymd"),
        ("a;b\n1;01.02.2024\n", ".", "dmy"),
    ],
)
def test_the_decimal_mark_and_the_order_of_dates_are_guessed(saved, content, mark, order):
    layout = inspect_file(saved(content))
    assert (layout["decimal"], layout["date_order"]) == (mark, order)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_endings_of_every_age_and_a_byte_order_mark_are_read(saved, ending, mark):
    text = ending.join(["größe,b", '1,"x', 'y"', "2,z", ""])
    layout, found = whole_file(saved(mark + text.encode()))
    assert layout["names"] == ["größe", "b"]
    assert found.rows == [["1", f"x{ending}y"], ["2", "z"]]
    assert found.lines == [2, 4]


TEXTS = {
    "utf-8": "name,city\nZoë,Malmö\n",
    "utf-16-le": "имя,город\nИван,Москва\n",
    "utf-16-be": "姓名,年龄\n张三,36\n",
    "windows-1252": "name,city\nZoë,Malmö\nJosé,São Paulo\n",
    "windows-1250": "jméno,město\nŘehoř,Plzeň\nŽofie,Žďár\n",
    "windows-1251": "имя,город\nИван,Москва\nПётр,Тверь\n",
    "windows-1253": "όνομα,πόλη\nΓιώργος,Αθήνα\n",
    "windows-1254": "ad,şehir\nİbrahim,Eskişehir\nAyşe,Muğla\n",
    "windows-1256": "اسم,مدينة\nمحمد,القاهرة\n",
    "windows-1257": "vardas,miestas\nJonas Žemaitis,Šiauliai\nRūta,Panevėžys\n",
    "macintosh": "name,city\nZoë,Malmö\nJosé,São Paulo\n",
    "ibm850": "prénom,ville\nHélène,Orléans\nNoël,Nîmes\n",
    "koi8-r": "имя,город\nИван,Москва\nПётр,Тверь\n",
    "gb18030": "姓名,年龄\n张三,36\n李四,41\n",
    "big5": "姓名,年齡\n張三,36\n李四,41\n",
    "shift_jis": "名前,年齢\n田中,36\n鈴木さん,41\n",
    "euc-jp": "名前,年齢\n田中,36\n鈴木さん,41\n",
    "euc-kr": "이름,나이\n김철수,36\n이영희,41\n",
}
CODECS = {"macintosh": "mac-roman", "ibm850": "cp850", "shift_jis": "cp932"}


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_encoding_of_a_short_table_is_guessed(saved, encoding):
    layout, found = whole_file(saved(TEXTS[encoding].encode(CODECS.get(encoding, encoding))))
    assert (layout["encoding"], layout["is_certain"]) == (encoding, encoding == "utf-8")
    assert [layout["header"], *found.rows] == list(csv.reader(TEXTS[encoding].splitlines()))


def test_the_encoding_is_guessed_by_what_comes_late_in_the_file(saved):
    content = b"name,city\n" + b"Anna,Berlin\n" * 100_000 + "Zoë,Malmö\n".encode("cp1252")
    assert inspect_file(saved(content))["encoding"] == "windows-1252"


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2])
def test_a_byte_order_mark_decides_even_if_the_user_says_something_else(saved, mark):
    layout, found = whole_file(saved(mark + "name,age\nZoë,36\n".encode()), encoding="windows-1252")
    assert (layout["encoding"], layout["header"], found.rows) == ("utf-8", ["name", "age"], [["Zoë", "36"]])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read_with_and_without_a_byte_order_mark(saved, encoding):
    content = "\ufeff" if encoding != "utf-16" else ""
    for mark in ("", content):
        _, found = whole_file(saved((mark + "a,b\r\né,2\r\n").encode(encoding)))
        assert found.rows == [["é", "2"]]


def test_one_zero_byte_does_not_make_a_text_utf_16():
    assert guess_encoding(b"id,name\n1,Ada\n2,Bobb\0\n3,Cyd\n").name == "utf-8"


def test_one_bad_byte_among_good_ones_costs_its_row_and_is_shown_with_its_place(saved):
    layout, found = whole_file(saved("a,b\né,1\n".encode() + b"caf\xe9,2\n" + "ö,3\n".encode()))
    assert layout["encoding"] == "utf-8"
    assert found.rows == [["é", "1"], ["ö", "3"]]
    assert (found.bad[0].line, found.bad[0].raw) == (3, "caf\udce9,2")


@pytest.mark.parametrize("encoding", ["windows-1252", "iso-8859-1", "Latin-1", "cp1252"])
def test_the_older_encodings_are_read_when_asked_for(saved, encoding):
    _, found = whole_file(saved("a,b\ncafé,1\n".encode(encoding)), encoding=encoding)
    assert found.rows == [["café", "1"]]


def test_the_euro_sign_of_windows_is_read(saved):
    assert whole_file(saved(b"a,b\n\x80,1\n"), encoding="windows-1252")[1].rows == [["€", "1"]]


def test_a_header_without_rows_is_a_layout_like_any_other(saved):
    for content in ("a,b", "a,b\n", "a,b\r\n\r\n"):
        layout = inspect_file(saved(content))
        assert layout["names"] == ["a", "b"]


def test_blank_lines_before_the_header_are_passed_over(saved):
    layout, found = whole_file(saved("\n\r\na,b\n1,2\n"))
    assert (layout["names"], found.lines) == (["a", "b"], [4])


def test_a_header_may_span_lines(saved):
    layout, found = whole_file(saved('"a\nb",c\n1,2\n'))
    assert (layout["names"], found.lines) == (["a\nb", "c"], [3])


def test_column_names_are_unique_without_regard_to_case_and_never_empty():
    assert column_names(["a", "A", "", " a ", "a_2", "", "source_line"]) == [
        "a",
        "A_2",
        "column_3",
        "a_3",
        "a_2_2",
        "column_6",
        "source_line_2",
    ]


def test_two_thousand_columns_of_one_name_get_names_quickly():
    assert len({name.lower() for name in column_names(["x"] * 1998)}) == 1998


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n\r\n\n", "blank lines"),
        (b"PK\x03\x04 and more", "Excel workbook (.xlsx)"),
        (b"\xd0\xcf\x11\xe0 and more", "old Excel workbook"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(1, 40)), "binary file"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"%PDF-1.7", "PDF"),
        (b"PAR1....", "Parquet"),
        (b"SQLite format 3\0", "SQLite"),
        (b"  <!DOCTYPE html><html>", "web page"),
        (b'[\n {"a": 1}]', "JSON"),
        (b'a,"b\n1,2\n', "header in line 1 cannot be read: a quote is opened and never closed"),
        (b",".join(b"c%d" % number for number in range(2000)), "2,000 columns"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_what_it_is_and_what_to_do(saved, content, words):
    with pytest.raises(UnreadableFileError) as refused:
        inspect_file(saved(content))
    assert words in str(refused.value)


def test_an_unknown_encoding_is_refused_with_the_choices(saved):
    with pytest.raises(UnreadableFileError, match="utf-8, utf-16-le, utf-16-be, windows-1252, iso-8859-1"):
        inspect_file(saved("a\n1\n"), "ebcdic")


def test_a_file_that_is_gone_or_has_changed_is_refused(saved, tmp_path):
    with pytest.raises(UnreadableFileError, match=r"gone\.csv is not there any more"):
        inspect_file(str(tmp_path / "gone.csv"))
    layout = inspect_file(saved("a,b\n1,2\n"))
    saved("a,b\n1,2\n3,4\n")
    with pytest.raises(FileHasChangedError, match="changed"):
        read_layout(layout, layout["start"], 100)
    layout = inspect_file(saved("a,b\n1,2\n"))
    checksum = read_layout(layout, layout["start"], 100).checksum
    saved("a,b\n1,3\n")
    with pytest.raises(FileHasChangedError, match="from line 2 on it has another text"):
        read_layout(layout, layout["start"], 100, checksum)
