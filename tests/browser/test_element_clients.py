"""Elements follow their client: another database, a failed start, a client that the page gives, a move in the page."""

import pytest
from playwright.sync_api import expect

from chromium import TIMEOUT_MS

expect.set_options(timeout=TIMEOUT_MS)

JOBS = """
from durable_web import job

@job("say")
async def say(ctx, text):
    ctx.log.info(f"said {text}")
    return text
"""
PAGE = """<!doctype html><html lang="en"><title>elements</title><link rel="icon" href="data:,">
<script type="module" src="../../durable-elements.js"></script>
{body}"""
INSIDE = """<durable-client id="client" database="one" jobs="./jobs.py">
<durable-run id="run" job="say" input='"hello"' actions=""></durable-run>
<durable-runs id="runs" job="say"></durable-runs>
</durable-client>"""
COUNT_RUNS = """async (names) => {
  const { connect } = await import("../../durable-web.js");
  const counts = {};
  for (const name of names) {
    const client = await connect(name, { jobs: ["./jobs.py"] });
    counts[name] = (await client.runs.list()).length;
  }
  return counts;
}"""


@pytest.fixture
def opened(browser, write_page):
    """Open a page with these elements in its body."""

    def open_page(body=INSIDE, files=None):
        return browser().open(write_page(PAGE.format(body=body), {"jobs.py": JOBS, **(files or {})}))

    return open_page


def attach(page, **attributes):
    """Set attributes of the client's element in one turn."""
    page.evaluate(
        "(attributes) => { for (const [name, value] of Object.entries(attributes)) client.setAttribute(name, value); }",
        attributes,
    )


def start(page):
    page.locator("#run [part~=button]", has_text="Start").click()
    expect(page.locator("#run [part~=status]")).to_have_text("Done")


def test_after_another_database_was_named_everything_inside_is_of_that_one(opened):
    page = opened()
    start(page)
    expect(page.locator("#runs [part~=row]")).to_have_count(1)
    old = page.evaluate_handle("() => client.client")

    attach(page, database="two")

    expect(page.locator("#runs [part~=empty]")).to_be_visible()
    expect(page.locator("#run [part~=status]")).to_be_hidden()
    start(page)
    expect(page.locator("#runs [part~=row]")).to_have_count(1)
    page.wait_for_function("(old) => old.status === 'closed'", arg=old)
    assert page.evaluate(COUNT_RUNS, ["one", "two"]) == {"one": 1, "two": 1}


def test_while_another_database_is_opened_nothing_of_the_old_one_is_left(opened):
    page = opened()
    start(page)
    left = page.evaluate("""async () => {
        client.setAttribute("database", "two");
        await new Promise(setTimeout);
        return [client.client, run.shadowRoot.children.length, runs.shadowRoot.children.length];
    }""")
    assert left == [None, 0, 0]


def test_of_names_that_are_set_in_quick_succession_the_last_one_counts(opened):
    page = opened()
    page.evaluate("""async () => {
        client.setAttribute("database", "two");
        client.setAttribute("database", "three");
        await new Promise(setTimeout);
        client.setAttribute("database", "four");
    }""")
    page.wait_for_function("() => client.client?.name === 'four'")
    start(page)
    assert page.evaluate("async () => (await navigator.locks.query()).held.map(({ name }) => name)") == [
        "durable-web:four"
    ]


def test_other_jobs_of_the_same_database_are_loaded(opened):
    page = opened(files={"more.py": JOBS.replace('"say"', '"sing"').replace("def say", "def sing")})
    page.wait_for_function("() => client.client")
    attach(page, jobs="./jobs.py ./more.py")
    page.wait_for_function("() => client.client?.status === 'ready' && client.getAttribute('status') === 'ready'")
    output = page.evaluate("async () => (await client.client.trigger('sing', 'la')).job")
    assert output == "sing"


def test_a_start_that_failed_can_be_tried_again(opened):
    page = opened()
    page.wait_for_function("() => client.client")
    page.context.route("**/jobs.py", lambda route: route.fulfill(status=503))
    attach(page, database="two")
    expect(page.locator("#client [part~=problem]").first).to_contain_text("the server answered 503")
    page.context.unroute("**/jobs.py")

    page.get_by_role("button", name="Try again").first.click()

    start(page)
    expect(page.locator("#client [part~=problem]").first).to_be_hidden()


def test_a_start_that_failed_is_tried_again_when_the_element_is_put_back(opened):
    page = opened(INSIDE.replace("./jobs.py", "./none.py"))
    expect(page.locator("#client [part~=problem]").first).to_contain_text("404")
    page.evaluate("""() => {
        globalThis.client = document.getElementById("client");
        client.remove();
        client.setAttribute("jobs", "./jobs.py");
        document.body.append(client);
    }""")
    start(page)


def test_an_element_that_is_moved_into_another_client_follows_that_one(opened):
    other = '<durable-client id="other" database="other" jobs="./jobs.py"></durable-client>'
    page = opened(INSIDE + other)
    start(page)
    page.evaluate("() => other.append(run)")
    expect(page.locator("#run [part~=status]")).to_be_hidden()
    start(page)
    assert page.evaluate(COUNT_RUNS, ["one", "other"]) == {"one": 1, "other": 1}


def test_a_client_that_is_moved_in_the_page_stays_connected(opened):
    page = opened(INSIDE + '<div id="elsewhere"></div>')
    start(page)
    before = page.evaluate_handle("() => client.client")
    page.evaluate("() => elsewhere.append(client)")
    expect(page.locator("#run [part~=status]")).to_have_text("Done")
    assert page.evaluate("(before) => client.client === before && before.status === 'ready'", before)


def test_a_client_that_was_given_before_the_elements_were_defined_can_be_replaced(browser, write_page):
    body = "<script>globalThis.early = document.createElement('durable-runs'); document.documentElement.append(early);"
    page = browser().open(write_page(f"<!doctype html><title>early</title>{body}</script>", {"jobs.py": JOBS}))
    page.evaluate("""async () => {
        const { connect } = await import("../../durable-web.js");
        const [one, two] = await Promise.all(["one", "two"].map((name) => connect(name, { jobs: ["./jobs.py"] })));
        const run = await two.trigger("say", "here");
        for await (const frame of two.runs.watch(run.id));
        early.client = one;
        await import("../../durable-elements.js");
        globalThis.two = two;
    }""")
    page.locator("durable-runs [part~=empty]").wait_for()
    page.evaluate("() => { early.client = two; }")
    expect(page.locator("durable-runs [part~=row]")).to_have_count(1)
    assert page.evaluate("() => Object.hasOwn(early, 'client')") is False


def test_an_element_with_a_database_of_its_own_shares_the_client_and_the_page_keeps_it(opened):
    own = '<durable-run id="run" job="say" input="1" actions="" database="one" jobs="./jobs.py"></durable-run>'
    page = opened(own)
    start(page)
    page.evaluate("""async () => {
        const { connect } = await import("../../durable-web.js");
        globalThis.mine = await connect("one", { jobs: ["./jobs.py"] });
        document.getElementById("run").remove();
        await new Promise((resolve) => setTimeout(resolve, 50));
    }""")
    assert page.evaluate("() => mine.status") == "ready"


def test_an_element_that_belongs_to_no_database_says_so_and_may_be_tried_again(opened):
    page = opened('<durable-run id="run" job="say"></durable-run>')
    expect(page.locator("#run [part~=problem]")).to_contain_text("belongs to no database")
    page.evaluate("""() => {
        const run = document.getElementById("run");
        const client = '<durable-client database="one" jobs="./jobs.py"></durable-client>';
        document.body.insertAdjacentHTML("beforeend", client);
        document.querySelector("durable-client").append(run);
        run.setAttribute("input", '"hello"');
    }""")
    start(page)


def test_a_client_that_the_page_closed_is_told_and_a_click_connects_again(opened):
    page = opened()
    page.wait_for_function("() => client.client")
    page.evaluate("() => client.client.close()")
    expect(page.locator("#client [part~=problem]").first).to_contain_text("closed")
    page.get_by_role("button", name="Try again").first.click()
    start(page)
