"""podman in a world of its own: its images and containers are in a directory of the test's, and end with the test.

It needs root. The network is this machine's loopback. `docker` in a script is podman, as Debian's podman-docker makes it.
Where cgroup v1 and v2 are both mounted, v2 is hidden, because crun takes one or the other.
"""

import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.booted import Done
from tests.support.debian import debian_root, releases, wheelhouse
from tests.support.tools import require_root, require_tool
from tests.support.waiting import HUNG_AFTER, eventually

BASE = "docker.io/library/python:3.13-slim"
_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{0}/images"
runroot = "{0}/state"
"""
_CONTAINERS = """
[containers]
netns = "host"
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
env = [{1}]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
tmp_dir = "{0}/engine"
"""
_HIDE = "[ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified; echo hidden; exec sleep infinity"


class Engine:
    """Runs scripts in which `docker` is podman."""

    def __init__(self, holder: int, env: Mapping[str, str]) -> None:
        self._enter = ("nsenter", "--target", str(holder), "--mount", "--pid", "--")
        self._env = dict(env)

    def run(self, script: str, directory: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
        """Run a script there, up to its first command that fails; its stderr is part of its stdout."""
        inside = ["sh", "-ec", f'cd "$0"; {script}', str(directory or "/")]
        env = {**self._env, **(env or {})}
        command = [*self._enter, *inside]
        pipe, out = subprocess.PIPE, subprocess.STDOUT
        null = subprocess.DEVNULL
        return subprocess.run(command, env=env, stdin=null, stdout=pipe, stderr=out, text=True, timeout=2 * HUNG_AFTER)

    def must(self, script: str, directory: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run it and return its output; AssertionError if it fails."""
        done = self.run(script, directory, env)
        assert done.returncode == 0, f"{script}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout


@contextmanager
def engine(directory: Path, variables: Mapping[str, str]) -> Iterator[Engine]:
    """Have an engine for the block, whose containers all get these variables."""
    require_root()
    require_tool("podman", "apt-get install podman")
    require_tool("buildah", "apt-get install buildah")
    require_tool("crun", "apt-get install crun")
    quoted = ", ".join(f'"{name}={value}"' for name, value in variables.items())
    config, storage, docker = directory / "containers.conf", directory / "storage.conf", directory / "docker"
    config.write_text(_CONTAINERS.format(directory, quoted))
    storage.write_text(_STORAGE.format(directory))
    docker.write_text('#!/bin/sh\nexec podman "$@"\n')
    docker.chmod(0o755)
    env = {"PATH": f"{directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory)}
    env |= {"CONTAINERS_CONF": str(config), "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}
    env |= {"BUILDAH_FORMAT": "docker", "DISABLE_HC_SYSTEMD": "true"}  # as docker builds; health is asked for by hand
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    command += ["--pid", "--mount-proc", "--fork", "--kill-child", "--", "sh", "-c", _HIDE]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "hidden\n"
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
            yield Engine(int(children.read_text()), env)
        finally:
            holder.kill()
            eventually(lambda: _mounted_below(directory), lambda mounted: not mounted)


def import_base(engine: Engine, directory: Path) -> None:
    """Make the image that the Dockerfile builds upon: a root of Debian's with its own Python, and wheels."""
    root = debian_root(releases()[0])
    wheels = wheelhouse(root)
    added = directory / "added.tar"
    with tarfile.open(added, "w") as tar:
        tar.add(wheels, "srv/wheels")
        config = b"[global]\nno-index = true\nfind-links = /srv/wheels\ndisable-pip-version-check = true\n"
        member = tarfile.TarInfo("etc/pip.conf")
        member.size = len(config)
        tar.addfile(member, io.BytesIO(config))
    engine.must(
        f"tar -c --one-file-system -C {root} . > base.tar; tar -A -f base.tar {added.name}; docker import base.tar {BASE}",
        directory,
    )


def _mounted_below(directory: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
