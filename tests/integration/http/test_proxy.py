"""The front as a real daemon before a real server: what it passes on, what it leaves alone, and what breaks with what."""

import hashlib
import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.benchmarks import usage
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.turborepo import TurborepoServer
from tests.support.upstream import Upstream, pattern
from tests.support.waiting import HUNG_AFTER, eventually

HTTP: Sections = {"http": {"listen": "127.0.0.1:0"}, "front": {"enabled": True}}
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
EVENT = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "h", "duration": 7}
MIB = 1 << 20


def address(daemon: Daemon) -> tuple[str, int]:
    host, _, port = daemon.status()["http"]["listen"].rpartition(":")
    return host, int(port)


def client_of(daemon: Daemon) -> httpx.Client:
    """A client that adds nothing of its own but what it must."""
    host, port = address(daemon)
    return httpx.Client(base_url=f"http://{host}:{port}", headers=AUTHORIZED, trust_env=False, timeout=HUNG_AFTER)


def sent(daemon: Daemon, request: bytes) -> socket.socket:
    """Send a raw request with the token; return the connection."""
    connection = socket.create_connection(address(daemon), timeout=HUNG_AFTER)
    connection.sendall(request.replace(b"\r\n", b"\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode(), 1))
    return connection


def read_all(connection: socket.socket) -> tuple[bytes, bool]:
    """Read to the end; return what came and whether the connection was reset."""
    data = b""
    try:
        while more := connection.recv(1 << 16):
            data += more
    except ConnectionResetError:
        return data, True
    return data, False


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def shared(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that leave it as it was; it delivers nothing, so that the server sees the front alone."""
    with Daemon(tmp_path_factory.mktemp("front"), upstream.url + "/prefix/", HTTP) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        yield daemon
        assert daemon.terminate() == 0
        assert "request_failed" not in daemon.stderr_text()


@pytest.fixture
def front(shared: Daemon, upstream: Upstream) -> Daemon:
    upstream.seen.clear()
    upstream.left.clear()
    upstream.busy.clear()
    return shared


# What is passed on


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "OPTIONS", "PATCH", "DELETE"])
def test_method_target_headers_and_body_arrive_as_they_were_sent(
    front: Daemon, upstream: Upstream, method: str
) -> None:
    target = "/v8/artifacts/a%2Fb%20c?teamId=team_1&slug=&x=%61+%E2%82%AC&&"
    body = pattern({"PUT": 100_000, "POST": 10, "PATCH": 100_000}.get(method, 0))
    fields = (
        f"Host: 127.0.0.1:1\r\nX-Artifact-Duration: 12\r\nx-artifact-tag: T/a+g==\r\nAccept-Encoding: br\r\n"
        f"X-Twice: 1\r\nX-Twice: 2\r\nTE: trailers\r\nProxy-Authorization: Bearer t\r\n"
        f"Keep-Alive: 3\r\nX-Own: 1\r\nConnection: x-own, content-length, close\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    with closing(sent(front, f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode() + body)) as connection:
        answer, _ = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 As Asked\r\n")
    if method != "HEAD":
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert found == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    (seen,) = upstream.seen
    assert (seen.method, seen.target) == (method, f"/prefix{target}")
    assert seen.headers == [
        (b"Host", upstream.url.removeprefix("http://").encode()),
        (b"Authorization", f"Bearer {TOKEN}".encode()),
        (b"X-Artifact-Duration", b"12"),
        (b"x-artifact-tag", b"T/a+g=="),
        (b"Accept-Encoding", b"br"),
        (b"X-Twice", b"1"),
        (b"X-Twice", b"2"),
        (b"Content-Length", str(len(body)).encode()),
    ]


@pytest.mark.parametrize("size", [5, 70_000])
def test_a_body_in_chunks_arrives_in_chunks(front: Daemon, upstream: Upstream, size: int) -> None:
    pieces = [pattern(size), b"x", pattern(5)]
    with client_of(front) as client:
        found = client.put("/v8/artifacts/a", content=iter(pieces)).json()
    assert found == {"size": size + 6, "sha256": hashlib.sha256(b"".join(pieces)).hexdigest()}
    (seen,) = upstream.seen
    assert (b"transfer-encoding", b"chunked") in seen.headers
    assert b"content-length" not in {name.lower() for name, _ in seen.headers}


def test_a_length_beside_chunks_is_not_passed_on(front: Daemon, upstream: Upstream) -> None:
    """What reads the one and what reads the other would disagree on where the next request begins."""
    head = b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    with closing(sent(front, head + b"6\r\nabcdef\r\n0\r\n\r\n")) as connection:
        answer, _ = read_all(connection)
    assert b'{"size": 6' in answer
    (seen,) = upstream.seen
    assert b"content-length" not in {name.lower() for name, _ in seen.headers}


@pytest.mark.parametrize("status", [200, 204, 301, 304, 307, 400, 402, 403, 404, 429, 500, 503])
def test_an_answer_comes_back_as_it_is(front: Daemon, status: int) -> None:
    """Redirects are not followed, errors not replaced, and nothing is decoded."""
    with client_of(front) as client, client.stream("GET", f"/status/{status}") as answer:
        body = b"".join(answer.iter_raw())
    assert (answer.status_code, answer.reason_phrase) == (status, "As Asked")
    assert body == (b"" if status in {204, 304} else b"not gzip at all")
    assert answer.headers["location"] == "http://elsewhere.example/x"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["content-encoding"] == "gzip"
    assert (b"X-Artifact-Tag", b"t") in answer.headers.raw
    assert "keep-alive" not in answer.headers
    if status not in {204, 304}:
        assert answer.headers["content-length"] == "15"


@pytest.mark.parametrize(
    "path", [f"/{kind}/{size}" for kind in ("sized", "chunked") for size in (0, 10, 16_000, 1_000_000)]
)
def test_a_body_comes_back_with_a_length_or_in_chunks_as_it_was_sent(front: Daemon, path: str) -> None:
    with client_of(front) as client:
        answer = client.get(path)
        head = client.head(path)
    size = int(path.rpartition("/")[2])
    assert answer.content == pattern(size)
    assert ("content-length" in answer.headers) == path.startswith("/sized")
    assert head.content == b""
    assert head.headers == answer.headers


def test_an_http_1_0_client_gets_the_body_without_chunks(front: Daemon) -> None:
    with closing(sent(front, b"GET /chunked/100000 HTTP/1.0\r\n\r\n")) as connection:
        answer, reset = read_all(connection)
    assert (answer.partition(b"\r\n\r\n")[2], reset) == (pattern(100_000), False)


def test_requests_in_a_row_take_one_connection_and_no_other_one_upstream(front: Daemon, upstream: Upstream) -> None:
    with closing(sent(front, b"GET /sized/3 HTTP/1.1\r\nHost: a\r\n\r\n")) as connection:
        connection.sendall(b"PUT /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode())
        connection.sendall(b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        data = b""
        while b"100 Continue" not in data:
            data += connection.recv(1 << 16)
        connection.sendall(b"abc")
        rest, _ = read_all(connection)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b'{"size": 3' in rest
    assert [seen.method for seen in upstream.seen] == ["GET", "PUT"]


@pytest.mark.parametrize("request_line", [b"CONNECT a:1", b"TRACE /", b"GET http://a/", b"BREW /pot"])
def test_methods_and_targets_that_the_api_cannot_have_are_refused(
    front: Daemon, upstream: Upstream, request_line: bytes
) -> None:
    with closing(sent(front, request_line + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) as connection:
        answer, _ = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert upstream.seen == []


def test_events_stay_here_and_everything_else_on_their_path_goes_on(front: Daemon, upstream: Upstream) -> None:
    before = front.status()["destinations"]["default"]["ledger"]["accepted"]
    with client_of(front) as client:
        answer = client.post("/v8/artifacts/events?slug=x", json=[EVENT])
        assert (answer.status_code, answer.content) == (200, b"{}")
        assert "authorization" in client.options("/v8/artifacts/events").headers["access-control-allow-headers"].lower()
        assert client.get("/v8/artifacts/events").status_code == 200
    assert front.status()["destinations"]["default"]["ledger"]["accepted"] == before + 1
    assert [seen.method for seen in upstream.seen] == ["GET"]


def test_nothing_is_passed_on_without_the_token_and_a_preflight_is_answered_here(
    front: Daemon, upstream: Upstream
) -> None:
    with client_of(front) as client:
        del client.headers["authorization"]
        assert client.get("/sized/1").status_code == 401
        assert client.get("/sized/1", headers={"authorization": "Bearer another"}).status_code == 401
        assert upstream.seen == []
        preflight = client.options("/v8/artifacts/x")
        assert (preflight.status_code, preflight.reason_phrase) == (200, "OK")
        assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert upstream.seen == []


# What has no end before it begins


def test_informational_answers_without_an_end_are_a_502_and_named(front: Daemon) -> None:
    with client_of(front) as client:
        answer = client.get("/informational")
        assert (answer.status_code, answer.reason_phrase) == (502, "Bad Gateway")
        assert "the head of its answer, with those that go before it, is longer than 131,072 bytes" in answer.text
        assert client.get("/sized/3").content == pattern(3)
    complaint = front.stderr_text()
    assert "answer_invalid" in complaint
    assert "127.0.0.1" in complaint


# Size


def test_large_artifacts_pass_both_ways_with_flat_memory(front: Daemon) -> None:
    size = 64 * MIB
    with client_of(front) as client:
        client.get(f"/sized/{MIB}")
        before = usage.memory(front.pid).rss
        found = client.put("/v8/artifacts/large", content=pattern(size)).json()
        assert found == {"size": size, "sha256": hashlib.sha256(pattern(size)).hexdigest()}
        digest = hashlib.sha256()
        with client.stream("GET", f"/sized/{size}") as answer:
            for piece in answer.iter_raw():
                digest.update(piece)
        assert digest.hexdigest() == found["sha256"]
    assert usage.memory(front.pid).peak - before < 16


def test_a_flush_does_not_wait_for_what_the_front_streams(front: Daemon, upstream: Upstream) -> None:
    with closing(sent(front, b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")), client_of(front) as client:
        assert upstream.busy.wait(HUNG_AFTER)
        front.request("POST", "/resume").raise_for_status()
        assert client.post("/v8/artifacts/events", json=[EVENT]).status_code == 200
        assert front.request("POST", "/flush?deadline=100").status_code == 200
        front.request("POST", "/pause").raise_for_status()


# What breaks


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc",
        b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
def test_a_client_that_leaves_ends_its_request_upstream(front: Daemon, upstream: Upstream, request_head: bytes) -> None:
    with closing(sent(front, request_head)) as connection:
        assert upstream.busy.wait(HUNG_AFTER)
        if b"endless" in request_head:
            connection.recv(1 << 16)
    assert upstream.left.wait(HUNG_AFTER)
    eventually(lambda: front.status()["http"]["connections"], lambda count: count == 0)


def post_of(name: str) -> bytes:
    """Return a request with one event."""
    body = json.dumps([EVENT | {"hash": name}]).encode()
    head = f"POST /v8/artifacts/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def accepted(daemon: Daemon) -> int:
    found = daemon.status()["destinations"]["default"]["ledger"]["accepted"]
    assert isinstance(found, int)
    return found


def test_an_event_behind_an_answer_is_kept_although_the_client_hangs_up_at_once(front: Daemon) -> None:
    before, at, rounds, clients = accepted(front), address(front), 6, 50
    request = b"GET /sized/100000 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % TOKEN.encode()

    def get_and_post(number: int) -> None:
        with closing(socket.create_connection(at, timeout=HUNG_AFTER)) as connection:
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"\r\n\r\n" + pattern(100_000)):
                answer += connection.recv(1 << 18)
            connection.sendall(post_of(f"h{number}"))

    with ThreadPoolExecutor(clients) as pool:
        for _ in range(rounds):
            list(pool.map(get_and_post, range(clients)))
    eventually(lambda: accepted(front), lambda found: found == before + rounds * clients)


def test_an_event_behind_a_request_that_nobody_waits_for_any_more_is_kept(front: Daemon, upstream: Upstream) -> None:
    before = accepted(front)
    with closing(sent(front, b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n" + post_of("a") + post_of("b"))):
        assert upstream.busy.wait(10)
    assert upstream.left.wait(10)
    eventually(lambda: accepted(front), lambda found: found == before + 2)


def test_the_answer_to_a_later_request_is_not_taken_for_one_that_was_given_up(front: Daemon) -> None:
    """Over TCP a client that only stops sending cannot be told from one that has hung up."""
    before = accepted(front)
    with closing(sent(front, b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n" + post_of("a"))) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection)[0] == b""
    eventually(lambda: accepted(front), lambda found: found == before + 1)


def test_an_artifact_that_was_written_whole_arrives_although_the_client_has_left(
    front: Daemon, upstream: Upstream
) -> None:
    before = front.status()["http"]["front"].get("200", 0)
    with closing(sent(front, b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + pattern(100_000))):
        pass
    eventually(lambda: front.status()["http"]["front"].get("200", 0), lambda count: count == before + 1)
    assert not upstream.left.is_set()


@pytest.mark.parametrize("path", ["/cut/10", "/cut-chunked/10", "/cut/100000", "/cut-chunked/100000"])
def test_an_answer_cut_off_by_the_api_is_cut_off_for_the_client(front: Daemon, path: str) -> None:
    with client_of(front) as client, pytest.raises(httpx.TransportError):
        client.get(path)
    with closing(sent(front, f"GET {path} HTTP/1.0\r\n\r\n".encode())) as connection:
        _, reset = read_all(connection)
    assert reset, "an end like any other would have looked like the end of the answer"


def test_an_answer_before_the_end_of_the_body_comes_back(front: Daemon) -> None:
    with client_of(front) as client:
        answer = client.put("/early", content=pattern(20 * MIB))
    assert (answer.status_code, answer.content) == (403, b'{"error":"early"}')


def test_an_answer_whose_server_then_reads_no_more_is_at_least_an_error(front: Daemon) -> None:
    """The end of the connection overtakes the answer, as it may without the front."""
    with client_of(front) as client:
        assert client.put("/early-end", content=pattern(20 * MIB)).status_code in {403, 502}


def test_an_invalid_chunked_body_is_refused_and_cut_off_upstream(front: Daemon, upstream: Upstream) -> None:
    head = b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with closing(sent(front, head + b"3\r\nabc\r\n")) as connection:
        assert upstream.busy.wait(HUNG_AFTER)
        connection.sendall(b"nonsense\r\n")
        answer, _ = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert upstream.left.wait(HUNG_AFTER)


def test_a_body_that_is_invalid_from_the_beginning_does_not_reach_the_api(front: Daemon, upstream: Upstream) -> None:
    head = b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with closing(sent(front, head + b"3\r\nabc\r\nnonsense\r\n")) as connection:
        answer, _ = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert upstream.seen == []


def test_an_unreachable_api_is_a_502_and_events_are_kept(tmp_path: Path) -> None:
    upstream = Upstream()
    with upstream:
        url = upstream.url
    with Daemon(tmp_path / "agent", url, HTTP) as daemon, client_of(daemon) as client:
        answer = client.put("/v8/artifacts/x", content=b"abc")
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "bad_gateway"
        assert answer.json()["error"]["message"].startswith(f"{url} cannot be reached: ")
        assert client.post("/v8/artifacts/events", json=[EVENT]).status_code == 200
        with upstream:
            assert client.put("/v8/artifacts/x", content=b"abc").json()["size"] == 3
            assert daemon.request("POST", "/flush?deadline=100").status_code == 200
        assert client.get("/x").status_code == 502
        assert daemon.status()["http"]["front"] == {"502": 2, "200": 1}
        assert 'http_requests_total{about="front",status="502"} 2.0' in daemon.request("GET", "/metrics").text


TURBO_1 = {"user-agent": "turbo 1.10.16 go1.20.10 linux (amd64)"}
TURBO_2 = {"user-agent": "turbo 2.11.11 1.98.0-nightly linux x86_64"}


def test_in_an_outage_turbo_1_is_told_not_to_ask_again_and_others_what_the_api_says(
    tmp_path: Path, upstream: Upstream
) -> None:
    with Daemon(tmp_path / "agent", upstream.url, HTTP) as daemon, client_of(daemon) as client:
        failures = [client.head("/status/503", headers=TURBO_1).status_code for _ in range(4)]
        assert (failures[0], failures[2:]) == (503, [424, 424])
        for others in ({}, TURBO_2):
            answer = client.head("/status/503", headers=others)
            assert (answer.status_code, answer.headers.get("proxy-status")) == (503, None)

        def put_after_failures() -> int:
            for _ in range(3):
                client.head("/status/503")
            return client.put("/x", content=b"abc", headers=TURBO_1).status_code

        assert eventually(put_after_failures, lambda status: status == 424), "the API is not asked: it would take it"
        assert client.get("/sized/3").status_code == 200
        assert client.get("/sized/3", headers=TURBO_1).content == pattern(3)
        assert client.head("/status/503", headers=TURBO_1).status_code == 503


def test_an_answer_that_turbo_1_gets_in_an_outage_says_what_the_api_has_said(
    tmp_path: Path, upstream: Upstream
) -> None:
    with Daemon(tmp_path / "agent", upstream.url, HTTP) as daemon, client_of(daemon) as client:
        for _ in range(2):
            client.head("/status/503")
        with client.stream("GET", "/status/503", headers=TURBO_1) as answer:
            body = b"".join(answer.iter_raw())
        assert (answer.status_code, answer.reason_phrase) == (424, "Failed Dependency")
        assert answer.headers["proxy-status"] == "artifacts-agent; received-status=503"
        assert answer.headers["x-artifact-tag"] == "t"
        assert body == b"not gzip at all"


def test_an_api_that_is_gone_hangs_up_on_turbo_1_until_that_has_not_helped(tmp_path: Path) -> None:
    with Upstream() as upstream:
        url = upstream.url
    with Daemon(tmp_path / "agent", url, HTTP) as daemon, client_of(daemon) as client:

        def answer_to(headers: dict[str, str]) -> httpx.Response | None:
            try:
                return client.get("/x", headers=headers)
            except httpx.RemoteProtocolError:
                return None

        assert answer_to(TURBO_1) is None
        answer = eventually(lambda: answer_to(TURBO_1), lambda found: found is not None)
        assert answer is not None
        assert (answer.status_code, answer.json()["error"]["code"]) == (424, "bad_gateway")
        assert answer.json()["error"]["message"].startswith(url)
        assert client.get("/x").status_code == 502
        assert answer_to(TURBO_2) is None


def test_uploads_whose_clients_have_left_make_room_for_others(tmp_path: Path) -> None:
    """They wait for an API that hangs."""
    slots = 4
    sections: Sections = {"http": {"listen": "127.0.0.1:0", "max_connections": slots}, "front": {"enabled": True}}
    upload = b"PUT /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    with Upstream() as upstream, Daemon(tmp_path / "agent", upstream.url, sections) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        for _ in range(slots):
            sent(daemon, upload).close()
        eventually(lambda: len(upstream.seen), lambda count: count == slots)
        with client_of(daemon) as client:
            assert client.post("/v8/artifacts/events", json=[EVENT]).status_code == 200
        assert upstream.left.wait(HUNG_AFTER)
        assert "connection_evicted" in daemon.stderr_text()


def test_shutdown_cuts_off_an_endless_answer(tmp_path: Path) -> None:
    sections: Sections = {**HTTP, "shutdown": {"deadline": "0s"}}
    with Upstream() as upstream, Daemon(tmp_path / "agent", upstream.url, sections) as daemon:
        with closing(sent(daemon, b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")) as connection:
            connection.recv(1)
            assert daemon.terminate() == 0
            assert read_all(connection)[1]
        assert "Traceback" not in daemon.stderr_text()


# Settings


def test_a_new_token_and_address_are_taken_over_on_reload(tmp_path: Path, upstream: Upstream) -> None:
    token_file = tmp_path / "clients-token"
    token_file.write_text("first")
    http: dict[str, object] = {"listen": "127.0.0.1:0", "token_file": str(token_file)}
    with (
        Upstream() as other,
        Daemon(tmp_path / "agent", other.url, {**HTTP, "http": http}) as daemon,
        closing(client_of(daemon)) as client,
    ):
        client.headers["authorization"] = "Bearer another"
        assert client.get("/v8/artifacts/sized/1").status_code == 401
        client.headers["authorization"] = "Bearer first"
        assert client.get("/v8/artifacts/sized/1").status_code == 200
        assert len(other.seen) == 1
        token_file.write_text("second")
        daemon.configure(upstream.url, {**HTTP, "http": http})
        daemon.signal(signal.SIGHUP)
        client.headers["authorization"] = "Bearer second"
        eventually(lambda: client.get("/v8/artifacts/sized/1").status_code, lambda status: status == 200)
        assert len(other.seen) == 1
        token_file.write_text("third, and not on its own")
        eventually(daemon.stderr_text, lambda text: "token_refused" in text)
        assert client.get("/v8/artifacts/sized/1").status_code == 200
        assert "third" not in daemon.stderr_text()


def authorizations(upstream: Upstream) -> list[bytes]:
    """What the API was sent as a token with what was passed on, request by request."""
    passed_on = [seen for seen in upstream.seen if seen.method == "GET"]
    return [value for seen in passed_on for name, value in seen.headers if name.lower() == b"authorization"]


@contextmanager
def with_a_token_for_clients(directory: Path, upstream: Upstream, **api: object) -> Iterator[Daemon]:
    """A daemon whose clients are given "local" as their token, on a port and on h.sock."""
    upstream.seen.clear()
    (directory / "local").write_text("local")
    http = {"listen": "127.0.0.1:0", "socket": str(directory / "h.sock"), "token_file": str(directory / "local")}
    with Daemon(directory / "agent", upstream.url, {**HTTP, "http": http, "api": api}) as daemon:
        yield daemon


def test_the_api_gets_its_own_token_in_the_place_of_the_clients(tmp_path: Path, upstream: Upstream) -> None:
    with (
        with_a_token_for_clients(tmp_path, upstream) as daemon,
        client_of(daemon) as on_port,
        httpx.Client(base_url="http://agent", transport=httpx.HTTPTransport(uds=str(tmp_path / "h.sock"))) as on_socket,
    ):
        for client in (on_port, on_socket):
            for given in ("Bearer local", "bearer  local", f"Bearer {TOKEN}"):
                client.headers["authorization"] = given
                assert client.get("/v8/artifacts/sized/1").status_code == 200
                assert client.post("/v8/artifacts/events", json=[EVENT]).status_code == 200
        assert authorizations(upstream) == [f"Bearer {TOKEN}".encode()] * 6
        assert on_port.get("/v8/artifacts/sized/1", headers={"authorization": "Bearer another"}).status_code == 401
        assert on_socket.get("/v8/artifacts/sized/1", headers={"authorization": "Bearer another"}).status_code == 200
        assert authorizations(upstream)[6:] == [b"Bearer another"]


def test_a_token_of_the_clients_own_never_goes_to_the_api(tmp_path: Path, upstream: Upstream) -> None:
    with with_a_token_for_clients(tmp_path, upstream, token_file="") as daemon, client_of(daemon) as client:
        client.headers["authorization"] = "Bearer local"
        refused = client.get("/v8/artifacts/sized/1")
        assert refused.status_code == 401
        assert "The agent has no token for the API" in refused.json()["error"]["message"]
        assert client.post("/v8/artifacts/events", json=[EVENT]).status_code == 200
    assert not any(value == b"Bearer local" for seen in upstream.seen for _, value in seen.headers)
    assert authorizations(upstream) == []


TEAM = {"team_id": "team_1", "slug": "web"}


@pytest.mark.parametrize(
    "target", ["/v8/artifacts/a", "/v8/artifacts/a?slug=web", "/v8/artifacts/a?teamId=team_1&slug=web"]
)
def test_a_token_is_lent_for_artifacts_of_its_own_team(tmp_path: Path, upstream: Upstream, target: str) -> None:
    with with_a_token_for_clients(tmp_path, upstream, **TEAM) as daemon, client_of(daemon) as client:
        client.headers["authorization"] = "Bearer local"
        assert client.get(target).status_code == 200
    assert authorizations(upstream) == [f"Bearer {TOKEN}".encode()]


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("/v8/artifacts/a?slug=mobile", 400, "api.slug is set to another one"),
        ("/v8/artifacts/a?teamId=team_2", 400, "api.team_id is set to another one"),
        ("/v8/artifacts/a?slug=web&teamId=team_2", 400, "api.team_id is set to another one"),
        ("/v8/artifacts/a?slug=mobile&slug=web", 400, "should say slug once"),
        ("/v8/artifacts/a?slug[]=mobile&slug=web", 400, "should say slug in this spelling"),
        ("/v8/artifacts/a?slug=mobile;x=1&slug=web", 400, "should say slug once"),
        ("/v8/artifacts/%65vents?slug=mobile", 400, "events go to /v8/artifacts/events in this spelling"),
        ("/v8/x/../artifacts/events", 400, "events go to /v8/artifacts/events in this spelling"),
        ("/v3/user/tokens", 403, "/v8/artifacts alone"),
        ("/v8/artifacts/%2e%2e/user", 403, "/v8/artifacts alone"),
    ],
)
def test_a_token_is_not_lent_for_anything_else(
    tmp_path: Path, upstream: Upstream, target: str, status: int, reason: str
) -> None:
    with with_a_token_for_clients(tmp_path, upstream, **TEAM) as daemon, closing(sent(daemon, b"")) as connection:
        head = f"GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer local\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert reason in answer
    assert [seen for seen in upstream.seen if seen.method == "GET"] == []


def test_the_front_works_on_a_socket_without_a_port(tmp_path: Path, upstream: Upstream) -> None:
    path = tmp_path / "h.sock"
    sections: Sections = {"http": {"socket": str(path)}, "front": {"enabled": True}}
    with Daemon(tmp_path / "agent", upstream.url, sections) as daemon:
        assert daemon.status()["http"] == {
            "socket": str(path),
            "listen": None,
            "forwards": True,
            "connections": 0,
            "events": {},
            "front": {},
        }
        with httpx.Client(base_url="http://agent", transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("/sized/3").content == pattern(3)
            assert client.post("/v8/artifacts/events", json=[EVENT]).status_code == 200


def test_a_real_server_keeps_and_returns_artifacts_and_takes_the_events(
    tmp_path: Path, turborepo_remote_cache: TurborepoServer
) -> None:
    server, artifact = turborepo_remote_cache, pattern(300_000)
    headers = {"content-type": "application/octet-stream", "x-artifact-duration": "400"}
    with Daemon(tmp_path / "agent", server.url, HTTP) as daemon, client_of(daemon) as client:
        query = {"slug": "acme"}
        assert client.get("/v8/artifacts/status", params=query).json()["status"] == "enabled"
        assert client.head("/v8/artifacts/abc123", params=query).status_code == 404
        assert client.put("/v8/artifacts/abc123", params=query, content=artifact, headers=headers).status_code == 200
        assert client.head("/v8/artifacts/abc123", params=query).status_code == 200
        assert client.get("/v8/artifacts/abc123", params=query).content == artifact
        assert client.post("/v8/artifacts/events", params=query, json=[EVENT]).status_code == 200
        assert daemon.request("POST", "/flush?deadline=100").status_code == 200
    (events,) = server.captured.accepted()
    assert events.events == [EVENT]
