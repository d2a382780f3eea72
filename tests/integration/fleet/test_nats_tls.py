"""Servers of NATS at tls://: whom a runner, a relay and commands trust, what they say of others, and that these hear nothing."""

import asyncio
import json
import re
import signal
from asyncio.constants import SSL_SHUTDOWN_TIMEOUT
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import eq
from pathlib import Path

import pytest

from agent.fleet import names
from agent.fleet.engine import EngineError
from agent.fleet.nats_connection import Connection
from agent.fleet.nats_engine import NatsEngine
from tests.support.api_server import ApiServer
from tests.support.command import run_command
from tests.support.daemon import Daemon
from tests.support.forwarding import NOWHERE, forwarding, lines, send
from tests.support.nats import SMALL, NatsCluster, free_port
from tests.support.nats_credentials import Realm
from tests.support.relay_process import World, readiness
from tests.support.tcp_server import HOST, TcpServer
from tests.support.tls import OWN, Certificate, make_certificate
from tests.support.waiting import HUNG_AFTER, eventually

NO_TLS = "the server offers no TLS, which tls:// demands"
SAID = {
    "no TLS": NO_TLS,
    "unknown CA": "certificate verify failed: self-signed certificate: see SSL_CERT_FILE",
    "wrong name": f"certificate verify failed: IP address mismatch, certificate is not valid for '{HOST}'",
}


class PlainServer(TcpServer):
    """A server that says in its INFO what it is told to, and hears `heard`."""

    def __init__(self, **info: object) -> None:
        super().__init__()
        self.heard = b""
        self._info = {"server_id": "x", "version": "2.15.0", "max_payload": 1 << 20, "nonce": "n", **info}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greet, and hear what comes first."""
        writer.write(f"INFO {json.dumps(self._info)}\r\n".encode())
        self.heard += await reader.read(1 << 16)


@dataclass
class Trusted:
    """A certificate that this process trusts, and those that it starts; and in `env` who trusts nothing else."""

    certificate: Certificate
    env: dict[str, str]


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trusted:
    """Trust one certificate, of this address."""
    certificate = _certificate(tmp_path / "trusted", OWN)
    env = {"SSL_CERT_FILE": str(certificate.file)}
    monkeypatch.setenv("SSL_CERT_FILE", env["SSL_CERT_FILE"])
    return Trusted(certificate, env)


def _certificate(directory: Path, names: str) -> Certificate:
    directory.mkdir()
    return make_certificate(directory, names)


def _tls(certificate: Certificate, more: str = "") -> str:
    key = certificate.file.with_name("key.pem")
    return f'tls {{ cert_file: "{certificate.file}", key_file: "{key}"\n{more} }}\n'


@pytest.fixture
def cluster(tmp_path: Path, trusted: Trusted) -> Iterator[NatsCluster]:
    """A server with the certificate that is trusted, and what a fleet needs."""
    found = NatsCluster(tmp_path / "nats", options=_tls(trusted.certificate), scheme="tls")
    found.start()
    try:
        asyncio.run(found.ready(["web"], SMALL))
        yield found
    finally:
        found.kill()


@pytest.fixture(params=SAID)
def impostor(
    tmp_path: Path, trusted: Trusted, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[NatsCluster, str]]:
    """A server that is not to be trusted, and what is said of it."""
    wrong = request.param
    if wrong == "wrong name":
        certificate = _certificate(tmp_path / "wrong", "DNS:elsewhere.invalid")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))
        trusted.env["SSL_CERT_FILE"] = str(certificate.file)
    else:
        certificate = _certificate(tmp_path / "wrong", OWN)
    options = "" if wrong == "no TLS" else _tls(certificate)
    found = NatsCluster(tmp_path / "impostor", options=options, scheme="tls")
    found.start()
    try:
        eventually(found.servers[0].log.read_text, lambda said: "Server is ready" in said)
        yield found, SAID[wrong]
    finally:
        found.kill()


def _relay_config(file: Path, cluster: NatsCluster) -> Path:
    file.write_text(f'[relay]\nservers = ["{cluster.urls[0]}"]\nteam = "web"\nreplicas = 1\n[api]\nurl = "{NOWHERE}"\n')
    return file


def test_commands_and_daemons_refuse_a_server_that_is_not_to_be_trusted_and_say_why(
    tmp_path: Path, trusted: Trusted, impostor: tuple[NatsCluster, str]
) -> None:
    cluster, said = impostor
    config, port = _relay_config(tmp_path / "config.toml", cluster), free_port()
    for arguments in (("fleet", "init"), ("fleet", "status"), ("check", "--online")):
        done = run_command(*arguments, "--config", config, env=trusted.env)
        assert done.returncode != 0
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "eof_received" not in done.stderr
    metrics = f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
    with ApiServer() as api, World(tmp_path, cluster, api, metrics) as w:
        relay = w.relays[0]
        relay.start()
        eventually(relay.log.read_text, lambda log: said in log)
        status, problem = readiness(port)
        assert (status, said in (problem or "")) == (503, True)
        assert relay.terminate() == 0
        assert "Traceback" not in relay.log.read_text()
    with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster)) as daemon:
        send(daemon, lines(1, 10))
        found = daemon.wait_destination(lambda found: found.state == "backing_off")
        assert said in (found.reason or "")
        assert found.ledger.queued == 10
        assert daemon.terminate() == 0
        assert said in daemon.stderr_text()
        assert "Traceback" not in daemon.stderr_text()


@pytest.mark.parametrize("info", [{}, {"tls_required": False}, {"auth_required": True}], ids=str)
def test_a_server_that_offers_no_tls_hears_nothing(tmp_path: Path, info: dict[str, object]) -> None:
    realm, file = Realm(), tmp_path / "own.creds"
    realm.issue(file)
    with PlainServer(**info) as server:
        with pytest.raises(EngineError, match=NO_TLS):
            asyncio.run(_version(f"tls://{HOST}:{server.port}", file))
        assert server.heard == b""


def test_a_server_that_also_takes_clear_text_hears_none(tmp_path: Path, trusted: Trusted) -> None:
    with PlainServer(tls_available=True) as server:
        with pytest.raises(EngineError):
            asyncio.run(_version(f"tls://{HOST}:{server.port}"))
        assert server.heard[:2] == b"\x16\x03"  # a handshake of TLS
    found = NatsCluster(tmp_path / "nats", options=f"{_tls(trusted.certificate)}allow_non_tls: true\n", scheme="tls")
    found.start()
    try:
        asyncio.run(found.ready(["web"], SMALL))
    finally:
        found.kill()


def test_a_server_that_begins_with_tls_is_one_that_does_not_answer(tmp_path: Path, trusted: Trusted) -> None:
    own = "handshake_first: true, timeout: 60"  # in seconds; by itself it hangs up when the client does
    found = NatsCluster(tmp_path / "nats", options=_tls(trusted.certificate, own), scheme="tls")
    found.start()
    try:
        eventually(found.servers[0].log.read_text, lambda said: "Server is ready" in said)
        with pytest.raises(EngineError, match="no answer in time"):
            asyncio.run(_version(found.urls[0]))
    finally:
        found.kill()


def test_a_server_that_hangs_is_left_sooner_than_tls_would_have_it(cluster: NatsCluster) -> None:
    asyncio.run(_leaves(cluster))


async def _leaves(cluster: NatsCluster) -> None:
    engine, (server,) = cluster.engine(timeout=1.0), cluster.servers
    await engine.version()
    server.signal(signal.SIGSTOP)
    eventually(server.states, partial(eq, {"T"}))
    async with asyncio.timeout(SSL_SHUTDOWN_TIMEOUT):
        with pytest.raises(EngineError, match="no answer within 1 s"):
            await engine.stream_state(names.EVENTS)
        await engine.aclose()


async def _version(url: str, credentials: Path | None = None) -> str:
    engine = NatsEngine(Connection((url,), credentials))
    try:
        async with asyncio.timeout(HUNG_AFTER):
            return await engine.version()
    finally:
        await engine.aclose()


def test_a_fleet_works_over_tls_and_outlives_its_servers_without_a_traceback(
    tmp_path: Path, trusted: Trusted, cluster: NatsCluster
) -> None:
    config = _relay_config(tmp_path / "config.toml", cluster)
    commands = (("fleet", "init", "--update"), ("fleet", "status"), ("check", "--online"))
    done = [run_command(*arguments, "--config", config, env=trusted.env) for arguments in commands]
    assert [each.stderr for each in done] == ["", "", ""]
    assert "has the ledger of team web" in done[-1].stdout
    port = free_port()
    metrics = f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
    with ApiServer() as api, World(tmp_path, cluster, api, metrics) as w:
        relay = w.relays[0]
        relay.start()
        with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster)) as daemon:
            for turn in range(1, 4):
                send(daemon, lines(100 * turn, 50))
                eventually(lambda: len(w.taken()), partial(eq, 50 * turn))
                cluster.kill()
                eventually(lambda: readiness(port)[0], partial(eq, 503))
                cluster.start()
                eventually(lambda: readiness(port)[0], partial(eq, 200))
            assert daemon.terminate() == 0
            said = daemon.stderr_text()
        assert relay.terminate() == 0
        said += relay.log.read_text()
    assert not re.search("Traceback|never retrieved|eof_received", said), said
    assert all(re.match(r"\d{4}-\d\d-\d\d", line) for line in said.splitlines()), said
