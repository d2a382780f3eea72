"""The client in every kind of program: with threads, forks, signals and event loops, and while one ends."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.client import EventClient
from tests.support.client_programs import events_in, listening, output_of, read_connection, run


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs") / "events.sock"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """A daemon's socket that nobody reads before the test does."""
    with listening(path) as listener:
        yield listener


@pytest.fixture
def client(path: Path) -> Iterator[EventClient]:
    with EventClient(path) as client:
        yield client


def test_threads_never_tear_each_others_lines(client: EventClient, listener: socket.socket) -> None:
    def hammer(thread: int) -> int:
        return sum(client.emit("HIT", "LOCAL", f"{thread}-{number}" * 20) for number in range(2000))

    with ThreadPoolExecutor() as reader, ThreadPoolExecutor(8) as threads:
        received = reader.submit(read_connection, listener)
        sent = sum(threads.map(hammer, range(8)))
        client.close()
        hashes = [event["hash"] for event in events_in(received.result())]
    assert len(hashes) == len(set(hashes)) == sent == client.sent
    assert client.sent + client.unsent == 16_000
    assert set(client.unsent_by_reason) <= {"full"}


def test_parent_and_forked_children_write_whole_lines_to_connections_of_their_own(
    path: Path, listener: socket.socket
) -> None:
    script = """
        import os, sys
        from agent.client import EventClient
        client = EventClient()
        client.emit("HIT", "LOCAL", "before")
        children = [os.fork() for _ in range(2)]
        for number in range(100):
            client.emit("HIT", "LOCAL", f"{children}-{number}")
        print(client.sent, client.unsent, flush=True)
        if all(children):
            while children: os.waitpid(children.pop(), 0)
    """
    with ThreadPoolExecutor() as pool:
        received = [pool.submit(read_connection, listener) for _ in range(4)]
        assert sorted(output_of(script, path)) == ["100 0", "100 0", "100 0", "101 0"]
        connections = [events_in(each.result()) for each in received]
    assert sorted(len(events) for events in connections) == [100, 100, 100, 101]
    assert len({event["sessionId"] for events in connections for event in events}) == 1
    for events in connections:
        hashes = [event["hash"] for event in events if event["hash"] != "before"]
        assert hashes == [f"{hashes[0].rpartition('-')[0]}-{number}" for number in range(100)]


def test_a_fork_amid_other_threads_sends_leaves_no_lock_locked(path: Path, listener: socket.socket) -> None:
    script = """
        import os, threading, warnings
        from agent.client import EventClient
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of just this: to fork amid threads
        client = EventClient()
        done = threading.Event()
        def hammer():
            while not done.is_set():
                client.emit("HIT", "LOCAL", "parent")
        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads: thread.start()
        codes = []
        for _ in range(50):
            child = os.fork()
            if not child:
                os._exit(client.emit("HIT", "LOCAL", "child"))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        done.set()
        for thread in threads: thread.join()
        print(set(codes))
    """
    with ThreadPoolExecutor(51) as pool:
        received = [pool.submit(read_connection, listener) for _ in range(51)]
        assert output_of(script, path) == ["{1}"]
        connections = [events_in(each.result()) for each in received]
    assert sum({event["hash"] for event in events} == {"child"} for events in connections) == 50


def test_a_daemonizing_program_keeps_the_files_that_it_opens_next(path: Path, listener: socket.socket) -> None:
    script = """
        import os, tempfile
        from agent.client import EventClient
        client = EventClient()
        client.emit("HIT", "LOCAL", "ab")
        if os.fork():
            os.wait()
            os._exit(0)
        os.closerange(3, 256)
        files = [tempfile.TemporaryFile() for _ in range(10)]
        print(client.emit("HIT", "LOCAL", "ab"), flush=True)
        client.close()
        for file in files: os.fstat(file.fileno()); file.close()
    """
    assert output_of(script, path) == ["True"]
    assert [len(events_in(read_connection(listener))) for _ in range(2)] == [1, 1]


def test_a_program_that_closes_all_descriptors_is_connected_anew(path: Path, listener: socket.socket) -> None:
    script = """
        import os
        from agent.client import emit
        emit("HIT", "LOCAL", "ab")
        os.closerange(3, 256)
        print(emit("HIT", "LOCAL", "ab"))
    """
    assert output_of(script, path) == ["True"]
    assert [len(events_in(read_connection(listener))) for _ in range(2)] == [1, 1]


def test_a_signal_handler_that_emits_amid_an_emit_neither_hangs_nor_tears(path: Path, listener: socket.socket) -> None:
    script = """
        import signal
        from agent.client import EventClient
        client = EventClient()
        calls = 0
        def handle(*_):
            global calls
            calls += 1
            client.emit("HIT", "LOCAL", "handler")
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        emitted = 0
        while calls < 200:
            client.emit("HIT", "LOCAL", "main")
            emitted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert client.sent + client.unsent == emitted + calls
        assert set(client.unsent_by_reason) <= {"full", "reentrant"}
        print(client.sent)
    """
    with ThreadPoolExecutor() as pool:
        received = pool.submit(read_connection, listener)
        [sent] = output_of(script, path)
        assert len(events_in(received.result())) == int(sent)


def test_tasks_of_an_event_loop_may_emit(client: EventClient, listener: socket.socket) -> None:
    async def build(task: int) -> bool:
        await asyncio.sleep(0)
        return client.emit("HIT", "LOCAL", str(task))

    async def program() -> list[bool]:
        return await asyncio.gather(*(build(task) for task in range(100)))

    assert asyncio.run(program(), debug=True) == [True] * 100
    client.close()
    assert {event["hash"] for event in events_in(read_connection(listener))} == {str(task) for task in range(100)}


def test_a_program_that_just_ends_has_sent_everything_and_warns_of_nothing(path: Path, listener: socket.socket) -> None:
    script = """
        import atexit
        atexit.register(lambda: emit("HIT", "LOCAL", "exit handler"))  # runs after the client's own
        from agent.client import EventClient, emit
        class Late:
            def __del__(self):
                emit("HIT", "LOCAL", "finalizer")
        late = Late()
        emit("HIT", "LOCAL", "main")
        kept, dropped = EventClient(), EventClient()
        kept.emit("HIT", "LOCAL", "kept open")
        dropped.emit("HIT", "LOCAL", "dropped open")
        del dropped
    """
    assert output_of(script, path) == []
    connections = [[event["hash"] for event in events_in(read_connection(listener))] for _ in range(4)]
    assert connections == [["main"], ["kept open"], ["dropped open"], ["exit handler", "finalizer"]]


def test_a_killed_program_has_sent_everything(path: Path, listener: socket.socket) -> None:
    script = """
        import os, signal
        from agent.client import emit
        for number in range(100): emit("HIT", "LOCAL", str(number))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(script, path).returncode == -signal.SIGKILL
    assert len(events_in(read_connection(listener))) == 100


def test_a_program_that_is_started_does_not_hold_the_connection_open(
    client: EventClient, listener: socket.socket
) -> None:
    assert client.emit("HIT", "LOCAL", "ab")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        client.close()
        assert len(events_in(read_connection(listener))) == 1


def test_workers_of_a_forked_pool_emit_on_connections_of_their_own(path: Path, listener: socket.socket) -> None:
    script = """
        import multiprocessing
        from agent.client import emit
        def build(number): return emit("HIT", "LOCAL", str(number))
        emit("HIT", "LOCAL", "parent")
        with multiprocessing.get_context("fork").Pool(3) as pool: print(sum(pool.map(build, range(60), 1)))
    """
    with ThreadPoolExecutor() as readers:
        received = [readers.submit(read_connection, listener) for _ in range(2)]
        assert output_of(script, path) == ["60"]
        assert all(events_in(each.result()) for each in received)


def test_daemon_threads_that_emit_while_the_interpreter_ends_harm_nothing(path: Path, listener: socket.socket) -> None:
    script = """
        import threading
        from agent.client import emit
        begun = threading.Barrier(5)
        emit("HIT", "LOCAL", "ab")
        def hammer():
            begun.wait()
            while True: emit("HIT", "LOCAL", "ab")
        for _ in range(4): threading.Thread(target=hammer, daemon=True).start()
        begun.wait()
    """
    with ThreadPoolExecutor() as pool:
        received = pool.submit(read_connection, listener)
        assert output_of(script, path) == []
        assert events_in(received.result())


def test_an_interpreter_within_the_interpreter_has_a_client_of_its_own(path: Path, listener: socket.socket) -> None:
    script = """
        import os
        try: import _interpreters as interpreters
        except ImportError: import _xxsubinterpreters as interpreters  # before Python 3.13
        from agent.client import emit
        emit("HIT", "LOCAL", "main")
        inner = interpreters.create()
        interpreters.run_string(inner, "from agent.client import emit; emit('HIT', 'LOCAL', 'inner')")
        interpreters.destroy(inner)
        if not os.fork(): os._exit(not emit("HIT", "LOCAL", "child"))
        print(os.wait()[1])
    """
    assert output_of(script, path) == ["0"]
    connections = [[event["hash"] for event in events_in(read_connection(listener))] for _ in range(3)]
    assert connections == [["main"], ["inner"], ["child"]]


@pytest.mark.parametrize("opened", ["os.open('/dev/zero', os.O_RDWR)", "socket.socket().detach()"])
def test_a_descriptor_that_took_over_the_clients_number_is_let_alone(
    path: Path, listener: socket.socket, opened: str
) -> None:
    script = f"""
        import os, socket
        from agent.client import EventClient
        client = EventClient()
        client.emit("HIT", "LOCAL", "before")
        os.closerange(3, 256)
        other = {opened}
        identity = os.fstat(other)
        print(other, client.emit("HIT", "LOCAL", "after"), os.fstat(other) == identity, flush=True)
        client.emit("HIT", "LOCAL", "more")
        os.closerange(3, 256)
        other = {opened}
        client.close()
        print(other, os.fstat(other) is not None)
    """
    assert output_of(script, path) == ["3 True True", "3 True"]
    connections = [[event["hash"] for event in events_in(read_connection(listener))] for _ in range(2)]
    assert connections == [["before"], ["after", "more"]]


def test_a_program_whose_output_is_closed_does_not_write_it_to_the_daemon(path: Path, listener: socket.socket) -> None:
    script = """
        import os
        for number in range(3): os.close(number)
        from agent.client import emit
        emit("HIT", "LOCAL", "ab")
        for number in range(3):
            try:
                os.write(number, b"noise")
            except OSError:
                continue
            os._exit(1)
    """
    assert output_of(script, path) == []
    assert len(events_in(read_connection(listener))) == 1
