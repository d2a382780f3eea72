"""The Debian package: built without a network as systemd/README.md says, and followed through its life on a real systemd.

It is tried on this machine's own release, or on those that BOOT_RELEASES names.
"""

import asyncio
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agent.fleet import permissions
from tests.support.api_server import ApiServer
from tests.support.booted import Machine, booted
from tests.support.cache import cached
from tests.support.daemon import TOKEN
from tests.support.debian import debian_root, releases
from tests.support.documents import ROOT, blocks, read, section
from tests.support.installed import CHECKOUT, CONFIG, PAGE, SERVICE, SOCKET, Installed, checkout
from tests.support.nats import SMALL, NatsCluster
from tests.support.nats_credentials import Realm
from tests.support.tools import require_root, require_tool
from tests.support.waiting import HUNG_AFTER, eventually

HOME = "/usr/lib/artifacts-agent"
STATE = "/var/lib/artifacts-agent"
RELAY = "artifacts-agent-relay.service"
SCRIPTS = ("postinst", "prerm", "postrm", "rtupdate")
_FETCH, _BUILD = blocks(section(read(PAGE), "Build the package"), "sh")[0].splitlines()
_FURTHER = (".ci/constraints.txt", "CHANGELOG.md")
_PREPARE = """
useradd --create-home --shell /bin/bash --groups sudo admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin; chmod 0440 /etc/sudoers.d/admin
echo 'umask 077' >> /home/admin/.profile
for user in ci stranger; do useradd --create-home --shell /bin/bash "$user"; done
"""
# Runs under `exec` until it is told to go on, and sends an event then.
_BUILD_JOB = (
    'echo started; read -r _; artifacts-agent emit --strict --event HIT --source LOCAL --hash "$(id -un)-0"; exit 7'
)


def build(directory: Path, version: str | None = None) -> Path:
    """Build the package by the page's commands from a checkout, perhaps of another version; return its path."""
    require_root()  # to be without a network
    require_tool("strip", "apt-get install binutils")
    files = {**checkout(version), **{name: (ROOT / name).read_bytes() for name in _FURTHER}}
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)

    def fetch(target: Path) -> None:
        target.mkdir()
        (directory / "dist").mkdir()
        (directory / "dist/wheels").symlink_to(target)
        command = [sys.executable, *shlex.split(_FETCH)[1:]]
        subprocess.run(command, cwd=directory, check=True)
        (directory / "dist/wheels").unlink()

    recipe = [files[name] for name in ("pyproject.toml", ".ci/constraints.txt", "systemd/debian/build.py")]
    wheels = cached("wheels-package", repr(recipe), fetch)
    (directory / "dist").mkdir(exist_ok=True)
    (directory / "dist/wheels").symlink_to(wheels)
    command = ["unshare", "--net", sys.executable, *shlex.split(_BUILD)[1:]]
    env = {**os.environ, "DPKG_DEB_COMPRESSOR_LEVEL": "0"}
    printed = subprocess.run(command, cwd=directory, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return directory / printed.strip()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("checkout"))


def test_lintian_finds_nothing(package: Path) -> None:
    lintian = require_tool("lintian", "apt-get install lintian")
    done = subprocess.run(
        [lintian, "--fail-on=warning", package], capture_output=True, text=True, timeout=2 * HUNG_AFTER
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_its_scripts_are_free_of_shellcheck_warnings() -> None:
    shellcheck = require_tool("shellcheck", "apt-get install shellcheck")
    scripts = [ROOT / "systemd/debian" / name for name in SCRIPTS]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(900)  # it takes less than a minute, and much longer on a machine that does other things
@pytest.mark.parametrize("release", releases())
def test_it_is_installed_upgraded_removed_and_purged(package: Path, release: str, tmp_path: Path) -> None:
    later = build(tmp_path / "later", "99.0")
    (tmp_path / "machine").mkdir()
    with ApiServer(token=TOKEN) as api, booted(debian_root(release), tmp_path / "machine", {}) as machine:
        machine.must(_PREPARE)
        host = Installed(machine, api)
        before = named_after_it(machine)
        install(host, package)
        forward(host, tmp_path)
        upgrade_under_builds(host, later)
        reinstall(host)
        remove(host)
        host.must(*blocks(section(read(PAGE), "Remove the package"), "sh")[1:])
        assert named_after_it(machine) == before
        assert machine.must("getent passwd artifacts-agent || getent group artifacts-agent || true") == ""
        assert machine.must("systemctl list-units --all --plain --no-legend 'artifacts-agent*'") == ""
    assert api.violations == []


def named_after_it(machine: Machine) -> str:
    """Return every file of the machine that is named after the agent, but for the administrator's own."""
    return machine.must("find / -xdev -name '*artifacts-agent*' -not -path '/home/*' -not -path '/proc/*' | sort")


def put(host: Installed, package: Path) -> None:
    """Put the package, and no other one, where the administrator is."""
    host.machine.must(f"rm -rf {CHECKOUT}")
    host.machine.write({package.name: package.read_bytes()}, CHECKOUT, "admin")


def install(host: Installed, package: Path) -> None:
    """Follow the page to a daemon that runs and delivers."""
    put(host, package)
    installing, token, start, look = blocks(section(read(PAGE), "Install the package"), "sh")
    host.must(installing)
    assert host.machine.show(SERVICE, "ActiveState", "UnitFileState") == ["inactive", "disabled"]
    assert "sends it events" in host.machine.must("artifacts-agent --help", "ci")
    host.edit(f's|^# slug = .*|slug = "my-team"\\nurl = "{host.api.url}"\\n[batch]\\nmax_delay = "50ms"|')
    host.must(token, stdin=f"{TOKEN}\n")
    host.must(start)
    assert "delivering: nothing waits" in host.must(look)
    assert host.emit("installed", 3).returncode == 0
    host.wait_delivered("installed", 3)
    assert host.emit("stranger", user="stranger").returncode == 4
    assert host.machine.must("ls -A /usr/share/bash-completion/completions/artifacts-agent")


def forward(host: Installed, directory: Path) -> None:
    """Hand events to a fleet, from which a relay on the same host delivers them: the package has all that it takes."""
    realm, admin, runner, relay = Realm(), *(directory / f"{name}.creds" for name in ("admin", "runner", "relay"))
    realm.issue(admin)
    realm.issue(runner, permissions.of_pool("web", "ci"))
    realm.issue(relay, permissions.of_relays("web"))
    cluster = NatsCluster(directory / "nats", options=realm.options)
    cluster.start()
    try:
        asyncio.run(cluster.ready(["web"], SMALL, admin))
        common = f'servers = ["{cluster.urls[0]}"]\nteam = "web"\n'
        api = f'url = "{host.api.url}"\nslug = "my-team"\ntoken_file = "/etc/artifacts-agent/token"'
        of_relay = f'[relay]\n{common}credentials = "relay.creds"\n[api]\n{api}\n[batch]\nmax_delay = "50ms"\n'
        of_agent = f'\n[forward]\n{common}pool = "ci"\ncredentials = "runner.creds"\n'
        files = {"relay.toml": of_relay.encode(), "token": TOKEN.encode()}
        host.machine.write({**files, **{each.name: each.read_bytes() for each in (runner, relay)}}, CHECKOUT, "admin")
        host.must("sudo install -o artifacts-agent -g root -m 0400 runner.creds /etc/artifacts-agent/")
        host.must(f"sudo tee -a {CONFIG}", stdin=of_agent)
        said = host.must(f"sudo artifacts-agent check --online --config {CONFIG}")
        assert "with the credentials in /etc/artifacts-agent/runner.creds" in said
        host.must(f"sudo systemctl reload {SERVICE}")
        assert host.emit("forwarded", 3).returncode == 0
        eventually(host.ledger, lambda ledger: (ledger["forwarded"], ledger["queued"]) == (3, 0))
        page = section(read(PAGE), "A relay")
        (unit,), (start,) = blocks(page, "ini"), blocks(page, "sh")
        host.machine.write({RELAY: unit.encode()}, "/etc/systemd/system", "root")
        host.must("sudo install -m 0644 relay.toml /etc/artifacts-agent/")
        assert 'Status: "Delivering' in host.must(start)
        host.wait_delivered("forwarded", 3)
        host.must(f"sudo systemctl disable --now {RELAY}; sudo rm /etc/systemd/system/{RELAY}")
        host.edit(r"/^\[forward\]/,$d")
        host.must(f"sudo systemctl reload {SERVICE}")
    finally:
        cluster.kill()


def upgrade_under_builds(host: Installed, later: Path) -> None:
    """Upgrade while builds begin, run and end, with the daemon or, of one who may not send to it, with an agent of their own."""
    put(host, later)
    own = f"ARTIFACTS_AGENT_TOKEN={TOKEN} artifacts-agent exec --deadline 30s -- sh -c {shlex.quote(_BUILD_JOB)}"
    loop = "n=0; while ! read -r -t 0.01 _; do artifacts-agent exec -- true; n=$((n + 1)); done; echo $n"
    machine, (upgrade,) = host.machine, blocks(section(read(PAGE), "Upgrade the package"), "sh")
    with (
        machine.running(own, "ci") as member,
        machine.running(own, "stranger") as stranger,
        machine.running(f"bash -ec {loop!r}", "ci") as short,
    ):
        for each in (member, stranger):
            assert each.stdout is not None
            assert any(line == "started\n" for line in each.stdout)
        running = host.wait_running()
        host.must(upgrade)
        said, _ = short.communicate("enough\n")
        assert (short.returncode, said.isascii() and int(said.splitlines()[-1]) > 0) == (0, True), said
        for each in (member, stranger):
            said, _ = each.communicate("go on\n")
            assert (each.returncode, "Traceback" in said) == (7, False), said
    for name in ("ci", "stranger"):
        host.wait_delivered(name, 1)
    host.wait_running(running)
    assert host.status()["version"] == "99.0"
    assert machine.must("artifacts-agent --version", "ci").split()[-1] == "99.0"
    assert len(machine.must(f"ls -d {HOME}/[0-9]*").split()) == 2


def reinstall(host: Installed) -> None:
    """Install once more: what no process runs goes, but for what was current before. Then have python3 ask for bytecode."""
    host.machine.must(f"cp -al $(readlink -f {HOME}/current) {HOME}/0.0.1; cp -al {HOME}/0.0.1 {HOME}/0.0.2")
    (command,) = blocks(section(read(PAGE), "Upgrade the package"), "sh")
    with host.machine.running(f"exec {HOME}/0.0.2/bin/python3 -c 'print(input())'", "ci") as old:
        eventually(lambda: host.machine.run(f"pgrep -f {HOME}/0.0.2").returncode, lambda code: code == 0)
        host.must("sudo ln -s /bin/true /usr/local/bin/artifacts-agent")
        said = host.must(command.replace("install", "install --reinstall"))
        assert "/usr/local/bin/artifacts-agent, of an installation without the package, is used" in said
        host.must("sudo rm /usr/local/bin/artifacts-agent")
        old.communicate("the end\n")
    kept = [path.rpartition("/")[2].partition("-")[0] for path in host.machine.must(f"ls -d {HOME}/[0-9]*").split()]
    assert kept == ["0.0.2", "99.0"]
    hook = "/usr/share/python3/runtime.d/artifacts-agent.rtupdate"
    host.must(f"sudo find {HOME}/current/ -name '*.pyc' -delete; sudo {hook} rtupdate python3.11 python3.13")
    assert "main.cpython" in host.machine.must(f"find {HOME}/current/ -name '*.pyc'")
    assert host.emit("reinstalled").returncode == 0
    host.wait_delivered("reinstalled", 1)


def remove(host: Installed) -> None:
    """Remove it; what cannot be delivered stays on disk."""
    host.must("sudo artifacts-agent pause")
    assert host.emit("kept", 3).returncode == 0
    eventually(lambda: host.ledger()["queued"], lambda queued: queued == 3)
    said = host.must(blocks(section(read(PAGE), "Remove the package"), "sh")[0])
    assert f"wait in {STATE}" in said
    host.machine.must(f'test -e {CONFIG}; test -e /etc/artifacts-agent/token; test -n "$(ls -A {STATE})"')
    assert host.machine.run("artifacts-agent --version").returncode == 127
    assert host.machine.must(f"ls -d {HOME} 2>/dev/null || true") == ""
    assert host.machine.must(f"systemctl is-active {SERVICE} {SOCKET} || true").split() == ["inactive", "inactive"]
