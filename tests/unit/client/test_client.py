"""What the client decides without a socket: which CI, which path, and what is no event."""

import enum
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from agent.client import CI_VENDORS, DETECT, EventClient, ci, detect_ci, detect_interactive, detect_job, find_socket
from agent.client.lines import encode_context
from agent.events import Context, Session, decode_lines

ROOT = Path(__file__).parents[3]
VENDORS = ROOT / "tests/data/ci-vendors.txt"
NOWHERE = "/nonexistent/events.sock"


def documented_vendors() -> list[tuple[str, str]]:
    """Read the table that was taken from turbo, in the client's notation: A+B for all of, A|B for any of."""
    rows = [line.split(": ", 1) for line in VENDORS.read_text().splitlines() if not line.startswith("#")]
    return [(name, rule.removeprefix("all-of ").replace(" or ", "|")) for name, rule in rows]


def documented_ci_variables() -> list[str]:
    comment = VENDORS.read_text().rpartition("any non-empty of ")[2]
    return re.findall("[A-Z_]+", comment)


def test_the_vendor_table_is_turbos_entry_by_entry_and_in_its_order() -> None:
    assert list(CI_VENDORS) == documented_vendors()
    assert len(CI_VENDORS) == 45


@pytest.mark.parametrize(("name", "rule"), documented_vendors())
def test_each_vendor_is_known_by_any_variable_that_tells(name: str, rule: str) -> None:
    for alternative in rule.split("|"):
        terms = [term.partition("==") for term in alternative.split("+")]
        environ = {variable: value or "yes" for variable, _, value in terms}
        assert detect_ci(environ) == name


@pytest.mark.parametrize(
    ("environ", "ci"),
    [
        ({}, None),
        ({"GITHUB_ACTIONS": ""}, None),
        ({"GITHUB_ACTIONS": "false"}, "GITHUB_ACTIONS"),
        ({"JENKINS_URL": "http://ci"}, None),
        ({"JENKINS_URL": "http://ci", "BUILD_ID": ""}, None),
        ({"CI_NAME": "other"}, None),
        ({"CI_NAME": "codeship "}, None),
        ({"CI": "true"}, None),
        ({"CI": "woodpecker"}, "WOODPECKER"),
        ({"VERCEL": "1", "GITLAB_CI": "1"}, "GITLAB"),
    ],
)
def test_the_first_vendor_that_matches_wins_and_an_empty_variable_is_as_good_as_none(
    environ: dict[str, str], ci: str | None
) -> None:
    assert detect_ci(environ) == ci


@pytest.mark.parametrize("environ", [{}, *({variable: "1"} for variable in documented_ci_variables())], ids=str)
def test_only_a_terminal_outside_of_every_ci_system_is_interactive(environ: dict[str, str]) -> None:
    script = (
        f"from agent.client import *; print(detect_interactive({environ}, None), detect_interactive({environ}, 'X'))"
    )
    assert on_terminal(script) == [str(int(not environ)), "0"]
    assert detect_interactive(environ, None) == int(not environ and os.isatty(1))


GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "acme/web",
    "GITHUB_RUN_ID": "42",
    "GITHUB_RUN_ATTEMPT": "2",
    "GITHUB_JOB": "build",
    "RUNNER_NAME": "r1",
}
GITLAB = {"GITLAB_CI": "1", "CI_JOB_NAME": "build: [a]", "CI_JOB_URL": "https://gitlab.example/-/jobs/7"}
RUN = "https://github.com/acme/web/actions/runs/42/attempts/2"


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"CI": "true"}, None),
        (GITHUB, f"build on r1 {RUN}"),
        (GITHUB | {"RUNNER_NAME": ""}, RUN),
        (GITHUB | {"GITHUB_RUN_ID": ""}, None),
        (GITHUB | {"GITHUB_JOB": "x" * 300}, "x" * 145 + f" {RUN}"),
        (GITLAB, "build: [a] https://gitlab.example/-/jobs/7"),
        (GITLAB | {"CI_JOB_NAME": 'a "b" \\ é\n'}, "a 'b' / ?? https://gitlab.example/-/jobs/7"),
        (GITLAB | {"ARTIFACTS_AGENT_JOB": " mine "}, "mine"),
        (GITLAB | {"ARTIFACTS_AGENT_JOB": ""}, None),
    ],
)
def test_a_job_is_known_by_its_name_and_address_unless_it_is_named(environ: dict[str, str], job: str | None) -> None:
    assert detect_job(environ) == job


@pytest.mark.parametrize("name", ci.JOBS)
def test_each_system_whose_jobs_are_known_is_one_of_turbos_and_any_label_is_valid(name: str) -> None:
    (rule,) = (rule for vendor, rule in CI_VENDORS if vendor == name)
    environ = {each.partition("==")[0]: each.partition("==")[2] or "yes" for each in rule.split("+")}
    for pattern in ci.JOBS[name]:
        environ |= {variable: f' \0"{variable}é' for variable in re.findall("{(.*?)}", pattern)}
    job = detect_job(environ)
    assert job is not None
    line = encode_context(None, None, job)
    assert decode_lines(line, Session()).session.context == Context(job=job)


def on_terminal(script: str) -> list[str]:
    """Run a script whose standard output is a terminal; return its words."""
    terminal, stdout = os.openpty()
    try:
        subprocess.run([sys.executable, "-S", "-c", script], stdout=stdout, check=True, cwd=ROOT)
        return os.read(terminal, 1000).decode().split()
    finally:
        os.close(stdout)
        os.close(terminal)


def test_the_socket_is_the_one_named_else_the_users_else_the_systems(tmp_path: Path) -> None:
    system = "/run/artifacts-agent/events.sock"
    own = tmp_path / "artifacts-agent/events.sock"
    assert find_socket({}) == system
    assert find_socket({"XDG_RUNTIME_DIR": ""}) == system
    assert find_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == system
    own.parent.mkdir()
    own.touch()
    assert find_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == str(own)
    assert find_socket({"XDG_RUNTIME_DIR": str(tmp_path), "ARTIFACTS_AGENT_SOCKET": "/x"}) == "/x"
    assert find_socket({"XDG_RUNTIME_DIR": str(tmp_path), "ARTIFACTS_AGENT_SOCKET": ""}) == ""


def test_a_destination_is_named_in_the_context_and_without_a_valid_name_nothing_is_sent(tmp_path: Path) -> None:
    line = encode_context("GITHUB_ACTIONS", 0, "a job", "web")
    assert decode_lines(line, Session()).session == Session(Context("GITHUB_ACTIONS", 0, "a job"), asks_for="web")
    for name in ("", " web", "w" * 33, "é", 7, b"web"):
        client = EventClient(tmp_path / "nobody", destination=name)  # type: ignore[arg-type]
        assert not client.emit("HIT", "LOCAL", "ab")
        assert client.emit_many([{"event": "HIT", "source": "LOCAL", "hash": "ab"}]) == 0
        assert client.unsent_by_reason == {"invalid": 2}


def test_an_empty_socket_variable_disables_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTIFACTS_AGENT_SOCKET", "")
    client = EventClient()
    assert not client.emit("HIT", "LOCAL", "ab")
    assert client.unsent_by_reason == {"disabled": 1}


def test_a_session_is_a_random_uuid_of_version_4() -> None:
    sessions = {EventClient().session_id for _ in range(1000)}
    assert len(sessions) == 1000
    for session in sessions:
        parsed = uuid.UUID(session)
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, session)


GOOD: dict[str, Any] = {"event": "HIT", "source": "LOCAL", "hash": "ab", "duration": 1}


@pytest.mark.parametrize("key", ["event", "source", "hash", "session_id", "duration"])
@pytest.mark.parametrize(
    "value",
    [b"HIT", "\ud800", ["HIT"], {}, object(), True, float("nan"), float("-inf"), -7, 2**63, 10**5000, 1j],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_the_api_does_not_allow_is_counted_and_never_raised(key: str, value: Any) -> None:
    client = EventClient(NOWHERE)
    assert not client.emit(**{**GOOD, key: value})
    assert client.emit_many([{**GOOD, key: value}]) == 0  # type: ignore[typeddict-item]  # what a wrong caller does
    assert client.unsent_by_reason == {"invalid": 2}


TEXTS = ["", " ", "ab", "\0", '"', "\\", "é", "\u2028", "HIT", "LOCAL"]
NUMBERS = [0, -0.0, 1, 0.5, 5e-324, 1e300, 2**63 - 1, -1, -7, -0.5, -(2**63), 2**63]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, text) for key in ("sessionId", "source", "event", "hash") for text in TEXTS),
        *(("duration", number) for number in NUMBERS),
    ],
)
def test_the_client_and_the_daemon_refuse_the_same_values(key: str, value: Any) -> None:
    event: dict[str, Any] = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "h", "duration": 1} | {
        key: value
    }
    refused = bool(decode_lines(json.dumps(event).encode() + b"\n", Session()).rejects)
    client = EventClient(NOWHERE)
    client.emit(event["event"], event["source"], event["hash"], event["sessionId"], event["duration"])
    assert client.unsent_by_reason == {"invalid" if refused else "absent": 1}


@pytest.mark.parametrize("key", ["event", "source", "hash", "session_id", "duration"])
def test_a_proxy_that_raises_whatever_it_is_asked_is_invalid(key: str) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not bound")

    proxy = type(
        "Proxy", (), {"__class__": property(refuse), "__hash__": refuse, "__eq__": refuse, "__str__": refuse}
    )()
    client = EventClient(NOWHERE)
    sent = client.emit(**{**GOOD, key: proxy})
    assert (sent, client.unsent_by_reason) == (False, {"invalid": 1})


@pytest.mark.parametrize("key", ["event", "source"])
@pytest.mark.parametrize("value", ["hit", "", "HIT ", None, 0])
def test_an_unknown_event_or_source_is_invalid(key: str, value: Any) -> None:
    client = EventClient(NOWHERE)
    assert not client.emit(**{**GOOD, key: value})
    assert client.unsent_by_reason == {"invalid": 1}


class Name(str, enum.Enum):  # noqa: UP042 -- the kind whose format() is not its value
    HIT = "HIT"
    LOCAL = "LOCAL"


class Milliseconds(enum.IntEnum):
    SOME = 514


@pytest.mark.parametrize("fields", [{"event": Name.HIT, "source": Name.LOCAL}, {"duration": Milliseconds.SOME}])
def test_subclasses_of_strings_and_numbers_are_valid(fields: dict[str, Any]) -> None:
    client = EventClient(NOWHERE)
    assert not client.emit(**{**GOOD, **fields})
    assert client.unsent_by_reason == {"absent": 1}


@pytest.mark.parametrize(("length", "reason"), [(64 * 1024, "absent"), (64 * 1024 + 1, "too_large")])
def test_a_line_above_64_kib_is_too_large(length: int, reason: str) -> None:
    client = EventClient(NOWHERE, session_id="s")
    rest = '{"sessionId":"s","source":"LOCAL","event":"HIT","hash":""}'
    client.emit("HIT", "LOCAL", "a" * (length - len(rest)))
    assert client.unsent_by_reason == {reason: 1}


@pytest.mark.parametrize(
    ("items", "invalid"),
    [(None, 1), (5, 1), ([5, None, "ab", {}], 4), ([{**GOOD, "color": "red"}, {"event": "HIT"}, {1: 2}], 3)],
)
def test_items_that_are_no_events_are_counted_one_by_one(items: Any, invalid: int) -> None:
    client = EventClient(NOWHERE)
    assert client.emit_many(items) == 0
    assert client.unsent_by_reason == {"invalid": invalid}


@pytest.mark.parametrize("path", ["", "/x" * 200, "\0", "a\0b", "\ud800", 5, object(), b"\xff", NOWHERE])
def test_no_path_raises(path: Any) -> None:
    client = EventClient(path)
    assert not client.emit("HIT", "LOCAL", "ab")
    assert (client.sent, client.unsent) == (0, 1)


def test_every_event_is_either_sent_or_unsent_for_a_reason() -> None:
    client = EventClient(NOWHERE)
    client.emit("HIT", "LOCAL", "ab")
    client.emit("HIT", "LOCAL", "a" * 70_000)
    client.close()
    client.close()
    client.emit("HIT", "LOCAL", "ab")
    client.emit("HIT", "LOCAL", b"ab")  # type: ignore[arg-type]  # what a wrong caller does
    assert client.unsent_by_reason == {"absent": 1, "too_large": 1, "closed": 1, "invalid": 1}
    assert (client.sent, client.unsent) == (0, 4)


class EmittingPath:
    """A path that emits when it is asked for, as finalizers and signal handlers may at any time."""

    def __init__(self) -> None:
        self.client = EventClient(self)

    def __fspath__(self) -> str:
        assert not self.client.emit("HIT", "LOCAL", "inner")
        return NOWHERE


def test_an_emit_that_interrupts_the_clients_own_sending_is_counted_and_does_not_hang() -> None:
    client = EmittingPath().client
    assert not client.emit("HIT", "LOCAL", "outer")
    assert client.unsent_by_reason == {"reentrant": 1, "absent": 1}


def test_the_default_says_what_it_is() -> None:
    assert repr(DETECT) == "DETECT"


def test_the_import_is_light() -> None:
    script = "import sys, agent.client; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", script]
    imported = subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT).stdout.split()
    assert not {"typing", "re", "json", "uuid", "socket", "threading", "enum", "pathlib"}.intersection(imported)
