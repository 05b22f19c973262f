"""The demo page of orders, as a person meets it: decided, left alone, torn apart, and in two tabs."""

import re

import pytest
from playwright.sync_api import expect

from chromium import TIMEOUT_MS

expect.set_options(timeout=TIMEOUT_MS)

PAGE = "demo/orders.html"
POLICY = re.compile(r'content="(default-src[^"]*)"')
RUNS = """async (job) => {
  const { connect } = await import("../durable-web.js");
  const durable = await connect("durable-web-orders", { jobs: ["./orders.py"] });
  return await durable.runs.list({ job, order: "oldest" });
}"""
LINES = """async (id) => {
  const { connect } = await import("../durable-web.js");
  const durable = await connect("durable-web-orders", { jobs: ["./orders.py"] });
  return (await durable.runs.logs(id)).map(({ message }) => message);
}"""
PLACE = """async (pace) => {
  const { connect } = await import("../durable-web.js");
  const durable = await connect("durable-web-orders", { jobs: ["./orders.py"] });
  const order = { items: [{ name: "Tea", price: 9.5 }], approval_seconds: 3600, grace_seconds: 0, pace };
  location.hash = `#order=${(await durable.trigger("order", order, { labels: { title: "Tea" } })).id}`;
}"""


class Orders:
    """The page of orders in a tab."""

    def __init__(self, chromium, url):
        self.page = chromium.open(url)
        self.page.locator("#place:enabled").wait_for()

    def place(self, *, items=("Tea", "Tea pot"), approval=3600, grace=0):
        """Order these items, and wait until the order is shown."""
        for box in self.page.get_by_role("checkbox").all():
            box.set_checked(box.get_attribute("value") in items)
        self.page.get_by_label("Seconds to approve").fill(str(approval))
        self.page.get_by_label("Seconds to think again").fill(str(grace))
        self.button("Place the order").click()
        expect(self.page.locator("#order-title")).to_have_text(", ".join(items))

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def step(self, name):
        """One step, by its name."""
        at = self.page.locator("[part~=step-name]").get_by_text(name, exact=True)
        return self.page.locator("durable-steps li").filter(has=at).last

    def state(self, name):
        """How a step stands."""
        return self.step(name).locator("[part=state]").first

    @property
    def status(self):
        return self.page.locator("durable-run [part~=status]")

    @property
    def survived(self):
        return self.page.locator("durable-run [part~=survived]")

    def runs(self, job):
        return self.page.evaluate(RUNS, job)

    def lines(self):
        """What the latest order has logged."""
        return self.page.evaluate(LINES, self.runs("order")[-1]["id"])


@pytest.fixture
def chromium(browser):
    launched = browser()
    yield launched
    assert launched.console_errors == []
    assert launched.page_errors == []


@pytest.fixture
def orders(chromium, server):
    yield Orders(chromium, server.url + PAGE)
    assert chromium.requests_outside(server.origin) == []


def test_an_order_that_is_approved_is_packed_in_runs_of_its_own_and_completes(orders):
    orders.place()
    expect(orders.state("approval")).to_have_text("Waiting")
    expect(orders.step("approval").locator("[part=reason]")).to_contain_text("for signal 'approval', until ")
    orders.button("Approve").click()
    expect(orders.status).to_have_text("Done")
    for name in ("reserve stock", "charge", "approval", "time to think again", "hand to carrier"):
        expect(orders.state(name)).to_have_text(re.compile("^Done, "))
    for name in ("parcel[0]", "parcel[1]"):
        inner = orders.step(name).locator("li [part~=step-name]")
        expect(inner).to_have_text(["take a box", "pack"])
    assert [run["status"] for run in orders.runs("parcel")] == ["completed", "completed"]
    expect(orders.page.get_by_role("link", name="Tea, Tea pot")).to_be_visible()
    expect(orders.button("Approve")).to_be_disabled()
    expect(orders.survived).to_be_hidden()


def test_an_order_that_is_rejected_shows_how_it_is_undone_the_latest_first(orders):
    orders.place()
    orders.button("Reject").click()
    expect(orders.status).to_have_text("Failed")
    names = orders.page.locator("durable-steps [part~=step-name]")
    expect(names).to_have_text(["reserve stock", "charge", "approval", "compensate:charge", "compensate:reserve stock"])
    expect(orders.state("compensate:charge")).to_have_text(re.compile("^Undone, "))
    expect(orders.page.locator("durable-run [part=error]")).to_contain_text("The order was rejected by you.")
    assert orders.lines()[-2:] == ["Refunded 49.50 €", "Back on the shelf: Tea, Tea pot"]


def test_an_order_that_is_not_approved_in_time_is_undone(orders):
    orders.place(items=["Tea"], approval=1)
    expect(orders.status).to_have_text("Failed")
    expect(orders.page.locator("durable-run [part=error]")).to_contain_text("The order was not approved in time.")
    expect(orders.state("approval")).to_have_text(re.compile("^Failed, "))
    expect(orders.state("compensate:reserve stock")).to_have_text(re.compile("^Undone, "))


def test_a_parcel_that_fails_undoes_itself_and_the_order(orders):
    orders.place(items=["Tea", "Vase"])
    orders.button("Approve").click()
    expect(orders.status).to_have_text("Failed")
    inner = orders.step("parcel[1]").locator("li [part~=step-name]")
    expect(inner).to_have_text(["take a box", "pack", "compensate:take a box"])
    expect(orders.step("parcel[1]")).to_contain_text("Vase broke while it was packed.")
    expect(orders.state("compensate:charge")).to_have_text(re.compile("^Undone, "))


def test_an_order_is_paused_resumed_and_cancelled_with_what_it_has_done_undone(orders):
    orders.place(grace=3600)
    orders.button("Approve").click()
    expect(orders.state("time to think again")).to_have_text("Waiting")
    orders.button("Pause").click()
    expect(orders.page.locator("#state")).to_contain_text("The order is paused")
    orders.button("Resume").click()
    expect(orders.page.locator("#state")).to_contain_text("a moment to think again")
    orders.button("Cancel and undo").click()
    expect(orders.status).to_have_text("Cancelled")
    expect(orders.state("time to think again")).to_have_text(re.compile("^Stopped"))
    assert orders.lines()[-2:] == ["Refunded 49.50 €", "Back on the shelf: Tea, Tea pot"]


def test_a_tab_that_dies_while_it_waits_and_again_in_the_middle_of_undoing_goes_on(chromium, orders, server):
    orders.page.evaluate(PLACE, 3)  # seconds that a call to the outside takes: time to die in
    expect(orders.state("approval")).to_have_text("Waiting")
    chromium.crash(orders.page)
    orders = Orders(chromium, server.url + PAGE)  # without the address of the order
    expect(orders.state("approval")).to_have_text("Waiting")
    orders.button("Reject").click()
    expect(orders.state("compensate:charge")).to_have_text(re.compile("^Undone, "))
    expect(orders.state("compensate:reserve stock")).to_have_text("Running")
    chromium.crash(orders.page)
    orders = Orders(chromium, server.url + PAGE)
    expect(orders.status).to_have_text("Failed")
    expect(orders.survived).to_contain_text("Survived 1 interruption")  # for a run that waits, nothing is interrupted
    assert orders.lines() == [
        "Reserved: Tea",
        "Charged 9.50 €",
        "Refunded 9.50 €",
        "Back on the shelf: Tea",
    ]


def test_what_waits_in_one_tab_is_approved_in_another_and_after_a_reload(chromium, orders, server):
    orders.place(items=["Tea"])
    expect(orders.button("Approve")).to_be_enabled()
    second = Orders(chromium, server.url + PAGE)
    second.page.reload()
    second.button("Approve").click()
    for tab in (orders, second):
        expect(tab.status).to_have_text("Done")
        expect(tab.state("parcel[0]")).to_have_text(re.compile("^Done, "))


def test_the_page_can_be_used_on_a_phone_and_by_keyboard_alone(orders):
    orders.page.set_viewport_size({"width": 390, "height": 844})
    orders.place(items=["Tea", "Vase"])
    assert orders.page.locator("#order-title").evaluate("(title) => title === document.activeElement")
    expect(orders.button("Approve")).to_be_enabled()
    orders.button("Approve").press("Enter")
    expect(orders.status).to_have_text("Failed")
    assert orders.page.evaluate("() => document.documentElement.scrollWidth") == 390


def test_the_two_demo_pages_lead_to_each_other(orders):
    demos = orders.page.get_by_role("navigation", name="Demos")
    demos.get_by_role("link", name="CSV import").click()
    orders.page.locator("#choose:enabled").wait_for()
    demos.get_by_role("link", name="Orders").click()
    orders.page.locator("#place:enabled").wait_for()


def test_the_page_works_under_a_sub_path_and_its_policy_holds_for_the_worker_too(browser, dist, serve):
    (policy,) = POLICY.findall((dist / PAGE).read_text(encoding="utf-8"))
    site = serve(prefix="/app/durable/", headers={"Content-Security-Policy": policy})
    chromium = browser()
    orders = Orders(chromium, site.url + PAGE)
    orders.place(items=["Tea"])
    orders.button("Approve").click()
    expect(orders.status).to_have_text("Done")
    assert "unsafe-eval" not in policy.replace("'wasm-unsafe-eval'", "")
    assert "unsafe-inline" not in policy
    assert chromium.console_errors == []
    assert chromium.requests_outside(site.origin) == []
