"""`hook`: the ready-made scripts that flush the agent at the end of a CI job."""

import click

from agent.cli.views.output import write
from agent.cli.views.words import PROGRAM

INSTALLED = f"/usr/local/bin/{PROGRAM}"
"""Where the scripts' rules for sudo have the command, which is not where every installation has it."""

FILES = {"github": "github.sh", "gitlab": "gitlab.sh", "buildkite": "buildkite.sh", "kubernetes": "kubernetes.yaml"}


@click.command(short_help="Print a script that flushes at the end of a CI job.")
@click.argument("system", type=click.Choice([*FILES]))
def hook(system: str) -> None:
    """Print a script that makes a CI system wait, at the end of a job, until its events have been delivered.

    \b
    github      a self-hosted runner's job-completed hook
    gitlab      a script for after_script, or a runner's post_build_script
    buildkite   an agent's pre-exit hook
    kubernetes  a preStop hook, as part of a pod's spec

    Each begins with how to install it. None of them changes a job's result: the exit code is always 0.
    """
    import re
    import shutil
    from importlib.resources import files

    found = shutil.which(PROGRAM) or INSTALLED
    where = found if re.fullmatch(r"/[\w./-]+", found) else INSTALLED  # anything else would mean something to sudo
    script = files("agent").joinpath("hooks", FILES[system]).read_text(encoding="utf-8")
    write(script.replace(INSTALLED, where))
