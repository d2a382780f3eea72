"""A runner that forwards: real daemons, a real nats-server, and what the stream holds in the end."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.fleet import names, permissions
from agent.fleet.message import Events, decode
from agent.queue.cursor import Ledger
from tests.support.api_server import ApiServer
from tests.support.command import run_command
from tests.support.daemon import Daemon
from tests.support.forwarding import NOWHERE, forwarded, forwarding, hashes, lines, send
from tests.support.nats import SMALL, NatsCluster, nats_cluster
from tests.support.nats_credentials import Realm

SUBJECT = names.events_subject("web", "ci")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """One server that anybody may publish to."""
    with nats_cluster(tmp_path / "nats") as found:
        yield found


def kept(cluster: NatsCluster, credentials: Path | None = None) -> list[Events]:
    """Return what the stream holds, as relays understand it."""

    async def read() -> list[Events]:
        engine, found, after = cluster.engine(credentials), [], 0
        while (message := await engine.next_stored(names.EVENTS, SUBJECT, after)) is not None:
            after = message.seq
            found.append(decode(message.headers, message.body))
        await engine.aclose()
        return found

    return asyncio.run(read())


async def take(cluster: NatsCluster) -> Counter[str]:
    """Take what the stream holds out of it, as a relay does."""
    engine, found = cluster.engine(), Counter[str]()
    while messages := await engine.fetch(names.EVENTS, names.consumer("web"), most=100, seconds=0.2):
        found += hashes([message.body for message in messages])
        for message in messages:
            await engine.ack(message)
    await engine.aclose()
    return found


def test_events_reach_the_engine_whole_and_no_token_is_needed(tmp_path: Path, cluster: NatsCluster) -> None:
    sent = lines(1, 300)
    with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster)) as daemon:
        send(daemon, sent)
        flushed = run_command("flush", "--json", "--config", daemon.config)
        assert json.loads(flushed.stdout) == {
            "delivered": 0,
            "queued": 0,
            "dead_lettered": 0,
            "dropped": {},
            "forwarded": 300,
        }
        of_session = run_command("flush", "--session", "s", "--config", daemon.config)
        assert (of_session.returncode, "300 events forwarded" in of_session.stdout) == (0, True)
        shown = run_command("status", "--config", daemon.config).stdout
        assert f"team web, pool ci, at {cluster.urls[0]}" in shown
        assert "300 accepted = 0 delivered + 300 forwarded" in shown
        assert "artifacts_agent_events_forwarded_total" in daemon.request("GET", "/metrics").text
        check = run_command("check", "--online", "--config", daemon.config)
        assert (check.returncode, f"would take events on {SUBJECT}" in check.stdout) == (0, True)
        assert daemon.terminate() == 0
        assert "no_token" not in daemon.stderr_text()
    messages = kept(cluster)
    assert hashes([each.lines for each in messages]) == hashes(sent)
    assert messages[-1] == messages[-1]._replace(spans=(), lines=b"", ledger=Ledger(300, 0, 0, {}, 0, 0, 300))


def test_while_the_engine_is_away_events_wait_and_then_they_go_on(tmp_path: Path, cluster: NatsCluster) -> None:
    with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster)) as daemon:
        send(daemon, lines(1, 50))
        daemon.wait_destination(forwarded(50))
        cluster.kill()
        send(daemon, lines(51, 50))
        waiting = daemon.wait_destination(lambda found: found.state == "backing_off")
        assert waiting.ledger == Ledger(100, 0, 0, {}, 50, 0, 50)
        cluster.start()
        daemon.wait_destination(forwarded(100))
    assert hashes([each.lines for each in kept(cluster)]) == hashes(lines(1, 100))


def test_a_full_stream_holds_events_up_and_drops_none(tmp_path: Path) -> None:
    small = replace(SMALL, events_max_bytes=64 * 1024)
    with nats_cluster(tmp_path / "nats", sizes=small) as cluster:
        sections = {**forwarding(cluster), "batch": {"max_events": 50}}
        with Daemon(tmp_path / "a", NOWHERE, sections) as daemon:
            send(daemon, lines(1, 1000))
            full = daemon.wait_destination(lambda found: found.state == "backing_off")
            assert "maximum bytes" in (full.reason or "")
            taken: Counter[str] = Counter()
            while daemon.destination().ledger.queued:
                taken += asyncio.run(take(cluster))
            taken += asyncio.run(take(cluster))
            assert daemon.destination().ledger == Ledger(1000, 0, 0, {}, 0, 0, 1000)
            assert taken == hashes(lines(1, 1000))


def test_what_is_too_large_for_a_message_goes_in_several(tmp_path: Path) -> None:
    with nats_cluster(tmp_path / "nats", options="max_payload: 8192\n") as cluster:
        with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster)) as daemon:
            send(daemon, lines(1, 500))
            daemon.wait_destination(forwarded(500))
            limit = daemon.destination().batch_limit
            assert limit is not None
            assert "8192" in (limit.reason or "")
        messages = kept(cluster)
        assert hashes([each.lines for each in messages]) == hashes(lines(1, 500))
        assert max(len(each.lines) for each in messages) < 8192


def test_a_credential_that_is_refused_pauses_until_its_file_is_renewed(tmp_path: Path) -> None:
    realm, admin, file = Realm(), tmp_path / "admin.creds", tmp_path / "ci.creds"
    realm.issue(admin)
    may = permissions.of_pool("web", "ci")
    cluster = NatsCluster(tmp_path / "nats", options=realm.options)
    cluster.start()
    try:
        asyncio.run(cluster.ready(["web"], SMALL, admin))
        realm.issue(file, permissions.of_pool("web", "other"))
        with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster, file)) as daemon:
            send(daemon, lines(1, 10))
            daemon.wait_destination(lambda found: found.state == "paused")  # of another pool
            realm.issue(file, may, time.time() + 60)
            daemon.wait_destination(forwarded(10))
            user = realm.issue(file, may)
            realm.revoke(user)
            cluster.kill()
            cluster.servers[0].configure(realm.options)
            cluster.start()
            asyncio.run(cluster.ready(["web"], SMALL, admin))
            send(daemon, lines(11, 10))
            paused = daemon.wait_destination(lambda found: found.state == "paused")
            assert (paused.reason or "").startswith("blocked: ")
            assert paused.ledger == Ledger(20, 0, 0, {}, 10, 0, 10)
            realm.issue(file, may)
            daemon.wait_destination(forwarded(20))
            assert "SEED" not in daemon.stderr_text()
        assert hashes([each.lines for each in kept(cluster, admin)]) == hashes(lines(1, 20))
    finally:
        cluster.kill()


def test_a_reload_turns_it_on_and_off_and_what_waits_goes_where_it_says(
    tmp_path: Path, cluster: NatsCluster, api_server: ApiServer
) -> None:
    with Daemon(tmp_path / "a", NOWHERE) as daemon:
        send(daemon, lines(1, 20))
        daemon.wait_destination(lambda found: found.state == "backing_off")
        daemon.configure(NOWHERE, forwarding(cluster))
        daemon.signal(signal.SIGHUP)
        daemon.wait_destination(forwarded(20))
        cluster.kill()
        send(daemon, lines(21, 20))
        daemon.wait_destination(lambda found: found.state == "backing_off")
        daemon.configure(api_server.url, {})
        daemon.signal(signal.SIGHUP)
        back = daemon.wait_destination(lambda found: not found.ledger.queued)
        assert (back.ledger, back.forward) == (Ledger(40, 20, 0, {}, 0, 0, 20), None)
        cluster.start()
        daemon.configure(NOWHERE, forwarding(cluster))
        daemon.signal(signal.SIGHUP)
        send(daemon, lines(41, 20))
        daemon.wait_destination(forwarded(40))
    events = kept(cluster)
    assert hashes([each.lines for each in events]) == hashes([*lines(1, 20), *lines(41, 20)])
    assert len({each.queue for each in events}) == 1


def test_after_sigkill_nothing_is_lost_and_a_number_is_one_event(tmp_path: Path, cluster: NatsCluster) -> None:
    daemon = Daemon(tmp_path / "a", NOWHERE, {**forwarding(cluster), "batch": {"max_events": 20, "max_delay": "1ms"}})
    with daemon:
        for life in range(4):
            send(daemon, lines(1 + 400 * life, 400))
            daemon.kill()
            daemon.start()
        last = daemon.wait_destination(lambda found: not found.ledger.queued)
        assert last.ledger == Ledger(1600, 0, 0, {}, 0, 0, 1600)
    numbers: dict[tuple[str, int], bytes] = {}
    for message in kept(cluster):
        each = iter(message.lines.splitlines())
        for span in message.spans:
            for number in range(*span):
                line = next(each)
                assert numbers.setdefault((message.queue, number), line) == line
    assert hashes([*numbers.values()]) == hashes(lines(1, 1600))


def test_a_spool_of_a_runner_is_forwarded_by_who_adopts_it(tmp_path: Path, cluster: NatsCluster) -> None:
    spools, sections = tmp_path / "spools", forwarding(cluster)
    cluster.kill()
    gone = Daemon(tmp_path / "a", NOWHERE, {**sections, "queue": {"directory": str(spools / "job")}})
    with gone:
        send(gone, lines(1, 30))
        gone.signal(signal.SIGKILL)
        gone.wait()
    cluster.start()
    adopts = {**sections, "queue": {"adopt": str(spools)}}
    with Daemon(tmp_path / "b", NOWHERE, adopts) as daemon:
        status = daemon.wait_status(lambda found: found["adopted"]["finished"] == 1)
        assert status["adopted"]["ledger"]["forwarded"] == 30
    assert hashes([each.lines for each in kept(cluster)]) == hashes(lines(1, 30))
