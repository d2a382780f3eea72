"""The sockets that a daemon opens, and how many connections it may have on them."""

import os
import resource
import sys
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from agent.config import Config
from agent.errors import ListenError
from agent.ingest import sockets
from agent.ingest.sockets import BoundSocket
from agent.rules import DEFAULT

CONTROL_MODE = 0o600
# For the queue's files, the connections of the control socket and of the metrics, and the requests to the API.
RESERVED_FILES = 192
# For the queue's files of each further destination, besides its requests to the API.
DESTINATION_FILES = 4


def open_sockets(settings: Config, environ: Mapping[str, str], *, for_job: bool) -> dict[str, BoundSocket]:
    """Open every socket that is configured, by role; those that were passed come first: by systemd, or by `exec` for its job.

    systemd's outlive the daemon, a job's do not. Raises ListenError.
    """
    listen, http, metrics = settings.listen, settings.http, settings.metrics
    passed = sockets.passed_by_systemd(environ, os.getpid())
    bound = {role: BoundSocket(each, None, outlives=not for_job) for role, each in passed.items()}
    try:
        _check_passed_port(bound.get("http_tcp"), http.listen)
        if listen.stream is not None and "stream" not in bound:
            bound["stream"] = sockets.bind(listen.stream, sockets.STREAM, mode=listen.mode, group=listen.group)
        if listen.datagram is not None and "datagram" not in bound:
            bound["datagram"] = sockets.bind(listen.datagram, sockets.DATAGRAM, mode=listen.mode, group=listen.group)
        if http.socket is not None:
            bound["http"] = sockets.bind(http.socket, sockets.STREAM, mode=listen.mode, group=listen.group)
        if http.listen is not None and "http_tcp" not in bound:
            bound["http_tcp"] = sockets.bind_tcp(http.listen)
        if metrics.socket is not None:
            bound["metrics"] = sockets.bind(metrics.socket, sockets.STREAM, mode=listen.mode, group=listen.group)
        if metrics.listen is not None:
            bound["metrics_tcp"] = sockets.bind_tcp(metrics.listen)
        if "control" not in bound:
            bound["control"] = sockets.bind(listen.control, sockets.STREAM, mode=CONTROL_MODE)
    except ListenError:
        for each in bound.values():
            each.release()
        raise
    return bound


def _check_passed_port(passed: BoundSocket | None, configured: str | None) -> None:
    if passed is not None and (address := sockets.tcp_address(passed)) != configured:
        found = f"here it is {configured}" if configured else "here it is off"
        raise ListenError(f"systemd passed a socket at {address}: set http.listen to the same, {found}")


class ConnectionLimits(NamedTuple):
    """How many connections may be open, on the stream socket and over HTTP on each of its sockets."""

    stream: int
    http: int


def connection_limits(settings: Config) -> ConnectionLimits:
    """Share out the files that this process may open; warn where that is fewer than are configured.

    A connection over HTTP takes two files: the front has one to the API for each.
    """
    files = _raise_file_limit()
    free = max(files - reserved_files(settings), 4)
    over_http = (settings.http.socket is not None) + (settings.http.listen is not None)
    wanted = ConnectionLimits(settings.listen.max_connections, settings.http.max_connections if over_http else 0)
    http = min(wanted.http, free // (4 * over_http)) if over_http else 0
    limits = ConnectionLimits(min(wanted.stream, free - 2 * over_http * http), http)
    reason = f"the process may open {files} files; raise LimitNOFILE= or ulimit -n"
    keys = ("listen.max_connections", "http.max_connections")
    for key, limit, configured in zip(keys, limits, wanted, strict=True):
        if limit < configured:
            facts = {"max_connections": limit, "wanted": configured, "reason": reason}
            structlog.get_logger("agent.daemon").warning("max_connections_lowered", key=key, **facts)
    return limits


def reserved_files(settings: Config) -> int:
    """Return how many open files are kept for all but the clients; those of DEFAULT are in RESERVED_FILES."""
    others = [each for name, each in settings.accounts.items() if name != DEFAULT]
    return RESERVED_FILES + sum(DESTINATION_FILES + each.batch.concurrency for each in others)


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets this process have: each connection is one. Return that limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize
