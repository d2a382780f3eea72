"""The checks of `check`: each looks at one thing, changes nothing, and says what it found and what to do about it.

None connects to an event socket, takes a lock or creates a file: a daemon may be running, and systemd may wait for the first
connection to start one.
"""

import grp
import os
import resource
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from agent import config
from agent.cli.views.words import amount, size
from agent.config import Config, ForwardConfig, RelayConfig
from agent.control.client import ControlClient
from agent.daemon.settings import engine_url, queue_directory
from agent.errors import AgentError, ConfigError, ListenError, NotRunningError
from agent.fleet.installed import require_client
from agent.ingest import owners, sockets
from agent.peers import peer_of
from agent.queue.filesystem import OsFilesystem
from agent.rules import DEFAULT, dead_rules, passed_by_datagrams
from agent.spools.waiting import waiting_in

_BOUND_SOCKETS = Path("/proc/net/unix")
_HOLDS_SOCKETS = ("running", "stopped")  # how the message about the daemon begins then
_ELSEWHERE = "a socket of this path is open in another mount namespace, such as a container's, or its file was removed"
_PROXY_VARIABLES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class CheckResult(NamedTuple):
    """What a check found; the message of a problem, or of a `warning`, with which all works, says what to do."""

    check: str
    ok: bool
    message: str
    warning: bool = False


def examine(path: Path | None, environ: Mapping[str, str], *, online: bool) -> Iterator[CheckResult]:
    """Check everything; without a valid configuration there is nothing else to check.

    With [relay] it is the configuration of a relay, which has no queue and no sockets but those of the metrics.
    """
    directories = config.Directories.own(environ, os.geteuid())
    if (
        directories.runtime is None or directories.state is None
    ):  # as of a service: systemd gives them to the daemon alone
        directories = config.Directories.of_daemon(environ, os.geteuid())
    try:
        settings = config.load(path, environ, directories=directories)
    except ConfigError as error:
        for line in str(error).split("\n"):
            yield CheckResult("configuration", False, line)
        return
    yield CheckResult(
        "configuration", True, "no file: environment variables and defaults" if path is None else str(path)
    )
    for name, account in settings.accounts.items():
        if account.forward.servers:
            yield _forward(account.forward, name)
        else:
            yield _token(settings, environ, name)
    if settings.relay.servers:
        yield _relay(settings.relay)
    for exposed in config.exposed_token_files(settings, environ):
        yield CheckResult("token file", True, f"{exposed}: every user can read it: chmod o-r", warning=True)
    if settings.relay.servers:
        yield from _metrics(settings, _bound_paths(), running=False)
    else:
        yield from _of_daemon(settings, environ)
    if online:
        yield from _online(settings, environ)


def _of_daemon(settings: Config, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    yield from _rules(settings)
    yield from _clients_token(settings, environ)
    daemon = _daemon(settings.listen.control)
    yield daemon
    yield from _sockets(settings, environ, daemon)
    yield from _queue(settings)
    yield from _open_files(settings)
    if (waiting := left_spools(settings, environ)) is not None:
        yield CheckResult("spools", True, waiting, warning=True)


def _online(settings: Config, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    from agent.cli.checks.online import ask_server

    for name, account in settings.accounts.items():
        if account.forward.servers:
            from agent.cli.checks.engine import ask_engine

            yield CheckResult(_title("server", name), *ask_engine(account.forward))
            continue
        found = ask_server(settings, environ, name)
        title = _title("server", name)
        yield CheckResult(title, found.ok, found.message, warning=found.ok and not found.proven)
    if settings.relay.servers:
        from agent.cli.checks.engine import ask_engine_of_relay

        yield CheckResult("engine of relay", *ask_engine_of_relay(settings.relay))


def _title(what: str, destination: str) -> str:
    return what if destination == DEFAULT else f"{what} of {destination}"


def _token(settings: Config, environ: Mapping[str, str], destination: str) -> CheckResult:
    is_default, title = destination == DEFAULT, _title("token", destination)
    try:
        token = config.read_token(settings, environ, destination)
    except ConfigError as error:
        return CheckResult(title, False, str(error))
    if token is None:
        key = "api.token_file" if is_default else f"destinations.{destination}.token_file"
        variables = config.TOKEN_VARIABLES if is_default else (config.token_variable(destination),)
        ways = f"set {key}, or {' or '.join(variables)}"
        return CheckResult(title, False, f"none found: {ways} (a systemd credential is visible to the service only)")
    source = config.token_source(settings, environ, destination)
    return CheckResult(title, True, f"from {source}" if isinstance(source, Path) else f"from the variable {source}")


def _forward(forward: ForwardConfig, destination: str) -> CheckResult:
    return _engine(_title("forward", destination), engine_url(forward), forward.credentials, "forward.servers")


def _relay(relay: RelayConfig) -> CheckResult:
    return _engine(
        "relay", f"from team {relay.team} at {(relay.servers or ('',))[0]}", relay.credentials, "relay.servers"
    )


def _engine(title: str, engine: str, file: Path | None, key: str) -> CheckResult:
    try:
        require_client(key)
    except ConfigError as error:
        return CheckResult(title, False, str(error))
    where = f"to {engine}" if key == "forward.servers" else engine
    if file is None:
        return CheckResult(title, True, f"{where}, without credentials")
    from agent.fleet.nats_credentials import read_credentials

    try:
        read_credentials(file)
    except OSError as error:
        return CheckResult(
            title, False, f"{file}: cannot read the credentials: {error.strerror}: let this user read them"
        )
    except ValueError as error:
        return CheckResult(title, False, f"{file}: {error}")
    return CheckResult(title, True, f"{where}, with the credentials in {file}")


def _rules(settings: Config) -> Iterator[CheckResult]:
    rules = settings.routing.rules
    dead = list(dead_rules(rules))
    for each in dead:
        yield CheckResult("rules", True, f"rule {each.rule} never decides: {each.reason}", warning=True)
    for number in passed_by_datagrams(rules) if settings.listen.datagram is not None else ():
        message = f"rule {number} denies a group: who has another first group passes it with datagrams"
        yield CheckResult(
            "rules", True, f'{message}: turn them off with listen.datagram = "", or deny by uid', warning=True
        )
    if rules and not dead:
        yield CheckResult("rules", True, "1 rule" if len(rules) == 1 else f"{len(rules)} rules")


def _clients_token(settings: Config, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    if settings.http.listen is None:
        return
    try:
        problems = config.read_http_tokens(settings, environ).problems
    except ConfigError as error:
        yield CheckResult("clients' token", False, str(error))
    else:
        for name, problem in problems.items():
            yield CheckResult(_title("clients' token", name), False, problem)
        own = settings.http.token_file
        also = ", or the API's own; the API always gets its own" if settings.front.enabled else ""
        yield CheckResult("clients' token", True, f"from {own}{also}" if own else "the API's")


def _daemon(control: Path) -> CheckResult:
    """Ask, but only a socket that somebody holds open."""
    if str(control) not in _bound_paths():
        return CheckResult("daemon", True, "not running")
    if (pid := _stopped_listener(control)) is not None:
        return CheckResult(
            "daemon", False, f"stopped, pid {pid}, by a signal or a debugger: `kill -CONT {pid}` lets it go on"
        )
    try:
        return CheckResult("daemon", True, f"running, pid {ControlClient(control).status().pid}")
    except AgentError as error:
        if isinstance(error, NotRunningError) and not os.path.lexists(control):
            return CheckResult("daemon", True, f"not running here: {_ELSEWHERE}")
        return CheckResult("daemon", False, str(error))


def _stopped_listener(control: Path) -> int | None:
    """Return the pid of the process that listens at `control` if it is stopped, so that it cannot answer."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(control))
            pid = peer_of(client).pid  # of a listening socket: who has called listen(2)
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return None
    return pid if state in {b"T", b"t"} else None


def _bound_paths() -> set[str]:
    """Return the paths of all Unix sockets that are open: to connect would be noticed, or start a service."""
    try:
        lines = os.fsdecode(_BOUND_SOCKETS.read_bytes()).splitlines()
    except OSError:
        return set()
    return {fields[7] for line in lines if len(fields := line.split(maxsplit=7)) == 8}


def _sockets(settings: Config, environ: Mapping[str, str], daemon: CheckResult) -> Iterator[CheckResult]:
    listen, bound, running = settings.listen, _bound_paths(), daemon.message.startswith(_HOLDS_SOCKETS)
    yield _socket("stream", "listen.stream", listen.stream, bound, running=running)
    yield _socket("datagram", "listen.datagram", listen.datagram, bound, running=running)
    yield _socket("control", "listen.control", listen.control, bound, running=running)
    yield _socket("HTTP", "http.socket", settings.http.socket, bound, running=running)
    yield from _metrics(settings, bound, running=running)
    if settings.http.listen is not None:
        yield _port("HTTP port", settings.http.listen, running=running)
    if settings.front.enabled:
        yield CheckResult("front", True, f"forwards all other requests to {settings.api.url}")
    if settings.front.enabled and settings.http.listen is not None:
        yield _proxy(settings.http.listen, environ)
    if listen.group is not None:
        yield _group(listen.group)


def _metrics(settings: Config, bound: set[str], *, running: bool) -> Iterator[CheckResult]:
    metrics = settings.metrics
    yield _socket("metrics", "metrics.socket", metrics.socket, bound, running=running)
    if metrics.listen is not None:
        yield _port("metrics port", metrics.listen, running=running)


def _socket(role: str, key: str, path: Path | None, bound: set[str], *, running: bool) -> CheckResult:
    if path is None:
        return CheckResult(f"{role} socket", True, "turned off")
    problem = _socket_problem(path) or _directory_problem(path.parent, path.parent.parent, key)
    problem = problem or sockets.shared_directory(path.parent)
    return CheckResult(f"{role} socket", problem is None, problem or _socket_state(path, bound, running=running))


def _socket_problem(path: Path) -> str | None:
    try:
        mode = path.lstat().st_mode
    except OSError:  # what is wrong with the way to it, the directory shows
        return None
    return None if stat.S_ISSOCK(mode) else f"{path}: exists and is not a socket: move it away, or choose another path"


def _socket_state(path: Path, bound: set[str], *, running: bool) -> str:
    if running:
        return str(path)
    if str(path) in bound and not path.exists():
        return f"{path}: not here: {_ELSEWHERE}"
    if str(path) in bound:
        return f"{path}: another process listens here: fine if it is systemd, for artifacts-agent.socket"
    return f"{path}: left by a daemon that has ended; the next one replaces it" if path.exists() else str(path)


def _port(title: str, address: str, *, running: bool) -> CheckResult:
    if not running and os.geteuid() != 0 and owners.listening_uids(address) == {0}:
        return CheckResult(
            title, True, f"{address}: root listens here: fine if it is systemd, for artifacts-agent.socket"
        )
    if not running:
        try:
            sockets.bind_tcp(address, listening=False).release()
        except ListenError as error:
            return CheckResult(title, False, str(error))
    return CheckResult(title, True, address)


def _proxy(address: str, environ: Mapping[str, str]) -> CheckResult:
    """Tell whether clients of the front that are started from here would go through a proxy, and hand it their token."""
    host = address.rpartition(":")[0].strip("[]")
    proxy = next((name for name in _PROXY_VARIABLES if environ.get(name)), None)
    if proxy is None:
        return CheckResult("proxy", True, "none set for clients of the front")
    direct = {entry.strip() for entry in (environ.get("NO_PROXY") or environ.get("no_proxy") or "").split(",")}
    if direct & {host, "*"}:
        return CheckResult("proxy", True, f"NO_PROXY keeps clients of the front from using {proxy}")
    advice = f"add {host} to NO_PROXY for builds that set TURBO_API themselves (`exec` does it)"
    return CheckResult("proxy", False, f"{proxy} is set: clients of the front would hand their token to it: {advice}")


def _group(name: str) -> CheckResult:
    try:
        grp.getgrnam(name)
    except KeyError:
        return CheckResult("group", False, f"there is no group {name!r}: create it, or correct listen.group")
    return CheckResult("group", True, name)


def _queue(settings: Config) -> Iterator[CheckResult]:
    for name in settings.accounts:
        yield _queue_directory(_title("queue directory", name), queue_directory(settings, name))
    place, floor = _nearest(settings.queue.directory), settings.queue.min_free_bytes
    try:
        free = OsFilesystem().free_bytes(place)
    except OSError as error:
        yield CheckResult("free space", False, f"{place}: cannot read the free space: {error.strerror}")
        return
    facts = f"{size(free)} at {place}, queue.min_free_bytes is {size(floor)}"
    advice = ": events would be dropped: free some space, or lower it"
    yield CheckResult("free space", free >= floor, facts if free >= floor else facts + advice)


def left_spools(settings: Config, environ: Mapping[str, str]) -> str | None:
    """Say what waits in spools that `exec` has left to an agent of this user, if none adopts them by this configuration."""
    state = config.state_directory(environ, os.geteuid())
    if state is None or settings.queue.adopt == state / "spools":
        return None
    waiting = waiting_in(OsFilesystem(), state / "spools")
    if not waiting.events:
        return None
    what = f"{amount(waiting.events, 'event')} wait in {amount(waiting.spools, 'spool')} that no agent adopts"
    return f'{what}: set queue.adopt = "{state / "spools"}"'


def _queue_directory(title: str, directory: Path) -> CheckResult:
    place = _nearest(directory)
    problem = _directory_problem(directory, place, "queue.directory")
    state = str(directory) if place == directory else f"{directory}: the daemon will create it"
    return CheckResult(title, problem is None, problem or state)


def _open_files(settings: Config) -> Iterator[CheckResult]:
    """Warn where there are more destinations than this user's processes may open files for."""
    from agent.daemon.listening import RESERVED_FILES, reserved_files

    (_, most), needed = resource.getrlimit(resource.RLIMIT_NOFILE), reserved_files(settings)
    if needed > RESERVED_FILES and most != resource.RLIM_INFINITY and needed > most // 2:
        message = f"{most} may be open, and the destinations need {needed}: few are left for clients"
        yield CheckResult("open files", True, f"{message}: raise LimitNOFILE= or ulimit -n", warning=True)


def _nearest(path: Path) -> Path:
    """Return the path itself, or the nearest of its parents that is there."""
    return path if os.path.lexists(path) or path == path.parent else _nearest(path.parent)


def _directory_problem(directory: Path, parent: Path, key: str) -> str | None:
    """Say why the daemon could not use or create `directory`; `parent` is where it would be created."""
    place = directory if os.path.lexists(directory) else parent
    if not os.path.lexists(place):
        return f"{place}: does not exist: create it, or set {key}"
    if not place.is_dir():
        return f"{place}: not a directory: move it away, or set {key}"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place}: this user cannot write there: change its permissions, or set {key}"
    return None
