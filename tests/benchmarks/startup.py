"""What a build waits for: the commands as processes, `exec` alone and many at once, and the daemon's cold start.

    python -m tests.benchmarks.startup [--events 50] [--rounds 10] [--json FILE]

All of it is held against `python -c pass` in the same round: the least that a program in Python takes. `--events` is how many
`exec` start at once, without an agent: "ms" is then what the last of their commands has waited. CPU is that of the process and
of all that it has waited for.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink
from tests.support.command import COMMAND, environment
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.waiting import eventually

BASELINE = "python -c pass"
NOTHING = (sys.executable, "-c", "pass")
FRONT: Sections = {"http": {"listen": "127.0.0.1:0"}, "front": {"enabled": True}}
NULL = subprocess.DEVNULL
SAY = "import time; open({!r}, 'w').write(str(time.monotonic()))"
EVENT = ("--event", "HIT", "--source", "REMOTE", "--hash", "115c7929ab9c479c")


def run(size: Size) -> Report:
    """Measure each command in turn with a process that does nothing."""
    samples: list[Sample] = []
    with size.fresh() as directory, sink() as api:
        daemon = agent_daemon(directory / "a", api.url)
        with_front = Daemon(directory / "f", api.url, FRONT)
        job = {
            "STATE_DIRECTORY": str(directory / "state"),
            "RUNTIME_DIRECTORY": str(directory),
            "XDG_RUNTIME_DIR": str(directory),
            "TURBO_TOKEN": TOKEN,
            "TURBO_API": api.url,
        }
        running = {**job, "ARTIFACTS_AGENT_CONFIG": str(with_front.config)}
        with with_front:
            emit = ["emit", "--socket", str(with_front.stream), *EVENT]
            for _ in range(size.rounds):
                samples += _pair("--version", ["--version"], {})
                samples += _pair("emit", emit, {})
                samples += _pair("exec, an agent runs", ["exec", "--", "true"], running)
                samples += _pair("exec, an agent of its own", ["exec", "--", "true"], job)
                samples += [_cold_start(daemon), Sample("daemon until ready", BASELINE, measured(NOTHING, {}))]
        for _ in range(size.rounds):
            samples += _at_once(size.events, directory, job)
    return Report("startup", samples, size.facts())


def _pair(case: str, args: Sequence[str], env: Mapping[str, str]) -> list[Sample]:
    return [
        Sample(case, AGENT, measured([*COMMAND, *args], env)),
        Sample(case, BASELINE, measured(NOTHING, env)),
    ]


def measured(command: Sequence[str], env: Mapping[str, str]) -> Mapping[str, float]:
    """Run a command to its end; return how long it took, and its CPU. Each may end only well."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment(env), stdin=NULL, stdout=NULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return {"ms": 1e3 * seconds, "CPU ms": 1e3 * (used.ru_utime + used.ru_stime)}


def _cold_start(daemon: Daemon) -> Sample:
    begin = time.perf_counter()
    with daemon:
        return Sample("daemon until ready", AGENT, {"ms": 1e3 * (time.perf_counter() - begin)})


def _at_once(count: int, directory: Path, job: Mapping[str, str]) -> list[Sample]:
    """Start so many `exec` at once, and so many processes that do nothing; how long each takes until its command runs."""
    figures = [_until_they_run(count, directory, job, before) for before in ((), (*COMMAND, "exec", "--"))]
    return [Sample("exec at once", subject, each) for subject, each in zip((BASELINE, AGENT), figures, strict=True)]


def _until_they_run(count: int, directory: Path, job: Mapping[str, str], before: Sequence[str]) -> Mapping[str, float]:
    started = {directory / f"started-{number}": 0.0 for number in range(count)}
    processes = []
    for file in started:
        command = [*before, sys.executable, "-c", SAY.format(str(file))]
        started[file] = time.monotonic()
        processes.append(subprocess.Popen(command, env=environment(job), stdin=NULL, stderr=NULL))
    for process in processes:
        assert process.wait() == 0
    eventually(
        lambda: [*directory.glob("artifacts-agent-*")], [].__eq__
    )  # agents that were not ready end by themselves
    times = [1e3 * (float(file.read_text()) - begin) for file, begin in started.items()]
    return {"median ms": statistics.median(times), "ms": max(times)}


BENCHMARK = Benchmark("startup", run, events=50, rounds=10)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
