"""Pydantic models as inputs, outputs and step results; on CPython only, since Pyodide would have to fetch pydantic."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from watching import finish

import durable_web
from durable_web import Context, InvalidInput, SerializationError, job
from durable_web._codec import write_down

pydantic = pytest.importorskip("pydantic")


class Order(pydantic.BaseModel):
    item: str
    count: int = 1
    on: date | None = None


async def find_order(number: int) -> Order:
    return Order(item=f"item {number}", on=date(2026, 1, 31))


async def test_a_model_is_validated_when_triggered_and_constructed_for_the_job_and_its_steps(running):
    @job("order")
    async def order_job(ctx: Context, order: Order) -> Order:
        found = await ctx.step("find", find_order, order.count)
        assert isinstance(found, Order)
        assert isinstance(order, Order)
        return Order(item=found.item, count=order.count, on=found.on)

    async with running(order_job) as engine:
        for given in (Order(item="pen", count=2), {"item": "pen", "count": 2}):
            run = await finish(engine, await engine.trigger("order", given))
            assert run.output == {"item": "item 2", "count": 2, "on": date(2026, 1, 31)}
        for wrong in ({"item": "pen", "count": "many"}, {"count": 1}, 7):
            with pytest.raises(InvalidInput, match="input of job 'order'"):
                await engine.trigger("order", wrong)


async def test_a_type_adapter_validates_inputs_and_outputs(running):
    @job("sum", input=pydantic.TypeAdapter(list[int]), output=pydantic.TypeAdapter(pydantic.PositiveInt))
    async def add_up(ctx: Context, numbers) -> int:
        return sum(numbers)

    async with running(add_up) as engine:
        assert (await finish(engine, await engine.trigger("sum", ["1", 2]))).output == 3
        with pytest.raises(InvalidInput):
            await engine.trigger("sum", ["one"])
        run = await finish(engine, await engine.trigger("sum", [-5]))
    assert run.error.type == "InvalidInput"
    assert "output of job 'sum'" in run.error.message


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(validation_alias="fullName")


class Visit(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    at: datetime
    people: tuple[Person, ...] = ()
    minutes: int = pydantic.Field(default=1, serialization_alias="min")

    @pydantic.computed_field
    @property
    def seconds(self) -> int:
        return self.minutes * 60


class Shown(pydantic.BaseModel):
    first_name: str = pydantic.Field(alias="firstName")

    @pydantic.computed_field
    @property
    def initial(self) -> str:
        return self.first_name[0]


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (Visit, {"at": "2026-01-31T08:00:00Z"}),
        (Visit, {"at": "2026-01-31T08:00:00+02:00", "people": [{"fullName": "Ada"}], "minutes": 2}),
        (Person, {"fullName": "Ada"}),
        (Shown, {"firstName": "Ada"}),
    ],
)
async def test_a_model_is_read_back_as_it_was_whatever_its_aliases_and_times(running, model, given):
    async def find() -> Any:
        return model.model_validate(given)

    find.__annotations__["return"] = model

    async def visit(ctx: Context, value: Any) -> Any:
        assert value == await ctx.step("find", find) == model.model_validate(given)
        return value

    async with running(job("visit", input=model, output=model)(visit)) as engine:
        for value in (given, model.model_validate(given)):
            run = await finish(engine, await engine.trigger("visit", value))
            assert (run.status, run.error) == ("completed", None)
            again = await finish(engine, await engine.runs.retrigger(run.id))
            assert again.output == run.output


async def test_a_page_sees_a_model_under_its_aliases_and_with_what_it_computes(running):
    async def show(ctx: Context, value: Any) -> Any:
        return value

    async with running(job("show", input=Shown, output=Shown)(show)) as engine:
        run = await finish(engine, await engine.trigger("show", {"firstName": "Ada"}))
    assert run.output == {"firstName": "Ada", "initial": "A"}


async def test_a_stored_input_that_the_changed_model_refuses_fails_the_run_and_says_so(running):
    async def place(ctx: Context, order: Any) -> None: ...

    def version(model: Any) -> Any:
        return job("order", input=model)(place)

    async with running(version(Any), max_concurrent_runs=0) as engine:
        run = await engine.trigger("order", {"count": 1})
    async with running(version(Order)) as engine:
        run = await finish(engine, run)
    assert run.error.type == "InvalidInput"
    assert "input of job 'order'" in run.error.message


class Cat(pydantic.BaseModel):
    name: str


class Dog(pydantic.BaseModel):
    name: str
    breed: str


class Wolf(pydantic.BaseModel):
    name: str


class Kennel(pydantic.BaseModel):
    best: Cat | Dog
    others: list[Cat | Dog | Wolf] = pydantic.Field(default_factory=list)


REX = Dog(name="rex", breed="labrador")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (REX, Cat | Dog),
        (REX, Dog | Cat),
        (Cat(name="tom"), Cat | Dog),
        ([Cat(name="tom"), REX], list[Cat | Dog]),
        ({"a": REX}, dict[str, Cat | Dog]),
        (Kennel(best=REX, others=[REX]), Kennel),
        (Kennel(best=REX), Cat | Kennel),
    ],
)
async def test_a_model_of_a_union_is_read_back_as_the_one_that_keeps_all_of_it(running, value, annotation):
    def find() -> Any:
        return value

    find.__annotations__["return"] = annotation
    bodies: list[Any] = []

    async def take(ctx: Context, given: Any) -> Any:
        bodies.extend([given, await ctx.step("find", find)])
        return value

    async with running(job("take", input=annotation, output=annotation)(take)) as engine:
        run = await finish(engine, await engine.trigger("take", value))
        assert run.error is None
        again = await finish(engine, await engine.trigger("take", run.input))
    assert run.input == again.input == run.output
    assert bodies == [value] * 4


@pytest.mark.parametrize(
    ("value", "annotation", "path"),
    [
        (Wolf(name="grey"), Cat | Wolf, "value"),
        ([Wolf(name="grey")], list[Cat | Wolf], "value[0]"),
        (Kennel(best=REX, others=[Wolf(name="grey")]), Kennel, "value['others']"),
        ([Kennel(best=REX, others=[Wolf(name="grey")])], list[Kennel], "value[0]['others']"),
    ],
)
def test_a_model_that_nothing_tells_from_another_of_its_union_is_refused(value, annotation, path):
    with pytest.raises(SerializationError, match=r"read back as .*Literal") as caught:
        write_down(value, annotation)
    assert caught.value.path == path


def test_pydantic_is_not_imported_unless_it_is_used():
    script = "import durable_web, sys; sys.exit('pydantic' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
