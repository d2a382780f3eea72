"""Runs what a CI system would run of a component of ours: the steps of a composite action, a plugin's hooks, a job of a template.

As far as ours go: inputs and defaults, `env`, `working-directory` and the files of steps (GitHub's runner); one shell for each
hook, which sources it and hands its variables on, in the agent's order (Buildkite's agent); inputs and the two scripts of a shell
executor (GitLab). What a component uses beyond that is refused with a ValueError.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.support.waiting import HUNG_AFTER

# What each system's runner sets for a job, as far as somebody might look at it.
GITHUB = {"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_JOB": "build", "RUNNER_OS": "Linux", "RUNNER_NAME": "a"}
GITHUB |= {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "a/b"}
GITHUB |= {"GITHUB_RUN_ID": "42", "GITHUB_RUN_ATTEMPT": "1"}
GITLAB = {"CI": "true", "GITLAB_CI": "true", "CI_JOB_ID": "7", "CI_JOB_STATUS": "failed", "CI_RUNNER_ID": "1"}
GITLAB |= {"CI_JOB_NAME": "build: [é]", "CI_JOB_URL": "https://gitlab.com/-/jobs/7"}
BUILDKITE = {"CI": "true", "BUILDKITE": "true", "BUILDKITE_JOB_ID": "7", "BUILDKITE_COMMAND_EXIT_STATUS": "3"}
BUILDKITE |= {"BUILDKITE_BUILD_URL": "https://buildkite.com/a/b/builds/1"}

_HOOKS = (
    "environment",
    "pre-checkout",
    "checkout",
    "post-checkout",
    "pre-command",
    "command",
    "post-command",
    "pre-exit",
)
_OF_VENDORED = _HOOKS[3:]  # the others run before the repository that has the plugin is there
_FILES = ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STEP_SUMMARY")
_SHELLS = {"bash": ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"], "sh": ["sh", "-e"]}


class Done(NamedTuple):
    """What became of a job: the exit code of what failed first, all output in its order, and the job's summary, if any."""

    returncode: int
    output: str
    summary: str = ""


def run_action(directory: Path, action: Path, inputs: Mapping[str, str], env: Mapping[str, str]) -> Done:
    """Run the steps of a composite action in a workspace in `directory`, each as GitHub's runner does, up to one that fails."""
    described: dict[str, Any] = yaml.safe_load((action / "action.yml").read_text())
    values = {f"inputs.{name}": value for name, value in _with_defaults(described["inputs"], inputs).items()}
    values["github.action_path"] = str(action)
    if described["runs"]["using"] != "composite":
        raise ValueError("no composite action")
    (directory / "workspace").mkdir()
    variables = {**env, "RUNNER_TEMP": str(directory), "GITHUB_WORKSPACE": str(directory / "workspace")}
    output, summary = "", ""
    for number, step in enumerate(described["runs"]["steps"]):
        if unknown := step.keys() - {"name", "shell", "env", "working-directory", "run"}:
            raise ValueError(f"steps are run without {unknown}")
        files = {name: directory / f"{name}-{number}" for name in _FILES}
        for path in files.values():
            path.touch()
        script = directory / f"{number}.sh"
        script.write_text(_expressions(step["run"], values))
        own = {name: _expressions(value, values) for name, value in step.get("env", {}).items()}
        where = directory / "workspace" / _expressions(step.get("working-directory", "."), values)
        given = variables | {name: str(path) for name, path in files.items()} | own
        done = _run([*_SHELLS[step["shell"]], script], given, where)
        output, summary = output + done.stdout, summary + files["GITHUB_STEP_SUMMARY"].read_text()
        variables |= dict(line.split("=", 1) for line in files["GITHUB_ENV"].read_text().splitlines())
        for line in files["GITHUB_PATH"].read_text().splitlines():
            variables["PATH"] = f"{line}:{variables['PATH']}"
        if done.returncode:
            return Done(done.returncode, output, summary)
    return Done(0, output, summary)


def run_plugin(
    directory: Path, checkout: Path, location: str, command: str, env: Mapping[str, str], **options: str
) -> Done:
    """Run a step with a plugin that is vendored in its checkout, by the hooks that it has, each as Buildkite's agent does."""
    plugin = checkout / location
    described: dict[str, Any] = yaml.safe_load((plugin / "plugin.yml").read_text())
    if unknown := options.keys() - described["configuration"]["properties"].keys():
        raise ValueError(f"no such options: {unknown}")
    if not location.startswith("./"):
        raise ValueError("a plugin that is not vendored is the root of a repository")
    prefix = re.sub(r"[^A-Z0-9]+", "_", f"BUILDKITE_PLUGIN_{plugin.name}".upper())
    variables = {**env, "BUILDKITE_COMMAND": command, "BUILDKITE_BUILD_CHECKOUT_PATH": str(checkout)}
    variables |= {f"{prefix}_{name.upper().replace('-', '_')}": value for name, value in options.items()}
    output, failed = "", 0
    for name in _HOOKS:
        hook = plugin / "hooks" / name
        if hook.exists() and name not in _OF_VENDORED:
            raise ValueError(f"a vendored plugin has no {name} hook")
        if name == "command" and not hook.exists():
            raise ValueError("a plugin without a command hook leaves the command to the agent")
        if hook.exists() and (not failed or name in {"post-command", "pre-exit"}):
            done, variables = _source(directory, hook, variables, checkout)
            output, failed = output + done.stdout, failed or done.returncode
    return Done(failed, output)


def _source(
    directory: Path, hook: Path, variables: Mapping[str, str], checkout: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    wrapper = directory / f"wrapped-{hook.name}"
    after = directory / "variables"
    lines = [f". {shlex.quote(str(hook))}", "status=$?", f"env -0 > {shlex.quote(str(after))}", "exit $status"]
    wrapper.write_text("\n".join(lines) + "\n")
    done = _run(["/bin/bash", wrapper], variables, checkout)
    left = dict(each.split("=", 1) for each in after.read_text().split("\0") if each)
    return done, {name: value for name, value in left.items() if name not in {"_", "SHLVL", "OLDPWD", "PWD"}}


def run_template(directory: Path, template: Path, inputs: Mapping[str, str], env: Mapping[str, str]) -> Done:
    """Run the only job of an included template, with inputs, as GitLab's shell executor does."""
    (job,) = rendered(template, inputs).values()
    if unknown := job.keys() - {"stage", "before_script", "script", "after_script", "variables"}:
        raise ValueError(f"jobs are run without {unknown}")
    (directory / "project").mkdir()
    variables = {**env, "CI_PROJECT_DIR": str(directory / "project"), **job.get("variables", {})}
    scripts = [[*job.get("before_script", []), *job["script"]], job.get("after_script", [])]
    output, failed = "", 0
    for lines in scripts:
        text = "\n".join(["set -eo pipefail", "set +o noclobber", *lines])
        # With the feature flag FF_USE_NEW_BASH_EVAL_STRATEGY. Without it there are no parentheses, and any failure is a 1.
        script = f": | (eval {shlex.quote(text)})\nexit 0\n" if lines else "exit 0\n"
        done = _run(["bash", "-c", f"set -eo pipefail\n{script}"], variables, directory / "project")
        output, failed = output + done.stdout, failed or done.returncode
    return Done(failed, output)


def rendered(template: Path, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration of a template with these inputs."""
    header, body = yaml.safe_load_all(template.read_text())
    known = header["spec"]["inputs"]
    values = _with_defaults({name: {"required": "default" not in each, **each} for name, each in known.items()}, inputs)
    if unknown := {key for each in known.values() for key in each} - {"description", "default"}:
        raise ValueError(f"inputs are taken without {unknown}")

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {fill(key): fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(each) for each in node]
        return re.sub(r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: values[found[1]], node)

    filled: dict[str, Any] = fill(body)
    return filled


def _with_defaults(known: Mapping[str, Mapping[str, Any]], given: Mapping[str, str]) -> dict[str, str]:
    if unknown := given.keys() - known.keys():
        raise ValueError(f"no such inputs: {unknown}")
    if missing := [name for name, each in known.items() if each.get("required") and name not in given]:
        raise ValueError(f"missing inputs: {missing}")
    return {name: given.get(name, str(each.get("default", ""))) for name, each in known.items()}


def _expressions(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of expressions, of which there are names alone. KeyError for another one."""
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: values[found[1]], text)


def _run(command: list[str | Path], env: Mapping[str, str], where: Path) -> subprocess.CompletedProcess[str]:
    out = subprocess.PIPE
    return subprocess.run(
        command,
        env=env,
        cwd=where,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HUNG_AFTER,
    )
