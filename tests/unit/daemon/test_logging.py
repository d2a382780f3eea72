"""Logging: a line that cannot be written harms nothing, and a repeated one is held back and counted."""

import json
import os
import subprocess
import sys

from agent.daemon.journal import is_journal, with_priority
from agent.throttle import MAX_KEYS, HeldBack, Throttle, held_back
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


def test_the_first_line_about_each_sender_is_let_through_but_only_so_many_of_all_together() -> None:
    throttle = Throttle(10.0, burst=3)
    assert [throttle.allow("a", 0.0, uid=uid) for uid in (1, 1, 2, 3, 4, 5)] == [0, None, 0, 0, None, None]
    assert [throttle.allow("a", 10.0, uid=uid) for uid in (1, 4, 6, 7)] == [1, 1, 0, None]


def test_what_was_held_back_is_given_once_in_numbers_with_the_loudest_sender() -> None:
    throttle = Throttle(10.0)
    for _ in range(3):
        throttle.allow("a", 0.0, uid=1)
    for now in (0.0, 1.0, 2.0, 3.0):
        throttle.allow("a", now, uid=2)
    throttle.allow("b", 0.0)
    assert held_back(59.0, 60.0) == []
    assert held_back(60.5, 60.0) == [HeldBack("a", 2, 1, {"uid": 1}, 2)]
    assert throttle.allow("a", 60.5, uid=2) == 3
    throttle.allow("a", 60.5, uid=2)
    throttle.allow("a", 60.5, uid=1)
    throttle.allow("a", 60.5, uid=1)
    assert held_back(60.5) == [HeldBack("a", 2, 2, {"uid": 1}, 1)]
    assert held_back(1000.0) == []


def test_however_many_senders_there_are_little_is_remembered_and_every_line_counted() -> None:
    throttle = Throttle(10.0, burst=1)
    for uid in range(3 * MAX_KEYS):
        throttle.allow("a", 0.0, uid=uid)
    [found] = held_back(0.0)
    assert (found.event, found.lines, found.about) == ("a", 3 * MAX_KEYS - 1, MAX_KEYS)
    assert (found.most, found.lines_of_most) == ({}, 2 * MAX_KEYS)
    assert [throttle.allow("a", 20.0, uid=uid) for uid in (-1, -2)] == [0, None]
    assert held_back(20.0) == [HeldBack("a", 1, 1, {"uid": -2}, 1)]


def test_what_others_wrote_cannot_command_the_terminal_of_who_reads_the_log() -> None:
    program = PROGRAM.partition("for number")[0].replace("json", "console")
    program += "log.warning('x', hash='\\x1b[2J', text='\\u202ea b\\n2026 [error] forged', fine='\u00fc')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HUNG_AFTER)
    [text] = done.stderr.decode().splitlines()
    assert text.isprintable()
    assert "hash=\\x1b[2J" in text
    assert "fine=\u00fc" in text


def test_lines_for_the_journal_have_their_priority_before_each() -> None:
    program = (
        PROGRAM.partition("for number")[0].replace('"json"', '"console", to_journal=True').replace("info", "debug")
    )
    program += "for level in ('debug', 'info', 'warning', 'error'): getattr(log, level)(level)\n"
    program += "try: 1 / 0\nexcept ZeroDivisionError: log.exception('failed')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HUNG_AFTER)
    lines = done.stderr.decode().splitlines()
    assert [line[:3] for line in lines[:4]] == ["<7>", "<6>", "<4>", "<3>"]
    assert len(lines) > 6
    assert {line[:3] for line in lines[4:]} == {"<3>"}


def test_standard_error_is_the_journals_only_if_systemd_says_so_of_that_very_stream() -> None:
    reader, writer = os.pipe()
    try:
        found = os.fstat(writer)
        assert is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, writer)
        assert not is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}, writer)
        assert not is_journal({}, writer)
    finally:
        os.close(reader)
        os.close(writer)
    assert not is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, writer)  # it is closed
    assert with_priority("a\nb\n", "warning") == "<4>a\n<4>b\n"
