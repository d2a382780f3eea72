"""The real `turborepo-remote-cache` (npm), run as a process on loopback, with a capturing relay before it.

The server logs that a request came and its status, but not its body, and validates nothing beyond "is it JSON": what it
was sent is therefore captured by the relay. Delivery goes to `url`, the relay; `direct_url` is the server itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.capture_proxy import CaptureProxy
from tests.support.process import Child, running
from tests.support.tcp_server import HOST
from tests.support.tools import missing, require_tool

TOKEN = "a-token-of-the-tests"
_HOME = Path(__file__).parents[1] / "npm"
_SCRIPT = _HOME / "node_modules/turborepo-remote-cache/dist/cli.js"


@dataclass(frozen=True)
class TurborepoServer:
    """The running server. `captured` has what it was sent and how it answered."""

    url: str
    direct_url: str
    token: str
    captured: CaptureProxy
    process: Child


@contextmanager
def turborepo_server(storage: Path, *, token: str = TOKEN, body_limit: int = 1 << 20) -> Iterator[TurborepoServer]:
    """Run the server while the block lasts; `body_limit` is in bytes. Ends the test where it is not installed."""
    node = require_tool("node", "apt-get install nodejs npm")
    if not _SCRIPT.exists():
        missing("turborepo-remote-cache", "npm install --prefix tests/npm")
    env = {
        "NODE_ENV": "production",
        "HOST": HOST,
        "PORT": "0",
        "TURBO_TOKEN": token,
        "BODY_LIMIT": str(body_limit),
        "STORAGE_PATH": str(storage),
        "STORAGE_PATH_USE_TMP_FOLDER": "false",
    }
    with running([node, _SCRIPT], env) as child:
        port = int(child.wait_for_line(rf"listening at http://{HOST}:(\d+)")[1])
        with CaptureProxy(port) as proxy:
            yield TurborepoServer(proxy.url, f"http://{HOST}:{port}", token, proxy, child)
