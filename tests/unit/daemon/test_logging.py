"""Logging: a line that cannot be written harms nothing, and a repeated one is held back and counted."""

import json
import subprocess
import sys

from agent.throttle import Throttle
from tests.support.waiting import HUNG_AFTER

PROGRAM = """
import structlog
from agent.daemon import logging as logs
logs.configure("info", "json")
log = structlog.get_logger()
for number in range(1000):
    log.error("something", number=number)
log.debug("nothing")
print("alive")
"""


def test_a_full_disk_behind_standard_error_stops_nothing() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, timeout=HUNG_AFTER)
    assert done.stdout == b"alive\n"


def test_lines_go_to_standard_error_from_the_level_on_one_json_object_each() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=HUNG_AFTER)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["number"] for line in lines] == list(range(1000))
    assert {(line["event"], line["level"]) for line in lines} == {("something", "error")}
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_a_throttle_lets_one_line_through_each_interval_and_counts_the_rest() -> None:
    throttle = Throttle(10.0)
    assert [throttle.allow("a", now) for now in (0.0, 1.0, 9.9, 10.0, 10.1, 25.0)] == [0, None, None, 2, None, 1]
    assert throttle.allow("b", 0.0) == 0


def test_what_others_wrote_cannot_command_the_terminal_of_who_reads_the_log() -> None:
    program = PROGRAM.partition("for number")[0].replace("json", "console")
    program += "log.warning('x', hash='\\x1b[2J', text='\\u202ea b\\n2026 [error] forged', fine='\u00fc')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HUNG_AFTER)
    [text] = done.stderr.decode().splitlines()
    assert text.isprintable()
    assert "hash=\\x1b[2J" in text
    assert "fine=\u00fc" in text
