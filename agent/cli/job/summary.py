"""What the cache did for a job, where the job's people look: its log, and what its CI system shows beside that.

Nothing of it changes the job's result, and nothing is waited for longer than WAIT_SECONDS.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping

from agent.cli.views.job import job_line, job_summary, job_table
from agent.cli.views.output import complain, show_section
from agent.usage.counting import Totals

SUMMARY = "GITHUB_STEP_SUMMARY"
WAIT_SECONDS = 0.05
"""For Buildkite's agent to take the text; it then goes on by itself."""


def report(usage: Totals, environ: Mapping[str, str], trouble: str | None = None) -> None:
    """Say it in a line on standard error, with the job's trouble, and where the CI system shows it that this is.

    Raises OSError if nobody reads it.
    """
    line = job_line(usage) if trouble is None else f"{job_line(usage)}; {' '.join(trouble.split())}"
    if environ.get("GITLAB_CI"):
        show_section("artifacts_agent", line, job_table(usage), int(time.time()))
    else:
        complain(line)
    if summary := environ.get(SUMMARY):
        _append(summary, job_summary(usage))
    if environ.get("BUILDKITE") and (program := shutil.which("buildkite-agent", path=environ.get("PATH"))):
        _annotate(program, job_summary(usage), environ)


def _append(path: str, text: str) -> None:
    try:
        # O_NONBLOCK: what is no file must not hold the job up.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666), "ab") as file:
            file.write(text.encode())
    except OSError as error:
        complain(f"{SUMMARY}: {error.strerror}")


def _annotate(program: str, text: str, environ: Mapping[str, str]) -> None:
    """Have Buildkite's agent show a text above the build. It asks the network, and may outlive this process."""
    command = [
        program,
        "annotate",
        "--style",
        "info",
        "--context",
        f"artifacts-agent-{environ.get('BUILDKITE_JOB_ID', '')}",
    ]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        complain(f"buildkite-agent: {error.strerror}")
        return
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(text.encode())  # less than a pipe holds
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(WAIT_SECONDS)
