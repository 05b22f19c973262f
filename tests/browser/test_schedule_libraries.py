"""Schedules in the browser: the libraries come from the site, and only when they are needed."""

import re
from urllib.parse import urlsplit

JOBS = """
from durable_web import job


@job("tick")
async def tick(ctx, input):
    return input
"""

# Speaks to the worker as worker/engine-worker.js says that a page does.
PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="module">
const worker = new Worker("../../worker/engine-worker.js", { type: "module" });
const waiting = new Map();
const tell = (id) => new Promise((resolve) => waiting.set(id, resolve));
worker.onmessage = ({ data }) => {
  const message = typeof data === "string" ? JSON.parse(data) : data;
  const key = message.type === "response" ? message.id : message.type;
  waiting.get(key)?.(message);
};
globalThis.start = () => {
  const ready = Promise.race([tell("ready"), tell("failed")]);
  const jobs = [new URL("jobs.py", location.href).href];
  worker.postMessage({ type: "start", name: "schedules", jobs, options: { durability: "full" } });
  return ready;
};
let last = 0;
globalThis.call = (method, params) => {
  const id = ++last;
  const answer = tell(id);
  worker.postMessage({ type: "request", id, method, params });
  return answer;
};
globalThis.stop = () => { const stopped = tell("stopped"); worker.postMessage({ type: "stop" }); return stopped; };
document.title = "loaded";
</script>"""


def open_page(chromium, url, requests):
    page = chromium.open(url)
    page.context.on("request", lambda request: requests.append(request.url))
    page.wait_for_function("document.title === 'loaded'")
    assert page.evaluate("start()")["type"] == "ready"
    return page


def call(page, method, **params):
    return page.evaluate("([method, params]) => call(method, params)", [method, params])


def wheels(requests):
    found = {re.match(r"[a-z_]+", urlsplit(url).path.rpartition("/")[2])[0] for url in requests if url.endswith(".whl")}
    return found - {"durable_web", "micropip"}


def test_cron_and_zones_come_from_the_site_when_a_schedule_uses_them_and_again_after_a_reload(
    browser, write_page, server
):
    url = write_page(PAGE, {"jobs.py": JOBS})
    chromium, requests = browser(), []
    page = open_page(chromium, url, requests)

    made = call(page, "schedules.create", name="often", job="tick", every=0.2, input={"a": 1}, catchUp="latest")[
        "result"
    ]
    assert (made["every"], made["catchUp"], made["paused"]) == (0.2, "latest", False)
    assert wheels(requests) == set()
    made = call(page, "schedules.create", name="daily", job="tick", cron="30 7 * * *", timezone="Europe/Berlin")[
        "result"
    ]
    assert made["nextDue"] > 1_700_000_000_000
    assert wheels(requests) == {"cronsim", "tzdata"}
    wrong = call(page, "schedules.create", name="wrong", job="tick", cron="0 0 * * *", timezone="Europe/Atlantis")
    assert "no time zone" in wrong["error"]["message"]

    runs = page.evaluate("""async () => {
        for (;;) {
            const { result } = await call("runs.list", { status: "completed" });
            if (result.length >= 2) return result;
        }
    }""")
    assert {run["labels"]["durable/schedule"] for run in runs} == {"often"}
    assert runs[0]["output"] == {"a": 1}
    assert call(page, "schedules.pause", name="often")["result"]["paused"]
    assert page.evaluate("stop()") == {"type": "stopped"}
    page.close()

    requests.clear()
    page = open_page(chromium, url, requests)
    assert [each["name"] for each in call(page, "schedules.list")["result"]] == ["daily", "often"]
    assert call(page, "schedules.resume", name="often")["result"]["paused"] is False
    assert "result" in call(page, "schedules.delete", name="often")
    assert call(page, "schedules.delete", name="often")["error"]["code"] == "ScheduleNotFound"
    assert wheels(requests) == {"cronsim", "tzdata"}
    assert {urlsplit(url).netloc for url in requests} == {urlsplit(server.url).netloc}
