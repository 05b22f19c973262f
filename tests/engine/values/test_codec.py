"""Values are written down so that they come back unchanged, or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watching import IN_PYODIDE

from durable_web._codec import decode, encode, printable, readable
from durable_web._errors import SerializationError

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters())
    | st.binary()
    | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]) | st.none())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids()
)
hashable = st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.just("$durable")
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(hashable, inner)
        | st.lists(inner).map(tuple)
        | st.sets(hashable)
        | st.frozensets(hashable)
    ),
)


def same(left: object, right: object) -> bool:
    """Equal, and of the same types throughout: 1 is not True, and (1,) is not [1]."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(values)
def test_whatever_is_written_is_read_back_the_same(value):
    text = encode(value)
    text.encode()
    assert same(decode(text), value)


@pytest.mark.parametrize("value", [-0.0, "\ud800", "\x00", {"$durable": "bytes", "value": "x"}, {1: 2, "1": 3}, 10**40])
def test_what_json_alone_would_bend_is_kept(value):
    assert same(decode(encode(value)), value)
    assert math.copysign(1, decode(encode(-0.0))) == -1


class Fixed(tzinfo):
    """The class of an offset that libraries such as pydantic and dateutil make when they parse a time."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=2)

    def dst(self, moment: datetime | None) -> None: ...


class Unknown(Fixed):
    """A zone without a name whose offset depends on the time."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:  # type: ignore[override]
        return None if moment is None else timedelta(hours=moment.month)


def test_a_time_at_a_fixed_offset_is_kept_whichever_library_made_the_offset():
    moment = datetime(2026, 1, 31, 8, 0, tzinfo=Fixed())
    found = decode(encode(moment))
    assert (found, found.utcoffset()) == (moment, moment.utcoffset())
    with pytest.raises(SerializationError, match="time zone has no name"):
        encode(moment.replace(tzinfo=Unknown()))


class Text(str): ...


class Mapping(dict): ...


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "value"),
        ([1, [float("inf")]], "value[1][0]"),
        ({"a": {"b": object()}}, "value['a']['b']"),
        ({"a": (1, {2: {3, 4j}})}, "value['a']"),
        (Text("looks like a string"), "value"),
        (Mapping(), "value"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_the_place_is_named(value, path):
    with pytest.raises(SerializationError) as caught:
        encode(value)
    assert caught.value.path.startswith(path)
    assert caught.value.path in str(caught.value)


def test_a_value_that_contains_itself_is_refused_but_one_that_is_there_twice_is_not():
    twice = [1]
    assert decode(encode([twice, twice])) == [[1], [1]]
    loop: dict = {}
    loop["self"] = [loop]
    with pytest.raises(SerializationError, match=r"value\['self'\]\[0\] cannot be stored: it contains itself"):
        encode(loop)


def test_an_integer_with_more_digits_than_python_will_write_is_refused():
    with pytest.raises(SerializationError, match="digits"):
        encode([10**5000])


def test_nesting_beyond_what_python_can_walk_is_refused():
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="too deeply"):
        encode(deep)


class Level(IntEnum):
    LOW = 1


class Colour(Enum):
    RED = "red"


@dataclass
class Inner:
    colour: Colour
    at: date


@dataclass
class Outer:
    inner: Inner
    many: list[Inner]
    maybe: Inner | None = None
    by_name: dict[str, Inner] = field(default_factory=dict)
    pair: tuple[int, Inner] | None = None
    derived: int = field(init=False, default=0)


def test_classes_come_back_where_the_reader_names_them_and_as_plain_data_where_not():
    inner = Inner(Colour.RED, date(2026, 1, 31))
    outer = Outer(inner, [inner], inner, {"a": inner}, (1, inner))
    outer.derived = 5
    assert decode(encode(outer), Outer) == outer
    assert decode(encode([outer, outer]), list[Outer]) == [outer, outer]
    assert decode(encode(inner)) == {"colour": "red", "at": date(2026, 1, 31)}
    assert decode(encode(Level.LOW), Level) is Level.LOW
    assert decode(encode(Level.LOW)) == 1
    assert decode(encode(None), Outer | None) is None


def test_pages_get_plain_json_data():
    value = {
        "when": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "for": timedelta(minutes=1),
        "price": Decimal("1.50"),
        "id": UUID(int=1),
        "data": b"\x00",
        "pair": (1, {2}),
        "time": time(1, 2),
        5: Inner(Colour.RED, date(2026, 1, 31)),
    }
    assert readable(value) == {
        "when": "2026-01-31T12:00:00+00:00",
        "for": 60.0,
        "price": "1.50",
        "id": "00000000-0000-0000-0000-000000000001",
        "data": "AA==",
        "pair": [1, [2]],
        "time": "01:02:00",
        "5": {"colour": "red", "at": "2026-01-31"},
    }
    assert printable(float("inf")) == "inf"


@pytest.mark.parametrize("text", ['{"a":[1,null]}', "7", ' {"a": 1}', "[1] ", "\n3\n", '"\\ud800"'])
def test_a_text_with_blanks_around_it_reads_as_one_without(text):
    assert decode(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", " ", "{", "1 2", "[1]x", '{"a":1}}', "nul"])
def test_a_text_that_is_not_json_is_refused_wherever_it_goes_wrong(text):
    with pytest.raises(json.JSONDecodeError):
        decode(text)


@pytest.mark.parametrize(
    ("value", "advice"), [(bytearray(b"a"), "return bytes(value)."), (memoryview(b"a"), "return bytes(value).")]
)
def test_a_buffer_is_refused_with_what_to_return_instead(value, advice):
    with pytest.raises(SerializationError) as refused:
        encode({"rows": [value]}, path="output")
    assert (refused.value.path, refused.value.reason.endswith(advice)) == ("output['rows'][0]", True)


@pytest.mark.skipif(not IN_PYODIDE, reason="inside Pyodide only: CPython has no JavaScript")
@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("({a: 1})", "return value.to_py()"),
        ("[1, 2]", "return value.to_py()"),
        ("new Uint8Array(2)", "of a buffer value.to_bytes()"),
        ("new Date()", "it belongs to JavaScript"),
        ("null", "it is JavaScript's null: return None."),
    ],
)
def test_what_belongs_to_javascript_is_refused_with_what_to_return_instead(source, advice):
    from pyodide.code import run_js

    with pytest.raises(SerializationError) as refused:
        encode([run_js(source)], path="output")
    assert advice in refused.value.reason
