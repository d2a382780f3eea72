"""`exec`: a command with an agent at its side, whose result is its own, and whose events are delivered or kept."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.ingest.job_path import without_job
from agent.queue.filesystem import OsFilesystem
from agent.queue.lock import lock_queue
from tests.support.accounts import ledger, ledger_of, received
from tests.support.api_server import Answer, ApiServer, error
from tests.support.command import COMMAND, environment, run_command
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.tools import require_root
from tests.support.users import NOBODY, as_user
from tests.support.waiting import HUNG_AFTER, eventually

PATIENT = ("--start-deadline", "60s")  # the machine may be busy
BRIEF = ("--start-deadline", "5s")  # of an agent that is not going to be ready: enough to start it on a busy machine
DOWN = error(503, "unavailable", "Down")
FRONT: Sections = {"http": {"listen": "127.0.0.1:0"}, "front": {"enabled": True}}
BROKEN = {"ARTIFACTS_AGENT_LOG_LEVEL": "loud"}
SEND = """
import json, os, socket, sys, urllib.request
def by_socket(*names):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["ARTIFACTS_AGENT_SOCKET"])
        s.sendall(b"".join(json.dumps(event(name)).encode() + b"\\n" for name in names))
def durably(*names):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["ARTIFACTS_AGENT_SOCKET"])
        s.sendall(b'{"context": {"ack": "durable"}}\\n' + b"".join(json.dumps(event(name)).encode() + b"\\n" for name in names))
        answers = s.makefile()
        while json.loads(answers.readline())["durable"] < len(names):
            pass
def by_http(*names):
    url = os.environ["TURBO_API"] + "/v8/artifacts/events"
    headers = {"Authorization": "Bearer " + os.environ["TURBO_TOKEN"], "Content-Type": "application/json"}
    body = json.dumps([event(name) for name in names]).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        assert (answer.status, answer.read()) == (200, b"{}")
def event(name):
    return {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": name, "duration": 1}
"""


USAGE = "artifacts-agent: cache: "


class Job:
    """What a CI job has: its own state directory and environment, and no agent."""

    def __init__(self, directory: Path, api: ApiServer) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config = directory / "config.toml"
        self.config.write_text(
            f'[listen]\ncontrol = "{directory / "c"}"\nstream = "{directory / "s"}"\ndatagram = ""\n'
            '[batch]\nmax_delay = "1h"\n[retry]\ninitial_delay = "20ms"\nmax_delay = "100ms"\n'
            '[shutdown]\ndeadline = "500ms"\n'
        )
        self.usage: list[str] = []  # what the last command said of it
        self.env = {
            "STATE_DIRECTORY": str(self.state),
            "ARTIFACTS_AGENT_CONFIG": str(self.config),
            "TURBO_TOKEN": TOKEN,
            "TURBO_API": api.url,
            "XDG_CONFIG_HOME": str(directory / "nothing"),
        }

    def exec(
        self, *command: str, options: tuple[str, ...] = (), env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        done = run_command("exec", *PATIENT, *options, "--", *command, env=self.env | dict(env or {}), stdin=stdin)
        self.usage, done.stderr = usage_of(done.stderr), but_usage(done.stderr)
        return done

    def python(
        self, code: str, *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.exec(sys.executable, "-c", SEND + code, options=options, env=env)

    def start(self, code: str, *options: str) -> subprocess.Popen[str]:
        """Start it with a Python program whose output can be read as it comes."""
        return self.start_impatiently(code, *PATIENT, *options)

    def start_impatiently(
        self, code: str, *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start it as anybody would: the command does not wait for the agent for long."""
        command = [*COMMAND, "exec", *BRIEF, *options, "--", sys.executable, "-uc", SEND + code]
        variables = environment(self.env | dict(env or {}))
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def spools(self) -> list[Path]:
        directory = self.state / "spools"
        return sorted(directory.iterdir()) if directory.exists() else []


@pytest.fixture
def job(tmp_path: Path, api_server: ApiServer) -> Job:
    return Job(tmp_path, api_server)


def usage_of(stderr: str) -> list[str]:
    """Return the lines that say what the cache did."""
    return [line for line in stderr.splitlines(keepends=True) if line.startswith(USAGE)]


def but_usage(stderr: str) -> str:
    """Return the others."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith(USAGE))


def names(server: ApiServer) -> Counter[str]:
    return Counter(json.loads(text)["hash"] for text in received(server.accepted()).elements())


def test_a_command_has_an_agent_of_its_own_whose_front_and_socket_take_events_and_which_leaves_nothing(
    job: Job, api_server: ApiServer
) -> None:
    api_server.routes[("GET", "/v8/artifacts/abc")] = Answer(body=b"an artifact")
    done = job.python(
        "by_socket('a'); by_http('b', 'c')\n"
        "request = urllib.request.Request(os.environ['TURBO_API'] + '/v8/artifacts/abc')\n"
        "request.add_header('Authorization', 'Bearer ' + os.environ['TURBO_TOKEN'])\n"
        "print(urllib.request.urlopen(request).read().decode()); print(os.path.dirname(os.environ['ARTIFACTS_AGENT_SOCKET']))\n"
        "sys.exit(7)"
    )
    artifact, runtime = done.stdout.splitlines()
    assert (done.returncode, artifact, done.stderr) == (7, "an artifact", "")
    assert names(api_server) == Counter("abc")
    assert job.spools == []
    assert not Path(runtime).exists()


def test_a_command_uses_the_agent_that_runs_and_what_it_sent_is_delivered_when_it_ends(
    tmp_path: Path, api_server: ApiServer
) -> None:
    with Daemon(tmp_path / "agent", api_server.url, {**FRONT, "batch": {"max_delay": "1h"}}) as daemon:
        env = {"TURBO_TOKEN": TOKEN, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        code = "by_socket('a'); by_http('b'); print(os.environ['TURBO_API'], os.environ['ARTIFACTS_AGENT_SOCKET'])"
        done = run_command("exec", *PATIENT, "--deadline", "1m", "--", sys.executable, "-c", SEND + code, env=env)
        assert (done.returncode, but_usage(done.stderr)) == (0, "")
        assert names(api_server) == Counter("ab")
        address, stream = done.stdout.split()
        assert without_job(address) == f"http://{daemon.status()['http']['listen']}"
        assert stream == str(daemon.stream)
        assert daemon.ended_within(0) is False


NO_USE = [
    ({"TURBO_TOKEN": "another"}, "TURBO_TOKEN is not the token"),
    ({"TURBO_TOKEN": ""}, "TURBO_TOKEN is not set"),
    ({"TURBO_API": "https://elsewhere"}, "TURBO_API or turbo's configuration names another server"),
    ({"TURBO_TEAM": "theirs"}, "delivers to another team"),
]


def test_where_the_front_would_not_do_turbo_api_is_left_as_it_is(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "agent", api_server.url, {**FRONT, "api": {"slug": "ours"}}) as daemon:
        for changed, reason in NO_USE:
            assert_left_as_it_is(daemon, changed, reason)
        daemon.wait_destination(lambda found: found.ledger.delivered == len(NO_USE))
    assert names(api_server) == Counter({"a": len(NO_USE)})


FRONT_AND_PROXY = "print(os.environ['TURBO_API'], os.environ['NO_PROXY'], os.environ['no_proxy'])"


def test_a_command_sends_nothing_for_the_front_through_a_proxy(job: Job) -> None:
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    for given, upper, lower in (
        ({}, "127.0.0.1", "127.0.0.1"),
        ({"no_proxy": "a,b"}, "a,b,127.0.0.1", "a,b,127.0.0.1"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "a,127.0.0.1", "b,127.0.0.1"),
        ({"NO_PROXY": "*"}, "*", "*"),
        ({"NO_PROXY": "x, 127.0.0.1"}, "x, 127.0.0.1", "x, 127.0.0.1"),
    ):
        done = job.python(f"by_http('a'); {FRONT_AND_PROXY}", env={**proxy, **given})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split(" ", 1)[1] == f"{upper} {lower}\n"


def test_turbo_api_is_left_alone_unless_somebody_has_said_which_server_it_is(job: Job, api_server: ApiServer) -> None:
    del job.env["TURBO_API"]
    done = job.python("print(os.environ.get('TURBO_API')); by_socket('a')", "--deadline", "0s")
    assert done.stdout == "None\n"
    assert done.stderr.startswith(
        "artifacts-agent: TURBO_API is left as it is: api.url is not set: set it to the server"
    )


@pytest.mark.parametrize(
    ("code", "env", "end"),
    [
        ("by_socket('a')", {}, f"{USAGE}1 of 1 task (100 %), <1s of task time saved; TURBO_API is left as it is: "),
        ("pass", {}, "artifacts-agent: TURBO_API is left as it is: "),
        ("pass", BROKEN, "artifacts-agent: no agent for this command: "),
    ],
)
def test_a_long_command_ends_with_what_was_said_at_its_start(
    code: str, env: Mapping[str, str], end: str, job: Job
) -> None:
    del job.env["TURBO_API"]
    wrapped = (
        "import sys; from agent.cli import main; from agent.cli.commands import exec as module\n"
        "module.LONG_SECONDS = 0.0; sys.exit(main())"
    )
    command = ["exec", *PATIENT, "--", sys.executable, "-c", SEND + code]
    done = subprocess.run(
        [sys.executable, "-c", wrapped, *command],
        env=environment(job.env | dict(env)),
        capture_output=True,
        text=True,
        timeout=HUNG_AFTER,
        check=False,
    )
    first, *_, last = done.stderr.splitlines()
    assert (done.returncode, last.startswith(end)) == (0, True), done.stderr
    assert last.endswith(first.removeprefix("artifacts-agent: "))


@pytest.mark.parametrize("place", ["repository", "user", "turbo.json"])
def test_a_job_delivers_to_the_server_that_turbos_own_configuration_names(
    place: str, job: Job, api_server: ApiServer
) -> None:
    del job.env["TURBO_API"]
    inside, user = job.directory / "repository" / "package", job.directory / "user"
    inside.mkdir(parents=True)
    path, value = {
        "repository": (inside.parent / ".turbo" / "config.json", {"apiUrl": api_server.url}),
        "user": (user / "turborepo" / "config.json", {"apiurl": api_server.url}),
        "turbo.json": (inside.parent / "turbo.json", {"remoteCache": {"apiUrl": api_server.url}}),
    }[place]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("// a comment\n" + json.dumps(value))
    command = [
        *COMMAND,
        "exec",
        *PATIENT,
        "--",
        sys.executable,
        "-c",
        SEND + "by_http('a'); print(os.environ['TURBO_API'])",
    ]
    env = environment(job.env | {"XDG_CONFIG_HOME": str(user)})
    done = subprocess.run(command, cwd=inside, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode, but_usage(done.stderr)) == (0, "")
    assert done.stdout.startswith("http://127.0.0.1:")
    assert names(api_server) == Counter("a")


def test_turbos_configuration_is_compared_with_the_server_of_an_agent_that_runs(
    tmp_path: Path, api_server: ApiServer
) -> None:
    (tmp_path / "turborepo").mkdir()
    (tmp_path / "turborepo" / "config.json").write_text('{"apiUrl": "https://cache.example"}')
    with Daemon(tmp_path / "agent", api_server.url, FRONT) as daemon:
        env = {"TURBO_TOKEN": TOKEN, "ARTIFACTS_AGENT_CONFIG": str(daemon.config), "XDG_CONFIG_HOME": str(tmp_path)}
        done = run_command("exec", *PATIENT, "--", "sh", "-c", "echo $TURBO_API", env=env)
        assert done.stdout == "\n"
        assert "or turbo's configuration names another server" in done.stderr


def test_the_artifacts_token_of_vercel_is_a_token(job: Job, api_server: ApiServer) -> None:
    job.env |= {"VERCEL_ARTIFACTS_TOKEN": TOKEN, "TURBO_TOKEN": ""}
    done = job.python("os.environ['TURBO_TOKEN'] = os.environ['VERCEL_ARTIFACTS_TOKEN']; by_http('a')")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(api_server) == Counter("a")
    job.env |= {"TURBO_TOKEN": "another"}
    done = job.python("print(os.environ['TURBO_API'])")
    assert "VERCEL_ARTIFACTS_TOKEN is not the token that the agent expects" in done.stderr
    assert done.stdout == f"{api_server.url}\n"


def test_where_there_is_no_front_turbo_api_is_left_as_it_is(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "agent", api_server.url) as daemon:
        assert_left_as_it_is(daemon, {"TURBO_API": api_server.url}, "the agent has no front on a port")


def assert_left_as_it_is(daemon: Daemon, changed: Mapping[str, str], reason: str) -> None:
    env = {"TURBO_TOKEN": TOKEN, "ARTIFACTS_AGENT_CONFIG": str(daemon.config), **changed}
    code = "print(repr(os.environ.get('TURBO_API'))); by_socket('a')"
    done = run_command("exec", *PATIENT, "--", sys.executable, "-c", SEND + code, env=env)
    assert done.stdout.strip() == repr(changed.get("TURBO_API"))
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("artifacts-agent: TURBO_API is left as it is: ")
    assert reason in warning
    assert TOKEN not in done.stderr


AS_GUEST = """
import encodings.idna, encodings.utf_8_sig, http.client, json, os, sys, tomllib
from agent import config
from agent.config import validation
from agent.cli.job import agent, command, started, turbo
from agent.cli.commands import exec
from agent.control import client
from agent.cli.main import main
os.geteuid() or os.setuid(65534)
sys.exit(main())
"""


def test_a_user_who_may_not_ask_the_agent_sends_to_it_all_the_same(api_server: ApiServer) -> None:
    """The agent of the machine is another user's. Root may do anything, so that the command gives it up."""
    open_to_all: Sections = {**FRONT, "listen": {"mode": "0666"}}
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with Daemon(Path(directory), api_server.url, open_to_all) as daemon:
            address = daemon.status()["http"]["listen"]
            daemon.configure(api_server.url, {**open_to_all, "http": {"listen": address}})  # it does not read it again
            daemon.control.chmod(0)
            command = [sys.executable, "-c", AS_GUEST, "exec", *PATIENT, "--config", str(daemon.config), "--"]
            command += ["sh", "-c", "echo $TURBO_API $ARTIFACTS_AGENT_SOCKET; exit 3"]
            env = {name: value for name, value in environment().items() if not name.startswith("COV")}
            done = subprocess.run(
                command, env=env | {"TURBO_TOKEN": TOKEN}, capture_output=True, text=True, timeout=HUNG_AFTER
            )
            assert (done.returncode, done.stderr) == (3, "")
            front, stream = done.stdout.split()
            assert (without_job(front), stream) == (f"http://{address}", str(daemon.stream))


def test_an_agent_that_this_user_may_not_send_to_is_no_agent_of_the_job(api_server: ApiServer) -> None:
    """As on a machine whose agent is for other users alone: by default its sockets are for a group."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with Daemon(Path(directory, "agent"), api_server.url), tempfile.TemporaryDirectory(dir="/tmp") as own:
            Path(own).chmod(0o777)
            listen = {"LISTEN_CONTROL": f"{directory}/agent/c.sock", "LISTEN_STREAM": f"{directory}/agent/s.sock"}
            env = environment({f"ARTIFACTS_AGENT_{name}": value for name, value in listen.items()})
            env |= {"STATE_DIRECTORY": own, "TMPDIR": own, "TURBO_TOKEN": TOKEN, "TURBO_API": api_server.url}
            env = {name: value for name, value in env.items() if not name.startswith("COV")}
            command = [
                *as_user(NOBODY),
                *COMMAND,
                "exec",
                *PATIENT,
                "--",
                sys.executable,
                "-c",
                SEND + "by_socket('a')",
            ]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
            assert (done.returncode, but_usage(done.stderr)) == (0, "")
            assert names(api_server) == Counter("a")


TAKE_THE_PORT = """
import os, socket, sys
os.setuid(65533)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
server.accept()
print("asked", flush=True)
"""


def test_a_port_that_another_user_has_taken_is_given_no_token(api_server: ApiServer) -> None:
    """The agent of the machine is another user's, was killed, and somebody else listens on its port."""
    require_root()  # to become another user
    open_to_all: Sections = {**FRONT, "listen": {"mode": "0666"}}
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with Daemon(Path(directory), api_server.url, open_to_all) as daemon:
            address = daemon.status()["http"]["listen"]
            daemon.configure(api_server.url, {**open_to_all, "http": {"listen": address}})
            daemon.control.chmod(0)
            daemon.kill()
            take = [sys.executable, "-c", TAKE_THE_PORT, address.rpartition(":")[2]]
            with subprocess.Popen(take, stdout=subprocess.PIPE) as other:
                assert other.stdout is not None
                try:
                    assert other.stdout.readline() == b"listening\n"
                    command = [sys.executable, "-c", AS_GUEST, "exec", "--config", str(daemon.config), "--"]
                    command += ["sh", "-c", "echo ${TURBO_API-unset}"]
                    env = {name: value for name, value in environment().items() if not name.startswith("COV")}
                    done = subprocess.run(
                        command, env=env | {"TURBO_TOKEN": TOKEN}, capture_output=True, text=True, timeout=HUNG_AFTER
                    )
                finally:
                    other.kill()
                assert other.stdout.read() == b""
            assert (done.returncode, done.stdout) == (0, "unset\n")
            assert f"the agent's port {address} is taken by another user, 65533" in done.stderr


PLAY_THE_AGENT = """
import json, os, select, socket, sys
os.setuid(65533)
control, url, mode = sys.argv[1:]
front = socket.create_server(("127.0.0.1", 0))
port = front.getsockname()[1]
listening = socket.socket(socket.AF_UNIX)
listening.bind(control)
os.chmod(control, int(mode, 8))
listening.listen()
print(port, flush=True)
while True:
    ready = select.select([front, listening], [], [])[0][0]
    client = ready.accept()[0]
    request = client.recv(65536)
    print("given the token" if b"Bearer" in request else "asked", flush=True)
    http = {"listen": f"127.0.0.1:{port}", "socket": None, "connections": 0, "events": {}, "front": {}, "forwards": True}
    api = {"url": url, "team_id": None, "slug": None}
    body = json.dumps({"version": "0.1.0", "pid": 1, "uptime": 1.0, "rejected": 0, "connections": 0, "evicted": 0,
                       "api": api, "http": http, "destinations": {}, "adopted": None}).encode()
    client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body)
    client.close()
"""


@pytest.mark.parametrize("mode", ["0666", "0600"], ids=["that answers", "that may not be asked"])
def test_an_agent_of_another_user_in_a_shared_directory_is_given_no_token(api_server: ApiServer, mode: str) -> None:
    """No daemon runs, and its socket is to be where anybody may make one: somebody has, and vouches for a port of theirs."""
    require_root()  # to become other users
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o1777)
        daemon = Daemon(Path(directory), api_server.url)
        play = [sys.executable, "-c", PLAY_THE_AGENT, str(daemon.control), api_server.url, mode]
        with subprocess.Popen(play, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            try:
                port = int(other.stdout.readline())
                daemon.configure(api_server.url, {**FRONT, "http": {"listen": f"127.0.0.1:{port}"}})
                command = [sys.executable, "-c", AS_GUEST, "exec", "--config", str(daemon.config), "--"]
                command += ["sh", "-c", "echo ${TURBO_API-unset} ${ARTIFACTS_AGENT_SOCKET-unset}"]
                env = {name: value for name, value in environment().items() if not name.startswith("COV")}
                done = subprocess.run(
                    command, env=env | {"TURBO_TOKEN": TOKEN}, capture_output=True, text=True, timeout=HUNG_AFTER
                )
            finally:
                other.kill()
            assert other.stdout.read() == b""
        assert (done.returncode, done.stdout) == (0, "unset unset\n")
        assert f"{daemon.control}: belongs to another user, 65533, in a directory in which anybody" in done.stderr


def test_another_exec_and_flush_in_the_job_use_its_agent(job: Job, api_server: ApiServer) -> None:
    command = " ".join(COMMAND)
    done = job.exec("sh", "-c", f"echo $TURBO_API; {command} exec -- sh -c 'echo $TURBO_API; exit 3'; echo $?")
    outer, inner, code = done.stdout.split()
    assert (outer, code, done.stderr) == (inner, "3", "")
    assert job.spools == []


# A slow start

SLOW = """
import os, sys
if "agent.cli.job.process" in sys.orig_argv:
    open(os.environ["HELD_BY"]).read()
"""


@pytest.fixture
def held(job: Job) -> Path:
    """Make jobs' agents wait in the middle of their start until somebody opens this pipe to write, and closes it."""
    (job.directory / "sitecustomize.py").write_text(SLOW)
    held_by = job.directory / "held"
    os.mkfifo(held_by)
    job.env |= {"HELD_BY": str(held_by), "PYTHONPATH": str(job.directory)}
    return held_by


NOT_READY = (
    "artifacts-agent: TURBO_API is left as it is: the agent is not ready yet: the command does not wait for it\n"
)


def test_a_command_does_not_wait_for_a_slow_agent_and_what_it_sends_meanwhile_is_delivered(
    job: Job, held: Path, api_server: ApiServer
) -> None:
    process = job.start_impatiently("print(os.environ['TURBO_API']); durably('a'); sys.exit(3)")
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        assert process.stdout.readline() == f"{api_server.url}\n"
        held.write_text("")
        assert (process.wait(HUNG_AFTER), but_usage(process.stderr.read())) == (3, NOT_READY)
    assert names(api_server) == Counter("a")
    assert job.spools == []


def test_a_job_that_ends_before_its_agent_is_ready_does_not_wait_and_what_it_sent_is_kept(
    job: Job, held: Path, tmp_path: Path, api_server: ApiServer
) -> None:
    sent = [
        f"a{number}" for number in range(200)
    ]  # each on a connection of its own: more than are accepted in a few turns
    said = "print(os.getppid(), os.environ['ARTIFACTS_AGENT_SOCKET'])"
    process = job.start_impatiently(f"[by_socket(name) for name in {sent}]; {said}")
    out, err = process.communicate(timeout=HUNG_AFTER)
    (spool,) = job.spools
    assert process.returncode == 0
    left = f"artifacts-agent: the agent is not ready yet: it ends by itself, and keeps what was sent in {spool}\n"
    assert err == NOT_READY + left
    held.write_text("")
    runtime = Path(out.split()[1]).parent
    eventually(runtime.exists, [False].__contains__)
    with Daemon(tmp_path / "next", api_server.url, {"queue": {"adopt": str(spool.parent)}}) as daemon:
        assert daemon.wait_status(is_done)["adopted"]["ledger"] == ledger(200, delivered=200)
    assert names(api_server) == Counter(sent)


def test_a_command_does_not_wait_for_an_agent_that_is_stopped_and_what_it_sends_is_taken_later(
    tmp_path: Path, api_server: ApiServer
) -> None:
    with Daemon(tmp_path / "agent", api_server.url, FRONT) as daemon:
        daemon.signal(signal.SIGSTOP)
        env = {"TURBO_TOKEN": TOKEN, "TURBO_API": api_server.url, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        code = "by_socket('a'); print(os.environ['TURBO_API'])"
        done = run_command("exec", "--deadline", "0s", "--", sys.executable, "-c", SEND + code, env=env)
        assert (done.returncode, done.stdout) == (0, f"{api_server.url}\n")
        assert done.stderr.startswith(NOT_READY)
        daemon.signal(signal.SIGCONT)
        eventually(lambda: names(api_server), Counter("a").__eq__)


# The command's own result


@pytest.mark.parametrize(
    ("command", "code", "problem"),
    [
        pytest.param(["sh", "-c", "exit 42"], 42, None, id="42"),
        pytest.param(["no-such-command"], 127, "no-such-command: command not found", id="no command"),
        pytest.param(["/etc/passwd"], 126, "/etc/passwd: Permission denied", id="not executable"),
        pytest.param(["sh", "-c", "kill -TERM $$"], -15, None, id="SIGTERM"),
        pytest.param(["sh", "-c", "kill -KILL $$"], -9, None, id="SIGKILL"),
        pytest.param(["sh", "-c", "kill -SEGV $$"], -11, None, id="SIGSEGV"),
    ],
)
def test_the_end_of_the_command_is_the_end_of_exec_even_where_there_can_be_no_agent(
    command: list[str], code: int, problem: str | None, job: Job
) -> None:
    done = job.exec(*command, env=BROKEN)
    assert done.returncode == code
    first, *rest = done.stderr.splitlines()
    assert first.startswith("artifacts-agent: no agent for this command: ARTIFACTS_AGENT_LOG_LEVEL")
    assert rest == ([f"artifacts-agent: {problem}"] if problem else [])
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        pytest.param({"STATE_DIRECTORY": "/dev/full/state"}, "/dev/full: File exists", id="no place"),
        pytest.param({"ARTIFACTS_AGENT_CONFIG": "/no/config"}, "/no/config: cannot read", id="no configuration"),
        pytest.param({"ARTIFACTS_AGENT_QUEUE_MAX_AGE": "0s"}, "queue.max_age", id="a wrong value"),
        pytest.param({"TURBO_TOKEN": "two words"}, "the token has spaces", id="a wrong token"),
        pytest.param({"SSL_CERT_FILE": "/no/such", "TURBO_API": "https://x.invalid"}, "did not start", id="no start"),
    ],
)
def test_without_an_agent_the_command_runs_as_it_would_have(env: Mapping[str, str], reason: str, job: Job) -> None:
    code = "import sys; print(os.environ.get('ARTIFACTS_AGENT_SOCKET'), os.environ['TURBO_API']); sys.exit(5)"
    done = job.python(code, env=env)
    assert (done.returncode, done.stdout) == (5, f"None {(job.env | dict(env))['TURBO_API']}\n")
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("artifacts-agent: no agent for this command: ")
    assert reason in warning
    assert job.spools == []


def test_an_agent_that_may_open_too_few_files_says_so(job: Job) -> None:
    limited = ["sh", "-c", 'ulimit -n 16; exec "$@"', "sh", *COMMAND, "exec", *PATIENT, "--", "true"]
    done = subprocess.run(limited, env=environment(job.env), capture_output=True, text=True, timeout=HUNG_AFTER)
    assert done.returncode == 0
    assert "Too many open files" in done.stderr
    assert "+--" not in done.stderr


def test_a_script_that_names_no_program_is_run_by_the_shell_as_everywhere_else(job: Job) -> None:
    script = job.directory / "script"
    script.write_text('echo "$0 $1 $2"; exit 7\n')
    script.chmod(0o700)
    path = f"{job.directory}:{os.environ['PATH']}"
    for name in (str(script), "script"):
        done = job.exec(name, "a b", "c", env={"PATH": path})
        assert (done.returncode, done.stdout, done.stderr) == (7, f"{script} a b c\n", "")


def test_standard_streams_and_other_open_files_are_the_commands_own(job: Job) -> None:
    data = os.urandom(300_000)
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    jobserver = f"import os; os.write({writing}, b'jobs')"
    command = [
        *COMMAND,
        "exec",
        *PATIENT,
        "--",
        "sh",
        "-c",
        f'cat; echo problem >&2; exec "{sys.executable}" -c "{jobserver}"',
    ]
    done = subprocess.run(
        command, input=data, capture_output=True, env=environment(job.env), close_fds=False, timeout=HUNG_AFTER
    )
    os.close(writing)
    with os.fdopen(reading) as jobs:
        assert (done.stdout, done.stderr, jobs.read()) == (data, b"problem\n", "jobs")


def test_a_package_of_the_same_name_in_the_jobs_directory_does_no_harm(job: Job, api_server: ApiServer) -> None:
    (job.directory / "agent").mkdir()
    (job.directory / "agent" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command = [str(Path(sys.executable).with_name("artifacts-agent")), "exec", *PATIENT, "--", sys.executable, "-c"]
    command.append(SEND + "by_http('a')")
    done = subprocess.run(
        command, env=environment(job.env), cwd=job.directory, capture_output=True, text=True, timeout=HUNG_AFTER
    )
    assert (done.returncode, but_usage(done.stderr)) == (0, "")
    assert names(api_server) == Counter("a")


# Signals

LISTENING = """
import signal, sys
got = []
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH:
    signal.signal(number, lambda number, frame: print(signal.Signals(number).name))
print("ready")
while True:
    signal.pause()
"""


def test_signals_sent_to_exec_reach_the_command_once(job: Job) -> None:
    job.env |= BROKEN
    process = job.start(LISTENING)
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        assert process.stdout.readline() == "ready\n"
        for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTERM"):
            process.send_signal(signal.Signals[number])
            assert process.stdout.readline() == f"{number}\n"
        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
        assert process.stdout.read() == ""
        assert process.wait(HUNG_AFTER) == -9


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Console:
    """A shell on a terminal, of which `exec` is the foreground job."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.output = ""
        self.shell = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
        )
        os.close(slave)

    def wait_for(self, text: str, timeout: float = HUNG_AFTER) -> None:
        """Read until that text has come, and forget what came before its end."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            assert select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0], self.output
            self.output += os.read(self.master, 4096).decode()
        self.output = self.output.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


OWN_TERMINAL = """
import fcntl, os, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("sh", ["sh", "-i"])
"""


@pytest.fixture
def console(job: Job) -> Iterator[Console]:
    console = Console(environment(job.env | {"PS1": "prompt> "}))
    yield console
    for running in children(console.shell.pid):
        for each in children(running):
            if os.getsid(each) != each:
                os.kill(each, signal.SIGKILL)
        os.kill(running, signal.SIGKILL)  # perhaps it is stopped; its agent sees that
    console.shell.kill()
    console.shell.wait()
    os.close(console.master)


def test_a_job_in_a_shell_gets_what_is_typed_once_stops_and_goes_on(job: Job, console: Console) -> None:
    (job.directory / "program.py").write_text(LISTENING.replace("got = []", "print(repr(input()))"))
    console.wait_for("prompt> ")
    console.type(
        shlex.join([*COMMAND, "exec", *PATIENT, "--", sys.executable, "-u", str(job.directory / "program.py")]) + "\n"
    )
    console.type("hello\n")
    console.wait_for("'hello'")
    console.wait_for("ready")
    for key, name in (("\x03", "SIGINT"), ("\x1c", "SIGQUIT"), ("\x03", "SIGINT")):
        console.type(key)
        console.wait_for(f"{name}\r\n")
    assert "SIG" not in console.output
    console.type("\x1a")
    console.wait_for("prompt> ")
    console.type("echo in-between\n")
    console.wait_for("\r\nin-between\r\n")
    console.type("fg\n")
    (running,) = children(console.shell.pid)
    eventually(lambda: os.tcgetpgrp(console.master), running.__eq__)
    console.type("\x03")
    console.wait_for("SIGINT\r\n")
    agent = agent_of(running)
    (command,) = {*children(running)} - {agent}
    os.kill(command, signal.SIGTERM)
    console.wait_for("SIGTERM")
    os.kill(command, signal.SIGKILL)
    console.wait_for("Killed")
    console.wait_for("prompt> ")
    assert job.spools == []


def agent_of(pid: int) -> int:
    """Return the agent that an `exec` has started, in a session of its own."""
    (agent,) = [each for each in children(pid) if os.getsid(each) == each]
    return agent


# The end


BLOCKED = error(401, "unauthorized", "Who are you?")
HANG = Answer(mode="hang")
UNHURRIED: Sections = {"batch": {"max_delay": "0s"}, "api": {"timeout": "1h"}}


@pytest.mark.parametrize("trouble", [BLOCKED, HANG, DOWN], ids=["401", "hangs", "503"])
def test_where_the_agent_outlives_the_job_nobody_waits_for_the_api(
    trouble: Answer, tmp_path: Path, api_server: ApiServer
) -> None:
    api_server.default = trouble
    with Daemon(tmp_path / "agent", api_server.url, {**FRONT, **UNHURRIED}) as daemon:
        env = {"TURBO_TOKEN": TOKEN, "TURBO_API": api_server.url, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        for code in ("pass", "by_socket('a'); by_http('b')"):
            done = run_command("exec", *PATIENT, "--", sys.executable, "-c", SEND + code, env=env)
            assert (done.returncode, but_usage(done.stderr)) == (0, "")
        assert ledger_of(daemon.status()) == ledger(2, queued=2)
        daemon.kill()
        api_server.default = Answer()
        daemon.start()
        daemon.request("POST", "/resume")
        eventually(lambda: names(api_server), Counter("ab").__eq__)


def test_with_a_deadline_exec_waits_for_delivery_and_says_why_there_is_none(
    tmp_path: Path, api_server: ApiServer
) -> None:
    api_server.default = BLOCKED
    with Daemon(tmp_path / "agent", api_server.url, FRONT) as daemon:
        env = {"TURBO_TOKEN": TOKEN, "TURBO_API": api_server.url, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        command = ["exec", *PATIENT, "--deadline", "4m", "--", sys.executable, "-c", SEND + "by_socket('a')"]
        done = run_command(*command, env=env)
        assert done.stderr.startswith(
            "artifacts-agent: 1 event not delivered yet: still in the queue of the agent, which goes on: "
            "paused: blocked: 401 Unauthorized: Who are you?"
        )


def test_an_agent_that_is_stopped_meanwhile_holds_nobody_up(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "agent", api_server.url, FRONT) as daemon:
        env = {"TURBO_TOKEN": TOKEN, "TURBO_API": api_server.url, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        code = f"import signal; os.kill({daemon.pid}, signal.SIGSTOP); by_socket('a'); sys.exit(3)"
        done = run_command("exec", *PATIENT, "--", sys.executable, "-c", SEND + code, env=env)
        silent = "the agent does not answer: what was sent waits in its socket until it does"
        assert (done.returncode, done.stderr) == (3, f"artifacts-agent: {silent}\n")
        daemon.signal(signal.SIGCONT)
        eventually(lambda: names(api_server), Counter("a").__eq__)


@pytest.mark.parametrize("trouble", [BLOCKED, HANG, DOWN], ids=["401", "hangs", "503"])
def test_a_jobs_own_agent_is_waited_for_only_while_events_are_delivered(
    trouble: Answer, job: Job, tmp_path: Path, api_server: ApiServer
) -> None:
    api_server.default = trouble
    done = job.python("by_http('a', 'b')", env={"ARTIFACTS_AGENT_API_TIMEOUT": "1h"})
    (spool,) = job.spools
    assert (done.returncode, done.stderr) == (0, not_delivered(2, spool))
    log = (spool / "agent.log").read_text()
    assert "stopped" in log, "it was not killed"


# What is left


@contextmanager
def locked(spool: Path) -> Iterator[None]:
    """Have a spool locked, as an agent has."""
    lock = lock_queue(OsFilesystem(), spool)
    try:
        yield
    finally:
        lock.release()


def is_done(status: dict[str, Any]) -> bool:
    """Tell whether one spool has been adopted, and removed."""
    return bool(status["adopted"]["finished"] == 1 and not status["adopted"]["under_way"])


def not_delivered(events: int, spool: Path) -> str:
    """What is said of a spool that stays."""
    taker = f"an agent with queue.adopt = '{spool.parent}' will deliver them"
    return f"artifacts-agent: {events} events not delivered yet, in {spool}: {taker}\n"


LABELS = [("größe", "gr??e"), ("x" * 300, "x" * 200), ('a "b"', "a 'b'")]


@pytest.mark.parametrize(("given", "label"), LABELS)
def test_a_label_that_events_cannot_have_is_changed_and_that_is_said(given: str, label: str, job: Job) -> None:
    notice = f"artifacts-agent: the job's label is {label!r} and not as it was given: it may have at most 200 printable ASCII "
    code = "import os; print(os.environ['ARTIFACTS_AGENT_JOB'])"
    for done in (job.python(code, "--job", given), job.python(code, env={"ARTIFACTS_AGENT_JOB": given})):
        assert (done.stdout, done.stderr) == (f"{label}\n", f"{notice}characters\n")
    assert job.python(code, "--job", f" {label} ").stderr == ""


def test_a_flush_for_a_label_of_no_events_says_so(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url) as daemon:
        done = run_command("flush", "--job", "größe", "--config", str(daemon.config))
    assert "the job's label is 'gr??e' and not as it was given" in done.stderr
    said = "cache: no events with the label 'gr??e' are in the queue or its newest history"
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, [said])


def test_check_and_status_name_spools_that_no_agent_adopts(job: Job, api_server: ApiServer) -> None:
    """Those that an agent uses are not among them, nor those where the configuration has it look."""
    spools = job.state / "spools"
    api_server.default = DOWN
    job.python("by_socket('a', 'b')")
    said = f'spools: 2 events wait in 1 spool that no agent adopts: set queue.adopt = "{spools}"'
    assert f"warning  {said}" in run_command("check", env=job.env).stdout
    assert "spools" not in run_command("check", env=job.env | {"ARTIFACTS_AGENT_QUEUE_ADOPT": str(spools)}).stdout
    with Daemon(job.directory / "other", api_server.url) as daemon:
        env = {"STATE_DIRECTORY": str(job.state), "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        assert said.replace(": ", "  ", 1) in run_command("status", env=env).stdout
    (spool,) = spools.iterdir()
    with locked(spool):
        assert "spools" not in run_command("check", env=job.env).stdout


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o700, "this user cannot write there"), (0o777, "it is another user's, 65533")]
)
def test_a_job_whose_queue_adopt_is_another_users_has_its_spool_in_the_users_own_state_directory(
    mode: int, reason: str, job: Job, api_server: ApiServer
) -> None:
    """The configuration is that of the system's daemon, which does not run."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        home, theirs = Path(directory), Path(directory, "theirs")
        home.chmod(0o777)
        theirs.mkdir()
        os.chown(theirs, 65533, 65533)
        theirs.chmod(mode)
        env = {name: text for name, text in environment(job.env).items() if not name.startswith("COV")}
        env |= {"STATE_DIRECTORY": str(home / "state"), "ARTIFACTS_AGENT_QUEUE_ADOPT": str(theirs), "TMPDIR": directory}
        del env["ARTIFACTS_AGENT_CONFIG"]  # it is root's
        env |= {"ARTIFACTS_AGENT_LISTEN_CONTROL": str(home / "nobody"), "ARTIFACTS_AGENT_SHUTDOWN_DEADLINE": "500ms"}
        send = [sys.executable, "-c", SEND + "by_socket('a')"]
        command = [*as_user(NOBODY), *COMMAND, "exec", *PATIENT, "--", *send]
        api_server.default = DOWN
        first = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
        assert first.returncode == 0
        notice, left = but_usage(first.stderr).splitlines()
        own = home / "state/spools"
        assert notice == f"artifacts-agent: queue.adopt: {theirs}: {reason}: what this job leaves is in {own}, {NEXT}"
        assert f"1 event not delivered yet, in {own}/" in left
        assert list(theirs.iterdir()) == []

        (spool,) = own.iterdir()
        api_server.default = Answer()
        job_of_its_own = [*command[: -len(send)], "cat"]
        pipe = subprocess.PIPE
        with subprocess.Popen(job_of_its_own, env=env, stdin=pipe, stderr=pipe, text=True) as second:
            eventually(spool.exists, [False].__contains__)
            _, said = second.communicate(timeout=HUNG_AFTER)
        assert said == f"{notice}\n"
        assert names(api_server) == Counter("a")
        assert list(own.iterdir()) == []


NEXT = "for this user's next job"


def test_a_configuration_that_the_user_may_not_read_does_not_fail_the_build(job: Job) -> None:
    job.config.chmod(0o600)
    command = [*as_user(NOBODY), *COMMAND, "exec", *PATIENT, "--", "sh", "-c", "exit 5"]
    done = subprocess.run(command, env=environment(job.env), capture_output=True, text=True, timeout=HUNG_AFTER)
    assert done.returncode == 5
    assert done.stderr.startswith("artifacts-agent: no agent for this command: ")


def test_while_the_api_is_down_the_job_ends_in_time_and_the_next_agent_delivers(
    job: Job, tmp_path: Path, api_server: ApiServer
) -> None:
    api_server.default = DOWN
    done = job.python("by_http('a', 'b'); sys.exit(3)", "--deadline", "1s")
    (spool,) = job.spools
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == not_delivered(2, spool)
    api_server.default = Answer()
    with Daemon(tmp_path / "next", api_server.url, {"queue": {"adopt": str(spool.parent)}}) as daemon:
        status = daemon.wait_status(is_done)
        assert status["adopted"]["ledger"] == ledger(2, delivered=2)
    assert names(api_server) == Counter("ab")
    assert job.spools == []


def test_a_killed_agent_costs_the_command_nothing_and_the_next_job_delivers_what_it_had(
    job: Job, api_server: ApiServer
) -> None:
    api_server.default = DOWN
    code = """
durably('a', 'b')
import signal
status = json.loads(__import__('subprocess').check_output([sys.executable, '-m', 'agent.cli', 'status', '--json']))
os.kill(status['pid'], signal.SIGKILL)
sys.exit(4)
"""
    done = job.python(code, "--deadline", "1s")
    (spool,) = job.spools
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == not_delivered(2, spool)
    api_server.default = Answer()
    next_job = job.start("by_socket('c'); input()", "--deadline", "10s")
    next_job.stdin = None
    eventually(lambda: names(api_server), lambda found: found >= Counter("ab"))
    next_job.communicate(timeout=HUNG_AFTER)
    assert names(api_server) == Counter("abc")
    assert job.spools == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_ends_exec_in_the_same_way_and_what_it_sent_is_delivered(
    number: signal.Signals, job: Job, api_server: ApiServer
) -> None:
    done = job.python(f"durably('a', 'b'); os.kill(os.getpid(), {int(number)})")
    assert (done.returncode, done.stderr) == (-number, "")
    assert names(api_server) == Counter("ab")
    assert job.spools == []


def test_when_exec_is_killed_its_agent_delivers_and_ends_by_itself(
    job: Job, tmp_path: Path, api_server: ApiServer
) -> None:
    process = job.start("durably('a'); print(os.environ['ARTIFACTS_AGENT_SOCKET'], os.getppid()); input()")
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        path, _ = process.stdout.readline().split()
        agent = agent_of(process.pid)
        (command,) = {*children(process.pid)} - {agent}
        ended = os.pidfd_open(agent)
        process.kill()
        os.kill(command, signal.SIGKILL)
        assert select.select([ended], [], [], 20)[0], "the agent goes on without anybody"
        os.close(ended)
    assert names(api_server) == Counter("a")
    assert not Path(path).parent.exists()
    (spool,) = job.spools
    with Daemon(tmp_path / "next", api_server.url, {"queue": {"adopt": str(spool.parent)}}) as daemon:
        assert daemon.wait_status(is_done)["adopted"]["ledger"] == ledger(1, delivered=1)
        assert ledger_of(daemon.status()) == ledger(0)
    assert job.spools == []
    assert names(api_server) == Counter("a")


def test_the_last_line_and_the_job_summary_say_what_the_cache_did(job: Job, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    done = job.python("by_http('a', 'b'); by_socket('b', 'c')", env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert (done.returncode, done.stderr) == (0, "")
    line = "cache: 3 of 3 tasks (100 %), <1s of task time saved"
    assert job.usage == [f"artifacts-agent: {line}\n"]
    assert summary.read_text().startswith(f"# Before\n**{line}**")


BUILDKITE_AGENT = """#!/bin/sh
(echo "$*"; cat) > {}
"""


def test_where_an_agent_runs_already_the_line_is_of_this_job_alone(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "agent", api_server.url, FRONT) as daemon:
        env = {"TURBO_TOKEN": TOKEN, "TURBO_API": api_server.url, "ARTIFACTS_AGENT_CONFIG": str(daemon.config)}
        by_client = "from agent.client import emit; emit('MISS', 'LOCAL', 'z', 's2')"
        line = "artifacts-agent: cache: 2 of 3 tasks (67 %), <1s of task time saved, 1 unanswered\n"
        others: list[str] = []
        for options in (("--job", "build 7"), ("--job", "build 8"), ("--job", ""), ()):
            code = f"by_http('a', 'b'); {by_client}; print(os.environ['ARTIFACTS_AGENT_JOB'])"
            done = run_command("exec", *PATIENT, *options, "--", sys.executable, "-c", SEND + code, env=env)
            assert done.stderr == ("" if options == ("--job", "") else line)
            others += done.stdout.splitlines()
        assert others[:3] == ["build 7", "build 8", ""]
        assert Path(sys.executable).name in others[3]
        assert run_command("flush", "--job", "build 7", env=env).stdout.splitlines()[1:] == [
            line.strip().split(": ", 1)[1]
        ]
    assert "build" not in str([request.body for request in api_server.requests])


def test_reports_count_what_jobs_with_agents_of_their_own_have_sent(job: Job) -> None:
    for number in range(2):
        code = f"from agent.client import emit; emit('HIT', 'LOCAL', 'a', 's-{number}'); emit('MISS', 'LOCAL', 'b', 's-{number}')"
        job.python(code, "--job", f"build {number}")
    found = json.loads(run_command("report", "--by", "job", "--format", "json", env=job.env).stdout)
    assert [(each["name"], each["tasks"]) for each in found["groups"]] == [("build 0", 2), ("build 1", 2)]
    assert found["unknown"]["adopted"] == 0
    assert job.spools == []


def test_a_ci_system_shows_what_the_cache_did_where_it_shows_such(job: Job, tmp_path: Path) -> None:
    (tmp_path / "buildkite-agent").write_text(BUILDKITE_AGENT.format(tmp_path / "annotation"))
    (tmp_path / "buildkite-agent").chmod(0o755)
    os.mkfifo(tmp_path / "annotation")
    ci = {"BUILDKITE": "true", "BUILDKITE_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job.python("by_http('a')", env=ci)
    line = "cache: 1 of 1 task (100 %), <1s of task time saved"
    options, text = (tmp_path / "annotation").read_text().split("\n", 1)
    assert options == "annotate --style info --context artifacts-agent-7"
    assert text.startswith(f"**{line}**. ")
    done = run_command(
        "exec", *PATIENT, "--", sys.executable, "-c", SEND + "by_http('a')", env=job.env | {"GITLAB_CI": "1"}
    )
    first, *inside, last = re.sub(r"\d{9,}", "NOW", done.stderr).split("\n")[:-1]
    assert first == f"\x1b[0Ksection_start:NOW:artifacts_agent[collapsed=true]\r\x1b[0Kartifacts-agent: {line}"
    assert inside[0] == "artifacts-agent:          1  local hits"
    assert last == "\x1b[0Ksection_end:NOW:artifacts_agent\r\x1b[0K"


def test_a_job_without_tasks_has_no_line(job: Job, tmp_path: Path) -> None:
    job.python("sys.exit(0)", env={"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")})
    assert job.usage == []
    assert not (tmp_path / "summary.md").exists()


def test_a_summary_that_cannot_be_written_costs_a_line(job: Job, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # nobody reads it
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "fifo", "No such device or address")):
        done = job.python("by_socket('a'); sys.exit(7)", env={"GITHUB_STEP_SUMMARY": str(path)})
        assert (done.returncode, done.stderr) == (7, f"artifacts-agent: GITHUB_STEP_SUMMARY: {reason}\n")
        assert len(job.usage) == 1


def test_dead_letters_of_a_job_are_kept_and_named(job: Job, api_server: ApiServer) -> None:
    api_server.reject_hashes = {"b"}
    done = job.python("by_http('a', 'b', 'c')")
    (spool,) = job.spools
    assert done.stderr == f"artifacts-agent: {spool} stays because of 1 dead letter\n"
    assert names(api_server) == Counter("ac")


def test_what_a_job_has_adopted_and_cannot_remove_is_counted_by_the_next_agent(
    job: Job, tmp_path: Path, api_server: ApiServer
) -> None:
    api_server.default = DOWN
    job.python("by_http('a', 'b')", "--deadline", "0s")
    (first,) = job.spools
    api_server.default, api_server.reject_hashes = Answer(), {"b"}
    job.python(
        "import time\n"
        "for _ in range(400):\n"
        f"    os.path.exists({str(first / 'settled.json')!r}) and sys.exit(0)\n"
        "    time.sleep(0.05)"
    )
    with Daemon(tmp_path / "next", api_server.url, {"queue": {"adopt": str(first.parent)}}) as daemon:
        status = daemon.wait_status(lambda status: bool(status["adopted"]["left"]))
        daemon.request("POST", "/resume")
        status = daemon.wait_status(lambda status: status["adopted"]["finished"] == 2)
        assert status["adopted"]["ledger"] == ledger(2, delivered=1, dead_lettered=1)
    assert job.spools == [first]


def test_a_signal_ends_the_wait_at_the_end_and_leaves_the_commands_exit_code(job: Job, api_server: ApiServer) -> None:
    api_server.default = DOWN
    process = job.start("by_socket('a'); print('done'); sys.exit(9)", "--deadline", "1h")
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        assert process.stdout.readline() == "done\n"
        agent = agent_of(process.pid)
        eventually(lambda: children(process.pid), [agent].__eq__)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HUNG_AFTER) == 9
        (spool,) = job.spools
        interrupted = f"artifacts-agent: interrupted: what is not delivered yet stays in {spool}\n"
        assert process.stderr.read() == interrupted
    ended = os.pidfd_open(agent) if Path(f"/proc/{agent}").exists() else None
    if ended is not None:
        assert select.select([ended], [], [], 20)[0]
        os.close(ended)
    assert len(job.spools) == 1
