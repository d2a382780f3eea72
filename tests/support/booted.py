"""A machine with a real systemd as its process 1: a container of systemd-nspawn on a root that forgets all that is written to it.

It needs root, and no container engine, no systemd on this machine and no certain layout of cgroups. The network is this machine's
loopback. Whatever happens to the tests, the kernel ends the container with the process that started it.
"""

import io
import os
import shlex
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.tools import require_root, require_tool, unavailable
from tests.support.waiting import HUNG_AFTER, eventually

Done = subprocess.CompletedProcess[str]

_CGROUPS = Path("/sys/fs/cgroup")
_ENVIRONMENT = ("env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
# In a mount namespace of its own, so that nothing stays behind: a root whose changes are in memory, and /run for nspawn's traces.
_BOOT = """
set -e
lower=$1 scratch=$2 cgroups=$3; shift 3
for cgroup in $cgroups; do echo $$ > "$cgroup/cgroup.procs"; done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
exec systemd-nspawn --directory="$scratch/root" "$@"
"""
# systemd may write to its own hierarchy alone there. With cgroup v1, limits are in the others.
_CONTROLLERS = """
for hierarchy in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$hierarchy" 2>/dev/null || true; done
systemctl daemon-reexec
"""


class Machine:
    """A machine that has booted. `pid` is its process 1, as seen from outside."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._enter = ("nsenter", "--target", str(pid), "--all", "--root", "--wdns=/", "--", *_ENVIRONMENT)

    def run(self, script: str, user: str = "root", stdin: str = "", timeout: float = HUNG_AFTER) -> Done:
        """Run a script in a login shell of that user, up to its first command that fails."""
        command = ["runuser", "--login", user, "--command", f"set -e\n{script}"]
        return subprocess.run([*self._enter, *command], input=stdin, capture_output=True, text=True, timeout=timeout)

    def must(self, script: str, user: str = "root", stdin: str = "") -> str:
        """Run it, and return its stdout; AssertionError with both streams if it fails."""
        done = self.run(script, user, stdin)
        assert done.returncode == 0, f"{script}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, script: str, user: str) -> Iterator[subprocess.Popen[str]]:
        """Run a script beside the block, which ends it: the script reads its standard input, and ends at its end."""
        command = [*self._enter, "runuser", "--login", user, "--command", f"set -e\n{script}"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
            yield process

    def write(self, files: Mapping[str, bytes], directory: str, owner: str) -> None:
        """Write files below a directory, all of which that user owns."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
        quoted = shlex.quote(directory)
        extract = f"mkdir -p {quoted}; tar -x -C {quoted}; chown -R {owner}: {quoted}"
        command = ["sh", "-ec", extract]
        subprocess.run([*self._enter, *command], input=archive.getvalue(), check=True, timeout=HUNG_AFTER)

    def show(self, unit: str, *properties: str) -> list[str]:
        """Return what systemd says of a unit, in the order that was asked for."""
        said = self.must(f"systemctl show {shlex.quote(unit)} --property={','.join(properties)}")
        values = dict(line.split("=", 1) for line in said.splitlines())
        return [values[name] for name in properties]

    def journal(self, unit: str) -> str:
        """Return what a unit, and systemd about it, has logged."""
        return self.must(f"journalctl --sync; journalctl --no-pager --output=cat --unit={shlex.quote(unit)}")


@contextmanager
def booted(root: Path, scratch: Path, read_only: Mapping[Path, str]) -> Iterator[Machine]:
    """Boot a machine on that root for the block. `scratch` is an empty directory; `read_only` says what to show where inside."""
    require_root()
    require_tool("nsenter", "apt-get install util-linux")
    require_tool("systemd-nspawn", "apt-get install systemd-container")
    name = f"boot-{uuid.uuid4().hex[:12]}"
    console = scratch.with_name(f"{scratch.name}.console")
    options = ["--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe", f"--machine={name}"]
    options += [f"--bind-ro={outside}:{inside}" for outside, inside in read_only.items()]
    with _cgroups(name) as cgroups, console.open("wb") as output:
        joined = " ".join(map(str, cgroups))
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "slave"]
        command += ["--pid", "--mount-proc", "--fork", "--kill-child", "--"]
        command += ["sh", "-c", _BOOT, "boot", str(root), str(scratch), joined, *options]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as container:
            try:
                machine = Machine(_init_of(container, console))
                eventually(
                    lambda: machine.run("test -S /run/dbus/system_bus_socket").returncode, lambda code: code == 0
                )
                machine.must(_CONTROLLERS)
                state = machine.run("systemctl is-system-running --wait").stdout.strip()
                assert state == "running", state + machine.run("systemctl --failed").stdout
                yield machine
            finally:
                container.kill()  # and the kernel all the others


def _init_of(container: subprocess.Popen[bytes], console: Path) -> int:
    """Wait for process 1, and return its number outside."""

    def find() -> int | None:
        if container.poll() is not None:
            unavailable(f"systemd-nspawn cannot boot here: {console.read_text(errors='replace')[-2000:]}")
        grandchildren = (pid for nspawn in _children(container.pid) for pid in _children(nspawn))
        return next((pid for pid in grandchildren if _name(pid) == "systemd"), None)

    found = eventually(find, lambda pid: pid is not None)
    assert found is not None
    return found


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:  # it has ended
        return ""


@contextmanager
def _cgroups(name: str) -> Iterator[Sequence[Path]]:
    """Make a cgroup below this process's own in every hierarchy; remove them, with what systemd has made in them."""
    made: list[Path] = []
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            parent = _hierarchy(controllers) / path.lstrip("/")
            if os.access(parent / "cgroup.procs", os.W_OK):
                made.append(parent / name)
                made[-1].mkdir()
                for setting in ("cpuset.cpus", "cpuset.mems") if "cpuset" in controllers.split(",") else ():
                    (made[-1] / setting).write_text((parent / setting).read_text())
        if not made:
            unavailable(
                f"the cgroups in {_CGROUPS} cannot be written to; mount them, or run the tests where that is allowed"
            )
        yield made
    finally:
        for cgroup in made:
            _remove(cgroup)


def _remove(cgroup: Path) -> None:
    """Wait for its processes, which have been killed, and remove it."""
    eventually(lambda: _processes(cgroup), lambda left: not left)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        Path(directory).rmdir()


def _hierarchy(controllers: str) -> Path:
    if controllers:
        return _CGROUPS / controllers.removeprefix("name=")
    unified = _CGROUPS / "unified"
    return unified if unified.is_dir() else _CGROUPS


def _processes(cgroup: Path) -> list[str]:
    return [
        pid for directory, _, _ in os.walk(cgroup) for pid in (Path(directory) / "cgroup.procs").read_text().split()
    ]
