"""A build as a process of its own: `python -m agent.demo.build SOCKET RUN SECONDS`.

It replays one run of the recording over `SECONDS` seconds, as a build tool would that has `agent.client` in it, and writes
what came of it to standard output.
"""

import sys
import time

import msgspec
from msgspec import UNSET

from agent.client import EventClient
from agent.demo import recording
from agent.demo.recording import Run


class BuildOutcome(msgspec.Struct, frozen=True):
    """How many events the kernel took, and how long each call was, in nanoseconds."""

    sent: int
    unsent: int
    nanoseconds: list[int]


def replay(run: Run, socket_path: str, seconds: float) -> BuildOutcome:
    """Emit the events of `run`, spread over `seconds` seconds."""
    nanoseconds = []
    with EventClient(socket_path, ci=run.ci, interactive=0) as client:
        for event in run.events:
            duration = None if event.duration is UNSET else event.duration
            began = time.perf_counter_ns()
            client.emit(event.event, event.source, event.hash, event.session_id, duration)
            nanoseconds.append(time.perf_counter_ns() - began)
            time.sleep(seconds / len(run.events))
    return BuildOutcome(client.sent, client.unsent, nanoseconds)


if __name__ == "__main__":
    socket_path, name, seconds = sys.argv[1:]
    outcome = replay(recording.load()[name], socket_path, float(seconds))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
