"""A server that asks for a day of patience, and a person who decides otherwise."""

import signal
from pathlib import Path

import pytest

from agent.events import encode_events
from tests.support.accounts import delivery_of, ledger, ledger_of
from tests.support.api_server import ApiServer, error
from tests.support.command import run_command
from tests.support.daemon import TOKEN, Daemon
from tests.support.json_log import wait_logged
from tests.support.pipelines import events

SAID = "429 Too Many Requests: Come back tomorrow"


@pytest.mark.parametrize("how", ["resume", "SIGHUP", "token"])
def test_a_person_who_resumes_reloads_or_replaces_the_token_is_not_made_to_wait(
    tmp_path: Path, api_server: ApiServer, how: str
) -> None:
    api_server.script([error(429, "rate_limited", "Come back tomorrow", {"Retry-After": "86400"})])
    with Daemon(tmp_path, api_server.url, {"log": {"format": "json"}, "batch": {"max_delay": "100ms"}}) as daemon:
        daemon.send_lines(encode_events(events("h0")))
        daemon.wait_status(lambda status: delivery_of(status) == ("backing_off", SAID))
        if how == "resume":
            done = run_command("resume", "--config", daemon.config)
            assert (done.returncode, "The server had asked to wait for" in done.stdout) == (0, True), done
        elif how == "SIGHUP":
            daemon.signal(signal.SIGHUP)
        else:
            daemon.token_file.write_text(f"{TOKEN}-new")
        status = daemon.wait_status(lambda status: ledger_of(status)["queued"] == 0)
        assert ledger_of(status) == ledger(1, delivered=1)
        (overridden,) = wait_logged(daemon, "retry_after_overridden")
        assert overridden["error"] == SAID
        assert 86_000 < overridden["left"] <= 86_400
