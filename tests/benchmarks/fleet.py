"""What a fleet costs: a relay, an agent that forwards, the accounts, `fleet status`, and the start of an agent that forwards.

    python -m tests.benchmarks.fleet [--case NAME] [--events 1000000] [--rounds 3] [--json FILE]

One real nats-server holds what it has on disk, synced at each write, and a sink is the API.

"relay" has a relay deliver messages of 100 and of 1,000 events, of a hundred queues, that wait in the stream when it begins. It
is held against a client of nats-py that takes the same messages and acknowledges them, and against one that posts as many events.
"forward" sends to an agent that forwards, and to one that delivers to the API itself. "fold" is the accounts of so many records,
held against `json.loads` of the same. "status" is the command with a tenth as many messages in the stream, of a thousand queues,
held against an empty stream. "runner" is the start of an agent and its first event, with and without forwarding.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import nats

from agent.config.schema import RelayConfig
from agent.delivery.batching import Batch
from agent.events import Context
from agent.fleet import message, names
from agent.fleet.accounting import FleetLedger
from agent.fleet.records import Intent, Part, Settled, decode_record, encode_record
from agent.queue.cursor import Outcome, Span
from tests.benchmarks import usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.load import Sent, blocks, send
from tests.benchmarks.report import AGENT, Figures, Report, Sample
from tests.benchmarks.sink import Sink, sink
from tests.benchmarks.startup import measured
from tests.support.command import COMMAND
from tests.support.daemon import Daemon, Sections, clean_environment
from tests.support.nats import NatsCluster, nats_cluster
from tests.support.process import running
from tests.support.waiting import HUNG_AFTER, eventually

TEAM, POOL = "web", "linux"
SUBJECT = names.events_subject(TEAM, POOL)
GIB = 1024**3
SIZES = RelayConfig(replicas=1, events_max_bytes=2 * GIB, ledger_max_bytes=GIB, dead_letters_max_bytes=GIB // 8)
QUEUES, MANY_QUEUES = 100, 1_000
EVENTS_A_MESSAGE = (100, 1_000)
SMALL = 10  # events in a message of "status"
PARTS_A_RECORD = (1, 10)
CASES = ("relay", "forward", "fold", "status", "runner")
CONSUMER, CLIENT, API = "bare consumer", "bare client", "to the API"
FLUSH_SECONDS = 600
LONG = timedelta(days=1)
EVENT = b'{"sessionId":"11111111-1111-4111-8111-111111111111","source":"LOCAL","event":"HIT","hash":"a","duration":7}\n'


def run(size: Size) -> Report:
    """Measure each case in rounds, with what it is held against in turn."""
    ways = {"relay": _relay, "forward": _forward, "fold": _fold, "status": _status, "runner": _runner}
    samples = [each for case in size.chosen(CASES) for _ in range(size.rounds) for each in ways[case](size)]
    return Report("fleet", samples, size.facts())


# The stream


def messages(events: int, each: int, queues: int, prefix: str = "q") -> Iterator[tuple[bytes, dict[str, str]]]:
    """Yield bodies and headers of messages with so many events each, of so many queues in turn, whose ids begin so."""
    for index, lines in enumerate(blocks(events, each)):
        first, count = 1 + index // queues * each, lines.count(b"\n")
        batch = Batch(Context(), lines, (Span(first, first + count),), enqueued_at=time.time())
        yield lines, message.encode(batch, f"{prefix}{index % queues:031x}")


async def _fill(server: str, found: Iterable[tuple[bytes, dict[str, str]]]) -> None:
    """Publish messages; return when the stream has all."""
    client = await nats.connect(server)
    stream, count = client.jetstream(), 0
    before = (await stream.stream_info(names.EVENTS)).state.last_seq
    for body, headers in found:
        await client.publish(SUBJECT, body, headers=headers)
        count += 1
        if not count % 64:
            await client.flush()
    while (await stream.stream_info(names.EVENTS)).state.last_seq < before + count:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    await client.close()


async def _pause(server: str, *, paused: bool) -> None:
    """Let the server deliver nothing to the relays, or again."""
    client = await nats.connect(server)
    until = datetime.now(UTC) + LONG if paused else datetime.fromtimestamp(0, UTC)
    name = names.consumer(TEAM)
    await client.jetstream().pause_consumer(names.EVENTS, name, until.strftime("%Y-%m-%dT%H:%M:%SZ"))
    await client.close()


def _waiting(server: str) -> int:
    """Return how many messages the stream holds."""

    async def ask() -> int:
        client = await nats.connect(server)
        state = (await client.jetstream().stream_info(names.EVENTS)).state
        await client.close()
        return state.messages

    return asyncio.run(ask())


def _pid(cluster: NatsCluster) -> int:
    (server,) = cluster.servers
    assert server.process is not None
    return server.process.pid


@contextmanager
def _cluster(directory: Path) -> Iterator[NatsCluster]:
    with nats_cluster(directory, teams=[TEAM], sizes=SIZES) as cluster:
        yield cluster


# A relay


def _relay(size: Size) -> list[Sample]:
    found: list[Sample] = []
    for each in EVENTS_A_MESSAGE:
        case = f"relay, {each:,} a message"
        found.append(Sample(case, AGENT, _delivered(size, each)))
        if not size.alone:
            found += [Sample(case, CONSUMER, _consumed(size, each)), Sample(case, CLIENT, _posted(size))]
    return found


def relay_config(directory: Path, cluster: NatsCluster, api_url: str) -> Path:
    """Write the configuration of a relay that is as by default, and return where it is."""
    config = directory / "relay.toml"
    config.write_text(
        f'[relay]\nservers = {json.dumps(list(cluster.urls))}\nteam = "{TEAM}"\nreplicas = 1\n'
        f'[api]\nurl = "{api_url}"\ntimeout = "30s"\n[batch]\nmax_delay = "250ms"\n[log]\nlevel = "warning"\n'
    )
    return config


def _delivered(size: Size, each: int) -> Figures:
    """Let a relay that is at work find everything in the stream at once; wait until the API has it."""
    with size.fresh() as directory, sink() as api, _cluster(directory / "n") as cluster:
        config = relay_config(directory, cluster, api.url)
        command = [*COMMAND, "relay", "--config", str(config)]
        with running(command, clean_environment()) as relay:
            pid, (server,) = relay.process.pid, cluster.urls
            _warm_up(server, api)
            asyncio.run(_pause(server, paused=True))
            asyncio.run(_fill(server, messages(size.events, each, QUEUES)))
            before, cpu, nats_cpu = api.wait(0), usage.cpu_seconds(pid), usage.cpu_seconds(_pid(cluster))
            begin = time.monotonic()
            asyncio.run(_pause(server, paused=False))
            after = api.wait(before.events + size.events)
            eventually(lambda: _waiting(server), lambda left: not left)
            cpu, nats_cpu = usage.cpu_seconds(pid) - cpu, usage.cpu_seconds(_pid(cluster)) - nats_cpu
            peak = usage.memory(pid).peak
    arrived, requests = after.events - before.events, after.requests - before.requests
    assert arrived == size.events, f"{arrived} of {size.events} events arrived"
    return {
        "events/s": size.events / (after.at - begin),
        "CPU µs/event": 1e6 * cpu / size.events,
        "CPU µs/request": 1e6 * cpu / requests,
        "peak MiB": peak,
        "events/request": size.events / requests,
        "server µs/event": 1e6 * nats_cpu / size.events,
    }


def _warm_up(server: str, api: Sink) -> None:
    """Let an event be delivered, so that what is measured is no start."""
    before = api.wait(0).events
    asyncio.run(_fill(server, messages(1, 1, 1, "w")))
    eventually(lambda: api.wait(before + 1).events, lambda events: events > before)


def _consumed(size: Size, each: int) -> Figures:
    with size.fresh() as directory, _cluster(directory) as cluster:
        (server,) = cluster.urls
        asyncio.run(_fill(server, messages(size.events, each, QUEUES)))
        nats_cpu = usage.cpu_seconds(_pid(cluster))
        sent = _floor("consumer", server, names.EVENTS, names.consumer(TEAM), -(-size.events // each))
        nats_cpu = usage.cpu_seconds(_pid(cluster)) - nats_cpu
    return {**_rates(size, sent), "server µs/event": 1e6 * nats_cpu / size.events}


def _posted(size: Size) -> Figures:
    with sink() as api:
        return _rates(size, _floor("client", api.url, size.events))


def _rates(size: Size, sent: Sent) -> dict[str, float]:
    return {"events/s": size.events / (sent.end - sent.begin), "CPU µs/event": 1e6 * sent.cpu / size.events}


def _floor(*words: object) -> Sent:
    command = [sys.executable, "-m", "tests.benchmarks.fleet_floor", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[2])
    return Sent(**json.loads(done.stdout))


# An agent that forwards


def _forwards(cluster: NatsCluster) -> Sections:
    return {"forward": {"servers": list(cluster.urls), "team": TEAM, "pool": POOL}}


def _forward(size: Size) -> list[Sample]:
    with size.fresh() as directory, sink() as api, _cluster(directory / "n") as cluster:
        forwarding = Sample("forward", AGENT, _sent(size, directory / "f", api, _forwards(cluster)))
        return [forwarding, Sample("forward", API, _sent(size, directory / "d", api, {}))]


def _sent(size: Size, directory: Path, api: Sink, sections: Sections) -> Figures:
    with agent_daemon(directory, api.url, sections=sections) as daemon:
        cpu = usage.cpu_seconds(daemon.pid)
        sent = send("confirmed", daemon.stream, size.events)
        _flush(daemon)
        end = time.monotonic()
        cpu, peak = usage.cpu_seconds(daemon.pid) - cpu, usage.memory(daemon.pid).peak
        ledger = daemon.destination().ledger
    assert ledger.delivered + ledger.forwarded == size.events, ledger
    return {"events/s": size.events / (end - sent.begin), "CPU µs/event": 1e6 * cpu / size.events, "peak MiB": peak}


def _flush(daemon: Daemon) -> None:
    path = f"/flush?deadline={FLUSH_SECONDS}"
    daemon.request("POST", path, timeout=FLUSH_SECONDS + HUNG_AFTER).raise_for_status()


# The accounts


def _fold(size: Size) -> list[Sample]:
    found: list[Sample] = []
    for parts in PARTS_A_RECORD:
        bodies = list(islice(_records(parts), max(2, size.events // 10)))
        case = f"fold, {parts} part{'s'[: parts > 1]} a record"
        found += [Sample(case, AGENT, _folded(bodies)), Sample(case, "json.loads", _loaded(bodies))]
    return found


def _records(parts: int) -> Iterator[bytes]:
    """Yield intents and what settles them, of so many queues each."""
    number = 0
    while True:
        queues = [f"{(number * parts + each) % QUEUES:032x}" for each in range(parts)]
        first = 1 + number * parts // QUEUES * 100
        spans = (Span(first, first + 100),)
        of_each = tuple(Part(SUBJECT, queue, spans) for queue in queues)
        yield encode_record(Intent(f"r-{number}", "r", of_each))
        yield encode_record(Settled(Outcome.DELIVERED, of_each, f"r-{number}"))
        number += 1


def _folded(bodies: Sequence[bytes]) -> Figures:
    ledger, cpu, begin = FleetLedger(), time.process_time(), time.perf_counter()
    for seq, body in enumerate(bodies, 1):
        ledger.apply(decode_record(body), seq, 1e9 + seq)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    assert ledger.in_doubt <= 100 * max(PARTS_A_RECORD)  # of the last, whose end may be cut off
    return {"records/s": len(bodies) / seconds, "CPU µs/record": 1e6 * cpu / len(bodies)}


def _loaded(bodies: Sequence[bytes]) -> Figures:
    cpu, begin = time.process_time(), time.perf_counter()
    for body in bodies:
        json.loads(body)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"records/s": len(bodies) / seconds, "CPU µs/record": 1e6 * cpu / len(bodies)}


# The status


def _status(size: Size) -> list[Sample]:
    count = max(1, size.events // 10)
    with size.fresh() as directory, _cluster(directory / "n") as cluster:
        command = [*COMMAND, "fleet", "status", "--json", "--config"]
        command.append(str(relay_config(directory, cluster, "http://127.0.0.1:1")))
        empty = measured(command, {})
        asyncio.run(_fill(cluster.urls[0], messages(count * SMALL, SMALL, MANY_QUEUES)))
        full = measured(command, {})
    return [
        Sample("status", AGENT, {**full, "messages/s": 1e3 * count / full["ms"]}),
        Sample("status", "an empty stream", empty),
    ]


# A runner


def _runner(size: Size) -> list[Sample]:
    with size.fresh() as directory, sink() as api, _cluster(directory / "n") as cluster:
        forwarding = Sample("runner", AGENT, _begun(directory / "f", api, _forwards(cluster)))
        return [forwarding, Sample("runner", API, _begun(directory / "d", api, {}))]


def _begun(directory: Path, api: Sink, sections: Sections) -> Figures:
    daemon, begin = Daemon(directory, api.url, sections), time.perf_counter()
    with daemon:
        ready = time.perf_counter()
        with daemon.connect() as conversation:
            conversation.send(EVENT)
            conversation.wait_settled(1)
        _flush(daemon)
        end = time.perf_counter()
        assert daemon.destination().ledger.queued == 0
        return {
            "ready ms": 1e3 * (ready - begin),
            "first event ms": 1e3 * (end - ready),
            "ms": 1e3 * (end - begin),
            "RSS MiB": usage.memory(daemon.pid).rss,
        }


BENCHMARK = Benchmark("fleet", run, cases=CASES)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
