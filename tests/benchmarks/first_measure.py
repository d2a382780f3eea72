"""A first measure of the whole way, socket to HTTP, with a floor from the same run to compare it to.

    python -m tests.benchmarks.first_measure [--events 300000]

Prints a table for people and one line of JSON for machines. The floor is what no implementation in Python with these files
could beat: decode the same lines, encode them for the queue, write and fdatasync, in one process without sockets or HTTP.
Everything runs on this machine, the client and the API included; compare runs on one machine only.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import msgspec

from agent.client import EventClient
from agent.events import Event
from tests.support import recordings
from tests.support.daemon import Daemon
from tests.support.process import running

BLOCK_BYTES = 64 * 1024
SYNC_BYTES = 1024 * 1024
STARTS = 5
BURSTS, BURST = 40, 250
IDLE_SECONDS = 5.0
DEADLINE = 300.0

Figures = dict[str, float]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.first_measure", description=main.__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    data = recorded_like(parser.parse_args().events)
    with tempfile.TemporaryDirectory() as directory:
        figures = floor(data, Path(directory) / "floor") | agent(data, Path(directory) / "agent")
    figures["share of the floor, %"] = 100 * figures["events/s, socket to HTTP"] / figures["floor: events/s"]
    width = max(map(len, figures))
    sys.stdout.write("".join(f"{name:<{width}}  {value:>12,.1f}\n" for name, value in figures.items()))
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in figures.items()}) + "\n")


def recorded_like(count: int) -> bytes:
    """Return so many events as lines: the recorded ones over and over."""
    lines = [line for request in recordings.load() for line in request.lines.splitlines(keepends=True)]
    return b"".join(islice(cycle(lines), count))


def floor(data: bytes, path: Path) -> Figures:
    """Do the least that keeps the data: decode, encode, write and fdatasync, once for each MiB."""
    decode, encode = msgspec.json.Decoder(Event).decode_lines, msgspec.msgpack.Encoder().encode
    count = data.count(b"\n")
    cpu, begin, unsynced = time.process_time(), time.perf_counter(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for block in _blocks(data):
        unsynced += os.write(descriptor, encode(decode(block)))
        if unsynced >= SYNC_BYTES:
            os.fdatasync(descriptor)
            unsynced = 0
    os.fdatasync(descriptor)
    os.close(descriptor)
    seconds = time.perf_counter() - begin
    return {"floor: events/s": count / seconds, "floor: CPU µs/event": 1e6 * (time.process_time() - cpu) / count}


def _blocks(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        stop = data.rfind(b"\n", start, start + BLOCK_BYTES) + 1
        yield data[start:stop]
        start = stop


def agent(data: bytes, directory: Path) -> Figures:
    """Measure the daemon from its start on, against a sink in a process of its own."""
    with running([sys.executable, "-m", "tests.benchmarks.sink"], env={}) as sink:
        url = sink.wait_for_line(r"http://\S+")[0]
        sections = {"batch": {"max_delay": "2s"}, "log": {"level": "warning"}}
        figures = cold_starts(Daemon(directory, url, sections))
        with Daemon(directory, url, sections) as daemon:
            figures |= {"idle: VmRSS, MiB": _memory(daemon.pid, "VmRSS")}
            figures |= idle(daemon.pid)
            figures |= throughput(daemon, data)
            figures |= {"after the run: VmRSS, MiB": _memory(daemon.pid, "VmRSS")}
            figures |= {"after the run: VmHWM, MiB": _memory(daemon.pid, "VmHWM")}
            figures |= emits(daemon)
        sink.process.terminate()
        events, requests = map(int, sink.wait_for_line(r"^(\d+) events in (\d+) requests").groups())
    sent = data.count(b"\n") + BURSTS * BURST - int(figures["emit: unsent"])
    assert events == sent, f"{events} events arrived, {sent} were sent"
    return figures | {"events per request": events / requests}


def cold_starts(daemon: Daemon) -> Figures:
    """Time the way from exec to READY=1."""
    seconds = []
    for _ in range(STARTS):
        begin = time.perf_counter()
        daemon.start()
        seconds.append(time.perf_counter() - begin)
        daemon.terminate()
    return {"cold start to ready, ms": 1e3 * statistics.median(seconds)}


def idle(pid: int) -> Figures:
    """Count what a daemon with nothing to do costs."""
    cpu, switches = _cpu_seconds(pid), _switches(pid)
    time.sleep(IDLE_SECONDS)
    return {
        "idle: CPU, %": 100 * (_cpu_seconds(pid) - cpu) / IDLE_SECONDS,
        "idle: wake-ups/s": (_switches(pid) - switches) / IDLE_SECONDS,
    }


def throughput(daemon: Daemon, data: bytes) -> Figures:
    """Write everything on one connection as fast as the daemon reads it, and wait until the API has it."""
    count, cpu, begin = data.count(b"\n"), _cpu_seconds(daemon.pid), time.perf_counter()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(daemon.stream))
        client.sendall(data)
    taken = time.perf_counter() - begin
    _flush(daemon)
    seconds, cpu = time.perf_counter() - begin, _cpu_seconds(daemon.pid) - cpu
    assert daemon.status()["destinations"]["default"]["ledger"]["delivered"] == count
    return {
        "events/s, socket to queue": count / taken,
        "events/s, socket to HTTP": count / seconds,
        "agent: CPU µs/event": 1e6 * cpu / count,
    }


def emits(daemon: Daemon) -> Figures:
    """Time single emits in bursts that fit the socket's buffer."""
    times: list[int] = []
    with EventClient(daemon.stream, ci=None, interactive=0) as client:
        for _ in range(BURSTS):
            times += (_timed_emit(client) for _ in range(BURST))
            _flush(daemon)
        unsent = client.unsent
    p50, p99 = statistics.quantiles(times, n=100)[49], statistics.quantiles(times, n=100)[98]
    return {"emit: p50, µs": p50 / 1e3, "emit: p99, µs": p99 / 1e3, "emit: unsent": unsent}


def _timed_emit(client: EventClient) -> int:
    begin = time.perf_counter_ns()
    client.emit("HIT", "REMOTE", "115c7929ab9c479c", duration=514)
    return time.perf_counter_ns() - begin


def _flush(daemon: Daemon) -> None:
    daemon.request("POST", f"/flush?deadline={DEADLINE}", timeout=DEADLINE).raise_for_status()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int, name: Literal["VmRSS", "VmHWM"]) -> float:
    return _status_number(Path(f"/proc/{pid}/status"), name) / 1024


def _switches(pid: int) -> int:
    return sum(_status_number(each, "voluntary_ctxt_switches") for each in Path(f"/proc/{pid}/task").glob("*/status"))


def _status_number(path: Path, name: str) -> int:
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
