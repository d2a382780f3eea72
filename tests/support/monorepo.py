"""A monorepo for the real `turbo`: as many packages as wanted, each with one task that costs next to nothing.

It knows what turbo reads and writes. It must never know which API turbo is pointed at, or the agent.

A task's hash and its output depend on the package's number alone: every monorepo of the same size builds the same, wherever
it lies. The package manager that turbo runs tasks with is a shell script in `bin/npm`; the real one would start Node for each.
"""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

_NPM = '#!/bin/sh\n# As `npm run TASK`, for a task that is a script of that name.\nexec sh "./$2"\n'
_BUILD = 'read -r text < source\nmkdir -p dist\necho "$text" > dist/output\necho "built $text"\n'
_GATED = ": > ../../started\nread -r _ < ../../gate\n"


class Monorepo:
    """A monorepo in a directory of its own.

    With `gated`, the last package depends on all the others, says by the file `started` that its task runs, and then waits until
    somebody writes to the pipe `gate`: so that a test can end turbo when everything else is done. With `signed`, turbo signs its
    artifacts, for which it needs a key. `release` is the one of turbo that is to read it, 1 or 2.
    """

    def __init__(
        self, root: Path, packages: int, *, gated: bool = False, signed: bool = False, release: int = 2
    ) -> None:
        self.root = root
        self.release = release
        self.names = [f"p{number:03}" for number in range(packages)]
        self.started = root / "started"
        self._gate = root / "gate"
        (root / "bin").mkdir(parents=True)
        self._write("bin/npm", _NPM).chmod(0o755)
        task = {"dependsOn": ["^build"], "inputs": ["source"], "outputs": ["dist/**"]}
        tasks = "tasks" if release > 1 else "pipeline"
        self._write("turbo.json", {tasks: {"build": task}, "remoteCache": {"signature": signed}})
        for name in self.names:
            self._package(name, [])
        if gated:
            self._package("gated", self.names, before=_GATED)
            os.mkfifo(self._gate)
        self._workspace([*self.names, *(["gated"] if gated else [])])

    @property
    def path(self) -> str:
        """The PATH for turbo."""
        return f"{self.root / 'bin'}:/usr/bin:/bin"

    @property
    def local_cache(self) -> Path:
        """Where turbo keeps artifacts on this machine."""
        return self.root / (".turbo/cache" if self.release > 1 else "node_modules/.cache/turbo")

    def forget_local_results(self) -> None:
        """Remove what builds left behind here; what is in the remote cache stays."""
        for directory in (
            self.local_cache,
            self.root / ".turbo",
            *self.root.glob("packages/*/dist"),
            *self.root.glob("packages/*/.turbo"),
        ):
            shutil.rmtree(directory, ignore_errors=True)

    def open_gate(self) -> None:
        """Let the task that waits go on; nothing happens if there is none."""
        try:
            writer = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as problem:
            if problem.errno != errno.ENXIO:  # nobody reads
                raise
            return
        with contextlib.closing(os.fdopen(writer, "wb", buffering=0)) as gate:
            gate.write(b"\n")

    def outputs(self) -> dict[str, bytes]:
        """Return every file that the tasks have made, the logs that turbo keeps of them included."""
        patterns = ("packages/*/dist/*", "packages/*/.turbo/*")
        files = [path for pattern in patterns for path in self.root.glob(pattern)]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}

    def _package(self, name: str, needs: list[str], before: str = "") -> None:
        home = f"packages/{name}"
        (self.root / home).mkdir(parents=True)
        scripts, dependencies = {"build": "sh ./build"}, dict.fromkeys(needs, "1.0.0")
        self._write(
            f"{home}/package.json",
            {"name": name, "version": "1.0.0", "scripts": scripts, "dependencies": dependencies},
        )
        self._write(f"{home}/source", f"the source of {name}\n")
        self._write(f"{home}/build", before + _BUILD)

    def _workspace(self, names: list[str]) -> None:
        manifest = {"name": "monorepo", "private": True, "workspaces": ["packages/*"]}
        packages: dict[str, object] = {"": {"name": "monorepo", "workspaces": ["packages/*"]}}
        for name in names:
            packages[f"packages/{name}"] = {"version": "1.0.0"}
            packages[f"node_modules/{name}"] = {"resolved": f"packages/{name}", "link": True}
        self._write("package.json", {**manifest, "packageManager": "npm@10.0.0"})
        self._write(
            "package-lock.json", {"name": "monorepo", "lockfileVersion": 3, "requires": True, "packages": packages}
        )

    def _write(self, name: str, content: object) -> Path:
        path = self.root / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")
        return path
