"""The agent as clients meet it over HTTP: a daemon that listens on loopback and on a Unix socket, and passes the rest on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.capture_proxy import CaptureProxy
from tests.support.daemon import Daemon, Sections
from tests.support.turbo import TEAM

SOCKET = "h.sock"


@dataclass(frozen=True)
class Front:
    """The running agent. `url` is its own address, `handed` the relay before it, which keeps what a client has handed over."""

    daemon: Daemon
    url: str
    socket: Path
    handed: CaptureProxy


def sections(directory: Path, more: Sections | None = None) -> Sections:
    """Return what the configuration says for it; `more` is merged over that, section by section."""
    http = {"listen": "127.0.0.1:0", "socket": str(directory / SOCKET)}
    base: Sections = {"api": {"slug": TEAM, "timeout": "1s"}, "http": http, "front": {"enabled": True}}
    empty: Mapping[str, object] = {}
    return {name: {**base.get(name, empty), **(more or {}).get(name, empty)} for name in {**base, **(more or {})}}


@contextmanager
def front(directory: Path, api_url: str, more: Sections | None = None) -> Iterator[Front]:
    """Run an agent before an API while the block lasts."""
    with Daemon(directory, api_url, sections(directory, more)) as daemon:
        url = url_of(daemon)
        with CaptureProxy(int(url.rpartition(":")[2])) as handed:
            yield Front(daemon, url, directory / SOCKET, handed)


def url_of(daemon: Daemon) -> str:
    """Return where it listens for HTTP, fit for TURBO_API."""
    return f"http://{daemon.status()['http']['listen']}"
