"""Who is measured: the agent and syslog-ng, each as a fresh process with the same sockets, batches and sink.

It knows how each is configured and started, so that what they do is as alike as it can be. It must never know what is
measured.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.benchmarks.report import AGENT
from tests.support.daemon import Daemon, Sections
from tests.support.process import running
from tests.support.waiting import eventually

SYSLOG_NG = "syslog-ng"
PACKAGES = "syslog-ng-core syslog-ng-mod-http"
MAX_DELAY_MS = 250
QUEUE_BYTES = 64 * 1024**3
_BATCH_BYTES = 16 * 1024**2


class Running(Protocol):
    """A contender that runs and takes events at `stream` and `datagram`."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def stream(self) -> Path:
        """Where it takes lines."""

    @property
    def datagram(self) -> Path:
        """Where it takes datagrams."""


class Contender(NamedTuple):
    """`start(directory, api_url, batch)` runs it in an empty directory, for `with`, with so many events a batch."""

    name: str
    start: Callable[[Path, str, int], AbstractContextManager[Running]]


class MissingError(Exception):
    """A peer is not installed."""


def agent_daemon(directory: Path, api_url: str, batch: int = 1000) -> Daemon:
    """Return an agent as it is compared, not yet started: durable at each commit, everything else by default."""
    sections: Sections = {
        "api": {"timeout": "30s"},
        "queue": {"max_bytes": QUEUE_BYTES, "sync": "commit"},
        "batch": {"max_events": batch, "max_bytes": _BATCH_BYTES, "max_delay": f"{MAX_DELAY_MS}ms"},
        "log": {"level": "warning"},
    }
    return Daemon(directory, api_url, sections)


def contenders(environ: Mapping[str, str] = os.environ) -> Sequence[Contender]:
    """Return who there is on this machine. Raises MissingError."""
    return choose(_syslog_ng_program(environ), ci=environ.get("CI") == "true")


def choose(syslog_ng: str | None, *, ci: bool) -> Sequence[Contender]:
    """Return the agent and its peer, if that has a program. Raises MissingError if it has none and this is a CI system."""
    agent = Contender(AGENT, agent_daemon)
    if syslog_ng is not None:
        return [agent, Contender(SYSLOG_NG, partial(_syslog_ng, syslog_ng))]
    if ci:
        raise MissingError(f"syslog-ng is not installed; install it with: apt-get install {PACKAGES}")
    return [agent]


def missing_peer(present: Sequence[Contender]) -> dict[str, object]:
    """Return the fact that a report has to state when the agent is alone."""
    return {} if len(present) > 1 else {"no peer:": f"install {PACKAGES}"}


def _syslog_ng_program(environ: Mapping[str, str]) -> str | None:
    """Find it also where users who are not root do not look for programs."""
    return shutil.which("syslog-ng", path=f"{environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class _SyslogNg(NamedTuple):
    pid: int
    stream: Path
    datagram: Path


@contextmanager
def _syslog_ng(program: str, directory: Path, api_url: str, batch: int) -> Iterator[Running]:
    directory.mkdir(parents=True, exist_ok=True)
    stream, datagram, config = (directory / name for name in ("s.sock", "d.sock", "syslog-ng.conf"))
    config.write_text(_configuration(directory, stream, datagram, api_url, batch))
    files = [f"--{name}={directory / file}" for name, file in (("persist-file", "persist"), ("pidfile", "pid"))]
    command = [program, "--foreground", "--no-caps", "--cfgfile", str(config), f"--control={directory / 'ctl'}", *files]
    with running(command, env={}) as child:
        eventually(lambda: _is_ready(child.process, stream), bool, 20.0)
        yield _SyslogNg(child.process.pid, stream, datagram)


def _configuration(directory: Path, stream: Path, datagram: Path, api_url: str, batch: int) -> str:
    """Take lines as they are, parse them as JSON, keep them in a reliable disk buffer, and post them as JSON arrays.

    Flow control is what reading only what there is room for is called there; connections beyond the limit would be lost.
    More workers make it no faster.
    """
    return f"""
@version: current
options {{ use-dns(no); keep-hostname(yes); stats-freq(0); }};
source taken {{
  unix-stream("{stream}" flags(no-parse) max-connections(100000) log-iw-size(10000000) log-fetch-limit(1000));
  unix-dgram("{datagram}" flags(no-parse) log-iw-size(100000) log-fetch-limit(1000));
}};
parser validated {{ json-parser(prefix(".json.")); }};
destination api {{
  http(
    url("{api_url}/v8/artifacts/events") method("POST") headers("content-type: application/json")
    body("${{MESSAGE}}") body-prefix("[") delimiter(",") body-suffix("]")
    batch-lines({batch}) batch-timeout({MAX_DELAY_MS}) workers(1) timeout(30)
    disk-buffer(reliable(yes) disk-buf-size({16 * 1024**3}) dir("{directory}"))
  );
}};
log {{ source(taken); parser(validated); destination(api); flags(flow-control); }};
"""


def _is_ready(process: subprocess.Popen[str], stream: Path) -> bool:
    assert process.poll() is None, "syslog-ng ended at once"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(stream)) == 0
