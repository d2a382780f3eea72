"""Servers that die, hang, are full or turn a credential away: each is one error in words, and passes by itself."""

import asyncio
import base64
import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from agent.config.schema import RelayConfig
from agent.fleet import names, permissions
from agent.fleet.engine import EngineError, NotPermittedError
from agent.fleet.nats_credentials import read_credentials
from agent.fleet.nats_engine import NatsEngine
from tests.support.nats import SMALL, NatsCluster
from tests.support.nats_credentials import Realm
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

LINUX = names.events_subject("web", "linux")


@pytest.fixture
def anyio_backend() -> str:
    """The client of the engine is asyncio's."""
    return "asyncio"


@asynccontextmanager
async def running(
    directory: Path, count: int = 1, options: str = "", credentials: Path | None = None, sizes: RelayConfig = SMALL
) -> AsyncIterator[NatsCluster]:
    """Run servers with what the team web needs."""
    cluster = NatsCluster(directory / "servers", count, options)
    cluster.start()
    try:
        await cluster.ready(["web"], sizes, credentials)
        yield cluster
    finally:
        cluster.kill()


@asynccontextmanager
async def connected(
    cluster: NatsCluster, credentials: Path | None = None, inbox: str = "_INBOX", patience: float = 5.0
) -> AsyncIterator[NatsEngine]:
    """Make an engine, and close it."""
    engine = cluster.engine(credentials, inbox, patience)
    try:
        yield engine
    finally:
        await engine.aclose()


async def eventually(call: Callable[[], Awaitable[bool]]) -> None:
    """Return when a call has returned true."""
    async with asyncio.timeout(HUNG_AFTER):
        while not await call():  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.02)


def publishing(engine: NatsEngine, body: bytes = b"1\n", subject: str = LINUX) -> Callable[[], Awaitable[bool]]:
    """Return a call that says whether a message could be published."""

    async def publish() -> bool:
        try:
            return await engine.publish(subject, body, {})
        except EngineError:
            return False

    return publish


async def test_a_server_that_dies_is_an_error_at_once_and_serves_again_when_it_is_back(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster, connected(cluster) as engine:
        await engine.publish(LINUX, b"before\n", {})
        cluster.kill()
        for _ in range(3):
            with pytest.raises(EngineError):
                await engine.publish(LINUX, b"refused\n", {})
        cluster.start()
        await eventually(publishing(engine, b"after\n"))
        found = await engine.fetch(names.EVENTS, names.consumer("web"), most=10, seconds=HUNG_AFTER)
        assert [each.body for each in found] == [b"before\n", b"after\n"]  # what was refused is not sent later


async def test_a_server_that_hangs_is_given_up_for_another_one(tmp_path: Path) -> None:
    async with (
        running(tmp_path, 3, sizes=replace(SMALL, replicas=3)) as cluster,
        connected(cluster, patience=1.0) as engine,
    ):
        await engine.publish(LINUX, b"1\n", {})
        for server in cluster.servers:
            server.signal(signal.SIGSTOP)
            await eventually(publishing(engine))
            server.signal(signal.SIGCONT)


async def test_what_was_acknowledged_outlives_the_death_of_every_server_in_turn(tmp_path: Path) -> None:
    published: list[bytes] = []
    async with (
        running(tmp_path, 3, sizes=replace(SMALL, replicas=3)) as cluster,
        connected(cluster, patience=1.0) as engine,
    ):
        for round_ in range(3):
            cluster.servers[round_].kill()
            for number in range(20):
                body = f"{round_} {number}\n".encode()
                await eventually(publishing(engine, body))
                published.append(body)
            cluster.servers[round_].start()
        cluster.kill()
        cluster.start()
        await cluster.ready(["web"], replace(SMALL, replicas=3))
        found: set[bytes] = set()

        async def all_found() -> bool:
            try:
                messages = await engine.fetch(names.EVENTS, names.consumer("web"), most=100, seconds=1)
            except EngineError:
                return False
            found.update(each.body for each in messages)
            return found >= set(published)

        await eventually(all_found)


async def test_a_full_stream_refuses_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    sizes = replace(SMALL, events_max_bytes=300_000)
    async with running(tmp_path, sizes=sizes) as cluster, connected(cluster) as engine:
        await engine.publish(LINUX, b"x" * 150_000, {})
        with pytest.raises(EngineError, match="maximum bytes exceeded"):
            await engine.publish(LINUX, b"y" * 150_000, {})
        (message,) = await engine.fetch(names.EVENTS, names.consumer("web"), most=1, seconds=HUNG_AFTER)
        await engine.ack(message)
        await eventually(publishing(engine, b"y" * 150_000))


async def test_a_publisher_cannot_speak_as_the_server(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster, connected(cluster) as engine:
        for status in ("404", "408", "409", "100"):
            await engine.publish(LINUX, b"1\n", {"Status": status, "Description": "made up"})
        found = await engine.fetch(names.EVENTS, names.consumer("web"), most=4, seconds=HUNG_AFTER)
        assert [(each.seq, "Status" in each.headers) for each in found] == [(seq, False) for seq in (1, 2, 3, 4)]


async def test_a_fetch_ends_without_a_word_when_the_connection_breaks_under_it(tmp_path: Path) -> None:
    said: list[object] = []
    loop = asyncio.get_running_loop()
    before, handler = asyncio.all_tasks(), loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        async with running(tmp_path) as cluster, connected(cluster) as engine, connected(cluster) as other:

            async def is_under_way() -> bool:
                found = await other.ask(lambda context: context.consumer_info(names.EVENTS, names.consumer("web")))
                return found is not None and found.num_waiting == 1

            fetch = asyncio.create_task(engine.fetch(names.EVENTS, names.consumer("web"), most=1, seconds=HUNG_AFTER))
            await eventually(is_under_way)
            cluster.kill()
            with pytest.raises(EngineError):
                await fetch
        del fetch
        async with asyncio.timeout(HUNG_AFTER):
            while asyncio.all_tasks() - before:  # noqa: ASYNC110 - what the client has begun
                await asyncio.sleep(0)
        gc.collect()  # what nobody has asked for its error says so now
        assert said == []
    finally:
        loop.set_exception_handler(handler)


async def test_refused_calls_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster, connected(cluster) as engine:
        await engine.publish(LINUX, b"1\n", {})
        before = len(asyncio.all_tasks())
        for _ in range(50):
            with pytest.raises(EngineError):
                await engine.publish("elsewhere", b"1\n", {})
        assert len(asyncio.all_tasks()) == before
        cluster.kill()
        for _ in range(20):
            with pytest.raises(EngineError):
                await engine.publish(LINUX, b"1\n", {})
        assert len(asyncio.all_tasks()) < before  # those of the connection have gone, too


async def test_a_credential_that_expires_is_read_again_when_it_is_renewed(tmp_path: Path) -> None:
    realm, file, inbox = Realm(), tmp_path / "linux.creds", permissions.inbox_of_pool("web", "linux")
    realm.issue(tmp_path / "admin.creds")
    async with running(tmp_path, options=realm.options, credentials=tmp_path / "admin.creds") as cluster:
        realm.issue(file, permissions.of_pool("web", "linux"), time.time() + 2)
        async with connected(cluster, file, inbox) as engine:
            assert await engine.publish(LINUX, b"1\n", {})

            async def is_turned_away() -> bool:
                try:
                    await engine.publish(LINUX, b"1\n", {})
                except NotPermittedError as error:
                    return "authorization violation" in str(error).lower()
                except EngineError:  # the server has just ended the connection
                    return False
                return False

            await eventually(is_turned_away)
            file.unlink()
            with pytest.raises(EngineError, match=r"linux\.creds: No such file or directory"):
                await engine.publish(LINUX, b"1\n", {})
            file.write_text("rubbish")
            with pytest.raises(NotPermittedError, match=r"linux\.creds: no credentials of NATS"):
                await engine.publish(LINUX, b"1\n", {})
            realm.issue(file, permissions.of_pool("web", "linux"))
            assert await engine.publish(LINUX, b"2\n", {})


async def test_a_credential_that_was_revoked_is_turned_away(tmp_path: Path) -> None:
    realm, file, inbox = Realm(), tmp_path / "linux.creds", permissions.inbox_of_pool("web", "linux")
    realm.issue(tmp_path / "admin.creds")
    user = realm.issue(file, permissions.of_pool("web", "linux"))
    admin = tmp_path / "admin.creds"
    async with running(tmp_path, 1, realm.options, admin) as cluster, connected(cluster, file, inbox) as engine:
        assert await engine.publish(LINUX, b"1\n", {})
        realm.revoke(user)
        cluster.kill()
        cluster.servers[0].configure(realm.options)
        cluster.start()
        await cluster.ready(["web"], SMALL, admin)
        with pytest.raises(NotPermittedError, match="Authorization Violation"):
            await engine.publish(LINUX, b"1\n", {})


STOLEN = [
    ("publish as another pool", names.events_subject("web", "mac"), b"{}\n"),
    ("publish as another team", names.events_subject("api", "linux"), b"{}\n"),
    ("settle events", names.ledger_subject("web"), b'{"type":"settled"}'),
    ("write a dead letter", names.dead_subject("web"), b"{}"),
    ("end a pause", f"$KV.{names.STATE}.{names.pause_key('web')}", b""),
    ("change the rate", f"$KV.{names.STATE}.{names.rate_key('web')}", b"0"),
    ("take events", f"$JS.API.CONSUMER.MSG.NEXT.{names.EVENTS}.{names.consumer('web')}", b"100"),
    ("read events", f"$JS.API.DIRECT.GET.{names.EVENTS}", b'{"seq":1}'),
    ("read events by the leader", f"$JS.API.STREAM.MSG.GET.{names.EVENTS}", b'{"seq":1}'),
    ("make a consumer", f"$JS.API.CONSUMER.CREATE.{names.EVENTS}", b"{}"),
    ("remove the consumer", f"$JS.API.CONSUMER.DELETE.{names.EVENTS}.{names.consumer('web')}", b""),
    ("acknowledge for a relay", f"$JS.ACK.{names.EVENTS}.{names.consumer('web')}.1.1.1.1.0", b"+ACK"),
    ("remove events", f"$JS.API.STREAM.PURGE.{names.EVENTS}", b""),
    ("remove the stream", f"$JS.API.STREAM.DELETE.{names.EVENTS}", b""),
    ("change the stream", f"$JS.API.STREAM.UPDATE.{names.EVENTS}", b"{}"),
    ("list streams", "$JS.API.STREAM.NAMES", b""),
    ("ask for the account", "$JS.API.INFO", b""),
    ("remove a snapshot", f"$JS.API.STREAM.PURGE.OBJ_{names.SNAPSHOTS}", b""),
    ("answer another pool", f"{permissions.inbox_of_pool('web', 'mac')}.x", b""),
    ("answer a relay", f"{permissions.inbox_of_relays('web')}.x", b""),
]
LISTENED = [
    names.ALL_EVENTS,
    names.ALL_RECORDS,
    "$JS.>",
    "$KV.>",
    "_INBOX.>",
    f"{permissions.inbox_of_pool('web', 'mac')}.>",
    f"{permissions.inbox_of_relays('web')}.>",
    ">",
]


async def test_a_stolen_credential_of_a_pool_may_publish_for_that_pool_and_nothing_else(tmp_path: Path) -> None:
    realm, file = Realm(), tmp_path / "linux.creds"
    realm.issue(tmp_path / "admin.creds")
    realm.issue(file, permissions.of_pool("web", "linux"))
    async with running(tmp_path, options=realm.options, credentials=tmp_path / "admin.creds") as cluster:
        said: list[str] = []

        async def note(error: Exception) -> None:
            said.append(str(error).lower())

        client, inbox, stolen = Client(), permissions.inbox_of_pool("web", "linux"), read_credentials(file)
        await client.connect(
            list(cluster.urls),
            user_jwt_cb=lambda: stolen.token,
            signature_cb=stolen.sign,
            inbox_prefix=inbox,
            error_cb=note,
        )
        try:
            for _, subject, body in STOLEN:
                await client.publish(subject, body)
            for subject in LISTENED:
                await client.subscribe(subject)
            async with asyncio.timeout(HUNG_AFTER):
                while len(said) < len(STOLEN) + len(LISTENED):  # some denials come later than the answer
                    await client.flush()
            allowed = [
                what
                for what, subject, _ in STOLEN
                if not any(f'publish to "{subject.lower()}"' in each for each in said)
            ]
            heard = [each for each in LISTENED if not any(f'subscription to "{each.lower()}"' in one for one in said)]
            assert (allowed, heard) == ([], [])
        finally:
            await client.close()
        async with connected(cluster, tmp_path / "admin.creds") as admin:
            assert (await admin.stream_state(names.EVENTS)).messages == 0
            assert (await admin.stream_state(names.LEDGER)).messages == 0
            assert await admin.get(names.pause_key("web")) is None


@pytest.mark.parametrize(
    "meta", [b"", b"x", b"[]", b'{"stream":"AA_EVENTS","seq":1}', b'{"name":"web","nuid":1,"size":"x"}']
)
async def test_a_snapshot_whose_description_is_damaged_is_none_and_can_be_replaced(tmp_path: Path, meta: bytes) -> None:
    async with running(tmp_path) as cluster, connected(cluster) as engine:
        subject = f"$O.{names.SNAPSHOTS}.M.{base64.urlsafe_b64encode(b'web').decode()}"
        await engine.publish(subject, meta, {})
        assert await engine.load("web") is None
        await engine.save("web", b"new")
        assert await engine.load("web") == b"new"


async def test_a_snapshot_that_is_replaced_while_it_is_read_is_read_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster, connected(cluster) as engine, asyncio.timeout(HUNG_AFTER):
        await engine.save("web", b"old")
        stream = f"OBJ_{names.SNAPSHOTS}"
        await engine.ask(partial(JetStreamContext.purge_stream, name=stream, subject=f"$O.{names.SNAPSHOTS}.C.>"))
        loading = asyncio.create_task(engine.load("web"))
        await asyncio.sleep(0)
        while not await engine.ask(partial(JetStreamContext.consumers_info, stream=stream)):  # noqa: ASYNC110 - of the server
            await asyncio.sleep(0.01)
        await engine.save("web", b"new")
        assert await loading == b"new"


ANSWERED = [
    f"$KV.{names.STATE}.{names.pause_key('web')}",
    f"$KV.{names.STATE}.{names.rate_key('other')}",
    names.ledger_subject("web"),
    names.dead_subject("web"),
    names.events_subject("web", "mac"),
    f"$JS.API.STREAM.PURGE.{names.EVENTS}",
]
"""Where a publisher might let the stream's acknowledgement go, as the server's own word."""


async def test_a_stolen_credential_has_nothing_answered_into_the_fleet(tmp_path: Path) -> None:
    """On servers that read requests laxly an acknowledgement, sent to be the request of a purge, removes what the stream has."""
    realm, file, admin = Realm(), tmp_path / "linux.creds", tmp_path / "admin.creds"
    realm.issue(admin)
    realm.issue(file, permissions.of_pool("web", "linux"))
    options = f"{realm.options}jetstream {{ strict: false }}\n"
    async with running(tmp_path, options=options, credentials=admin) as cluster, connected(cluster, admin) as engine:
        await engine.publish(LINUX, b"1\n", {})
        client, stolen = Client(), read_credentials(file)
        await client.connect(list(cluster.urls), user_jwt_cb=lambda: stolen.token, signature_cb=stolen.sign)
        for reply in ANSWERED:
            await client.publish(LINUX, b"2\n", reply=reply)
        await client.flush()
        inbox = permissions.inbox_of_pool("web", "linux")
        async with connected(cluster, file, inbox) as own:
            assert await own.publish(LINUX, b"3\n", {})  # it is answered behind the others
        assert (await engine.stream_state(names.EVENTS)).messages == len(ANSWERED) + 2
        assert [(await engine.stream_state(stream)).last_seq for stream in (names.LEDGER, names.DEAD)] == [0, 0]
        assert [await engine.get(key("web")) for key in (names.pause_key, names.rate_key)] == [None, None]
        await client.close()


async def test_the_credential_of_relays_is_enough_for_all_that_relays_do(tmp_path: Path) -> None:
    realm, file = Realm(), tmp_path / "relay.creds"
    realm.issue(tmp_path / "admin.creds")
    realm.issue(file, permissions.of_relays("web"))
    async with running(tmp_path, options=realm.options, credentials=tmp_path / "admin.creds") as cluster:
        async with connected(cluster, tmp_path / "admin.creds") as admin:
            await admin.publish(LINUX, b"1\n", {})
        async with connected(cluster, file, permissions.inbox_of_relays("web")) as engine:
            assert await engine.next_stored(names.EVENTS, names.team_events("web"), 0) is not None
            (message,) = await engine.fetch(names.EVENTS, names.consumer("web"), most=1, seconds=HUNG_AFTER)
            await engine.extend(message)
            await engine.publish(names.ledger_subject("web"), b"r", {})
            await engine.publish(names.dead_subject("web"), b"d", {})
            await engine.ack(message)
            assert await engine.last_seq(names.LEDGER, names.ledger_subject("web")) == 1
            reader = engine.reader(names.LEDGER, names.ledger_subject("web"), 0)
            assert [each.body for each in await reader.read(1, HUNG_AFTER)] == [b"r"]
            await reader.aclose()
            for key in (names.pause_key("web"), names.rate_key("web"), names.probe_key("web")):
                revision = await engine.put(key, b"1")
                assert await engine.get(key) == (b"1", revision)
                await engine.delete(key, revision)
            await engine.save("web", b"z" * 300_000)
            assert await engine.load("web") == b"z" * 300_000
            for stream in (names.EVENTS, names.LEDGER, names.DEAD):
                await engine.stream_state(stream)
            with pytest.raises(NotPermittedError):
                await engine.publish(names.ledger_subject("api"), b"r", {})
