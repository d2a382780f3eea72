"""What `systemctl status` shows: one line that follows the state."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.daemon.systemd import MAX_STATUS, Notifier, status_line
from tests.support.service_manager import Notifications


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ([], "Taking events"),
        (["paused: blocked: 402"], "paused: blocked: 402"),
        (["reload refused: a\nb", "storage: full"], "reload refused: a b; storage: full"),
        (["a\x1b[2Jb\u202e"], "a [2Jb"),
        (["x" * 1000], "x" * (MAX_STATUS - 1) + "…"),
    ],
)
def test_the_line_says_what_is_wrong_or_else_what_the_daemon_does(trouble: Sequence[str], line: str) -> None:
    assert status_line("Taking events", trouble) == line


def test_only_changes_are_sent_and_none_before_the_daemon_is_ready(tmp_path: Path) -> None:
    with Notifications(str(tmp_path / "n")) as notify:
        notifier = Notifier({"NOTIFY_SOCKET": notify.address})
        notifier.show("delivery", "paused: blocked")
        notifier.enter("Taking events", "READY=1")
        for trouble in ("paused: blocked", "backing off: 503", "backing off: 503", None, None):
            notifier.show("delivery", trouble)
        notifier.show("reload", "reload refused: x")
        notifier.enter("Draining", "STOPPING=1")
        notifier.show("reload", None)
        sent = [notify.next(1) for _ in range(6)]
        assert sent == [
            ["READY=1", "STATUS=paused: blocked"],
            ["STATUS=backing off: 503"],
            ["STATUS=Taking events"],
            ["STATUS=reload refused: x"],
            ["STOPPING=1", "STATUS=reload refused: x"],
            ["STATUS=Draining"],
        ]
