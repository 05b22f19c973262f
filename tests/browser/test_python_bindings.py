"""The bindings of `durable_page.py`, under Pyodide and MicroPython alike."""

import json

import pytest
from page_jobs import JOBS, NASTY

TELL = """
import asyncio
import json

from durable_page import DurableError, actions, connect, job, logs, runs
from pyscript import document, when

async def until(binding, holds):
    while not holds(binding):
        news = asyncio.Event()
        listener = lambda changed: news.set()
        binding.changed.add_listener(listener)
        if not holds(binding):
            await news.wait()
        binding.changed.remove_listener(listener)

def tell(**told):
    document.title = json.dumps(told)
"""


@pytest.fixture
def chromium(browser):
    return browser()


@pytest.fixture(params=["mpy", pytest.param("py", marks=pytest.mark.deep)])
def python(request, chromium, python_url):
    """Run a main.py on a page, under either interpreter, and return what it tells."""

    def run(source):
        page = chromium.open(python_url(request.param, TELL + source, JOBS))
        page.wait_for_function("() => document.title !== 'python' || document.querySelector('.py-error, .mpy-error')")
        told = page.title()
        assert told.startswith("{"), page.inner_text("body")
        return page, json.loads(told)

    return run


def test_in_python_a_job_is_triggered_and_tells_when_it_has_changed(python):
    _, told = python("""
durable = await connect("test", ["./jobs.py"])
count = job(durable, "count")
statuses, ids, noted = [], [], asyncio.Event()
before = [count.run_id, count.status, count.output, count.progress, count.error, count.logs, count.is_active]

@when(count.changed)
def note():
    statuses.append(count.status)

@when(count.changed)
async def note_run(binding):
    ids.append(binding.run_id)
    noted.set()

run = await count.trigger({"to": 20})
await until(count, lambda count: count.is_completed and len(count.logs) == 20)
waited = await count.trigger_and_wait({"to": 2}, labels={"snake_case": "kept"})
await until(count, lambda count: [line.run_id for line in count.logs] == [waited.id] * 2)
await until(count, lambda count: statuses[-1] == "completed")
while not (ids and ids[-1] == waited.id):  # it is called in a task, later than `until` looks
    noted.clear()
    await noted.wait()
tell(before=before, last=statuses[-1], output=count.output, labels=waited.labels, status=waited.status,
     logs=[line.message for line in count.logs], progress=[count.progress.current, count.percentage],
     ids=run.id in ids and waited.id in ids, job=count.run.job,
     steps=[step.name for step in count.steps] * count.step_count)
""")
    assert told["before"] == [None, None, None, None, None, [], False]
    assert told["last"] == told["status"] == "completed"
    assert told["labels"] == {"snake_case": "kept"}
    assert (told["output"], told["job"], told["steps"]) == ({"counted": 2}, "count", ["step 0", "step 1"] * 2)
    assert told["logs"] == ["line 0", "line 1"]
    assert told["progress"] == [2, 100]
    assert told["ids"]


def test_in_python_runs_are_live_paged_and_acted_upon(python):
    _, told = python("""
durable = await connect("test", ["./jobs.py"])
for number in range(12):
    await durable.trigger("count", {"to": 1})
listed = runs(durable, job="count", page_size=5)
await until(listed, lambda listed: len(listed.items) == 5 and all([run.status == "completed" for run in listed.items]))
pages = [[listed.page, listed.has_more, listed.has_previous]]
await listed.next()
await listed.go_to_page(3)
pages.append([listed.page, len(listed.items), listed.has_more, listed.has_previous])
await listed.previous()
await listed.go_to_page(1)

held = job(durable, "hold", follow_latest=False)
run = await held.trigger("on")
await until(held, lambda held: held.is_running)
cancelled = await actions(durable).cancel(run.id)
await until(held, lambda held: held.is_cancelled)
acts = actions(durable)
try:
    await acts.cancel(run.id)
    refused = None
except DurableError as error:
    refused = error.code
problem = acts.error.code
await acts.delete(run.id)
await until(held, lambda held: held.problem is not None)
gone = [held.problem.code, held.status]
held.reset()
tell(pages=pages, page=listed.page, cancelled=cancelled.status, refused=refused, problem=problem, gone=gone,
     after=[held.run_id, held.problem], busy=acts.is_busy)
""")
    assert told["pages"] == [[1, True, False], [3, 2, False, True]]
    assert (told["page"], told["cancelled"], told["busy"]) == (1, "cancelled", False)
    assert told["refused"] == told["problem"] == "RunNotActive"
    assert told["gone"] == ["RunNotFound", None]
    assert told["after"] == [None, None]


def test_in_python_what_a_run_publishes_is_there_and_it_is_answered(python):
    _, told = python("""
durable = await connect("test", ["./jobs.py"])
asked = job(durable, "ask")
run = await asked.trigger("why?")
await until(asked, lambda asked: asked.is_waiting and "question" in asked.published)
question = asked.published["question"]
await actions(durable).pause(run.id)
await until(asked, lambda asked: asked.run.paused)
first = await actions(durable).signal(run.id, "answer", "because", signal_id="first")
second = await actions(durable).signal(run.id, "answer", "again", signal_id="first")
await actions(durable).resume(run.id)
await until(asked, lambda asked: asked.is_completed)
listed = runs(durable, job="ask", payloads=True)
await listed.hydrated()
small = await durable.runs.list(payloads=False)
tell(question=question, answered=[first, second], outputs=[run.output for run in listed.items],
     small=[run.output for run in small], seq=asked.run.last_seq > 5)
""")
    assert told == {
        "question": {"text": "why?"},
        "answered": [True, False],
        "outputs": ["because"],
        "small": [None],
        "seq": True,
    }


def test_in_python_lines_are_bound_as_text_and_the_latest_are_kept(python):
    page, told = python(f"""
import js
texts = {NASTY[:3]!r}
durable = await connect("test", ["./jobs.py"])
said = job(durable, "say")
said.bind(document.getElementById("line"))
said.bind(document.getElementById("bar"))
run = await said.trigger_and_wait(texts)
log = logs(durable, run.id, max=2)
log.bind(document.getElementById("lines"))
await until(said, lambda said: document.getElementById("line").textContent.startswith("Done"))
await until(log, lambda log: len(log.logs) + log.dropped_logs == 3 and document.getElementById("lines").textContent)
tell(kept=[line.message for line in log.logs] == texts[1:], dropped=log.dropped_logs, text=said.text)
""")
    assert told == {"kept": True, "dropped": 1, "text": f"Done: {NASTY[0]}"}
    assert page.inner_text("#line") == f"Done: {NASTY[0]}"
    assert "nul ␀, bell ␇, escape ␛[31m" in page.inner_text("#lines")
    assert page.locator("#line *, #lines *").count() == 0
    assert page.evaluate("() => document.getElementById('bar').position") == 1


def test_in_python_the_client_does_with_runs_what_the_engine_can(python):
    _, told = python("""
durable = await connect("test", ["./jobs.py"])
following = durable.runs.watch_all("now", jobs=["count"], kinds=["run_status"])
run = await durable.trigger("count", {"to": 3})
seen = []
async for frame in following:
    seen.append([frame.run_id == run.id, frame.kind, frame.status])
    if frame.status == "completed":
        break
following.close()
lines = await durable.runs.logs(run.id, limit=2)
rest = await durable.runs.logs(run.id, from_seq=lines[-1].seq, level="info")
fork = await durable.runs.fork(run.id, "step 1")
async for _ in durable.runs.watch(fork.id):
    pass
other = await durable.trigger("fail once")
async for _ in durable.runs.watch(other.id):
    pass
again = await durable.runs.retry(other.id, input=None)
async for _ in durable.runs.watch(other.id):
    pass
tell(seen=seen, lines=[line.message for line in lines + rest], counts=await durable.runs.count(),
     steps=[step.name for step in await durable.runs.steps(fork.id)], event=await durable.runs.value(run.id, "none"),
     again=[again.id == other.id, (await durable.runs.get(other.id)).output])
""")
    assert [status for _, _, status in told["seen"]] == ["pending", "running", "completed"]
    assert all(of_run and kind == "run_status" for of_run, kind, _ in told["seen"])
    assert told["lines"] == ["line 0", "line 1", "line 2"]
    assert (told["counts"], told["event"]) == ({"completed": 3}, None)
    assert told["steps"] == ["step 0", "step 1", "step 2"]
    assert told["again"] == [True, "now"]
