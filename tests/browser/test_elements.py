"""The ready-made elements, on pages that have no script of their own, under a policy that allows no inline style."""

import json
import re

import pytest
from main_thread import traced_tasks
from page_jobs import NASTY
from playwright.sync_api import expect

from chromium import TIMEOUT_MS

expect.set_options(timeout=TIMEOUT_MS)

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self' data:"
)

JOBS = """
import asyncio
from durable_web import FatalError, Retry, SignalTimeout, job

@job("count")
async def count(ctx, input):
    for number in range(input["to"]):
        await ctx.step(f"step {number}", lambda: number)
        ctx.log.info(f"line {number}")
        ctx.progress(number + 1, input["to"], f"at {number}")
    return {"counted": input["to"]}

@job("hold")
async def hold(ctx, input):
    ctx.log.info("holding on")
    if input.get("total"):
        ctx.progress(1, input["total"], "held")
    await asyncio.Event().wait()

@job("flaky")
async def flaky(ctx, _):
    async def call():
        calls.append(1)
        if len(calls) == 1:
            raise FatalError("not yet")
        return "now"
    return await ctx.step("call", call)

calls = []

@job("say")
async def say(ctx, texts):
    async def speak():
        for text in texts:
            ctx.log.error(text, seen=text[:50])
        ctx.progress(1, 2, texts[0])
        return texts[0]
    return await ctx.step(texts[0], speak)

@job("talk")
async def talk(ctx, lines):
    for number in range(lines):
        ctx.log.info(f"line {number}", number=number)

@job("family")
async def family(ctx, input):
    await ctx.step("begin", lambda: None, compensate=lambda _: None)
    await ctx.run_job("child", "flaky-child", input)
    try:
        await ctx.wait_for_signal("nobody", timeout=0)
    except SignalTimeout:
        pass
    await ctx.wait_for_signal("approval", timeout=3600)
    raise FatalError("refused")

@job("flaky-child", retry=Retry(max_attempts=2, backoff=0))
async def flaky_child(ctx, input):
    tries = []
    async def fail_once():
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")
    await ctx.step("<i>try</i>", fail_once)
    await ctx.sleep("nap", 0)

@job("<b onclick=alert(1)>bold</b>")
async def bold(ctx, text):
    raise FatalError(text)
"""

PAGE = """<!doctype html><html lang="en"><title>elements</title><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<script type="module" src="../../durable-elements.js"></script>
<script type="module" src="./client.js"></script>
<link rel="stylesheet" href="./page.css">
<durable-client database="test" jobs="./jobs.py">{body}</durable-client>"""

CLIENT = """
import { connect } from "../../durable-web.js";
globalThis.connected = connect("test", { jobs: ["./jobs.py"] }).then((durable) => (globalThis.durable = durable));
"""


@pytest.fixture
def chromium(browser):
    launched = browser()
    yield launched
    assert launched.console_errors == []
    assert launched.page_errors == []


@pytest.fixture
def show(chromium, write_page):
    """Open a page with these elements in its client, and wait until there is one."""

    def open_page(body, css=""):
        files = {"jobs.py": JOBS, "client.js": CLIENT, "page.css": css}
        page = chromium.open(write_page(PAGE.format(policy=POLICY, body=body), files))
        page.on("dialog", lambda dialog: pytest.fail(f"markup was run: {dialog.message}"))
        page.evaluate("async () => (await connected).status")
        return page

    return open_page


TRIGGER = "async ([job, input]) => (await (await connected).trigger(job, input)).id"
ENDED = """async ([job, input]) => {
  const run = await (await connected).trigger(job, input);
  for await (const frame of durable.runs.watch(run.id));
  return run.id;
}"""


def part(page, element, name):
    return page.locator(f"{element} [part~={name}]")


def test_a_run_is_started_watched_and_its_result_shown_by_elements_alone(show):
    page = show("""<durable-run job="count" input='{"to": 30}' start-label="Count"></durable-run>
                   <durable-progress job="count"></durable-progress><durable-log job="count"></durable-log>""")
    expect(part(page, "durable-run", "message")).to_have_text("Nothing has been run yet.")
    page.get_by_role("button", name="Count").click()
    expect(part(page, "durable-run", "status")).to_have_text("Done")
    expect(part(page, "durable-run", "percent")).to_have_text("100 %")
    expect(part(page, "durable-run", "steps-summary")).to_have_text("30 steps committed")
    expect(part(page, "durable-run", "mark")).to_have_count(30)
    expect(part(page, "durable-log", "line")).to_have_count(30)
    expect(part(page, "durable-log", "line").last).to_contain_text("line 29")
    page.get_by_text("Result").click()
    assert json.loads(part(page, "durable-run", "output").locator("pre").inner_text()) == {"counted": 30}


def test_a_run_that_finished_before_the_page_loaded_shows_as_finished(show):
    page = show("")
    run_id = page.evaluate(ENDED, ["count", {"to": 3}])
    page.close()
    page = show(f"""<durable-run run-id="{run_id}"></durable-run><durable-log run-id="{run_id}"></durable-log>
                    <durable-progress run-id="{run_id}"></durable-progress>""")
    expect(part(page, "durable-run", "status")).to_have_text("Done")
    expect(part(page, "durable-log", "line")).to_have_count(3)
    expect(page.locator("durable-progress [role=progressbar]")).to_have_attribute("aria-valuenow", "100")


def test_after_a_reload_the_unfinished_run_is_shown_and_that_it_was_interrupted(show):
    page = show('<durable-run job="hold" input="{}"></durable-run><durable-log job="hold"></durable-log>')
    page.get_by_role("button", name="Start").click()
    expect(part(page, "durable-run", "status")).to_have_text("Running")
    page.reload()
    expect(part(page, "durable-run", "status")).to_have_text("Running")
    expect(part(page, "durable-run", "survived")).to_contain_text("Survived 1 interruption")
    expect(part(page, "durable-log", "line")).to_have_text(re.compile("holding on"))


def test_progress_has_a_value_where_the_end_is_known_and_none_where_it_is_not(show):
    page = show('<durable-progress job="hold"></durable-progress>')
    bar = page.get_by_role("progressbar")
    page.evaluate(TRIGGER, ["hold", {}])
    expect(bar).to_have_accessible_name("hold")
    expect(bar).not_to_have_attribute("aria-valuenow", re.compile(""))
    page.evaluate(TRIGGER, ["hold", {"total": 4}])
    expect(bar).to_have_attribute("aria-valuenow", "25")
    expect(bar).to_have_attribute("aria-valuetext", "held")


def test_changes_of_state_are_announced_and_log_lines_politely(show):
    page = show('<durable-run job="hold" input="{}"></durable-run><durable-log job="hold"></durable-log>')
    page.get_by_role("button", name="Start").click()
    expect(page.locator("durable-run [role=status]")).to_have_text("hold: Running")
    expect(page.get_by_role("log", name="Log")).to_have_attribute("aria-live", "polite")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("durable-run [role=status]")).to_have_text("hold: Cancelled")


def test_a_failed_run_says_why_and_can_be_tried_again_by_keyboard(show):
    page = show('<durable-run job="flaky" input="null"></durable-run>')
    page.get_by_role("button", name="Start").press("Enter")
    expect(part(page, "durable-run", "error")).to_contain_text("not yet")
    page.get_by_role("button", name="Try again").press("Enter")
    expect(part(page, "durable-run", "status")).to_have_text("Done")
    expect(part(page, "durable-run", "error")).to_be_hidden()
    expect(page.get_by_role("button", name="Start")).to_be_focused()  # what was pressed is not there any more


def test_whatever_a_job_says_is_shown_as_text(show):
    page = show("""<durable-run job="say"></durable-run><durable-progress job="say"></durable-progress>
                   <durable-log job="say"></durable-log><durable-runs></durable-runs>""")
    page.evaluate(TRIGGER, ["say", NASTY])
    expect(part(page, "durable-run", "status")).to_have_text("Done")
    lines = part(page, "durable-log", "line").locator(".text")
    expect(lines).to_have_count(5)
    texts = lines.all_text_contents()
    assert texts[0] == f"error: {NASTY[0]} seen={NASTY[0]}"
    assert texts[1].startswith(f"error: {NASTY[1]}")
    assert texts[2].startswith("error: nul ␀, bell ␇, escape ␛[31m")
    assert texts[3].startswith("error: turned [U+202E] around")
    assert texts[4].startswith("error: " + "x" * 4000 + "… Show all 1,000,000 characters")
    page.get_by_role("button", name="Show all 1,000,000 characters").click()
    assert lines.last.text_content().startswith("error: " + NASTY[4])
    expect(part(page, "durable-progress", "message")).to_have_text(NASTY[0])
    expect(page.locator("img, b")).to_have_count(0)


def test_the_names_and_errors_of_jobs_are_text_too(show):
    page = show("<durable-runs></durable-runs>")
    job = "<b onclick=alert(1)>bold</b>"
    run_id = page.evaluate(ENDED, [job, NASTY[0]])
    expect(page.get_by_role("rowheader")).to_have_text(job)
    page.evaluate(
        """(id) => {
            const run = document.createElement("durable-run");
            run.setAttribute("run-id", id);
            document.querySelector("durable-client").append(run);
        }""",
        run_id,
    )
    expect(part(page, "durable-run", "title")).to_have_text(job)
    expect(part(page, "durable-run", "error")).to_have_text(NASTY[0])
    expect(page.locator("img, b")).to_have_count(0)


def test_runs_are_listed_live_and_paged(show):
    page = show("""<durable-runs job="count" page-size="3" title-field="input.name"></durable-runs>""")
    expect(part(page, "durable-runs", "empty")).to_have_text("There are no runs yet.")
    for number in range(5):
        page.evaluate(ENDED, ["count", {"to": 1, "name": f"number {number}"}])
    titles = page.get_by_role("rowheader")
    expect(titles).to_have_text(["number 4", "number 3", "number 2"])
    expect(part(page, "durable-runs", "status")).to_have_text(["Done"] * 3)
    page.get_by_role("button", name="Older").press("Enter")
    expect(titles).to_have_text(["number 1", "number 0"])
    page.evaluate(ENDED, ["count", {"to": 1, "name": "number 5"}])
    expect(titles).to_have_text(["number 1", "number 0"])
    page.get_by_role("button", name="Newer").click()
    expect(titles).to_have_text(["number 5", "number 4", "number 3"])


@pytest.mark.parametrize("attributes", ["", 'status="" job=""', 'status="completed running" job="count"'])
def test_an_empty_attribute_of_a_list_is_one_that_is_not_there(show, attributes):
    page = show(f"<durable-runs {attributes}></durable-runs>")
    page.evaluate(ENDED, ["count", {"to": 1}])
    expect(part(page, "durable-runs", "status")).to_have_text(["Done"])


def test_a_run_is_cancelled_kept_and_deleted_by_keyboard_from_the_list(show):
    page = show('<durable-runs job="hold"></durable-runs>')
    page.evaluate(TRIGGER, ["hold", {}])
    page.get_by_role("button", name="Cancel hold").press("Enter")
    expect(part(page, "durable-runs", "status")).to_have_text("Cancelled")
    page.get_by_role("button", name="Delete hold").press("Enter")
    expect(page.get_by_role("button", name="Keep hold")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete hold").press("Enter")
    page.get_by_role("button", name="Delete hold for good").press("Enter")
    expect(part(page, "durable-runs", "empty")).to_be_visible()
    assert page.evaluate("async () => (await durable.runs.list()).length") == 0


def test_a_row_keeps_the_focus_when_runs_arrive_above_it(show):
    page = show('<durable-runs job="hold"></durable-runs>')
    page.evaluate(TRIGGER, ["hold", {}])
    page.get_by_role("button", name="Cancel hold").focus()
    page.evaluate(ENDED, ["flaky", None])
    page.evaluate(TRIGGER, ["hold", {}])
    expect(page.get_by_role("rowheader")).to_have_count(2)
    expect(page.get_by_role("button", name="Cancel hold").last).to_be_focused()


def test_a_page_is_told_what_is_chosen_and_may_do_what_a_button_says_itself(show):
    page = show('<durable-runs job="hold"></durable-runs>')
    run_id = page.evaluate(TRIGGER, ["hold", {}])
    page.evaluate("""() => {
        globalThis.told = [];
        addEventListener("durable-select", ({ detail }) => told.push(["select", detail.run.id]));
        addEventListener("durable-action", (event) => {
            told.push([event.detail.action, event.detail.run.id]);
            event.preventDefault();
        });
    }""")
    page.get_by_role("button", name="hold", exact=True).click()
    page.get_by_role("button", name="Cancel hold").click()
    assert page.evaluate("() => told") == [["select", run_id], ["cancel", run_id]]
    assert page.evaluate("async (id) => (await durable.runs.get(id)).status", run_id) == "running"


def test_with_href_the_name_of_a_run_is_a_link(show):
    page = show('<durable-runs href="#run={id}"></durable-runs>')
    run_id = page.evaluate(TRIGGER, ["hold", {}])
    expect(page.get_by_role("link", name="hold")).to_have_attribute("href", f"#run={run_id}")


def node(page, name):
    """One step, as `<durable-steps>` shows it."""
    at = page.locator("[part~=step-name]").get_by_text(name, exact=True)
    return page.locator("durable-steps li").filter(has=at).last


def test_steps_are_shown_with_their_kinds_what_they_wait_for_and_the_runs_they_have_started(show):
    page = show('<durable-steps job="family" href="#run={id}"></durable-steps>')
    expect(part(page, "durable-steps", "note")).to_have_text("No step has been taken yet.")
    run_id = page.evaluate(TRIGGER, ["family", None])
    steps = page.get_by_role("list", name="Steps of family")
    own = steps.locator("> li > div > .spread > span > [part=step-name]")
    expect(own).to_have_text(["begin", "child", "nobody", "approval"])
    expect(node(page, "approval").locator("[part=kind]")).to_have_text("signal")
    expect(node(page, "approval").locator("[part=state]")).to_have_text("Waiting")
    expect(node(page, "approval").locator("[part=reason]")).to_have_text(re.compile("for signal 'approval', until .+"))
    expect(node(page, "nobody").locator("[part=state]")).to_have_text(re.compile("^Failed"))
    inside = page.get_by_role("list", name="Steps of flaky-child")
    expect(inside.locator("[part=step-name]")).to_have_text(["<i>try</i>", "nap"])
    expect(node(page, "<i>try</i>").locator("[part=state]")).to_have_text(re.compile("^Done, attempt 2, "))
    children = page.evaluate("async (parent) => (await durable.runs.list({ parent })).map(({ id }) => id)", run_id)
    expect(page.get_by_role("link", name="child")).to_have_attribute("href", f"#run={children[0]}")
    page.evaluate("(id) => durable.runs.signal(id, 'approval')", run_id)
    expect(node(page, "compensate:begin").locator("[part=kind]")).to_have_text("undo")
    expect(node(page, "compensate:begin").locator("[part=state]")).to_have_text(re.compile("^Undone"))


def test_of_many_steps_the_latest_are_shown(show):
    page = show('<durable-steps job="count"></durable-steps>')
    page.evaluate(ENDED, ["count", {"to": 230}])
    expect(part(page, "durable-steps", "note")).to_have_text("30 older steps not shown")
    expect(part(page, "durable-steps", "step-name").last).to_have_text("step 229")
    expect(part(page, "durable-steps", "step-name")).to_have_count(200)


def test_an_element_finds_its_client_in_its_own_attributes_or_its_property(show):
    page = show("")
    run_id = page.evaluate(ENDED, ["count", {"to": 1}])
    page.evaluate(
        """(id) => {
            const [named, given, lost] = ["named", "given", "lost"].map((name) => {
                const run = document.createElement("durable-run");
                run.id = name;
                run.setAttribute("run-id", id);
                document.body.append(run);
                return run;
            });
            named.setAttribute("database", "test");
            named.setAttribute("jobs", "./jobs.py");
            given.client = durable;
        }""",
        run_id,
    )
    expect(part(page, "#named", "status")).to_have_text("Done")
    expect(part(page, "#given", "status")).to_have_text("Done")
    expect(part(page, "#lost", "problem")).to_contain_text("belongs to no database")


def test_what_is_wrong_is_said_in_place_of_the_element(show):
    page = show("""<durable-run run-id="no such run"></durable-run><durable-log></durable-log>
                   <durable-runs labels="{"></durable-runs>""")
    expect(part(page, "durable-run", "problem")).to_contain_text("no such run")
    expect(part(page, "durable-log", "problem")).to_contain_text("give it the attribute run-id, or job")
    expect(part(page, "durable-runs", "problem")).to_contain_text("The attribute labels of <durable-runs> is not JSON")


def test_an_engine_that_cannot_start_is_told_by_the_client_element(browser, write_page):
    page = browser().open(write_page(PAGE.format(policy=POLICY, body=""), {"jobs.py": "import nothing_of_that_name"}))
    expect(page.locator("durable-client [part=problem]")).to_contain_text("nothing_of_that_name")
    expect(page.locator("durable-client")).to_have_attribute("status", "failed")


def test_colours_follow_the_properties_of_the_page_parts_its_rules_and_both_its_scheme(show):
    page = show(
        '<durable-run job="count"></durable-run>',
        """
        :root { color-scheme: dark; --durable-surface: rgb(1, 2, 3) }
        durable-run::part(title) { color: rgb(4, 5, 6) }
        """,
    )
    style = "(element) => [getComputedStyle(element).backgroundColor, getComputedStyle(element).color]"
    assert part(page, "durable-run", "card").evaluate(style)[0] == "rgb(1, 2, 3)"
    assert part(page, "durable-run", "title").evaluate(style)[1] == "rgb(4, 5, 6)"
    assert part(page, "durable-run", "card").evaluate(style)[1] == "rgb(230, 237, 235)"  # the text of the dark scheme


FLOOD = """async (lines) => {
  const run = await durable.trigger("talk", lines);
  const log = document.querySelector("durable-log").shadowRoot;
  const isThere = () => log.textContent.includes(`line ${lines - 1} `);
  const rest = () => `${lines - 200} older lines not shown`.replace(/(\\d)(\\d{3}) /, "$1,$2 ");
  const linesIn = (nodes) => [...nodes].filter((node) => node.matches?.("[part~=line]")).length;
  let [most, mostAtOnce] = [0, 0];
  new MutationObserver((changes) => { // called when a piece of work is done
    mostAtOnce = Math.max(mostAtOnce, changes.reduce((sum, { addedNodes }) => sum + linesIn(addedNodes), 0));
  }).observe(log, { childList: true, subtree: true });
  while (!isThere() || !log.textContent.includes(rest())) {
    most = Math.max(most, log.querySelectorAll("[part~=line]").length);
    await new Promise(requestAnimationFrame);
  }
  return [most, log.querySelectorAll("[part~=line]").length, mostAtOnce];
}"""


def flood(page, lines):
    """What each task of the page's main thread takes while a job logs in a tight loop."""
    with traced_tasks(page) as tasks:
        most, last, most_at_once = page.evaluate(FLOOD, lines)
    assert most <= last == 200  # a log holds no more of the page than it is told to
    assert most_at_once <= 200
    return tasks


def test_a_job_that_logs_in_a_tight_loop_gives_a_page_of_elements_its_work_in_small_pieces(show):
    page = show('<durable-run job="talk"></durable-run><durable-log job="talk"></durable-log>')
    tasks = flood(page, 9_000)
    assert max(tasks) < sum(tasks) / 3


EVERY_FRAME = {
    "client/watch.js": ("const BATCH_FRAMES = 256;", "const BATCH_FRAMES = 1;"),
    "bindings/binding.js": ("void nextFrame().then(", "void Promise.resolve().then("),
}
"""What makes elements render with every frame of a timeline, instead of with every animation frame."""


def test_elements_are_rendered_once_per_animation_frame_however_many_frames_a_timeline_has(show, chromium):
    """The measure is the same page, made to render with every frame: it is many times as busy."""
    elements = '<durable-run job="talk"></durable-run><durable-log job="talk"></durable-log>'
    page = show(elements)
    paced = sum(flood(page, 3_000))
    page.close()
    for name, (text, replacement) in EVERY_FRAME.items():
        chromium.context.route(f"**/{name}", _replacing(text, replacement))
    unpaced = sum(flood(show(elements), 3_000))
    assert paced * 10 < unpaced


def _replacing(text, replacement):
    def answer(route):
        response = route.fetch()
        assert text in response.text()
        route.fulfill(response=response, body=response.text().replace(text, replacement))

    return answer


def test_elements_fit_a_phone(show):
    page = show(
        """<durable-run job="count"></durable-run><durable-log job="count"></durable-log><durable-runs></durable-runs>
           <durable-steps job="say"></durable-steps>"""
    )
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate(ENDED, ["count", {"to": 150}])
    page.evaluate(ENDED, ["say", ["y" * 500]])
    expect(page.get_by_role("rowheader")).to_have_count(2)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
