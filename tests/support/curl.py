"""curl as a client: a request, and everything that there is to be seen of the answer."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tools import require_tool

_LONGEST_SECONDS = 120
_REPORT = "%{stderr}REPORT %{http_code} %{num_connects}\n"


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
    options = ["-sSv", "--max-time", str(_LONGEST_SECONDS), "--write-out", _REPORT]
    body = [] if data is None else ["--data-binary", "@-"]
    # No proxy, whatever the environment says: everything here is on loopback.
    done = subprocess.run(
        [program, *options, *body, *args], input=data or b"", capture_output=True, env={"NO_PROXY": "*"}
    )
    talk = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"curl ended with {done.returncode}: {talk}"
    reports = [line.split()[1:] for line in talk.splitlines() if line.startswith("REPORT ")]
    connections = sum(int(connects) for _, connects in reports)
    return Answer([int(status) for status, _ in reports], done.stdout.decode(), connections, talk)
