"""agent/PROTOCOL.md names every request of the control socket, and every reason for which the client does not send."""

import re
from pathlib import Path

from agent.client import channel
from tests.support.documents import code, read, rows, section
from tests.support.source import control_requests

PROTOCOL = read("agent/PROTOCOL.md")


def test_every_request_of_the_control_socket_is_documented_and_there_is_no_other() -> None:
    named = [name for row in rows(section(PROTOCOL, "The control socket")) for name in code(row[0])]
    assert sorted(named) == sorted(control_requests())


def test_every_reason_for_an_unsent_event_is_documented_and_there_is_no_other() -> None:
    declared = re.search(r"Reason = Literal\[(.+)\]", Path(channel.__file__).read_text(encoding="utf-8"))
    assert declared is not None
    table = section(PROTOCOL, "Python API").rpartition("unsent because")[2]
    assert sorted(name for row in rows(table) for name in code(row[0])) == sorted(re.findall(r'"(\w+)"', declared[1]))
