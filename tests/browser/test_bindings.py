"""Bindings: what a page shows of a job is read from one object."""

import pytest
from page_jobs import JOBS, NASTY

LOAD = """async () => {
  Object.assign(globalThis, await import("../../durable-bindings.js"));
  globalThis.until = (binding, holds) => new Promise((resolve) => {
    const look = () => {
      if (!holds(binding)) return;
      binding.removeEventListener("changed", look);
      resolve(binding);
    };
    binding.addEventListener("changed", look);
    look();
  });
  globalThis.state = ({ runId, status, output, progress, logs }) =>
    ({ runId, status, output, progress, logs: logs.map(({ message }) => message) });
  return connected(["./jobs.py"]);
}"""


@pytest.fixture
def chromium(browser):
    return browser()


@pytest.fixture
def tab(chromium, client_url):
    """Open one more tab of the same page, connected, with the bindings at hand."""
    url = client_url(JOBS)

    def open_tab():
        page = chromium.open(url)
        assert page.evaluate(LOAD) == "ready"
        return page

    return open_tab


def test_a_job_is_triggered_and_shows_how_it_goes(tab):
    page = tab()
    told = page.evaluate("""async () => {
        const count = job(durable, "count");
        const before = state(count);
        const seen = new Set();
        count.addEventListener("changed", () => seen.add(count.status));
        const { id } = await count.trigger({ to: 20 });
        await until(count, ({ isTerminal }) => isTerminal);
        await until(count, ({ logs }) => logs.length === 20);
        const { runId, isActive, isCompleted, isFailed, percentage, stepCount } = count;
        const more = { runId, isActive, isCompleted, isFailed, percentage, stepCount };
        return { before, id, seen: [...seen], after: state(count), ...more };
    }""")
    assert told["before"] == {"runId": None, "status": None, "output": None, "progress": None, "logs": []}
    assert told["after"] == {
        "runId": told["id"],
        "status": "completed",
        "output": {"counted": 20},
        "progress": {"current": 20, "total": 20, "message": "at 19"},
        "logs": [f"line {number}" for number in range(20)],
    }
    assert told["seen"][-1] == "completed"
    assert (told["isActive"], told["isCompleted"], told["isFailed"]) == (False, True, False)
    assert (told["percentage"], told["stepCount"]) == (100, 20)


def test_trigger_and_wait_gives_the_run_when_it_has_ended(tab):
    told = tab().evaluate("""async () => {
        const count = job(durable, "count");
        const run = await count.triggerAndWait({ to: 2 });
        return { run, shown: count.runId };
    }""")
    assert (told["run"]["status"], told["run"]["output"]) == ("completed", {"counted": 2})
    assert told["shown"] == told["run"]["id"]


def test_a_run_that_finished_before_the_page_loaded_shows_as_finished(tab):
    page = tab()
    run_id = page.evaluate("async () => (await job(durable, 'count').triggerAndWait({ to: 3 })).id")
    page.reload()
    page.evaluate(LOAD)
    told = page.evaluate(
        """async (id) => {
            const binding = run(durable, id);
            const statuses = [];
            binding.addEventListener("changed", () => statuses.push(binding.status));
            await until(binding, ({ isHydrated, logs }) => isHydrated && logs.length === 3);
            return { ...state(binding), statuses };
        }""",
        run_id,
    )
    assert set(told["statuses"]) <= {None, "completed"}
    assert (told["output"], told["progress"]["current"]) == ({"counted": 3}, 3)
    assert told["logs"] == ["line 0", "line 1", "line 2"]


@pytest.mark.parametrize("auto_resume", [True, False])
def test_auto_resume_finds_the_unfinished_run_when_the_page_loads(tab, auto_resume):
    page = tab()
    run_id = page.evaluate("async () => (await durable.trigger('hold', 'on')).id")
    page.reload()
    page.evaluate(LOAD)
    told = page.evaluate(
        """async (autoResume) => {
            const held = job(durable, "hold", { autoResume });
            await held.resumed;
            if (autoResume) await until(held, ({ logs, isRunning }) => logs.length && isRunning);
            return state(held);
        }""",
        auto_resume,
    )
    if auto_resume:
        assert (told["runId"], told["logs"], told["progress"]["message"]) == (run_id, ["holding on"], "held")
    else:
        assert (told["runId"], told["status"]) == (None, None)


def test_follow_latest_switches_to_what_another_tab_triggers_and_nothing_else_does(tab):
    first, second = tab(), tab()
    first.evaluate("""async () => {
        globalThis.following = job(durable, "count");
        globalThis.staying = job(durable, "count", { followLatest: false });
        await staying.triggerAndWait({ to: 1 });
        await until(following, ({ isCompleted }) => isCompleted);
        globalThis.mine = staying.runId;
    }""")
    theirs = second.evaluate("""async () => {
        await durable.trigger("hold", "not this job");
        return (await job(durable, "count").triggerAndWait({ to: 2 })).id;
    }""")
    told = first.evaluate(
        """async (theirs) => {
            const isTheirs = ({ runId, isCompleted, logs }) => runId === theirs && isCompleted && logs.length === 2;
            await until(following, isTheirs);
            return { following: state(following), staying: staying.runId, mine };
        }""",
        theirs,
    )
    assert told["following"]["output"] == {"counted": 2}
    assert told["following"]["logs"] == ["line 0", "line 1"]  # nothing of the run before
    assert told["staying"] == told["mine"]


def test_a_binding_goes_on_when_the_tab_that_runs_the_engine_is_closed(tab):
    first, second = tab(), tab()
    second.evaluate("""async () => {
        globalThis.slow = job(durable, "slow");
        globalThis.listed = runs(durable, { job: "slow" });
        await slow.trigger(60);
        await until(slow, ({ logs }) => logs.length > 5);
    }""")
    first.close()
    told = second.evaluate("""async () => {
        await until(slow, ({ isCompleted, logs }) => isCompleted && logs.length === 60);
        await until(listed, ({ items }) => items[0].status === "completed");
        const executions = new Set(slow.steps.map(({ runAttempt }) => runAttempt));
        return { ...state(slow), attempt: slow.run.attempt, executions: [...executions] };
    }""")
    assert told["logs"] == [f"line {number}" for number in range(60)]  # each once
    assert (told["attempt"], told["executions"]) == (2, [1, 2])


def test_a_run_that_is_taken_up_again_is_live_again_and_one_that_is_deleted_is_gone(tab):
    told = tab().evaluate("""async () => {
        const binding = job(durable, "fail once", { followLatest: false });
        const { id, error } = await binding.triggerAndWait();
        await until(binding, ({ isFailed }) => isFailed);
        const failed = { text: binding.text, error };
        await durable.runs.retry(id);
        await until(binding, ({ isCompleted }) => isCompleted);
        const completed = state(binding);
        await durable.runs.delete(id);
        await until(binding, ({ problem }) => problem);
        return { failed, completed, gone: binding.status, problem: binding.problem.code };
    }""")
    message = told["failed"]["error"]["message"]
    assert message.endswith("not yet")
    assert told["failed"]["text"] == f"Failed: {message}"
    assert (told["completed"]["output"], told["completed"]["logs"]) == ("now", ["before"])
    assert (told["gone"], told["problem"]) == (None, "RunNotFound")


def test_reset_shows_nothing_until_there_is_a_new_run_and_the_old_one_goes_on(tab):
    told = tab().evaluate("""async () => {
        const held = job(durable, "hold");
        const { id } = await held.trigger("on");
        await until(held, ({ isRunning }) => isRunning);
        held.reset();
        const after = state(held);
        const { id: next } = await durable.trigger("hold", "again");
        await until(held, ({ runId }) => runId === next);
        return { after, status: (await durable.runs.get(id)).status };
    }""")
    assert (told["after"]["runId"], told["after"]["logs"]) == (None, [])
    assert told["status"] == "running"


def test_the_kept_lines_are_the_latest_and_the_others_are_counted(tab):
    told = tab().evaluate("""async () => {
        const { id } = await job(durable, "count").triggerAndWait({ to: 50 });
        const binding = logs(durable, id, { max: 10 });
        await until(binding, (lines) => lines.logs.length + lines.droppedLogs === 50);
        return { ...state(binding), dropped: binding.droppedLogs, text: binding.text };
    }""")
    assert told["logs"] == [f"line {number}" for number in range(40, 50)]
    assert told["dropped"] == 40
    assert told["text"].splitlines() == told["logs"]


def test_changed_comes_once_per_frame_and_not_at_all_after_close(tab):
    told = tab().evaluate("""async () => {
        const count = job(durable, "count");
        const times = [];
        count.addEventListener("changed", () => times.push(document.timeline.currentTime));
        await count.triggerAndWait({ to: 200 });
        await until(count, ({ isCompleted }) => isCompleted);
        const same = times.filter((time, index) => time === times[index - 1]).length;
        count.close();
        const before = times.length;
        await durable.trigger("count", { to: 1 });
        await job(durable, "count").triggerAndWait({ to: 1 });
        return { same, after: times.length - before };
    }""")
    assert told == {"same": 0, "after": 0}


def test_pages_are_turned_while_new_runs_arrive_and_no_run_is_passed_over(tab):
    told = tab().evaluate("""async () => {
        const made = [];
        const add = async () => made.push((await durable.trigger("count", { to: 0 })).id);
        for (let number = 0; number < 25; number += 1) await add();
        const listed = runs(durable, { job: "count", pageSize: 10 });
        await until(listed, ({ isHydrated }) => isHydrated);
        const ids = () => listed.items.map(({ id }) => id);
        const first = ids();
        await add();
        await until(listed, () => ids()[0] === made.at(-1));   // by itself
        const grown = ids();
        await listed.next();
        await add();
        const second = ids();
        await listed.goToPage(3);
        const [third, atEnd] = [ids(), { page: listed.page, hasMore: listed.hasMore }];
        await listed.goToPage(9);
        const beyond = listed.page;
        await listed.goToPage(1);
        return { made: made.reverse(), first, grown, second, third, atEnd, beyond, again: ids() };
    }""")
    made = told["made"]
    assert told["first"] == made[2:12]
    assert told["grown"] == made[1:11]
    assert told["second"] == made[11:21]
    assert told["third"] == made[21:27]
    assert (told["atEnd"], told["beyond"]) == ({"page": 3, "hasMore": False}, 3)
    assert told["again"] == made[0:10]


def test_a_list_follows_status_progress_and_deletion_and_without_realtime_only_refresh(tab):
    told = tab().evaluate("""async () => {
        const live = runs(durable, { status: ["running"] });
        const still = runs(durable, { status: ["running"], realtime: false });
        await until(still, ({ isHydrated }) => isHydrated);
        const { id } = await durable.trigger("hold", "on");
        await until(live, ({ items }) => items[0]?.progress?.current === 1);
        const before = still.items.length;
        await still.refresh();
        const refreshed = still.items.length;
        await durable.runs.cancel(id);
        await until(live, ({ items }) => !items.length);
        const ended = runs(durable, { status: ["cancelled"] });
        await until(ended, ({ items }) => items.length === 1);
        await durable.runs.delete(id);
        await until(ended, ({ items }) => !items.length);
        return { before, refreshed };
    }""")
    assert told == {"before": 0, "refreshed": 1}


def test_a_list_comes_without_what_its_runs_hold_unless_it_is_asked_for(tab):
    told = tab().evaluate("""async () => {
        const texts = ["x".repeat(1_000_000)];
        await job(durable, "say").triggerAndWait(texts);
        const [small, whole] = [runs(durable), runs(durable, { payloads: true })];
        for (const listed of [small, whole]) await until(listed, ({ isHydrated }) => isHydrated);
        const held = ({ items: [{ input, output, status }] }) => [input?.[0].length, output?.length, status];
        return [held(small), held(whole)];
    }""")
    assert told == [[None, None, "completed"], [1_000_000, 1_000_000, "completed"]]


CLOCKS = {"stands still": "1_800_000_000_000", "runs backwards": "1_800_000_000_000 - next(ticks)"}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_what_is_news_is_told_by_the_order_of_frames_and_not_by_a_clock(chromium, client_url, clock):
    """In particular where many frames are of the same millisecond."""
    page = chromium.open(
        client_url(f"""
import asyncio, itertools
from durable_web import job
from durable_web._clock import SystemClock

ticks = itertools.count()
SystemClock.now = lambda self: {clock}

@job("climb")
async def climb(ctx, _):
    for number in range(1, 6):
        ctx.progress(number, 5)
        await ctx.step(f"step {{number}}", asyncio.sleep, 0.12)
    await asyncio.Event().wait()
""")
    )
    page.evaluate(LOAD)
    told = page.evaluate("""async () => {
        let reads = 0;
        const { get } = durable.runs;
        durable.runs.get = (id) => (reads += 1, get(id));
        const climbing = job(durable, "climb");
        const listed = runs(durable);
        const [seen, listedSeen] = [[], []];
        climbing.addEventListener("changed", () => seen.push(climbing.progress?.current ?? 0));
        listed.addEventListener("changed", () => listedSeen.push(listed.items[0]?.progress?.current ?? 0));
        await climbing.trigger();
        await until(climbing, ({ progress, stepCount }) => progress?.current === 5 && stepCount === 5);
        await until(listed, ({ items }) => items[0]?.progress?.current === 5);
        return { reads, seen, listedSeen, status: climbing.status, lastSeq: climbing.run.lastSeq };
    }""")
    assert told["seen"] == sorted(told["seen"])
    assert told["listedSeen"] == sorted(told["listedSeen"])
    assert set(told["seen"]) >= {1, 2, 3, 4, 5}
    assert told["status"] == "running"
    assert told["reads"] <= 2  # all that came later was taken from the frames


def test_actions_say_whether_they_are_at_work_and_what_went_wrong(tab):
    told = tab().evaluate("""async () => {
        const acting = actions(durable);
        const { id } = await durable.trigger("hold", "on");
        const cancelling = acting.cancel(id);
        const whileBusy = acting.isBusy;
        const cancelled = await cancelling;
        const refused = await acting.cancel(id).catch(({ code }) => code);
        const { error, isBusy } = acting;
        const again = await acting.retrigger(id);
        const steps = await acting.steps(again.id);
        await acting.delete(id);
        const gone = await acting.get(id).catch(({ code }) => code);
        return { whileBusy, status: cancelled.status, refused, code: error.code, isBusy, steps, gone };
    }""")
    assert told == {
        "whileBusy": True,
        "status": "cancelled",
        "refused": "RunNotActive",
        "code": "RunNotActive",
        "isBusy": False,
        "steps": [],
        "gone": "RunNotFound",
    }


def test_what_a_run_publishes_is_there_and_it_is_answered_paused_and_resumed(tab):
    told = tab().evaluate("""async () => {
        const [asked, acting] = [job(durable, "ask"), actions(durable)];
        const { id } = await asked.trigger("why?");
        await until(asked, ({ published, isWaiting }) => isWaiting && published.question);
        const before = Object.entries(asked.published);
        const paused = (await acting.pause(id)).paused;
        await until(asked, ({ run }) => run.paused);
        const answered = [
            await acting.signal(id, "answer", "because", { signalId: "first" }),
            await acting.signal(id, "answer", "again", { signalId: "first" }),
        ];
        await acting.resume(id);
        await until(asked, ({ isCompleted, published }) => isCompleted && published.question === null);
        const late = run(durable, id);
        await late.hydrated();
        await until(late, ({ published }) => published.question === null);
        return { before, paused, answered, output: late.output };
    }""")
    assert told["before"] == [["question", {"text": "why?"}], ["__proto__", "a key like any other"]]
    assert (told["paused"], told["answered"], told["output"]) == (True, [True, False], "because")


def test_one_can_wait_until_a_binding_shows_what_is_in_the_store(tab):
    told = tab().evaluate("""async () => {
        const { id } = await job(durable, "count").triggerAndWait({ to: 1 });
        const [known, unknown, listed] = [run(durable, id), run(durable, "nobody"), runs(durable)];
        const [none, closed] = [job(durable, "say"), run(durable, "nobody else")];
        closed.close();
        await Promise.all([known, unknown, listed, none, closed].map((binding) => binding.hydrated()));
        return [known.status, unknown.problem.code, listed.items.length, none.runId];
    }""")
    assert told == ["completed", "RunNotFound", 1, None]


def test_whatever_a_job_says_is_bound_as_text(tab):
    page = tab()
    shown = page.evaluate(
        """async (texts) => {
            const said = job(durable, "say");
            for (const tag of ["p", "pre", "progress"]) document.body.append(document.createElement(tag));
            const [line, lines, bar] = document.body.querySelectorAll("p, pre, progress");
            said.bind(line);
            said.bind(bar);
            const { id } = await said.triggerAndWait(texts);
            const log = logs(durable, id);
            log.bind(lines);
            await until(said, ({ isCompleted }) => isCompleted);
            await until(log, ({ logs }) => logs.length === texts.length);
            await new Promise(requestAnimationFrame);
            const inside = document.body.querySelectorAll("p *, pre *").length;
            return { line: line.textContent, lines: lines.textContent, inside, position: bar.position };
        }""",
        NASTY,
    )
    assert shown["line"] == f"Done: {NASTY[0]}"
    lines = shown["lines"].splitlines()
    assert lines[0] == f"warning: {NASTY[0]} seen={NASTY[0]}"
    assert lines[1].startswith(f"warning: {NASTY[1]}")
    assert lines[2].startswith("warning: nul ␀, bell ␇, escape ␛[31m")
    assert lines[3].startswith("warning: turned [U+202E] around")
    assert lines[4].startswith(f"warning: {NASTY[4]}")
    assert (shown["inside"], shown["position"]) == (0, 1)
