"""A value under an annotation that leaves a choice comes back as what it was, or is refused when it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal

import pytest
from watching import finish

from durable_web import Context, SerializationError, job
from durable_web._codec import decode, encode, write_down


@dataclass
class Cat:
    name: str


@dataclass
class Dog:
    name: str


@dataclass
class Parrot:
    name: str
    words: list[str] = field(default_factory=list)


@dataclass
class Ox:
    name: str
    kind: Literal["ox"] = "ox"


@dataclass
class Yak:
    name: str
    kind: Literal["yak"] = "yak"


@dataclass
class Stable:
    animal: Cat | Dog | None = None
    animals: list[Ox | Yak] = field(default_factory=list)


class Colour(Enum):
    RED = "red"


class Level(Enum):
    LOW = 1


class Tone(StrEnum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


REX = Dog("rex")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Parrot("rex", ["hello"]), Cat | Parrot),
        (Parrot("rex"), Parrot | Cat),
        (Cat("rex"), Parrot | Cat),
        (Cat("rex"), Cat | Dog),
        (Yak("rex"), Ox | Yak),
        ([Yak("rex"), Ox("rex")], list[Ox | Yak]),
        ([Yak("rex")], list[Ox] | list[Yak]),
        ({"a": Yak("rex")}, dict[str, Ox | Yak | None]),
        ((Yak("rex"), 1), tuple[Ox | Yak, int]),
        (Stable(None, [Yak("rex"), Ox("rex")]), Stable),
        (Stable(Cat("rex")), Stable | None),
        (REX, Dog | None),
        (REX, Annotated[Dog | None, "a dog"]),
        (None, Cat | Dog | None),
        (Colour.RED, Colour | Level),
        (Level.LOW, Colour | Level),
        (Colour.RED, Colour | str),
        (Colour.RED, str | Colour),
        ("blue", Colour | str),
        (Cat("rex"), Cat | Any),
        ({"name": "rex", "breed": "lab"}, Cat | dict[str, str]),
        ({"when": b"1", "name": Yak("rex")}, dict[str, Ox | Yak | bytes]),
        (Cat("rex"), Cat | dict[str, str]),
        (REX, list[Dog] | Dog),
        (REX, Annotated[list[Dog], "dogs"] | Dog | None),
        (REX, Sequence[Dog] | Dog),
        ([REX], list[Dog] | Dog),
        ([REX], Dog | list[Dog]),
        ({"a": REX}, list[Dog] | dict[str, Dog]),
        ([REX], dict[str, Dog] | list[Dog]),
        ((REX,), list[Cat] | tuple[Dog, ...]),
        ((REX,), list[Dog] | None),
    ],
    ids=str,
)
def test_what_can_be_told_apart_comes_back_as_what_it_was(value, annotation):
    text, read = write_down(value, annotation)
    assert (type(read), read) == (type(value), value)
    assert decode(text, annotation) == read


@pytest.mark.parametrize(
    ("value", "annotation", "path"),
    [
        (REX, Cat | Dog, "value"),
        (REX, Annotated[Cat | Dog, "a pet"], "value"),
        (REX, Cat | Any, "value"),
        ([Cat("rex"), REX], list[Cat | Dog], "value[1]"),
        ([REX], list[Cat] | list[Dog], "value"),
        ({"a": REX}, dict[str, Cat | Dog], "value['a']"),
        ((1, REX), tuple[int, Cat | Dog], "value[1]"),
        ((REX,), tuple[Cat | Dog, ...], "value[0]"),
        (Stable(REX), Stable, "value['animal']"),
        ({"animal": REX}, Stable, "value['animal']"),
        ([Stable(REX)], list[Stable], "value[0]['animal']"),
        ({"name": "rex"}, Cat | dict[str, str], "value"),
    ],
    ids=str,
)
def test_what_cannot_be_told_apart_is_refused_and_the_place_is_named(value, annotation, path):
    with pytest.raises(SerializationError, match=r"read back as .*Literal") as caught:
        write_down(value, annotation)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("value", "annotation", "path"),
    [
        ("red", Colour | str, "value"),
        ({"red"}, set[Colour | str], "value"),
        ({"red": 1}, dict[Colour | str, int], "value"),
        (["red"], list[Colour] | list[str], "value"),
        (Colour.RED, Tone | Colour, "value"),
        (1, Level | int, "value"),
    ],
    ids=str,
)
def test_a_value_that_would_become_an_enum_member_is_refused_with_advice_that_helps(value, annotation, path):
    with pytest.raises(SerializationError, match=r"read back as .*annotate only") as caught:
        write_down(value, annotation)
    assert caught.value.path == path
    assert "Literal" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("red", Tone | str),
        ("red", str | Tone | None),
        (1, Size | int),
        (["red", "blue"], list[Tone | str]),
        (["red"], list[Tone] | list[str]),
        ({"a": "red"}, dict[str, Tone | str]),
        ({"red": 1}, dict[Tone | str, int]),
        ({"red", "blue"}, set[Tone | str]),
        ({"red"}, set[Tone] | set[str]),
    ],
    ids=lambda each: str(sorted(each) if isinstance(each, set) else each),
)
def test_a_member_that_is_the_value_itself_is_no_other_value(value, annotation):
    text, read = write_down(value, annotation)
    assert read == value
    assert decode(text, annotation) == read
    assert encode(value, annotation) == text


def test_plain_data_becomes_the_class_that_keeps_all_of_it():
    assert decode('{"name":"rex","words":["hello"]}', Cat | Parrot) == Parrot("rex", ["hello"])
    assert decode('{"name":"rex"}', Parrot | Cat) == Cat("rex")
    assert decode('{"name":"rex"}', Cat | Dog) == Cat("rex")
    assert decode('{"name":"rex"}', Ox | Yak) == Ox("rex")
    assert decode('{"name":"rex","kind":"yak"}', Ox | Yak) == Yak("rex")


@dataclass
class Barn:
    name: str
    next: Barn | Shed | None = None

    def __post_init__(self) -> None:
        built.append(self.name)


@dataclass
class Shed:
    width: int
    next: Shed | Barn | None = None


built: list[str] = []


def test_every_part_is_read_back_once_however_deep_the_unions_are():
    row = Shed(0)
    for number in range(20):
        row = Barn(str(number), row) if number % 2 else Shed(number, row)
    for value, annotation in ((row, Barn | Shed), ([row], list[Shed | Barn] | dict[str, Barn] | None)):
        built.clear()
        assert write_down(value, annotation)[1] == value
        assert len(built) == 10
    built.clear()
    row.next.next.width = {}  # as with what is not known to come back, down to a part that is plain data
    row.next.next.next = {"name": "plain"}
    assert write_down(row, Barn | Shed)[1].next.next.next == Barn("plain")
    assert len(built) <= 5


@dataclass
class Nest:
    name: str
    eggs: int = 0
    inner: Nest | Den | None = None

    def __post_init__(self) -> None:
        built.append(self.name)


@dataclass
class Den:
    name: str
    cubs: int = 0
    inner: Den | Nest | None = None


def test_data_that_several_classes_could_be_is_read_once_for_all_of_them():
    data: dict[str, Any] = {"name": "0"}
    for number in range(1, 12):
        data = {"name": str(number), "inner": data}
    text = encode(data)
    built.clear()
    assert decode(text, Nest | Den).inner == decode(encode(data["inner"]), Nest | Den)
    assert len(built) < 100
    assert type(decode(text, Den | Nest).inner) is Den


async def test_a_step_whose_result_would_be_another_on_replay_fails_and_says_what_to_do(running):
    def find() -> Cat | Dog:
        return REX

    @job("pets")
    async def pets(ctx: Context, _: None) -> None:
        await ctx.step("find", find)

    async with running(pets) as engine:
        run = await finish(engine, await engine.trigger("pets"))
        assert (run.status, run.failed_step) == ("failed", "find")
        assert "output of step 'find' cannot be stored: under test_unions.Cat | test_unions.Dog" in run.error.message
        assert "it would be read back as Cat(name='rex'), not as Dog(name='rex')" in run.error.message


async def test_inputs_outputs_and_signals_are_held_to_the_same(running):
    bodies: list[Any] = []

    @job("pets", signals={"pet": Cat | Dog})
    async def pets(ctx: Context, pet: Cat | Dog | Parrot) -> Cat | Dog:
        bodies.append(pet)
        return await ctx.wait_for_signal("pet") if isinstance(pet, Parrot) else REX

    async with running(pets) as engine:
        with pytest.raises(SerializationError, match="input of job 'pets' cannot be stored: under"):
            await engine.trigger("pets", REX)
        assert await engine.runs.list() == []
        run = await finish(engine, await engine.trigger("pets", {"name": "rex"}))
        assert run.error.message.startswith("output of job 'pets' cannot be stored: under")
        run = await engine.trigger("pets", {"name": "rex", "words": ["hello"]})
        with pytest.raises(SerializationError, match="payload of signal 'pet' cannot be stored: under"):
            await engine.runs.signal(run.id, "pet", REX)
        await engine.runs.signal(run.id, "pet", Cat("tom"))
        run = await finish(engine, run)
        assert (run.error, run.output) == (None, {"name": "tom"})
    assert bodies[:2] == [Cat("rex"), Parrot("rex", ["hello"])]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({Colour.RED: 1, "red": 2}, "value"),
        ([{Colour.RED, "red"}], "value[0]"),
        ({"a": frozenset({Level.LOW, 1})}, "value['a']"),
        ({(Colour.RED,): 1, ("red",): 2}, "value"),
    ],
)
def test_what_would_fall_together_in_a_set_or_as_keys_is_refused(value, path):
    with pytest.raises(SerializationError, match="fall together") as caught:
        encode(value)
    assert caught.value.path == path


def test_keys_and_members_that_stay_apart_are_kept():
    for value in ({1: "a", "1": "b"}, {(1,): 2, 1: 3}, {frozenset({1}), (1,), 1}):
        assert decode(encode(value)) == value
    assert decode(encode({Colour.RED, "blue"})) == {"red", "blue"}
    assert decode(encode({Colour.RED: 1}), dict[Colour, int]) == {Colour.RED: 1}
