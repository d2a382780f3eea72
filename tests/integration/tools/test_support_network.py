"""The slow network and the remote cache in memory do what the tests with turbo believe."""

import socket
import time

import httpx

from tests.support.artifacts_api import ArtifactsApi
from tests.support.capture import EVENTS_PATH
from tests.support.slow_network import SlowNetwork
from tests.support.tcp_server import HOST
from tests.support.waiting import eventually

ROUND_TRIP = 0.2
REQUEST = f"POST {EVENTS_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]".encode()


def test_an_artifact_that_was_put_can_be_got_until_it_is_forgotten() -> None:
    with ArtifactsApi() as api, httpx.Client(base_url=api.url) as client:
        put = client.put("/v8/artifacts/a1", content=b"artifact", headers={"x-artifact-tag": "signed"})
        assert put.status_code == 202
        got = client.get("/v8/artifacts/a1")
        assert (got.status_code, got.content, got.headers["x-artifact-tag"]) == (200, b"artifact", "signed")
        api.forget_artifacts()
        assert client.get("/v8/artifacts/a1").status_code == 404


def test_over_a_slow_network_an_answer_takes_a_round_trip_and_a_new_connection_one_more() -> None:
    with ArtifactsApi() as api, SlowNetwork(api.port, ROUND_TRIP) as network:
        with httpx.Client(base_url=network.url) as client:
            for least in (2 * ROUND_TRIP, ROUND_TRIP):
                began = time.monotonic()
                assert client.get("/v8/artifacts/status").status_code == 404
                assert time.monotonic() - began >= least
        eventually(lambda: network.connections, lambda count: count == 0)
        assert len(api.requests) == 2


def test_over_a_slow_network_nothing_arrives_of_who_leaves_before_there_is_a_connection() -> None:
    with ArtifactsApi() as api, SlowNetwork(api.port, ROUND_TRIP) as network:
        with socket.create_connection((HOST, network.port)) as client:
            client.sendall(REQUEST)
            eventually(lambda: network.connections, bool)
        eventually(lambda: network.connections, lambda count: count == 0)
        assert api.requests == []
