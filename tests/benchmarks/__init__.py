"""What `build_scripts/bench.py` measures, with what, and how it tells of it.

A measurement compares subjects: the engine, the limit (raw commits, bare messages) and the peers. The subjects of one
measurement take turns, so that whatever the machine does meanwhile happens to all of them.

    series.py      numbers that were measured, their medians and their ratios
    machine.py     what it ran on
    targets.py     the ratios that are to be reached
    peers.py       installing and bundling what is compared with
    laboratory.py  the Chromium, the pages and the processes in which it all happens
    in_browser.py, latency.py, starting.py, growth.py, on_desk.py, where.py   the measurements
    report.py, html_report.py, plots.py   the table, the JSON and the page with plots
"""
