"""`hook`: the ready-made scripts that flush the agent at the end of a CI job."""

import click

from agent.cli.views.output import write

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
    from importlib.resources import files

    write(files("agent").joinpath("hooks", FILES[system]).read_text(encoding="utf-8"))
