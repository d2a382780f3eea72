"""Credentials that end while a runner or a relay is connected with them: they go on with new ones, without a restart."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.fleet import permissions
from agent.fleet.permissions import Permissions
from tests.support.api_server import ApiServer
from tests.support.daemon import Daemon
from tests.support.forwarding import NOWHERE, forwarded, forwarding, lines, send
from tests.support.nats import SMALL, NatsCluster, free_port
from tests.support.nats_credentials import Realm
from tests.support.relay_process import World, readiness
from tests.support.waiting import eventually

LIFE_SECONDS = 5.0


@dataclass
class Issuer:
    """A server that knows an operator, and the file of a credential that ends."""

    realm: Realm
    cluster: NatsCluster
    admin: Path
    file: Path

    def issue(self, may: Permissions, seconds: float | None = None) -> str:
        """Write a credential to the file, for ever or for so long, and return whose it is."""
        return self.realm.issue(self.file, may, None if seconds is None else time.time() + seconds)

    def revoke(self, user: str) -> None:
        """Turn a user away, by a reload of the server, to which it may be connected."""
        (server,) = self.cluster.servers
        self.realm.revoke(user)
        server.configure(self.realm.options)
        server.reload()


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    """One server with what a fleet needs."""
    realm, admin = Realm(), tmp_path / "admin.creds"
    realm.issue(admin)
    cluster = NatsCluster(tmp_path / "nats", options=realm.options)
    cluster.start()
    try:
        asyncio.run(cluster.ready(["web"], SMALL, admin))
        yield Issuer(realm, cluster, admin, tmp_path / "own.creds")
    finally:
        cluster.kill()


def _revoked(issuer: Issuer, may: Permissions, is_connected: Callable[[], bool]) -> None:
    """Revoke a credential once somebody is connected with it."""
    user = issuer.issue(may)
    eventually(is_connected, bool)
    issuer.revoke(user)


def _expiring(issuer: Issuer, may: Permissions, is_connected: Callable[[], bool]) -> None:
    """Return when somebody is connected with a credential that ends soon: on a busy machine one may end before that."""
    issued_at = float("-inf")
    while not is_connected():
        if time.monotonic() > issued_at + LIFE_SECONDS:
            issuer.issue(may, LIFE_SECONDS)
            issued_at = time.monotonic()
        time.sleep(0.02)


End = Callable[[Issuer, Permissions, Callable[[], bool]], None]
ENDS = pytest.mark.parametrize("end", [pytest.param(_revoked, id="revoked"), pytest.param(_expiring, id="expiring")])


@ENDS
def test_a_runner_goes_on_with_a_new_credential_in_the_same_file(tmp_path: Path, issuer: Issuer, end: End) -> None:
    may = permissions.of_pool("web", "ci")
    issuer.issue(may, -1)
    with Daemon(tmp_path / "a", NOWHERE, forwarding(issuer.cluster, issuer.file)) as daemon:
        send(daemon, lines(1, 10))
        end(issuer, may, lambda: daemon.destination().ledger.forwarded == 10)
        sent = 10
        while (found := daemon.destination()).state != "paused":  # it may be connected still
            send(daemon, lines(sent + 1, 1))
            sent += 1
        assert (found.reason or "").startswith("blocked: ")
        send(daemon, lines(sent + 1, 10))
        held = daemon.destination().ledger
        assert (held.accepted, held.forwarded + held.queued) == (sent + 10, sent + 10)
        assert held.queued >= 10
        issuer.issue(may)
        pid = daemon.pid
        daemon.wait_destination(forwarded(sent + 10))
        assert daemon.pid == pid


@ENDS
def test_a_relay_goes_on_with_a_new_credential_in_the_same_file(tmp_path: Path, issuer: Issuer, end: End) -> None:
    port = free_port()
    metrics = f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
    with ApiServer() as api, World(tmp_path, issuer.cluster, api, metrics, issuer.file) as w:
        asyncio.run(_relay_goes_on(w, issuer, end, port))


async def _relay_goes_on(w: World, issuer: Issuer, end: End, port: int) -> None:
    may, relay, engine = permissions.of_relays("web"), w.relays[0], issuer.cluster.engine(issuer.admin)
    try:
        issuer.issue(may, -1)
        relay.start()
        await w.publish(engine, "q", ["first"])
        end(issuer, may, lambda: w.taken() == {"first": 1})
        eventually(
            lambda: readiness(port), lambda found: found[0] == 503 and "authorization" in (found[1] or "").lower()
        )
        said = relay.log.read_text()
        assert "engine_refuses" in said
        assert "user authentication " in said  # why the connection was closed
        await w.publish(engine, "q", ["second"])
        assert w.taken() == {"first": 1}
        issuer.issue(may)
        await w.drained(engine)
        ledger = await w.ledger(engine)
    finally:
        await engine.aclose()
    assert w.taken() == {"first": 1, "second": 1}
    assert "Traceback" not in relay.log.read_text()
    assert (ledger.sums, ledger.in_doubt, relay.has_ended) == ({"delivered": 2}, 0, False)
    assert relay.terminate() == 0
