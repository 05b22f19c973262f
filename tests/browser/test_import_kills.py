"""The demo's import, killed at random moments: exactly the right rows in the end."""

import random

import pytest

from environment import ROOT
from expected_statistics import differences, expected_statistics

MODULES = ("csv_encodings", "csv_values", "csv_records", "csv_layout", "csv_import", "csv_preview", "jobs")
JOBS = [f"{module}.py" for module in MODULES]
CONNECT = f"() => connected({[f'./{name}' for name in JOBS]})"
SAMPLE = ROOT / "web" / "node_modules" / "vega-datasets" / "data" / "birdstrikes.csv"
CHUNK_BYTES = 4 * 1024
KILLS = 6

START = """async ([text, chunk_bytes]) => {
    const { name, path } = await durable.files.put(new Blob([text]), "birdstrikes.csv");
    return durable.trigger("import-csv", { name, path, chunk_bytes });
}"""

COMMITTED = """async ([id, wanted]) => {
    let committed = 0;
    for await (const { kind, status } of durable.runs.watch(id)) {
        if (kind === "step_status" && status === "completed") committed += 1;
        if (committed === wanted) return;
    }
    throw new Error(`the import ended after ${committed} steps`);
}"""

EXPORT = """async (table) => {
    const { run } = await finished((await durable.trigger("export-csv", { table, name: "cleaned.csv" })).id);
    return (await durable.files.get(run.output.name)).text();
}"""


@pytest.fixture
def url(client_url):
    sources = {name: (ROOT / "web" / "demo" / name).read_text(encoding="utf-8") for name in JOBS}
    return client_url(sources.pop("jobs.py"), sources)


def test_an_import_killed_at_random_moments_ends_with_exactly_the_right_rows(browser, url, tmp_path):
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    moments = sorted(random.Random(seed).sample(range(2, 400), KILLS))

    chromium = browser()
    page = chromium.open(url)
    page.evaluate(CONNECT)
    run = page.evaluate(START, [SAMPLE.read_text(encoding="utf-8"), CHUNK_BYTES])
    for number, moment in enumerate(moments):
        page.evaluate(COMMITTED, [run["id"], moment])
        if number % 2:
            chromium.kill()
            chromium = browser()
        else:
            chromium.crash(page)
        page = chromium.open(url)
        page.evaluate(CONNECT)
    result = page.evaluate("(id) => finished(id)", run["id"])

    assert result["run"]["status"] == "completed"
    assert KILLS // 2 < result["run"]["attempt"] <= KILLS + 1  # a slow machine may kill the last ones too late
    steps = [frame["name"] for frame in result["frames"] if frame.get("status") == "completed" and "name" in frame]
    assert len(steps) == len(set(steps)) > 500
    assert [frame["seq"] for frame in result["frames"]] == list(range(1, len(result["frames"]) + 1))
    expected = expected_statistics(SAMPLE)
    assert differences(expected, result["run"]["output"]) == []
    exported = tmp_path / "exported.csv"
    exported.write_text(page.evaluate(EXPORT, result["run"]["output"]["table"]), encoding="utf-8", newline="")
    assert differences(expected_statistics(exported), result["run"]["output"]) == []
