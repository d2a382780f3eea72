"""Who is measured: the agent, syslog-ng and rsyslog, each as a fresh process with the same sockets, batches and sink.

It knows how each is configured and started, so that what they do is as alike as it can be. It must never know what is
measured.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from tests.benchmarks.report import AGENT
from tests.support.daemon import Daemon, Sections
from tests.support.process import running
from tests.support.waiting import eventually

SYSLOG_NG, RSYSLOG = "syslog-ng", "rsyslog"
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


def agent_daemon(directory: Path, api_url: str, batch: int = 1000, sections: Sections | None = None) -> Daemon:
    """Return an agent as it is compared, not yet started: durable at each commit, all else by default or as in `sections`."""
    compared: Sections = {
        "api": {"timeout": "30s"},
        "queue": {"max_bytes": QUEUE_BYTES, "sync": "commit"},
        "batch": {"max_events": batch, "max_bytes": _BATCH_BYTES, "max_delay": f"{MAX_DELAY_MS}ms"},
        "log": {"level": "warning"},
    }
    return Daemon(directory, api_url, {**compared, **(sections or {})})


def contenders(*, alone: bool = False, environ: Mapping[str, str] = os.environ) -> Sequence[Contender]:
    """Return who there is on this machine; only the agent if it is to be `alone`. Raises MissingError."""
    if alone:
        return choose(None, None, ci=False)
    return choose(_program("syslog-ng", environ), _rsyslog_program(environ), ci=environ.get("CI") == "true")


def choose(syslog_ng: str | None, rsyslog: str | None, *, ci: bool) -> Sequence[Contender]:
    """Return the agent and the peers that have a program. Raises MissingError if syslog-ng has none and this is a CI system."""
    if syslog_ng is None and ci:
        raise MissingError(f"syslog-ng is not installed; install it with: apt-get install {PACKAGES}")
    peers = (SYSLOG_NG, syslog_ng, _syslog_ng), (RSYSLOG, rsyslog, _rsyslog)
    found = [Contender(name, partial(start, program)) for name, program, start in peers if program is not None]
    return [Contender(AGENT, agent_daemon), *found]


def missing_peers(present: Sequence[Contender]) -> dict[str, object]:
    """Return the fact that a report has to state when peers are missing."""
    names = {contender.name for contender in present}
    missing = [name for name in (SYSLOG_NG, RSYSLOG) if name not in names]
    return {"without": " and ".join(missing)} if missing else {}


def _program(name: str, environ: Mapping[str, str]) -> str | None:
    """Find it also where users who are not root do not look for programs."""
    return shutil.which(name, path=f"{environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _rsyslog_program(environ: Mapping[str, str]) -> str | None:
    """Find rsyslog if it has omhttp, which most packages of it lack: it is the one to ask."""
    program = _program("rsyslogd", environ)
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        directory = Path(name)
        config = _write_rsyslog_configuration(directory, _sockets(directory), "http://127.0.0.1:1", 1)
        check = subprocess.run([program, "-N1", "-f", str(config)], capture_output=True, check=False, timeout=20)
    return None if check.returncode else program


class _Peer(NamedTuple):
    pid: int
    stream: Path
    datagram: Path


class _Sockets(NamedTuple):
    stream: Path
    datagram: Path


def _sockets(directory: Path) -> _Sockets:
    return _Sockets(directory / "s.sock", directory / "d.sock")


@contextmanager
def _started(command: Sequence[str], sockets: _Sockets) -> Iterator[Running]:
    """Run a peer, ready to take lines."""
    with running(command, env={}) as child:
        eventually(lambda: _is_ready(child.process, sockets.stream), bool, 20.0)
        yield _Peer(child.process.pid, *sockets)


def _is_ready(process: subprocess.Popen[str], stream: Path) -> bool:
    assert process.poll() is None, f"{process.args!r} ended at once"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(stream)) == 0


def _syslog_ng(program: str, directory: Path, api_url: str, batch: int) -> AbstractContextManager[Running]:
    directory.mkdir(parents=True, exist_ok=True)
    sockets, config = _sockets(directory), directory / "syslog-ng.conf"
    config.write_text(_syslog_ng_configuration(directory, sockets, api_url, batch))
    files = [f"--{name}={directory / file}" for name, file in (("persist-file", "persist"), ("pidfile", "pid"))]
    command = [program, "--foreground", "--no-caps", "--cfgfile", str(config), f"--control={directory / 'ctl'}", *files]
    return _started(command, sockets)


def _syslog_ng_configuration(directory: Path, sockets: _Sockets, api_url: str, batch: int) -> str:
    """Take lines as they are, parse them as JSON, keep them in a reliable disk buffer, and post them as JSON arrays.

    Flow control is what reading only what there is room for is called there; connections beyond the limit would be lost.
    More workers make it no faster.
    """
    return f"""
@version: current
options {{ use-dns(no); keep-hostname(yes); stats-freq(0); }};
source taken {{
  unix-stream("{sockets.stream}" flags(no-parse) max-connections(100000) log-iw-size(10000000) log-fetch-limit(1000));
  unix-dgram("{sockets.datagram}" flags(no-parse) log-iw-size(100000) log-fetch-limit(1000));
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


def _rsyslog(program: str, directory: Path, api_url: str, batch: int) -> AbstractContextManager[Running]:
    directory.mkdir(parents=True, exist_ok=True)
    sockets = _sockets(directory)
    config = _write_rsyslog_configuration(directory, sockets, api_url, batch)
    return _started([program, "-n", "-f", str(config), "-i", str(directory / "pid")], sockets)


def _write_rsyslog_configuration(directory: Path, sockets: _Sockets, api_url: str, batch: int) -> Path:
    """Do the same as syslog-ng, with one difference: its queue is in memory, and on the disk only what finds no room there.

    A queue on disk alone is written and read a message at a time. A batch is what the queue hands over at one time.
    """
    url = urlsplit(api_url)
    path = directory / "rsyslog.conf"
    path.write_text(f"""
global(workDirectory="{directory}" maxMessageSize="64k")
main_queue(
  queue.type="LinkedList" queue.size="500000" queue.filename="main" queue.timeoutEnqueue="600000"
  queue.dequeueBatchSize="{batch}" queue.minDequeueBatchSize="{batch}"
  queue.minDequeueBatchSize.timeout="{MAX_DELAY_MS}" queue.workerThreads="1"
)
module(load="imptcp")
module(load="imuxsock" sysSock.use="off")
module(load="mmjsonparse")
module(load="omhttp")
template(name="line" type="string" string="%rawmsg%")
input(type="imptcp" path="{sockets.stream}" unlink="on")
input(type="imuxsock" socket="{sockets.datagram}" useSpecialParser="off" rateLimit.interval="0")
action(type="mmjsonparse" cookie="" useRawMsg="on")
action(
  type="omhttp" server="{url.hostname}" serverport="{url.port}" restpath="v8/artifacts/events" useHttps="off"
  httpcontenttype="application/json" template="line"
  batch="on" batch.format="jsonarray" batch.maxsize="{batch}" batch.maxbytes="{_BATCH_BYTES}"
)
""")
    return path
