"""What the control socket answers: status, metrics, health, flush, pause and resume, and errors in the API's shape."""

import copy
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.control import metrics
from agent.control.routes import Control
from agent.control.schema import StatusReport
from agent.delivery.pipeline import Pipeline
from agent.delivery.transport import Kind, Verdict
from agent.http.server import Request, Response
from tests.support import virtual_time
from tests.support.accounts import ledger
from tests.support.edge import ACKS, Edge, GatedHost, edge, line
from tests.support.fake_transport import FakeTransport
from tests.support.fault_filesystem import LoseAll, failing, no_errors
from tests.support.pipelines import DIRECTORY, Host, balanced, submit

pytestmark = pytest.mark.anyio


class Controlled:
    """An edge and the control over it."""

    def __init__(self, made: Edge) -> None:
        self.edge = made
        self.pipeline = made.pipeline
        self.control = Control(
            {"default": made.pipeline},
            [made.stream, made.datagram],
            made.host.wall_clock,
            describe=[self._describe],
            cache_uses=made.intake.cache_uses.by_ci,
        )

    def _describe(self, report: StatusReport) -> None:
        report.rejected = self.edge.intake.rejected
        report.connections, report.evicted = self.edge.stream.connections, self.edge.stream.evicted

    async def ask(self, method: str, path: str, **query: str) -> Response:
        return await self.control.handle(Request(method, path, query, {}))

    async def status(self) -> dict[str, Any]:
        response = await self.ask("GET", "/status")
        assert response.status == 200
        status: dict[str, Any] = json.loads(response.body)
        return status

    async def samples(self) -> dict[str, float]:
        """Every sample of /metrics, named with its labels as in the text."""
        response = await self.ask("GET", "/metrics")
        assert (response.status, response.content_type) == (200, metrics.CONTENT_TYPE)
        families = text_string_to_metric_families(response.body.decode())
        return {
            "/".join([sample.name, *sample.labels.values()]): sample.value
            for each in families
            for sample in each.samples
        }


@asynccontextmanager
async def controlled(directory: Path, *, delivering: bool = False) -> AsyncIterator[Controlled]:
    async with edge(directory) as made:
        await made.pipeline.commit_once()
        if delivering:
            made.pipeline.resume()
        yield Controlled(made)


def transport(made: Controlled) -> FakeTransport:
    fake = made.edge.host.transport
    assert isinstance(fake, FakeTransport)
    return fake


async def test_the_status_says_what_scripts_rely_on(tmp_path: Path) -> None:
    async with controlled(tmp_path) as made:
        with made.edge.client() as client:
            await client.send(ACKS + line() * 3 + b"nonsense\n")
            await client.settled(4)
            status = await made.status()
        assert status["rejected"] == 1
        assert (status["connections"], status["evicted"]) == (1, 0)
        default = status["destinations"]["default"]
        assert default["ledger"] == ledger(3, queued=3)
        assert (default["state"], default["reason"]) == ("paused", "operator: paused by an operator")
        assert 0 <= default["oldest_event_age"] < 30
        assert default["last_delivery_at"] is None
        assert default["storage_error"] is None


async def test_pause_and_resume_show_in_the_status(tmp_path: Path) -> None:
    async with controlled(tmp_path, delivering=True) as made:
        for request, state in (
            ("/pause", "paused"),
            ("/pause", "paused"),
            ("/resume", "running"),
            ("/resume", "running"),
        ):
            assert json.loads((await made.ask("POST", request)).body) == {"state": state}
            assert (await made.status())["destinations"]["default"]["state"] == state


async def test_a_pause_that_was_answered_and_a_resume_survive_a_power_cut(tmp_path: Path) -> None:
    async with controlled(tmp_path, delivering=True) as made:
        for request, state in (("/pause", "paused"), ("/resume", "running")):
            await made.ask("POST", request)
            survivor = copy.deepcopy(made.edge.host.fs)
            survivor.crash(LoseAll())
            left = Pipeline(survivor, DIRECTORY, made.edge.host.limits, made.edge.host.delivery, made.edge.host.runtime)
            assert (await left.status()).state == state


async def test_flush_includes_what_was_written_just_before_on_both_sockets(tmp_path: Path) -> None:
    async with controlled(tmp_path, delivering=True) as made:
        with made.edge.client() as client, made.edge.sender() as sender:
            client.fill(line("stream") * 700)
            sender.fill(line("datagram"))
            response = await made.ask("POST", "/flush", deadline="10")
        report = {"delivered": 701, "queued": 0, "dead_lettered": 0, "dropped": {}}
        assert (response.status, json.loads(response.body)) == (200, report)
        assert len(transport(made).taken) == 701
        assert made.pipeline.ledger().delivered == 701


async def test_a_flush_that_misses_its_deadline_says_so_and_loses_nothing(tmp_path: Path) -> None:
    async with controlled(tmp_path) as made:
        with made.edge.client() as client:
            client.fill(line() * 5)
            response = await made.ask("POST", "/flush", deadline="0.1")
        report = {"delivered": 0, "queued": 5, "dead_lettered": 0, "dropped": {}}
        assert (response.status, json.loads(response.body)) == (504, report)
        assert balanced(made.pipeline)


async def test_flush_ends_although_clients_never_stop(tmp_path: Path) -> None:
    async with controlled(tmp_path, delivering=True) as made, anyio.create_task_group() as tasks:

        async def flood() -> None:
            with made.edge.client() as client:
                while True:
                    await client.send(line() * 50)
                    await anyio.lowlevel.checkpoint()

        tasks.start_soon(flood)
        for _ in range(3):
            assert (await made.ask("POST", "/flush", deadline="10")).status == 200
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("deadline", ["soon", "-1", "nan", "inf", "1e9", ""])
async def test_an_invalid_deadline_is_refused(tmp_path: Path, deadline: str) -> None:
    async with controlled(tmp_path) as made:
        response = await made.ask("POST", "/flush", deadline=deadline)
        assert response.status == 400
        assert json.loads(response.body)["error"]["code"] == "bad_deadline"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/status/", 404, "not_found"),
        ("POST", "/nothing", 404, "not_found"),
        ("POST", "/status", 405, "method_not_allowed"),
        ("HEAD", "/healthz", 405, "method_not_allowed"),
        ("GET", "/flush", 405, "method_not_allowed"),
        ("DELETE", "/pause", 405, "method_not_allowed"),
    ],
)
async def test_other_requests_are_refused_in_the_apis_shape(
    tmp_path: Path, method: str, path: str, status: int, code: str
) -> None:
    async with controlled(tmp_path) as made:
        response = await made.ask(method, path)
        assert response.status == status
        error = json.loads(response.body)["error"]
        assert error["code"] == code
        assert path in error["message"]


async def test_healthy_means_that_an_event_could_be_kept_now(tmp_path: Path) -> None:
    async with controlled(tmp_path) as made:
        assert (await made.ask("GET", "/healthz")).status == 200
        made.edge.host.fs.errors = failing("pwrite", errno.EIO)
        response = await made.ask("GET", "/healthz")
        assert (response.status, json.loads(response.body)) == (503, {"healthy": False})
        made.edge.host.fs.errors = no_errors
        assert (await made.ask("GET", "/healthz")).status == 200


async def test_a_full_disk_is_unhealthy_until_there_is_room(tmp_path: Path) -> None:
    async with controlled(tmp_path) as made:
        fs = made.edge.host.fs
        with made.edge.client() as client:
            fs.capacity = fs.used
            await client.send(ACKS + line(padding=60_000) * 2)
            assert (await client.settled(2))["dropped"] == 2
            assert (await made.samples())["artifacts_agent_storage_failing/default"] == 1
            assert (await made.ask("GET", "/healthz")).status == 503
            fs.capacity = None
            await client.send(line())
            assert (await client.settled(3))["durable"] == 1
            assert (await made.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize("backend", virtual_time.NAMES)
def test_a_hung_disk_is_unhealthy_and_the_status_says_so(backend: str) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            host = GatedHost(tasks)
            pipeline = host.start()
            await pipeline.commit_once()
            control = Control({"default": pipeline}, [], host.wall_clock)
            host.gate.close()
            assert (await control.handle(Request("GET", "/healthz", {}, {}))).status == 503
            ready = json.loads((await control.handle(Request("GET", "/readyz", {}, {}))).body)
            assert ready["problems"] == [
                {"destination": "default", "kind": "storage", "message": "the disk does not answer"}
            ]
            status = json.loads((await control.handle(Request("GET", "/status", {}, {}))).body)
            assert status["destinations"]["default"]["storage_error"] == "the disk does not answer"
            host.gate.open()
            assert (await control.handle(Request("GET", "/healthz", {}, {}))).status == 200
            tasks.cancel_scope.cancel()

    virtual_time.run(backend, main)


Make = Callable[[Host, Pipeline], Awaitable[None]]


async def nothing(host: Host, pipeline: Pipeline) -> None:
    pass


async def an_hours_wait(host: Host, pipeline: Pipeline) -> None:
    fake_of(host).rule = lambda *_: Verdict(Kind.TRANSIENT, "429", 429, retry_after=3600.0)
    await submit(pipeline, ["a"]).wait()
    await anyio.sleep(3)


async def outage(host: Host, pipeline: Pipeline) -> None:
    fake_of(host).rule = lambda *_: Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
    await submit(pipeline, ["a"]).wait()
    await anyio.sleep(30)
    assert (await pipeline.status()).state == "backing_off"


async def long_outage(host: Host, pipeline: Pipeline) -> None:
    await outage(host, pipeline)
    await anyio.sleep(40)


async def blocked_account(host: Host, pipeline: Pipeline) -> None:
    fake_of(host).rule = lambda *_: Verdict(Kind.BLOCKED, "402 Payment Required", 402)
    await submit(pipeline, ["a"]).wait()
    await anyio.sleep(3)


async def operators_pause(host: Host, pipeline: Pipeline) -> None:
    pipeline.pause()


async def broken_disk(host: Host, pipeline: Pipeline) -> None:
    host.fs.errors = failing("pwrite", errno.EIO)


async def broken_disk_and_pause(host: Host, pipeline: Pipeline) -> None:
    await operators_pause(host, pipeline)
    await broken_disk(host, pipeline)


def fake_of(host: Host) -> FakeTransport:
    assert isinstance(host.transport, FakeTransport)
    return host.transport


@pytest.mark.parametrize(
    ("make", "problems"),
    [
        (nothing, []),
        (outage, []),
        (long_outage, [("backing_off", "503 Service Unavailable")]),
        (an_hours_wait, [("backing_off", "429")]),
        (blocked_account, [("paused", "blocked: 402 Payment Required")]),
        (operators_pause, [("paused", "operator: paused by an operator")]),
        (broken_disk, [("storage", "Input/output error")]),
        (broken_disk_and_pause, [("storage", "Input/output error"), ("paused", "operator: paused by an operator")]),
    ],
)
@pytest.mark.parametrize("backend", virtual_time.NAMES)
def test_ready_means_that_events_can_be_delivered_now(
    backend: str, make: Make, problems: list[tuple[str, str]]
) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            host = Host(tasks)
            pipeline = host.start()
            await pipeline.commit_once()
            control = Control({"default": pipeline}, [], host.wall_clock)
            await make(host, pipeline)
            response = await control.handle(Request("GET", "/readyz", {}, {}))
            answer = json.loads(response.body)
            assert response.status == (503 if problems else 200)
            assert answer["ready"] is not bool(problems)
            assert [each["kind"] for each in answer["problems"]] == [kind for kind, _ in problems]
            for each, (_, message) in zip(answer["problems"], problems, strict=True):
                assert each["destination"] == "default"
                assert message in each["message"]
            tasks.cancel_scope.cancel()

    virtual_time.run(backend, main)


async def test_metrics_are_what_the_status_says(tmp_path: Path) -> None:
    async with controlled(tmp_path) as made:
        with made.edge.client() as client:
            await client.send(ACKS + line() * 3 + b"nonsense\n")
            await client.settled(4)
            samples = await made.samples()
        assert samples["artifacts_agent_events_accepted_total/default"] == 3
        assert samples["artifacts_agent_events_queued/default"] == 3
        assert samples["artifacts_agent_lines_rejected_total"] == 1
        assert samples["artifacts_agent_connections"] == 1
        assert samples["artifacts_agent_connections_evicted_total"] == 0
        assert samples["artifacts_agent_delivery_state/default/paused"] == 1
        assert samples["artifacts_agent_delivery_state/default/running"] == 0
        assert samples["artifacts_agent_storage_failing/default"] == 0
        assert samples["artifacts_agent_queue_limit_bytes/default"] == made.edge.host.limits.max_bytes
        assert samples["process_resident_memory_bytes"] > 0
        used = {name: value for name, value in samples.items() if "cache_events" in name}
        assert sorted(used.values()) == [0, 0, 0, 3]
        assert "artifacts_agent_last_delivery_timestamp_seconds/default" not in samples


async def test_a_request_is_about_the_destinations_that_it_names() -> None:
    async with anyio.create_task_group() as tasks:
        hosts = {"default": Host(tasks), "web": Host(tasks), "mobile": Host(tasks)}
        pipelines = {name: each.start() for name, each in hosts.items()}
        control = Control(pipelines, [], hosts["default"].wall_clock)

        async def ask(method: str, path: str, destination: str) -> tuple[int, Any]:
            response = await control.handle(Request(method, path, {"destination": destination}, {}, b""))
            return response.status, json.loads(response.body)

        assert await ask("POST", "/pause", "web,mobile") == (200, {"state": "paused"})
        states = {name: each.delivery_state()[0] for name, each in pipelines.items()}
        assert states == {"default": "running", "web": "paused", "mobile": "paused"}
        for name, pipeline in pipelines.items():
            await submit(pipeline, [f"{name}-1", f"{name}-2"]).wait()
        assert (await ask("GET", "/queue", "web"))[1]["queued"] == 2
        assert (await ask("POST", "/queue/purge", "web"))[1]["purged"] == 2
        assert (await ask("GET", "/queue", "web"))[1]["queued"] == 0
        assert await ask("POST", "/resume", "mobile") == (200, {"state": "running"})
        report = {"delivered": 2, "queued": 0, "dead_lettered": 0, "dropped": {}}
        assert await ask("POST", "/flush", "mobile") == (200, report)
        assert pipelines["web"].delivery_state()[0] == "paused"
        for method, path in (("POST", "/flush"), ("POST", "/pause"), ("POST", "/resume"), ("GET", "/queue")):
            status, answer = await ask(method, path, "webb")
            assert (status, answer["error"]["message"]) == (
                400,
                "there is no destination 'webb', only default, web, mobile",
            )
        status, answer = await ask("GET", "/dead-letters", "web,mobile")
        assert (status, answer["error"]["message"]) == (
            400,
            "/dead-letters is about one destination: name one of web, mobile",
        )
        tasks.cancel_scope.cancel()


async def test_every_destination_is_asked_and_the_queue_is_that_of_the_default_one() -> None:
    async with anyio.create_task_group() as tasks:
        hosts = {"other": Host(tasks), "default": Host(tasks)}
        pipelines = {name: each.start() for name, each in hosts.items()}
        control = Control(pipelines, [], hosts["default"].wall_clock)

        async def ask(method: str, path: str) -> tuple[int, Any]:
            response = await control.handle(Request(method, path, {}, {}, b""))
            return response.status, json.loads(response.body)

        assert await ask("POST", "/pause") == (200, {"state": "paused"})
        await submit(pipelines["default"], ["a"]).wait()
        await submit(pipelines["other"], ["b", "c"]).wait()
        _, status = await ask("GET", "/status")
        found = {name: (each["state"], each["ledger"]["queued"]) for name, each in status["destinations"].items()}
        assert found == {"other": ("paused", 2), "default": ("paused", 1)}
        _, listing = await ask("GET", "/queue")
        assert listing["queued"] == 1
        assert await ask("POST", "/resume") == (200, {"state": "running"})
        report = {"delivered": 3, "queued": 0, "dead_lettered": 0, "dropped": {}}
        assert await ask("POST", "/flush") == (200, report)
        assert await ask("GET", "/healthz") == (200, {"healthy": True})
        hosts["other"].fs.errors = failing("pwrite", errno.EIO)
        assert await ask("GET", "/healthz") == (200, {"healthy": True})  # it is that of default
        status, readiness = await ask("GET", "/readyz")
        assert (status, [(each["destination"], each["kind"]) for each in readiness["problems"]]) == (
            503,
            [("other", "storage")],
        )
        hosts["default"].fs.errors = failing("pwrite", errno.EIO)
        assert await ask("GET", "/healthz") == (503, {"healthy": False})
        tasks.cancel_scope.cancel()
