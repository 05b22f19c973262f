"""connect(): its options, a page that gives only a name, two calls in one turn, and giving up."""

import pytest

JOBS = """
from durable_web import job

@job("echo")
async def echo(ctx, value):
    return value
"""


@pytest.fixture
def page(browser, client_url):
    return browser().open(client_url(JOBS))


def refused(page, options, name="'test'"):
    """Code and message of the error with which connect() rejects."""
    told = page.evaluate(f"() => told(async () => (await import('../../durable-web.js')).connect({name}, {options}))")
    return told["code"], told["message"]


def test_an_option_that_is_unknown_or_wrong_is_refused_before_anything_starts(page):
    for options, said in {
        "{ job: ['./jobs.py'] }": 'connect() has no option "job"; did you mean "jobs"?',
        "{ jobs: [], maxrecoveries: 1 }": 'connect() has no option "maxrecoveries"; did you mean "maxRecoveries"?',
        "{ jobs: [], max_recoveries: 1 }": 'did you mean "maxRecoveries"?',
        "{ jobs: [], colour: 'red' }": 'connect() has no option "colour"; it has jobs, durability, snapshot',
        "{ jobs: './jobs.py' }": 'jobs is a list of addresses, such as ["./jobs.py"], not "./jobs.py".',
        "{ jobs: [1] }": "jobs is a list of addresses",
        "{ jobs: ['http://['] }": 'jobs is a list of addresses, and "http://[" is none.',
        "{ jobs: [], durability: 'ful' }": 'durability is "full" or "normal", not "ful".',
        "{ jobs: [], snapshot: 'no' }": 'snapshot is true or false, not "no".',
        "{ jobs: [], maxRecoveries: NaN }": "maxRecoveries is a whole number of at least 0, not NaN.",
        "{ jobs: [], onstatus: {} }": "onstatus is a function, not an instance of Object.",
        "{ jobs: [], signal: new AbortController() }": "signal is an AbortSignal, not an instance of AbortController.",
        "['./jobs.py']": "options is an object such as",
        "null": "options is an object such as",
    }.items():
        code, message = refused(page, options)
        assert (code, said in message) == ("InvalidOptionError", True), message
    for name in ("''", "'a/b'", "undefined", "7", "{}"):
        assert refused(page, "{ jobs: [] }", name)[0] == "InvalidNameError"
    assert page.evaluate("async () => (await navigator.locks.query()).held") == []


def test_a_page_that_gives_only_a_name_needs_a_tab_that_runs_the_database(page):
    code, message = refused(page, "undefined")
    assert code == "NoJobsError"
    assert 'Give a list of addresses: connect(name, { jobs: ["./jobs.py"] })' in message


def test_a_page_that_gives_only_a_name_uses_another_tabs_engine_and_takes_over_with_its_jobs(page):
    page.evaluate("() => connected(['./jobs.py'], { durability: 'normal' })")
    follower = page.context.new_page()
    follower.goto(page.url)
    follower.evaluate("() => connected(undefined)")
    assert follower.evaluate("() => durable.role") == "follower"
    output = "async () => (await finished((await durable.trigger('echo', 1)).id)).run.output"
    assert follower.evaluate(output) == 1
    page.close()
    follower.wait_for_function("() => durable.role === 'leader'")
    assert follower.evaluate(output) == 1


def test_two_calls_in_one_turn_share_a_client_also_where_the_second_gives_only_the_name(page):
    assert page.evaluate("""async () => {
        const { connect } = await import("../../durable-web.js");
        const [one, two, three] = await Promise.all([
            connect("test", { jobs: ["./jobs.py"] }),
            connect("test", { jobs: [new URL("./jobs.py", location.href)], durability: "full" }),
            connect("test"),
        ]);
        return [one === two, two === three, one.status];
    }""") == [True, True, "ready"]
    code, _ = refused(page, "{ jobs: ['./jobs.py'], durability: 'normal' }")
    assert code == "AlreadyConnectedError"


def test_mounting_unmounting_and_mounting_again_in_one_turn_gives_a_client_that_works(page):
    assert page.evaluate("""async () => {
        const { connect } = await import("../../durable-web.js");
        const mount = () => {
            const giving = new AbortController();
            const connecting = connect("test", { jobs: ["./jobs.py"], signal: giving.signal });
            return { connecting, unmount: () => giving.abort() };
        };
        const first = mount();
        first.unmount();
        const second = mount();
        const gaveUp = await told(() => first.connecting);
        const client = await second.connecting;
        return [gaveUp.code, client.status, (await client.trigger("echo", 1)).status];
    }""") == ["AbortedError", "ready", "pending"]


def test_giving_up_before_the_client_is_ready_leaves_nothing_running(page):
    assert page.evaluate("""async () => {
        const { connect } = await import("../../durable-web.js");
        const statuses = [];
        const giving = new AbortController();
        const onstatus = ({ status }) => { statuses.push(status); if (statuses.length === 2) giving.abort(); };
        const gaveUp = await told(() => connect("test", { jobs: ["./jobs.py"], signal: giving.signal, onstatus }));
        const early = await told(() => connect("test", { jobs: ["./jobs.py"], signal: AbortSignal.abort() }));
        return [gaveUp.code, early.code, new Set(statuses).size, (await navigator.locks.query()).held.length];
    }""") == ["AbortedError", "AbortedError", 1, 0]
    assert page.evaluate("() => connected(['./jobs.py'])") == "ready"


def test_a_signal_that_is_aborted_later_changes_nothing(page):
    assert (
        page.evaluate("""async () => {
        const { connect } = await import("../../durable-web.js");
        const giving = new AbortController();
        const client = await connect("test", { jobs: ["./jobs.py"], signal: giving.signal });
        giving.abort();
        return (await client.runs.list()).length + client.status;
    }""")
        == "0ready"
    )
