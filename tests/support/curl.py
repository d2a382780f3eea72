"""curl as a client: a request, and everything that there is to be seen of the answer.

It knows curl's options and output. It must never know what is asked for, or the agent.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tools import require_tool

_LONGEST_SECONDS = 20
_REPORT = "%{stderr}{%{http_code} %{num_connects}}\n"


@dataclass(frozen=True)
class Answer:
    """What curl got. `talk` is what it says of the conversation (-v), `connections` how many it opened."""

    statuses: list[int]
    body: str
    connections: int
    talk: str

    @property
    def status(self) -> int:
        """The status of the only request."""
        (status,) = self.statuses
        return status

    @property
    def error(self) -> Mapping[str, str]:
        """What the body says is wrong: `code` and `message`."""
        error: Mapping[str, Any] = json.loads(self.body)["error"]
        return error


def curl(*args: str | Path, data: bytes | None = None) -> Answer:
    """Run curl with these arguments; `data` becomes the body, from a pipe."""
    program = require_tool("curl", "apt-get install curl")
    body = ["--data-binary", "@-"] if data is not None else []
    command = [
        program,
        "--silent",
        "--show-error",
        "--verbose",
        "--max-time",
        str(_LONGEST_SECONDS),
        "--write-out",
        _REPORT,
    ]
    # No proxy, whatever the environment says: everything here is on loopback.
    done = subprocess.run(
        [*command, *body, *args], input=data or b"", capture_output=True, env={"NO_PROXY": "*"}, check=False
    )
    talk = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"curl ended with {done.returncode}: {talk}"
    reports = [line[1:-1].split() for line in talk.splitlines() if line.startswith("{") and line.endswith("}")]
    statuses = [int(status) for status, connects in reports if connects]
    return Answer(statuses, done.stdout.decode(), sum(int(connects) for _, connects in reports), talk)
