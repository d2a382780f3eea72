"""The client against real sockets and processes: listeners that read, do not read, stop, vanish and come back."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.client import MAX_LINE_BYTES, EventClient
from agent.events import Context, Session, decode_events, decode_lines
from tests.support.client_programs import decoded, events_in, listening, output_of, read_connection
from tests.support.recordings import Recorded
from tests.support.waiting import HUNG_AFTER, eventually

if TYPE_CHECKING:
    from agent.client import EventFields


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client") / "events.sock"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """A daemon's socket that nobody reads before the test does."""
    with listening(path) as listener:
        yield listener


# --- What goes over the wire


def test_the_context_is_the_first_line_and_keys_are_in_turbos_order(path: Path, listener: socket.socket) -> None:
    with EventClient(path, ci="GITHUB_ACTIONS", interactive=0, session_id="s-1") as client:
        assert client.emit("HIT", "LOCAL", "115c7929ab9c479c", duration=514)
        assert client.emit("MISS", "REMOTE", "ab", "s-2", 0)
        assert client.emit(event="MISS", source="LOCAL", hash="cd")
        assert client.emit(event="HIT", source="LOCAL", hash="ef", duration=1.5)
    assert read_connection(listener) == (
        b'{"context":{"ci":"GITHUB_ACTIONS","interactive":0}}\n'
        b'{"sessionId":"s-1","source":"LOCAL","event":"HIT","hash":"115c7929ab9c479c","duration":514}\n'
        b'{"sessionId":"s-2","source":"REMOTE","event":"MISS","hash":"ab","duration":0}\n'
        b'{"sessionId":"s-1","source":"LOCAL","event":"MISS","hash":"cd"}\n'
        b'{"sessionId":"s-1","source":"LOCAL","event":"HIT","hash":"ef","duration":1.5}\n'
    )
    assert (client.sent, client.unsent, client.unsent_by_reason) == (4, 0, {})


@pytest.mark.parametrize(
    ("ci", "interactive", "context"),
    [
        ("VERCEL", 1, Context("VERCEL", 1)),
        ('a "b" \\', True, Context('a "b" \\', 1)),
        (None, None, Context()),
        ("x" * 51, 0, Context(None, 0)),
        ("", 2, Context()),
        (" x", "1", Context()),
        ("Übersee", 1.0, Context()),
        (b"VERCEL", [], Context()),
    ],
)
def test_what_the_api_cannot_carry_is_left_out_of_the_context(
    path: Path, listener: socket.socket, ci: Any, interactive: Any, context: Context
) -> None:
    with EventClient(path, ci=ci, interactive=interactive) as client:
        assert client.emit("HIT", "LOCAL", "ab")
    [block] = decoded(read_connection(listener)).blocks
    assert block.context == context


def test_the_context_is_detected_where_the_program_runs(path: Path, listener: socket.socket) -> None:
    script = "import os; os.environ['CIRCLECI'] = 'true'; from agent.client import emit; emit('HIT', 'LOCAL', 'ab')"
    assert output_of(script, path) == []
    [block] = decoded(read_connection(listener)).blocks
    assert block.context == Context("CIRCLE", 0)


@pytest.fixture(scope="module")
def quiet_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quiet") / "events.sock"


@pytest.fixture(scope="module")
def quiet_listener(quiet_path: Path) -> Iterator[socket.socket]:
    with listening(quiet_path) as listener:
        yield listener


numbers = st.integers(0, 2**63 - 1) | st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@given(session=st.text(min_size=1), artifact=st.text(min_size=1), duration=st.none() | numbers)
def test_any_text_and_number_arrives_as_it_was_given(
    quiet_path: Path, quiet_listener: socket.socket, session: str, artifact: str, duration: float | None
) -> None:
    with EventClient(quiet_path) as client:
        assert client.emit("HIT", "LOCAL", artifact, session, duration)
    data = read_connection(quiet_listener)
    [event] = events_in(data)
    optional = {} if duration is None else {"duration": duration}
    assert event == {"sessionId": session, "source": "LOCAL", "event": "HIT", "hash": artifact, **optional}
    assert type(event.get("duration")) is type(duration)


def test_turbos_own_events_leave_as_turbo_wrote_them(path: Path, recorded_requests: list[Recorded]) -> None:
    events = [event for request in recorded_requests for event in request.events]
    with listening(path) as listener, ThreadPoolExecutor() as pool, EventClient(path) as client:
        received = pool.submit(read_connection, listener)
        for event in events:
            fields = {"session_id" if key == "sessionId" else key: value for key, value in event.items()}
            eventually(partial(client.emit, **fields), bool)
        client.close()
        assert received.result().partition(b"\n")[2] == b"".join(request.lines for request in recorded_requests)


def test_many_events_arrive_in_order(path: Path, listener: socket.socket) -> None:
    with EventClient(path) as client:
        sent = client.emit_many({"event": "HIT", "source": "LOCAL", "hash": str(number)} for number in range(1000))
    assert sent == client.sent == 1000
    assert [event["hash"] for event in events_in(read_connection(listener))] == [str(number) for number in range(1000)]


def test_bad_items_among_many_cost_only_themselves(path: Path, listener: socket.socket) -> None:
    items: list[Any] = [
        {"event": "HIT", "source": "LOCAL", "hash": "1"},
        {"event": "HIT", "source": "LOCAL"},
        None,
        {"event": "HIT", "source": "LOCAL", "hash": "x" * MAX_LINE_BYTES},
        {"event": "MISS", "source": "LOCAL", "hash": "2"},
    ]
    with EventClient(path) as client:
        assert client.emit_many(items) == 2
    assert client.unsent_by_reason == {"invalid": 2, "too_large": 1}
    assert [event["hash"] for event in events_in(read_connection(listener))] == ["1", "2"]


def test_an_iterable_that_raises_keeps_its_error_and_loses_no_event(path: Path, listener: socket.socket) -> None:
    def broken() -> Iterator[Any]:
        yield {"event": "HIT", "source": "LOCAL", "hash": "1"}
        raise LookupError("the caller's own")

    with EventClient(path) as client, pytest.raises(LookupError, match="the caller's own"):
        client.emit_many(broken())
    assert [event["hash"] for event in events_in(read_connection(listener))] == ["1"]
    assert client.sent == 1


# --- Daemons that are absent, closed, stopped or slow


@pytest.fixture
def client(path: Path) -> Iterator[EventClient]:
    with EventClient(path) as client:
        yield client


def hit(client: EventClient) -> bool:
    return client.emit("HIT", "LOCAL", "115c7929ab9c479c", duration=514)


def test_a_daemon_that_starts_later_gets_the_later_events(path: Path, client: EventClient) -> None:
    assert not hit(client)
    with listening(path) as listener:
        eventually(lambda: hit(client), bool)
        client.close()
        assert len(events_in(read_connection(listener))) == client.sent == 1
    assert set(client.unsent_by_reason) == {"absent"}


def test_a_socket_that_nobody_listens_at_counts_as_absent(path: Path, client: EventClient) -> None:
    with listening(path) as listener:
        listener.close()
        assert not hit(client)
    assert client.unsent_by_reason == {"absent": 1}


def test_ten_thousand_events_for_nobody_take_no_time(client: EventClient) -> None:
    with waits_at_most(100):
        assert not any(hit(client) for _ in range(10_000))
    assert client.unsent_by_reason == {"absent": 10_000}


def test_a_forbidden_socket_counts_as_denied(path: Path, listener: socket.socket) -> None:
    script = """
        import os
        from agent.client import EventClient
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        client = EventClient()
        print(client.emit("HIT", "LOCAL", "ab"), client.unsent_by_reason)
    """
    path.chmod(0)
    assert output_of(script, path) == ["False {'denied': 1}"]


@contextmanager
def waits_at_most(times: int) -> Iterator[None]:
    """Fail if this thread gave up the processor more often of its own accord: whoever waits does, whatever the load."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    yield
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before <= times


STOPPED_DAEMON = """
import os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen(2)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def stopped_daemon(path: Path) -> Iterator[None]:
    """A daemon that listens, and was stopped before it accepted anything."""
    with subprocess.Popen([sys.executable, "-c", STOPPED_DAEMON, path]) as daemon:
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
        try:
            yield
        finally:
            daemon.kill()
            path.unlink()


@pytest.mark.usefixtures("stopped_daemon")
def test_a_stopped_daemon_with_a_full_backlog_does_not_block(path: Path) -> None:
    clients = [EventClient(path) for _ in range(10)]
    with waits_at_most(100):
        sent = [hit(client) for client in clients for _ in range(100)]
    assert sent.count(True) == sum(client.sent for client in clients) == 300
    assert [client.unsent_by_reason for client in clients[3:]] == [{"full": 100}] * 7


@pytest.fixture
def datagrams(path: Path) -> Iterator[socket.socket]:
    """The datagram socket beside the stream socket; nobody reads it before the test does."""
    beside = path.with_name("datagram.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(beside))
        bound.settimeout(HUNG_AFTER)
        yield bound
    beside.unlink()


@pytest.mark.usefixtures("stopped_daemon")
def test_where_the_backlog_is_full_events_go_to_the_datagram_socket(path: Path, datagrams: socket.socket) -> None:
    crowd = [EventClient(path) for _ in range(3)]
    assert all(hit(client) for client in crowd)
    with EventClient(path, ci="CIRCLE", interactive=0, session_id="s") as client:
        assert client.emit("MISS", "LOCAL", "a")
        assert client.emit_many([{"event": "MISS", "source": "LOCAL", "hash": name} for name in "bc"]) == 2
        assert (client.sent, client.unsent) == (3, 0)
    found = [decode_lines(datagrams.recv(1 << 16), Session()).blocks for _ in range(2)]
    assert [[event.hash for event in decode_events(block.lines)] for (block,) in found] == [["a"], ["b", "c"]]
    assert {block.context for (block,) in found} == {Context("CIRCLE", 0)}


@pytest.mark.usefixtures("stopped_daemon", "datagrams")
def test_where_both_are_full_events_count_as_unsent_and_nothing_blocks(path: Path) -> None:
    crowd = [EventClient(path) for _ in range(3)]
    assert all(hit(client) for client in crowd)
    with EventClient(path) as client, waits_at_most(100):
        sent = [hit(client) for _ in range(2000)]
        assert not sent[-1]
        assert client.unsent_by_reason == {"full": sent.count(False)}


@pytest.mark.usefixtures("stopped_daemon", "datagrams")
def test_a_socket_of_another_name_has_no_datagram_socket_beside_it(path: Path) -> None:
    other = path.with_name("other.sock")
    other.symlink_to(path)
    clients = [EventClient(other) for _ in range(4)]
    assert [hit(client) for client in clients] == [True, True, True, False]
    assert clients[-1].unsent_by_reason == {"full": 1}
    other.unlink()


@pytest.mark.usefixtures("stopped_daemon")
def test_a_stopped_daemon_with_a_full_buffer_does_not_block(client: EventClient) -> None:
    while hit(client):
        pass
    with waits_at_most(100):
        assert not any(hit(client) for _ in range(1000))
    assert client.unsent_by_reason == {"full": 1001}


def test_a_slow_daemon_gets_whole_lines_and_all_that_counts_as_sent(
    client: EventClient, listener: socket.socket
) -> None:
    while hit(client):
        pass
    with ThreadPoolExecutor() as pool:
        received = pool.submit(read_connection, listener)
        eventually(lambda: hit(client), bool)
        client.close()
        assert len(events_in(received.result())) == client.sent


def test_a_burst_of_500_events_fits_while_the_daemon_does_not_read(
    client: EventClient, listener: socket.socket
) -> None:
    assert all(hit(client) for _ in range(500))
    client.close()
    assert len(events_in(read_connection(listener))) == 500


def test_many_events_for_a_slow_daemon_are_cut_between_lines(client: EventClient, listener: socket.socket) -> None:
    events: list[EventFields] = [{"event": "HIT", "source": "LOCAL", "hash": "115c7929ab9c479c"}] * 30_000
    sent = client.emit_many(events)
    assert 0 < sent < 30_000
    assert client.unsent_by_reason == {"full": 30_000 - sent}
    client.close()
    assert len(events_in(read_connection(listener))) == sent


def fill(client: EventClient, events: int) -> None:
    for _ in range(events):
        assert hit(client)


@pytest.fixture
def almost_full(path: Path, listener: socket.socket) -> int:
    """How many events leave room for one more, and so for the first part of a large one."""
    with EventClient(path) as client:
        while hit(client):
            pass
    read_connection(listener)
    return client.sent - 1


def test_a_torn_line_is_the_last_of_its_connection_and_not_sent(
    client: EventClient, listener: socket.socket, almost_full: int
) -> None:
    fill(client, almost_full)
    assert not client.emit("HIT", "LOCAL", "a" * 60_000)
    data = read_connection(listener)
    assert 0 < len(data.rpartition(b"\n")[2]) < 60_000
    assert len(decoded(data).rejects) == 1
    assert decoded(data).blocks[0].event_count == client.sent == almost_full
    assert client.unsent_by_reason == {"full": 1}
    eventually(lambda: hit(client), bool)
    client.close()
    assert len(events_in(read_connection(listener))) == 1


def test_a_line_that_lacks_only_its_newline_is_the_last_of_its_connection_and_sent(
    path: Path, client: EventClient, listener: socket.socket, almost_full: int
) -> None:
    with EventClient(path, session_id="s") as measure:
        fill(measure, almost_full)
        measure.emit("HIT", "LOCAL", "a" * 60_000)
    taken = len(read_connection(listener).rpartition(b"\n")[2])
    rest = '{"sessionId":"s","source":"LOCAL","event":"HIT","hash":""}'
    fill(client, almost_full)
    assert client.emit("HIT", "LOCAL", "a" * (taken - len(rest)), "s")
    data = read_connection(listener)
    assert not data.endswith(b"\n")
    assert len(events_in(data + b"\n")) == client.sent == almost_full + 1


def test_an_evicted_idle_connection_is_replaced_at_once(client: EventClient, listener: socket.socket) -> None:
    assert hit(client)
    connection, _ = listener.accept()
    with connection:
        connection.shutdown(socket.SHUT_RD)
        assert hit(client)
    client.close()
    assert len(events_in(read_connection(listener))) == 1
    assert (client.sent, client.unsent) == (2, 0)


def test_a_daemon_that_restarts_gets_the_next_event(path: Path, client: EventClient) -> None:
    with listening(path) as listener:
        assert hit(client)
        listener.accept()[0].close()
    with listening(path) as listener:
        assert hit(client)
        client.close()
        assert len(events_in(read_connection(listener))) == 1


def test_a_daemon_that_is_gone_for_good_costs_one_attempt(path: Path, client: EventClient) -> None:
    with listening(path) as listener:
        assert hit(client)
        listener.accept()[0].close()
    assert not hit(client)
    assert client.unsent_by_reason == {"absent": 1}


def test_a_lost_reader_kills_no_program_that_dies_of_sigpipe(path: Path, listener: socket.socket) -> None:
    script = """
        import signal, socket, sys
        from agent.client import EventClient
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[1])
        listener.listen()
        client = EventClient(sys.argv[1])
        client.emit("HIT", "LOCAL", "ab")
        listener.accept()[0].close()
        listener.close()
        print(client.emit("HIT", "LOCAL", "ab"), client.unsent_by_reason)
    """
    assert output_of(script, path, f"{path}.own") == ["False {'absent': 1}"]
