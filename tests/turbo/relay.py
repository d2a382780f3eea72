"""A command behind a relay that keeps what it sends to TURBO_API: `python -m tests.turbo.relay DIRECTORY COMMAND…`.

It is what `exec` runs in the place of turbo, so that it is known what turbo had written whole. DIRECTORY/pid has the command's
process id, and in the end DIRECTORY/sent a line of JSON for each request with events. The exit code is the command's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.capture_proxy import CaptureProxy
from tests.support.waiting import eventually


def main() -> int:
    """Run the command; return its exit code, 128 and the signal's number if one ended it."""
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    with CaptureProxy(urlsplit(os.environ["TURBO_API"]).port or 0) as relay:
        with subprocess.Popen(command, env={**os.environ, "TURBO_API": relay.url}) as process:
            (directory / "pid.new").write_text(str(process.pid))
            (directory / "pid.new").rename(directory / "pid")
        eventually(lambda: relay.connections, lambda count: count == 0)
        sent = [request.events for request in relay.posts()]
    (directory / "sent").write_text("".join(json.dumps(events) + "\n" for events in sent))
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main())
