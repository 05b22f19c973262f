"""The JavaScript keeps the types that its comments promise."""

import subprocess

import pytest

from packages import NODE_MODULES, WEB, install_npm_packages


@pytest.mark.parametrize("side", ["page", "worker"])
def test_the_javascript_of_the_page_and_of_the_worker_type_checks(side):
    install_npm_packages()
    compiler = NODE_MODULES / "typescript" / "bin" / "tsc"
    checked = subprocess.run(["node", compiler, "-p", f"jsconfig.{side}.json"], cwd=WEB, capture_output=True, text=True)
    assert checked.stdout == ""
    assert checked.returncode == 0
