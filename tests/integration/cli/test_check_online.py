"""`check --online`: what it says of a token and a URL, to the real server and to others, and what it never sends."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import Answer, ApiServer, error
from tests.support.artifacts_api import ArtifactsApi
from tests.support.command import run_command
from tests.support.daemon import TOKEN, Daemon
from tests.support.turborepo import turborepo_server

PROVEN = "it accepts the token, and refuses a wrong one (401 Unauthorized)"
EVERYBODY = "not proven: it answers a wrong token as it does this one (404 Not Found)"
WRONG = "a-token-that-is-wrong"
STATUS = ("GET", "/v8/artifacts/status")


def check_online(daemon: Daemon, token: str = TOKEN, **env: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and what the last check found, once as text and once as JSON."""
    text = run_command("check", "--online", "--config", daemon.config, env=env)
    done = run_command("check", "--online", "--json", "--config", daemon.config, env=env)
    assert (text.returncode, text.stderr, done.stderr) == (done.returncode, "", "")
    assert token not in text.stdout + done.stdout
    report = json.loads(done.stdout)
    assert [each["ok"] for each in report["checks"][:-1]] == [True] * (len(report["checks"]) - 1)
    found = report["checks"][-1]
    word = "warning" if found.get("warning") else "ok" if found["ok"] else "problem"
    assert f"{word:<7}  server: {found['message']}" == text.stdout.splitlines()[-1]
    return done.returncode, found


@pytest.mark.parametrize("team", [{}, {"slug": "team"}], ids=["no team", "team"])
def test_the_real_server_proves_the_right_token_and_refuses_a_wrong_one(tmp_path: Path, team: dict[str, str]) -> None:
    with turborepo_server(tmp_path / "storage") as server:
        right = check_online(Daemon(tmp_path / "right", server.url, {"api": team}, server.token))
        wrong = check_online(Daemon(tmp_path / "wrong", server.url, {"api": team}, WRONG), WRONG)
        elsewhere = check_online(Daemon(tmp_path / "elsewhere", f"{server.url}/api", {"api": team}, server.token))
    assert right == (0, {"check": "server", "ok": True, "message": f"{server.url}: {PROVEN}"})
    assert wrong[0] == 1
    assert "401 Unauthorized: check the token, the team and the account; delivery would pause" in wrong[1]["message"]
    assert elsewhere[0] == 1
    assert (
        elsewhere[1]["message"]
        == f"{server.url}/api: it knows nothing below /v8/artifacts (404 Not Found): check api.url"
    )
    assert {request.method for request in server.captured.requests} == {"GET", "HEAD"}


def test_a_server_that_answers_everybody_alike_proves_nothing(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.status = "enabled"
    code, found = check_online(Daemon(tmp_path, api_server.url))
    assert (code, found["ok"], found["warning"]) == (0, True, True)
    assert found["message"].startswith(f"{api_server.url}: {EVERYBODY}")


def test_a_server_without_a_status_can_prove_the_token(tmp_path: Path) -> None:
    with ArtifactsApi(token=TOKEN) as server:
        assert check_online(Daemon(tmp_path, server.url)) == (
            0,
            {"check": "server", "ok": True, "message": f"{server.url}: {PROVEN}"},
        )


@pytest.mark.parametrize(
    ("account", "answer", "said"),
    [
        ("over_limit", None, "'over_limit': check the token, the team and the account"),
        (None, None, "it knows nothing below /v8/artifacts (404 Not Found): check api.url"),
        (
            None,
            error(401, "unauthorized", f"Bad token {TOKEN}"),
            "401 Unauthorized: Bad token [token]: check the token",
        ),
        (None, Answer(body=b"<html>"), "cannot be read: check api.url"),
        (None, error(503, "unavailable", "Down"), "503 Service Unavailable: Down: check api.url"),
        (None, Answer(mode="reset"), "check api.url, the network and the proxy"),
    ],
    ids=["over limit", "another server", "wrong token", "a page", "down", "reset"],
)
def test_what_cannot_work_is_a_problem(
    tmp_path: Path, api_server: ApiServer, account: str | None, answer: Answer | None, said: str
) -> None:
    api_server.status = account
    if answer is not None:
        api_server.routes[STATUS] = answer
    code, found = check_online(Daemon(tmp_path, api_server.url))
    assert (code, found["ok"]) == (1, False)
    assert said in found["message"]
    assert {request.method for request in api_server.requests} <= {"GET", "HEAD"}


def test_no_token_goes_where_a_redirect_leads(tmp_path: Path, api_server: ApiServer) -> None:
    with ApiServer() as elsewhere:
        api_server.routes[STATUS] = error(302, "found", "", {"location": f"{elsewhere.url}/v8/artifacts/status"})
        code, found = check_online(Daemon(tmp_path, api_server.url))
        assert elsewhere.requests == []
    assert code == 1
    assert "redirects are not followed" in found["message"]


def test_a_server_that_is_away_is_a_problem(tmp_path: Path) -> None:
    with ApiServer() as away:
        url = away.url
    code, found = check_online(Daemon(tmp_path, url))
    assert code == 1
    assert found["message"].startswith(f"{url}: cannot reach {url}")


def test_a_server_that_speaks_no_tls_is_a_problem(tmp_path: Path, api_server: ApiServer) -> None:
    url = api_server.url.replace("http://", "https://")
    code, found = check_online(Daemon(tmp_path, url))
    api_server.violations.clear()  # a TLS hello is no HTTP
    assert code == 1
    assert found["message"].startswith(f"{url}: cannot reach {url}: ")


def test_certificates_that_cannot_be_read_are_reported_beside_the_rest(tmp_path: Path) -> None:
    code, found = check_online(Daemon(tmp_path, "https://127.0.0.1:1"), SSL_CERT_FILE="/nonexistent")
    assert code == 1
    assert found["message"].startswith("SSL_CERT_FILE")
