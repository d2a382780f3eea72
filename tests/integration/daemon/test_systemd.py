"""The units in systemd/, and the daemon as systemd runs it: sockets, notifications, watchdog, credential, sandbox."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from agent import client, config
from agent.accept_queue import BACKLOG
from agent.cli.commands.run import WITH_SOCKETS_SECONDS
from agent.daemon.systemd import Notifier
from agent.errors import ConfigError, ListenError
from agent.ingest import sockets
from tests.support import seccomp, units
from tests.support.api_server import Answer, ApiServer, error
from tests.support.daemon import TOKEN
from tests.support.documents import blocks, read
from tests.support.recordings import encode
from tests.support.service_manager import ManagedDaemon, Notifications
from tests.support.tools import missing, require_tool
from tests.support.waiting import HUNG_AFTER, eventually

MOST_EXPOSED = 1.5
WATCHDOG_SECONDS = 3.0


# The units as files


def test_systemd_has_nothing_to_say_about_the_units() -> None:
    result = units.analyze("verify", units.SERVICE, units.SOCKET)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("index", [0, 1], ids=["page", "relay"])
def test_systemd_has_nothing_to_say_about_the_services_that_the_page_describes(tmp_path: Path, index: int) -> None:
    described = blocks(read("systemd/README.md"), "ini")[index]
    unit = tmp_path / "described.service"
    unit.write_text(re.sub(r"^ExecStart=\S*artifacts-agent ", "ExecStart=/bin/true ", described, flags=re.MULTILINE))
    result = units.analyze("verify", unit)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_service_is_as_little_exposed_as_promised() -> None:
    result = units.analyze("security", "--offline=true", "--no-pager", units.SERVICE)
    score = re.search(r"Overall exposure level for artifacts-agent\.service: ([0-9.]+)", result.stdout)
    assert score is not None, result.stdout + result.stderr
    assert float(score[1]) <= MOST_EXPOSED


def test_the_units_agree_with_the_package() -> None:
    service, listening = units.directives(units.SERVICE), units.directives(units.SOCKET)
    environ = {"RUNTIME_DIRECTORY": f"/run/{service['RuntimeDirectory'][0]}", "STATE_DIRECTORY": "/var/lib/any"}
    defaults = config.load(None, environ)
    assert service["RestartPreventExitStatus"] == [str(ConfigError.exit_code)]
    assert float(service["TimeoutStopSec"][0].removesuffix("s")) > 2 * defaults.shutdown.deadline
    assert listening["ListenStream"] == [client.find_socket({})] == [str(defaults.listen.stream)]
    assert listening["ListenDatagram"] == [str(defaults.listen.datagram)]
    assert listening["Backlog"] == [str(BACKLOG)]
    assert service["LoadCredential"][0].startswith("token:")


# The daemon under a service manager


@pytest.fixture
def daemon(tmp_path: Path, api_server: ApiServer) -> Iterator[ManagedDaemon]:
    """A daemon that was not started yet; killed at the end."""
    managed = ManagedDaemon(tmp_path / "d", api_server.url)
    yield managed
    managed.kill()


@pytest.fixture
def notifications(tmp_path: Path, daemon: ManagedDaemon) -> Iterator[Notifications]:
    """The NOTIFY_SOCKET of `daemon`."""
    with Notifications(str(tmp_path / "notify")) as notify:
        daemon.env["NOTIFY_SOCKET"] = notify.address
        yield notify


def an_event() -> dict[str, Any]:
    return {"sessionId": str(uuid.uuid4()), "source": "LOCAL", "event": "HIT", "hash": uuid.uuid4().hex, "duration": 7}


def delivered(server: ApiServer, count: int) -> list[str]:
    """The hashes of the accepted events, once there are `count` of them, sorted."""
    events = eventually(server.accepted_events, lambda events: len(events) >= count)
    return sorted(event["hash"] for event in events)


def hashes(*events: dict[str, Any]) -> list[str]:
    return sorted(event["hash"] for event in events)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_events_sent_before_the_daemon_is_up_wait_in_its_sockets(
    tmp_path: Path, daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    """One systemd-socket-activate opens sockets of one type only; the second hands on what it got from the first."""
    program = require_tool("systemd-socket-activate", units.APT)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    stream = daemon.through_socket_activate(program, f"--listen={daemon.stream}")
    datagram = daemon.through_socket_activate(program, "--datagram", f"--listen={daemon.datagram}")
    daemon.launch([*stream, *datagram, "/bin/sh", "-c", 'read -r _ <"$0"; exec "$@"', gate])
    eventually(lambda: connects(daemon.stream), bool)  # this connection makes systemd-socket-activate go on

    early_stream, early_datagram, late_stream, late_datagram = (an_event() for _ in range(4))
    with gate.open("w") as opened:  # both sockets are there now, and the daemon is not
        daemon.send_lines(encode([early_stream]))
        daemon.send_datagram(encode([early_datagram]))
        opened.write("\n")
    notifications.wait_for("READY=1")
    daemon.send_lines(encode([late_stream]))
    daemon.send_datagram(encode([late_datagram]))

    expected = hashes(early_stream, early_datagram, late_stream, late_datagram)
    assert delivered(api_server, 4) == expected
    assert daemon.terminate() == 0
    assert daemon.stream.is_socket()
    assert daemon.datagram.is_socket()
    assert not daemon.control.exists()


def test_events_sent_during_a_restart_wait_in_the_sockets_that_systemd_keeps(
    daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    before, stream_meanwhile, datagram_meanwhile = (an_event() for _ in range(3))
    with ExitStack() as stack:
        kept = [stack.enter_context(closing(socket.socket(socket.AF_UNIX, kind))) for kind in socket_kinds()]
        kept[0].bind(str(daemon.stream))
        kept[0].listen()
        kept[1].bind(str(daemon.datagram))
        daemon.launch_with_sockets(kept)
        notifications.wait_for("READY=1")
        daemon.send_lines(encode([before]))
        assert delivered(api_server, 1) == hashes(before)
        assert daemon.terminate() == 0

        daemon.send_lines(encode([stream_meanwhile]))
        daemon.send_datagram(encode([datagram_meanwhile]))
        daemon.launch_with_sockets(kept)
        notifications.wait_for("READY=1")
        assert delivered(api_server, 3) == hashes(before, stream_meanwhile, datagram_meanwhile)
        assert daemon.terminate() == 0


def socket_kinds() -> tuple[socket.SocketKind, socket.SocketKind]:
    return socket.SOCK_STREAM, socket.SOCK_DGRAM


def test_sockets_for_another_process_are_ignored(
    daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    daemon.env |= {"LISTEN_PID": "1", "LISTEN_FDS": "2"}
    event = an_event()
    daemon.launch()
    notifications.wait_for("READY=1")
    daemon.send_lines(encode([event]))
    assert delivered(api_server, 1) == hashes(event)
    assert daemon.terminate() == 0
    assert not daemon.stream.exists()  # its own, so it is gone with it


def test_the_port_can_be_systemds_so_that_it_is_never_free(
    daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        address = f"127.0.0.1:{kept.getsockname()[1]}"
        daemon.configure(api_server.url, {"http": {"listen": address, "token_file": str(daemon.token_file)}})
        events = [an_event(), an_event()]
        for event in events:
            with socket.create_connection(kept.getsockname(), timeout=HUNG_AFTER) as client:  # before there is a daemon
                client.sendall(posting(event, address))
                daemon.launch_with_sockets([kept])
                notifications.wait_for("READY=1")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
            assert daemon.status()["http"]["listen"] == address
            assert daemon.terminate() == 0
        assert delivered(api_server, 2) == hashes(*events)


def posting(event: dict[str, Any], address: str) -> bytes:
    body = json.dumps([event]).encode()
    head = f"POST /v8/artifacts/events HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_port_of_systemds_that_is_not_the_configured_one_is_refused(daemon: ManagedDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        daemon.launch_with_sockets([kept])
        assert daemon.wait() == ListenError.exit_code
        address = f"127.0.0.1:{kept.getsockname()[1]}"
    assert f"systemd passed a socket at {address}: set http.listen to the same" in daemon.errors.read_text()


def test_a_passed_descriptor_that_does_not_listen_is_refused_by_name(daemon: ManagedDaemon) -> None:
    with socket.socket(socket.AF_INET) as inet:
        daemon.launch_with_sockets([inet])
        assert daemon.wait() == ListenError.exit_code
    assert "descriptor 3 from systemd is no listening socket" in daemon.errors.read_text()


def test_systemd_hears_of_start_reload_and_stop(daemon: ManagedDaemon, notifications: Notifications) -> None:
    daemon.launch()
    [ready] = notifications.wait_for("READY=1")
    assert ready == ["READY=1", "STATUS=Taking events"]

    before = time.monotonic_ns() // 1000
    daemon.signal(signal.SIGHUP)
    reloading, reloaded = notifications.wait_for("READY=1")
    assert reloading[0] == "RELOADING=1"
    assert before <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert reloaded == ["READY=1"]

    daemon.signal(signal.SIGTERM)
    [stopping] = notifications.wait_for("STOPPING=1")
    assert stopping == ["STOPPING=1", "STATUS=Draining"]
    [delivering] = notifications.wait_for("X_INTAKE_ENDED=1")
    assert delivering == ["X_INTAKE_ENDED=1", "STATUS=Delivering what is queued"]
    assert daemon.wait() == 0


def test_signals_are_taken_before_systemd_hears_ready(daemon: ManagedDaemon, notifications: Notifications) -> None:
    need_seccomp()
    with seccomp.Brake("sendto") as sending:
        sending.apply()
        daemon.launch([sys.executable, seccomp.SCRIPT, sending.arguments], [sending.descriptor])
        assert sending.caught.wait(HUNG_AFTER)  # READY=1 is on its way
        caught = caught_signals(daemon.pid)
        sending.release()
        notifications.wait_for("READY=1")
    assert {signal.SIGHUP, signal.SIGTERM, signal.SIGINT} <= caught


def caught_signals(pid: int) -> set[int]:
    """The signals that a process has a handler for."""
    mask = re.search(r"^SigCgt:\t([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert mask is not None
    return {number for number in range(1, 65) if int(mask[1], 16) >> (number - 1) & 1}


def test_a_refused_reload_is_over_for_systemd_too(daemon: ManagedDaemon, notifications: Notifications) -> None:
    daemon.launch()
    notifications.wait_for("READY=1")
    daemon.config.write_text("nonsense = 1\n")
    daemon.signal(signal.SIGHUP)
    messages = notifications.wait_for("READY=1")
    assert [message[0].partition(":")[0] for message in messages] == [
        "RELOADING=1",
        "STATUS=reload refused",
        "READY=1",
    ]
    assert daemon.destination().state == "running"


def test_systemd_may_listen_in_the_abstract_namespace(daemon: ManagedDaemon) -> None:
    with Notifications(f"@artifacts-agent-{uuid.uuid4()}") as notify:
        daemon.env["NOTIFY_SOCKET"] = notify.address
        daemon.launch()
        assert notify.wait_for("READY=1")


def test_a_wrong_configuration_ends_with_the_code_that_systemd_does_not_restart(daemon: ManagedDaemon) -> None:
    daemon.config.write_text("nonsense = 1\n")
    daemon.launch()
    assert [str(daemon.wait())] == units.directives(units.SERVICE)["RestartPreventExitStatus"]


def test_a_wrong_configuration_does_not_cost_the_sockets_nor_what_waits_in_them(
    daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    """systemd starts the daemon for each client that waits, and gives the sockets up if it ends too often too soon."""
    on_stream, on_datagram = an_event(), an_event()
    good = daemon.config.read_text()
    daemon.config.write_text("nonsense = 1\n")
    with ExitStack() as stack:
        kept = [stack.enter_context(closing(socket.socket(socket.AF_UNIX, kind))) for kind in socket_kinds()]
        kept[0].bind(str(daemon.stream))
        kept[0].listen()
        kept[1].bind(str(daemon.datagram))
        daemon.send_lines(encode([on_stream]))
        daemon.send_datagram(encode([on_datagram]))
        started = time.monotonic()
        daemon.launch_with_sockets(kept)
        [said] = notifications.wait_for("STATUS=Not started: configuration or token is wrong, see the log")
        assert "nonsense" in daemon.errors.read_text()  # at once
        assert daemon.wait() == ConfigError.exit_code
        assert time.monotonic() - started > 4.5  # its interpreter starts before it looks at the clock
        assert len(said) == 1

        daemon.launch_with_sockets(kept)
        eventually(lambda: daemon.errors.read_text().count("nonsense"), lambda count: count == 2)
        assert daemon.terminate() == -signal.SIGTERM  # and not 78: nobody waits for the five seconds

        daemon.config.write_text(good)
        daemon.launch_with_sockets(kept)
        notifications.wait_for("READY=1")
        assert delivered(api_server, 2) == hashes(on_stream, on_datagram)
        assert daemon.terminate() == 0


def test_the_limits_of_the_units_let_a_daemon_with_a_wrong_configuration_be_started_for_ever() -> None:
    service = units.directives(units.SERVICE)
    seconds, burst = service["StartLimitIntervalSec"][0].removesuffix("s"), int(service["StartLimitBurst"][0])
    assert float(seconds) / WITH_SOCKETS_SECONDS < burst


def test_systemd_shows_what_is_wrong_and_when_it_is_over(
    daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    api_server.default = error(402, "payment_required", "Pay first")
    daemon.launch()
    notifications.wait_for("READY=1")
    daemon.send_lines(encode([an_event()]))
    wait_for_status(notifications, r"paused: \w+: 402 .*Pay first")
    good = daemon.config.read_text()
    daemon.config.write_text("nonsense = 1\n")
    daemon.signal(signal.SIGHUP)
    wait_for_status(notifications, r"paused: .*; reload refused: .*nonsense")
    daemon.config.write_text(good)
    api_server.default = Answer()
    daemon.signal(signal.SIGHUP)
    wait_for_status(notifications, "Taking events")


def test_systemd_shows_that_the_disk_is_full(daemon: ManagedDaemon, notifications: Notifications) -> None:
    daemon.configure("http://127.0.0.1:9", {"queue": {"min_free_bytes": 2**62}})
    daemon.launch()
    notifications.wait_for("READY=1")
    daemon.send_lines(encode([an_event()]))
    wait_for_status(notifications, r"storage: .* bytes are free, queue\.min_free_bytes is")


def wait_for_status(notifications: Notifications, pattern: str) -> None:
    """Wait until what systemd shows is like a pattern."""
    wanted = re.compile(f"STATUS={pattern}")
    deadline = time.monotonic() + HUNG_AFTER
    shown: list[str] = []
    while not (shown and wanted.match(shown[-1])):
        message = notifications.next(max(deadline - time.monotonic(), 0.001))
        assert message is not None, shown
        shown += [each for each in message if each.startswith("STATUS=")]


def test_lines_for_the_journal_have_their_priority(daemon: ManagedDaemon, notifications: Notifications) -> None:
    with daemon.errors.open("ab") as errors:
        found = os.fstat(errors.fileno())
    daemon.env["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
    daemon.launch()
    notifications.wait_for("READY=1")
    good = daemon.config.read_text()
    daemon.config.write_text("nonsense = 1\n")
    daemon.signal(signal.SIGHUP)
    eventually(daemon.errors.read_text, lambda text: "reload_refused" in text)
    daemon.config.write_text(good)
    daemon.signal(signal.SIGHUP)
    eventually(daemon.errors.read_text, lambda text: "reloaded" in text)
    assert daemon.terminate() == 0
    daemon.config.write_text("nonsense = 1\n")
    daemon.launch()
    assert daemon.wait() == ConfigError.exit_code
    lines = daemon.errors.read_text().splitlines()
    found_names = [
        (line[:3], name) for line in lines for name in ("started", "reload_refused", "reloaded") if name in line
    ]
    assert found_names == [("<6>", "started"), ("<3>", "reload_refused"), ("<6>", "reloaded")]
    assert lines[-1].startswith("<3>artifacts-agent: ")


def test_without_its_token_the_service_names_the_file(
    tmp_path: Path, daemon: ManagedDaemon, api_server: ApiServer
) -> None:
    """As systemd gives it the unit's SetCredential= where LoadCredential= finds no file."""
    (value,) = units.directives(units.SERVICE)["SetCredential"]
    name, _, content = value.partition(":")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / name).write_bytes(content.encode().decode("unicode_escape").encode())
    daemon.configure(api_server.url, {"api": {"token_file": None}})
    daemon.env["CREDENTIALS_DIRECTORY"] = str(credentials)
    daemon.launch()
    assert daemon.wait() == ConfigError.exit_code
    source = units.directives(units.SERVICE)["LoadCredential"][0].partition(":")[2]
    assert f"the service has no token: write it into the file that LoadCredential= names, {source}" in (
        daemon.errors.read_text()
    )


def test_the_token_is_taken_from_systemds_credential(
    tmp_path: Path, api_server: ApiServer, daemon: ManagedDaemon, notifications: Notifications
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "token").write_text("token-of-the-credential\n")
    api_server.token = "token-of-the-credential"
    daemon.configure(api_server.url, {"api": {"token_file": None}})
    daemon.env["CREDENTIALS_DIRECTORY"] = str(credentials)
    event = an_event()
    daemon.launch()
    notifications.wait_for("READY=1")
    daemon.send_lines(encode([event]))
    assert delivered(api_server, 1) == hashes(event)


# The watchdog


def test_the_watchdog_is_fed_while_the_queue_answers(daemon: ManagedDaemon, notifications: Notifications) -> None:
    daemon.env["WATCHDOG_USEC"] = str(int(WATCHDOG_SECONDS * 1e6))
    daemon.launch()
    notifications.wait_for("WATCHDOG=1")
    for _ in range(3):
        assert notifications.wait_for("WATCHDOG=1", timeout=WATCHDOG_SECONDS) == [["WATCHDOG=1"]]


def test_the_watchdog_is_not_fed_while_the_disk_hangs(
    daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    daemon.env["WATCHDOG_USEC"] = str(int(WATCHDOG_SECONDS * 1e6))
    need_seccomp()
    first, second = an_event(), an_event()
    with seccomp.Brake("fdatasync") as disk:
        daemon.launch([sys.executable, seccomp.SCRIPT, disk.arguments], [disk.descriptor])
        notifications.wait_for("WATCHDOG=1")
        daemon.send_lines(encode([first]))
        assert delivered(api_server, 1) == hashes(first)

        disk.apply()
        daemon.send_lines(encode([second]))
        assert disk.caught.wait(HUNG_AFTER)
        notifications.skip_waiting()
        assert notifications.next(WATCHDOG_SECONDS) is None  # now systemd would act

        disk.release()
        notifications.wait_for("WATCHDOG=1")
        assert delivered(api_server, 2) == hashes(first, second)
        assert daemon.terminate() == 0


def need_seccomp() -> None:
    try:
        seccomp.load_library()
    except OSError:
        missing(seccomp.LIBRARY, "apt-get install libseccomp2")


# The sandbox


@pytest.fixture
def sandboxed() -> list[str]:
    """The command that applies what systemd would apply for the unit, by the same libseccomp."""
    need_seccomp()
    policy = units.sandbox()
    return [sys.executable, str(seccomp.SCRIPT), json.dumps(policy)]


def test_the_daemon_works_under_the_units_system_call_filters(
    sandboxed: list[str], daemon: ManagedDaemon, notifications: Notifications, api_server: ApiServer
) -> None:
    """MemoryDenyWriteExecute= stops some extension modules, and a name in the API's URL needs the resolver."""
    daemon.configure(api_server.url.replace("127.0.0.1", "localhost"), {})
    event = an_event()
    daemon.launch(sandboxed)
    notifications.wait_for("READY=1")
    daemon.send_datagram(encode([event]))
    assert delivered(api_server, 1) == hashes(event)
    assert daemon.request("GET", "/metrics").status_code == 200
    assert daemon.terminate() == 0


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("import mmap; mmap.mmap(-1, 4096, prot=7)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "Address family not supported"),
        ("import os; os.chroot('/')", "PermissionError"),
        ("import os; os.sched_setaffinity(0, {0})", "PermissionError"),
        ("import ctypes; print('fine')", None),
    ],
)
def test_the_filters_that_the_daemon_works_under_do_refuse(
    sandboxed: list[str], attempt: str, refusal: str | None
) -> None:
    result = subprocess.run(
        [*sandboxed, sys.executable, "-c", attempt], capture_output=True, text=True, timeout=HUNG_AFTER
    )
    assert (result.returncode == 0) == (refusal is None)
    assert refusal is None or refusal in result.stderr


# The notifier and the descriptors alone


def test_without_a_notify_socket_nothing_is_sent() -> None:
    notifier = Notifier({})
    notifier.notify("READY=1")
    assert notifier.watchdog_seconds is None


def test_a_supervisor_that_is_gone_or_busy_does_not_stop_the_daemon(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).notify("READY=1")
    Notifier({"NOTIFY_SOCKET": "/" + "long/" * 40}).notify("READY=1")
    with Notifications(str(tmp_path / "busy")) as notify:
        notifier = Notifier({"NOTIFY_SOCKET": notify.address})
        for _ in range(2000):
            notifier.notify("WATCHDOG=1")
        assert notify.next(1) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_the_watchdog_is_on_when_systemd_says_so_to_this_process(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier(environ).watchdog_seconds == seconds


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}])
def test_descriptors_are_taken_only_by_the_process_they_are_for(environ: dict[str, str]) -> None:
    assert sockets.passed_by_systemd(environ, os.getpid()) == {}
