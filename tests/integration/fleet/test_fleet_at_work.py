"""A fleet as people try it, and as nobody wants it: the demo, and a short run of the faults of `python -m tests.fleet`."""

import re
import subprocess
import sys

import pytest

from tests.support.command import run_command
from tests.support.nats import server_program
from tests.support.waiting import HUNG_AFTER


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_of_a_fleet_ends_with_accounts_that_are_exact() -> None:
    server_program()
    done = run_command("demo", "--fleet", timeout=5 * HUNG_AFTER)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (found,) = re.findall(r"forwarded (\d+) = delivered (\d+) \+ dead_lettered 0 .* lost 0", done.stdout)
    assert found[0] == found[1] == "744"
    headings = re.findall(r"^\[(.*?)\]", done.stdout, re.MULTILINE)
    assert headings == ["1/3", "2/3", "3/3", "end"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fleet_under_faults_loses_nothing_and_repeats_only_what_is_in_doubt() -> None:
    server_program()
    sizes = ["--seconds", "20", "--outage", "5", "--runners", "40", "--agents", "2", "--relays", "2", "--rate", "400"]
    command = [sys.executable, "-m", "tests.fleet", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=7 * HUNG_AFTER, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0" in done.stdout
    assert "faults: " in done.stdout
    assert re.search(r"agents accepted [1-9][\d,]* events meanwhile", done.stdout)
