"""The daemon as a user whom nobody knows, with group 0: as OpenShift runs containers."""

import os
import subprocess
import tempfile
from pathlib import Path

from tests.support.api_server import ApiServer
from tests.support.command import COMMAND
from tests.support.daemon import TOKEN
from tests.support.edge import line
from tests.support.users import as_user
from tests.support.waiting import HUNG_AFTER, eventually

UID = 1_000_680_000


def test_the_daemon_and_its_commands_work_as_any_user_with_group_0(api_server: ApiServer) -> None:
    """The directories are those of an image: root's, writable for its group, with the sticky bit where sockets are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        top = Path(directory)
        top.chmod(0o755)
        for name, mode in (("run", 0o1775), ("lib", 0o770)):
            (top / name).mkdir()
            (top / name).chmod(mode)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": "/",
            "RUNTIME_DIRECTORY": str(top / "run"),
            "STATE_DIRECTORY": str(top / "lib"),
            "ARTIFACTS_AGENT_LISTEN_MODE": "0666",
            "ARTIFACTS_AGENT_API_URL": api_server.url,
            "ARTIFACTS_AGENT_TOKEN": TOKEN,
        }
        command = [*as_user(UID, 0), *COMMAND]

        def asked(*args: str) -> int:
            return subprocess.run([*command, *args], env=env, capture_output=True, timeout=HUNG_AFTER).returncode

        with subprocess.Popen([*command, "run"], env=env, stderr=subprocess.PIPE) as daemon:
            try:
                eventually(lambda: asked("status", "--check"), lambda code: code == 0)
                emitted = subprocess.run(
                    [*COMMAND, "emit", "--strict", f"--socket={top}/run/events.sock", "-"],
                    input=line(),
                    timeout=HUNG_AFTER,
                )
                assert emitted.returncode == 0
                assert asked("flush", "--deadline", "60s") == 0
                assert len(api_server.accepted_events()) == 1
                daemon.terminate()
                assert daemon.wait(HUNG_AFTER) == 0
            finally:
                daemon.kill()
        assert asked("queue", "verify") == 0
