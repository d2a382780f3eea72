"""The image of systemd/image, built and run by podman as systemd/README.md says.

What it is built upon is not the image of that name but a root of Debian's, with the Python that Debian has.
"""

import json
import shlex
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from agent import __version__
from tests.support.api_server import ApiServer
from tests.support.containers import Engine, engine, import_base
from tests.support.daemon import TOKEN
from tests.support.debian import debian_root, releases, wheelhouse
from tests.support.documents import ROOT, blocks, read, section
from tests.support.installed import checkout
from tests.support.nats import nats_cluster
from tests.support.waiting import eventually

PAGE = section(read("systemd/README.md"), "In a container")
BUILD, RUN, CLIENT = (
    f"docker {command}" for command in blocks(PAGE, "sh")[0].removeprefix("docker ").split("\ndocker ")
)
BUILDER = """FROM artifacts-agent:0.1.0
CMD ["artifacts-agent", "emit", "--strict", "--event", "HIT", "--source", "LOCAL", "--hash", "built"]
"""
EMIT = "artifacts-agent emit --strict --event HIT --source LOCAL --hash"
INSTALLED = """from importlib.metadata import distributions
print(*(f"{each.name}=={each.version}" for each in distributions()))"""
CONFINED = "--read-only --cap-drop=all --security-opt=no-new-privileges"


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer(token=TOKEN) as server:
        yield server
    assert server.violations == []


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which things lie that are not to get into an image."""
    directory = tmp_path_factory.mktemp("checkout")
    for name, content in {**checkout(), "token": b"a secret", "agent/__pycache__/old.pyc": b""}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine has its files, and the base as a tar file."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def docker(api: ApiServer, source: Path, directory: Path) -> Iterator[Engine]:
    """An engine with the image, built from the checkout with the page's command."""
    variables = {"ARTIFACTS_AGENT_API_URL": api.url, "ARTIFACTS_AGENT_BATCH_MAX_DELAY": "50ms"}
    with engine(directory, variables) as docker:
        import_base(docker, directory)
        docker.must(BUILD, source)
        yield docker


@pytest.fixture
def running(docker: Engine) -> Iterator[Engine]:
    """The agent's container, started by the page's command."""
    try:
        docker.must(RUN, env={"ARTIFACTS_AGENT_TOKEN": TOKEN})
        wait_ready(docker, "artifacts-agent")
        yield docker
    finally:
        docker.must("docker rm --force --volumes artifacts-agent; docker volume prune --force")


def wait_ready(docker: Engine, container: str) -> None:
    """Wait until the agent in it can deliver."""
    check = f"docker exec {container} artifacts-agent status --check || docker logs {container}"
    eventually(lambda: docker.run(check).stdout, lambda said: said == "ready\n")


def inspect(docker: Engine, container: str, path: str) -> str:
    return docker.must(f"docker inspect --format '{{{{{path}}}}}' {container}").strip()


def test_a_build_in_another_container_sends_and_the_agent_delivers(
    running: Engine, api: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(BUILDER)
    running.must("docker build --tag my-build .", tmp_path)
    running.must(CLIENT)
    eventually(lambda: [event["hash"] for event in api.accepted_events()], lambda hashes: "built" in hashes)


def test_it_ends_by_itself_before_the_engine_kills_it(running: Engine) -> None:
    assert "--stop-timeout 30" in RUN
    assert inspect(running, "artifacts-agent", ".Config.StopTimeout") == "30"
    running.must("docker stop artifacts-agent")
    assert inspect(running, "artifacts-agent", ".State.ExitCode") == "0"


def test_it_heeds_a_signal_from_before_its_first_slow_import_on(docker: Engine) -> None:
    """It is process 1 of the container, for which the kernel drops signals that have no handler."""
    command = RUN.replace(" --restart unless-stopped", "")  # or the engine starts it again
    try:
        docker.must(command, env={"ARTIFACTS_AGENT_TOKEN": TOKEN})
        process = inspect(docker, "artifacts-agent", ".State.Pid")
        eventually(lambda: handled_signals(docker, process), lambda mask: bool(mask & 1 << (signal.SIGTERM - 1)))
        docker.must("docker kill --signal TERM artifacts-agent")
        eventually(lambda: inspect(docker, "artifacts-agent", ".State.Running"), lambda running: running == "false")
        assert inspect(docker, "artifacts-agent", ".State.ExitCode") == "0"
    finally:
        docker.must("docker rm --force --volumes artifacts-agent; docker volume prune --force")


def handled_signals(docker: Engine, process: str) -> int:
    """Return the set of signals for which a process has a handler, see proc_pid_status(5)."""
    return int(docker.must(f"awk '/^SigCgt/ {{print $2}}' /proc/{process}/status"), 16)


def test_orphans_leave_no_zombies(running: Engine) -> None:
    running.must("docker exec artifacts-agent sh -c 'sleep 0.5 &'")
    listing = "docker exec artifacts-agent ps -e -o stat=,comm="
    eventually(lambda: running.must(listing), lambda processes: "sleep" not in processes)


def test_what_waits_is_on_the_volume_for_the_next_one(running: Engine, api: ApiServer) -> None:
    running.must("docker exec artifacts-agent artifacts-agent pause")
    running.must(f"docker exec artifacts-agent {EMIT} kept")
    running.must("docker rm --force artifacts-agent")
    running.must(RUN, env={"ARTIFACTS_AGENT_TOKEN": TOKEN})
    eventually(
        lambda: running.run("docker exec artifacts-agent artifacts-agent resume").returncode, lambda code: code == 0
    )
    eventually(lambda: [event["hash"] for event in api.accepted_events()], lambda hashes: "kept" in hashes)


def test_a_second_one_on_the_same_volume_ends_with_code_5(running: Engine) -> None:
    second = RUN.replace("--detach --name artifacts-agent --restart unless-stopped", "--rm")
    second = second.replace("artifacts-agent-sockets:", "other-sockets:")
    done = running.run(second, env={"ARTIFACTS_AGENT_TOKEN": TOKEN})
    assert done.returncode == 5, done.stdout


@pytest.mark.parametrize("user", ["10001", "1000700000:0"], ids=["its own user", "any user of group 0"])
def test_it_needs_no_right_and_no_certain_user(docker: Engine, api: ApiServer, user: str) -> None:
    """As a pod that keeps to the standard "restricted", and as OpenShift with a user of its choice."""
    name = f"confined-{user.partition(':')[0]}"
    docker.must(
        f"docker run --detach --name {name} --user {user} {CONFINED} --env ARTIFACTS_AGENT_TOKEN artifacts-agent:0.1.0",
        env={"ARTIFACTS_AGENT_TOKEN": TOKEN},
    )
    wait_ready(docker, name)
    docker.must(f"docker exec {name} {EMIT} {name}")
    eventually(lambda: [event["hash"] for event in api.accepted_events()], lambda hashes: name in hashes)
    docker.must(f"docker rm --force --volumes {name}")


def test_its_health_is_whether_events_can_be_kept_not_whether_they_can_be_delivered(running: Engine) -> None:
    running.must("docker exec artifacts-agent artifacts-agent pause")
    assert running.run("docker exec artifacts-agent artifacts-agent status --check").returncode == 9
    running.must("docker healthcheck run artifacts-agent")
    elsewhere = "docker exec --env RUNTIME_DIRECTORY=/nowhere artifacts-agent artifacts-agent-healthcheck"
    done = running.run(elsewhere)
    assert (done.returncode, "nobody answers at /nowhere/control.sock" in done.stdout) == (1, True), done.stdout


def test_relays_run_from_it_as_in_their_pod_and_agents_forward_to_them(
    docker: Engine, api: ApiServer, tmp_path: Path
) -> None:
    files = yaml.safe_load_all((ROOT / "systemd/kubernetes/relay.yaml").read_text())
    found = {each["kind"]: each for each in files}
    (relay,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    config = found["ConfigMap"]["data"]["config.toml"].replace('credentials = "/etc/artifacts-agent/relay.creds"', "")
    with nats_cluster(tmp_path / "nats") as cluster:
        config = config.replace("tls://nats.example.com:4222", cluster.urls[0])
        etc = tmp_path / "etc"
        etc.mkdir()
        for name, content in {"config.toml": config, "token": TOKEN}.items():
            (etc / name).write_text(content)
            (etc / name).chmod(0o440)
        run = f"docker run --detach {CONFINED} --name"
        command = shlex.join(relay["command"])
        docker.must(f"{run} relay --volume {etc}:/etc/artifacts-agent:ro {relay['image']} {command}")
        for probe in ("readinessProbe", "livenessProbe"):
            ask = f"docker exec relay {shlex.join(relay[probe]['exec']['command'])} || docker logs relay"
            eventually(partial(docker.run, ask), lambda done: done.stdout == "")
        keys = {"SERVERS": cluster.urls[0], "TEAM": "web", "POOL": "ci"}
        variables = " ".join(f"--env ARTIFACTS_AGENT_FORWARD_{key}={value}" for key, value in keys.items())
        docker.must(f"{run} runner {variables} artifacts-agent:0.1.0")
        wait_ready(docker, "runner")
        docker.must(f"docker exec runner {EMIT} forwarded")
        eventually(lambda: [event["hash"] for event in api.accepted_events()], lambda hashes: "forwarded" in hashes)
        docker.must("docker stop runner relay")
        exits = docker.must("docker inspect --format '{{.State.ExitCode}}' runner relay").split()
        docker.must("docker rm --force --volumes runner relay")
    assert exits == ["0", "0"]


def test_no_stage_of_the_build_sees_the_token_and_the_image_has_no_sources(docker: Engine, source: Path) -> None:
    docker.must(BUILD.replace("--tag artifacts-agent:0.1.0", "--target build --tag build-stage"), source)
    listing = "cd /src; find . -maxdepth 3 -not -path './agent/*/*' -not -name '*.py'"
    found = docker.must(f'docker run --rm build-stage sh -c "{listing}"').split()
    assert {"./agent", "./pyproject.toml", "./systemd/image/healthcheck"} <= {*found}
    strangers = {
        "./token",
        "./config.example.toml",
        "./agent/__pycache__",
        "./systemd/README.md",
        "./systemd/image/build",
    }
    assert not strangers & {*found}
    docker.must("docker run --rm artifacts-agent:0.1.0 sh -c '! ls -d /src || ! ls -d /tools'")


def test_one_command_makes_an_archive_and_its_sbom(
    docker: Engine, source: Path, directory: Path, tmp_path: Path
) -> None:
    """From a root in a tar file and a directory of wheels, with no image to begin with."""
    build = f"bash systemd/image/build --output {tmp_path} --base {directory}/base.tar"
    build += f" --wheels {wheelhouse(debian_root(releases()[0]))}"
    said = docker.must(build, source, {"SOURCE_DATE_EPOCH": "1800000000"})
    archive = tmp_path / "artifacts-agent-0.1.0-image.tar"
    assert said.splitlines()[-1] == str(archive)
    docker.must("docker tag artifacts-agent:0.1.0 built; docker rmi artifacts-agent:0.1.0")
    docker.must(
        f"docker load --input {archive}; docker tag artifacts-agent:0.1.0 loaded; docker rmi artifacts-agent:0.1.0"
    )
    docker.must("docker tag built artifacts-agent:0.1.0")
    (image,) = json.loads(docker.must("docker image inspect loaded"))
    assert image["Labels"]["org.opencontainers.image.version"] == __version__
    assert image["Created"].startswith("2027-01-15T08:00:00")
    assert (image["User"], image["Healthcheck"]["Test"]) == ("10001:0", ["CMD", "artifacts-agent-healthcheck"])
    sbom = (tmp_path / "artifacts-agent-0.1.0-image.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom) is None
    installed = docker.must(f"docker run --rm loaded /opt/artifacts-agent/bin/python3 -c '{INSTALLED}'")
    listed = {f"{each['name']}=={each['version']}" for each in json.loads(sbom)["components"]}
    assert listed == {*installed.split()}
    assert f"artifacts-agent=={__version__}" in listed
