"""One user floods a full queue: the events of others stay, across kills and restarts, and it is named."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import received
from tests.support.api_server import ApiServer
from tests.support.daemon import Daemon
from tests.support.tools import require_root
from tests.support.waiting import HUNG_AFTER

NOBODY, VICTIM, OTHER = 65534, 12345, 23456
QUEUE_BYTES = 1 << 20
SECTIONS: Mapping[str, Mapping[str, object]] = {
    "listen": {"mode": "0666"},
    "queue": {"max_bytes": QUEUE_BYTES, "segment_bytes": 1 << 16, "min_free_bytes": 0},
    "log": {"format": "json"},
}
REFUSING_PORT = "http://127.0.0.1:9"
# Sends events one by one as a user, each after the ack for the last one, and prints the last ack.
CLIENT = """
import json, os, socket, sys
uid, path, prefix, count, size = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
os.setresuid(uid, uid, uid)
with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as acks:
    client.connect(path)
    client.sendall(b'{"context":{"ack":"durable"}}\\n')
    for number in range(count):
        event = {"sessionId": "s" * size, "source": "LOCAL", "event": "HIT", "hash": f"{prefix}{number}"}
        client.sendall(json.dumps(event).encode() + b"\\n")
        ack = acks.readline()
sys.stdout.buffer.write(ack)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can look into."""
    require_root()
    path = Path(tempfile.mkdtemp(prefix="shares-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def send(daemon: Daemon, uid: int, prefix: str, count: int, size: int = 36) -> dict[str, Any]:
    """Send events as a user; return the last ack."""
    command = [sys.executable, "-c", CLIENT, str(uid), str(daemon.stream), prefix, str(count), str(size)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=HUNG_AFTER)
    ack: dict[str, Any] = json.loads(done.stdout)
    return ack


def flood(daemon: Daemon, uid: int, prefix: str) -> dict[str, Any]:
    """Send twice as much as the queue takes."""
    return send(daemon, uid, prefix, 2 * QUEUE_BYTES // 60_000, 60_000)


def hashes(server: ApiServer, prefix: str) -> Counter[str]:
    """Count what the API has got of these events."""
    found = (json.loads(text)["hash"] for text in received(server.accepted()).elements())
    return Counter(each for each in found if each.startswith(prefix))


def refusals(daemon: Daemon) -> list[dict[str, Any]]:
    """Return what the log says of refused events."""
    lines = (json.loads(line) for line in daemon.stderr_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == "events_refused"]


@pytest.mark.parametrize("overflow", ["drop-oldest", "drop-newest"])
def test_a_flood_pushes_nothing_of_others_out_of_the_queue_whatever_happens_to_the_daemon(
    directory: Path, overflow: str
) -> None:
    sections = {**SECTIONS, "queue": {**SECTIONS["queue"], "overflow": overflow}}
    daemon = Daemon(directory, REFUSING_PORT, sections)
    with daemon:
        assert send(daemon, VICTIM, "before-", 100) == {"durable": 100, "rejected": 0}
        refused = flood(daemon, NOBODY, "flood-")
        assert refused["dropped_by_reason"] == {"quota": refused["dropped"]}
        assert send(daemon, VICTIM, "after-", 100) == {"durable": 100, "rejected": 0}
        status = daemon.destination()
        assert status.ledger.dropped == {"quota": refused["dropped"]}
        assert [(each.uid, each.events) for each in status.over_quota] == [(NOBODY, refused["dropped"])]
        assert QUEUE_BYTES // 3 < status.queue.bytes <= QUEUE_BYTES
        log = refusals(daemon)[0]
        assert (log["uid"], log["reason"], log["bytes"] > 60_000) == (NOBODY, "quota", True)
    daemon.start()  # the block above ends with SIGKILL
    assert flood(daemon, NOBODY, "again-")["dropped_by_reason"].keys() == {"quota"}
    assert send(daemon, VICTIM, "killed-", 100) == {"durable": 100, "rejected": 0}
    daemon.terminate()
    with ApiServer() as server:
        daemon.configure(server.url, sections)
        with daemon:
            daemon.wait_destination(lambda found: not found.ledger.queued)
        for prefix in ("before-", "after-", "killed-"):
            assert hashes(server, prefix) == Counter(f"{prefix}{number}" for number in range(100))


def test_a_user_alone_may_use_the_whole_queue_and_makes_room_for_its_own_events_alone(directory: Path) -> None:
    daemon = Daemon(directory, REFUSING_PORT, SECTIONS)
    with daemon:
        assert flood(daemon, NOBODY, "flood-").keys() == {"durable", "rejected"}
        status = daemon.destination()
        assert status.ledger.dropped.keys() == {"overflow"}
        assert QUEUE_BYTES * 3 // 4 < status.queue.bytes <= QUEUE_BYTES
        late = send(daemon, VICTIM, "late-", 1000, 600)
        assert late["dropped_by_reason"].keys() == {"overflow"}
        assert flood(daemon, NOBODY, "more-")["dropped_by_reason"].keys() == {"quota"}
    daemon.start()
    before = daemon.destination().ledger
    assert send(daemon, OTHER, "other-", 10, 60_000)["dropped_by_reason"].keys() <= {"overflow", "quota"}
    after = daemon.destination().ledger
    assert after.queued >= before.queued
    daemon.kill()


def test_a_rule_gives_its_users_larger_shares(directory: Path) -> None:
    daemon = Daemon(directory, REFUSING_PORT, SECTIONS)
    rule = f'\n[[rules]]\nuid = {NOBODY}\ndestination = "default"\nweight = 3\n'
    daemon.config.write_text(daemon.config.read_text() + rule)
    with daemon:
        send(daemon, VICTIM, "before-", 1)
        for uid in (NOBODY, VICTIM):
            assert flood(daemon, uid, "flood-")["dropped_by_reason"].keys() == {"quota"}
        shares = {each["uid"]: each["share_bytes"] for each in refusals(daemon)}
        assert abs(shares[NOBODY] - 3 * shares[VICTIM]) < 3
        assert QUEUE_BYTES - 100 < shares[NOBODY] + shares[VICTIM] < QUEUE_BYTES


def test_requests_over_http_and_datagrams_count_to_their_user(directory: Path) -> None:
    sections = {**SECTIONS, "http": {"socket": str(directory / "h.sock")}}
    daemon = Daemon(directory, REFUSING_PORT, sections)
    events = [
        {"sessionId": "s" * 60_000, "source": "LOCAL", "event": "HIT", "hash": f"http-{number}"} for number in range(4)
    ]
    script = """
import http.client, json, os, socket, sys
uid, directory = int(sys.argv[1]), sys.argv[2]
body = sys.stdin.buffer.read()
os.setresuid(uid, uid, uid)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
    client.connect(directory + "/d.sock")
    for event in json.loads(body):
        client.send(json.dumps(event).encode())
statuses = []
for _ in range(8):
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(directory + "/h.sock")
    connection.request("POST", "/v8/artifacts/events", body)
    answer = connection.getresponse()
    statuses.append((answer.status, answer.getheader("Retry-After"), json.loads(answer.read())))
    connection.close()
print(json.dumps(statuses))
"""
    with daemon:
        assert send(daemon, VICTIM, "before-", 10) == {"durable": 10, "rejected": 0}
        done = subprocess.run(
            [sys.executable, "-c", script, str(NOBODY), str(directory)],
            input=json.dumps(events).encode(),
            check=True,
            capture_output=True,
            timeout=HUNG_AFTER,
        )
        answers = json.loads(done.stdout)
        assert {status for status, _, _ in answers} == {200, 429}
        (after, error) = next((after, body["error"]) for status, after, body in answers if status == 429)
        assert (after, error["code"], "quota" in error["message"]) == ("5", "too_many_requests", True)
        status = daemon.destination()
        assert [each.uid for each in status.over_quota] == [NOBODY]
        assert status.ledger.dropped == {"quota": 4 * sum(code == 429 for code, _, _ in answers)}
        assert send(daemon, VICTIM, "after-", 10) == {"durable": 10, "rejected": 0}
