"""The GitHub action, the Buildkite plugin and the GitLab template, each run as its system does: a build, and its result."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import validators

from tests.support.accounts import received
from tests.support.api_server import ApiServer
from tests.support.ci_systems import BUILDKITE, GITHUB, GITLAB, Done, rendered, run_action, run_plugin, run_template
from tests.support.command import environment
from tests.support.daemon import TOKEN
from tests.support.documents import ROOT, blocks, read, section
from tests.support.tools import require_tool

ACTION = ROOT / ".github/actions/artifacts-agent"
PLUGIN = "./.buildkite/plugins/artifacts-agent"
TEMPLATE = ROOT / ".gitlab/artifacts-agent.yml"
SCRIPTS = sysconfig.get_path("scripts")
EMIT = "artifacts-agent emit --strict --event HIT --source REMOTE --duration 7000 --hash"
OPTIONS = "--deadline 20s --start-deadline 60s"  # the machine may be busy
USAGE = "cache: 1 of 1 task (100 %), 7s of task time saved"

Component = Callable[[Path, str, Mapping[str, str]], Done]


def github(directory: Path, build: str, env: Mapping[str, str]) -> Done:
    """As a step that uses the action."""
    return run_action(directory, ACTION, {"run": build, "options": OPTIONS}, {**GITHUB, **env})


def buildkite(directory: Path, build: str, env: Mapping[str, str]) -> Done:
    """As a step with the plugin, which its repository has."""
    shutil.copytree(ROOT / PLUGIN, directory / "checkout" / PLUGIN)
    return run_plugin(directory, directory / "checkout", PLUGIN, build, {**BUILDKITE, **env}, options=OPTIONS)


def gitlab(directory: Path, build: str, env: Mapping[str, str]) -> Done:
    """As a job whose template a pipeline includes."""
    script = directory / "build.sh"
    script.write_text(build)
    inputs = {"command": f"bash -e {script}", "options": OPTIONS}
    return run_template(directory, TEMPLATE, inputs, {**GITLAB, **env})


COMPONENTS = [github, buildkite, gitlab]
LABELS = [
    "build on a https://github.com/a/b/",
    "https://buildkite.com/a/b/builds/1#7\n",
    "https://gitlab.com/-/jobs/7\n",
]


@pytest.fixture
def env(tmp_path: Path, api_server: ApiServer) -> Iterator[dict[str, str]]:
    """What the job of a build has that uses turbo, on a machine where the agent is installed and none runs."""
    config = tmp_path / "config.toml"
    config.write_text(f'[listen]\ncontrol = "{tmp_path / "c"}"\nstream = "{tmp_path / "s"}"\ndatagram = ""\n')
    variables = {"ARTIFACTS_AGENT_CONFIG": str(config), "STATE_DIRECTORY": str(tmp_path / "state")}
    variables |= {"TURBO_API": api_server.url, "TURBO_TOKEN": TOKEN, "PATH": f"{SCRIPTS}:/usr/bin:/bin"}
    yield environment(variables)
    assert api_server.violations == []


def delivered(api: ApiServer) -> list[str]:
    return [json.loads(event)["hash"] for event in received(api.accepted()).elements()]


def without_agent(env: Mapping[str, str], tools: Path) -> dict[str, str]:
    """Return the environment of a machine that has no agent, and no Python to install one with."""
    tools.mkdir()
    for name in ("bash", "sh", "env", "touch", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or name)
    return {**env, "PATH": str(tools)}


@pytest.mark.parametrize(("component", "label"), [*zip(COMPONENTS, LABELS, strict=True)])
def test_what_a_build_sends_is_delivered_and_the_cache_is_spoken_of(
    component: Component, label: str, tmp_path: Path, env: dict[str, str], api_server: ApiServer
) -> None:
    done = component(tmp_path, f'{EMIT} a\necho "job: $ARTIFACTS_AGENT_JOB"', env)
    assert done.returncode == 0, done.output
    assert delivered(api_server) == ["a"]
    assert USAGE in done.output
    assert label in done.output
    if component is github:
        assert done.summary.startswith(f"**{USAGE}**")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_build_that_fails_fails_in_its_own_way(
    component: Component, tmp_path: Path, env: dict[str, str], api_server: ApiServer
) -> None:
    done = component(tmp_path, f'{EMIT} a; echo "it\'s"; exit 3; echo on', env)
    assert done.returncode == 3, done.output
    assert "it's\n" in done.output
    assert "\non\n" not in done.output
    assert delivered(api_server) == ["a"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_build_runs_without_the_agent_where_there_is_none(
    component: Component, tmp_path: Path, env: dict[str, str]
) -> None:
    done = component(tmp_path, "echo built; exit 3", without_agent(env, tmp_path / "tools"))
    assert (done.returncode, "built\n" in done.output) == (3, True), done.output
    assert "not installed" in done.output


def test_the_action_installs_the_agent_from_its_own_checkout(
    tmp_path: Path, env: dict[str, str], api_server: ApiServer
) -> None:
    """With a pip that asks nobody: what it would fetch is here already."""
    bare = without_agent(env, tmp_path / "tools")
    (tmp_path / "tools/python3").symlink_to(sys.executable)
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # which means --no-build-isolation
    done = github(tmp_path, f"{EMIT} a", {**bare, **pip, "PYTHONPATH": sysconfig.get_path("purelib")})
    assert done.returncode == 0, done.output
    assert (tmp_path / "artifacts-agent/bin/artifacts-agent").exists()
    assert delivered(api_server) == ["a"]


def test_the_template_installs_the_package_that_it_is_given(
    tmp_path: Path, env: dict[str, str], api_server: ApiServer
) -> None:
    """With a Python that makes an environment whose pip has but one package."""
    bare = without_agent(env, tmp_path / "tools")
    (tmp_path / "tools/ln").symlink_to("/bin/ln")
    pip = f'#!/bin/sh\n[ "$*" = "install --quiet https://a.example/a.whl" ] && ln -s {SCRIPTS}/artifacts-agent "${{0%/*}}"\n'
    (tmp_path / "pip").write_text(pip)
    python = f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] && mkdir -p "$3/bin" && ln -s {tmp_path}/pip "$3/bin/pip"\n'
    (tmp_path / "tools/python3").write_text(python)
    for program in (tmp_path / "pip", tmp_path / "tools/python3"):
        program.chmod(0o755)
    inputs = {"command": f"{EMIT} a", "options": OPTIONS, "package": "https://a.example/a.whl"}
    done = run_template(tmp_path, TEMPLATE, inputs, {**GITLAB, **bare})
    assert done.returncode == 0, done.output
    assert delivered(api_server) == ["a"]


def test_a_part_of_this_repository_is_the_plugins_own(tmp_path: Path) -> None:
    """Buildkite wants a plugin at the root of a repository: what the page says makes one."""
    require_tool("git", "apt-get install git")
    text = section(read("systemd/README.md"), "In the description of a build")
    (command,) = [line for block in blocks(text, "sh") for line in block.splitlines() if "subtree" in line]
    prefix = command.partition("--prefix=")[2].split()[0]
    assert f"./{prefix}" == PLUGIN
    assert sorted(each.name for each in (ROOT / prefix).iterdir()) == ["hooks", "plugin.yml"]
    assert os.access(ROOT / prefix / "hooks/command", os.X_OK)


# --- what they are written in ------------------------------------------------------------------------------------


def faults(schema: str, document: object) -> list[str]:
    """Return what the CI system's own schema finds wrong."""
    described = get_builtin_schema(schema)
    return [error.message for error in validators.validator_for(described)(described).iter_errors(document)]


def test_they_are_what_the_systems_schemas_say() -> None:
    assert faults("vendor.github-actions", yaml.safe_load((ACTION / "action.yml").read_text())) == []
    assert faults("vendor.gitlab-ci", rendered(TEMPLATE, {"command": "make"})) == []
    assert faults("vendor.gitlab-ci", next(yaml.safe_load_all(TEMPLATE.read_text()))) == []
    assert faults("vendor.github-actions", {"name": "a", "runs": {"using": "composite", "steps": [{"run": "a"}]}})
    assert faults("vendor.gitlab-ci", {"job": {"script": {"a": 1}}})


@pytest.mark.parametrize(
    ("language", "schema"),
    [("github", "vendor.github-workflows"), ("gitlab", "vendor.gitlab-ci"), ("buildkite", "vendor.buildkite")],
)
def test_the_examples_on_the_page_are_what_the_systems_schemas_say_and_name_inputs_that_there_are(
    language: str, schema: str
) -> None:
    for_system = {"github": ".github/actions", "gitlab": "include:", "buildkite": PLUGIN}[language]
    text = section(read("systemd/README.md"), "In the description of a build")
    (example,) = [block for block in blocks(text, "yaml") if for_system in block]
    document = yaml.safe_load(example.replace("\non:", '\n"on":'))  # which is true in YAML 1.1
    assert faults(schema, document) == []
    match language:
        case "github":
            (step,) = [step for step in document["jobs"]["build"]["steps"] if for_system in step["uses"]]
            known = yaml.safe_load((ACTION / "action.yml").read_text())["inputs"]
            assert step["with"].keys() <= known.keys()
        case "gitlab":
            (include,) = document["include"]
            assert rendered(TEMPLATE, include["inputs"])
            assert include["file"] == f"/{TEMPLATE.relative_to(ROOT)}"
        case _:
            ((plugin, options),) = document["steps"][0]["plugins"][0].items()
            known = yaml.safe_load((ROOT / PLUGIN / "plugin.yml").read_text())["configuration"]["properties"]
            assert plugin == PLUGIN
            assert options.keys() <= known.keys()


def test_their_scripts_are_free_of_shellcheck_warnings(tmp_path: Path) -> None:
    shellcheck = require_tool("shellcheck", "apt-get install shellcheck")
    steps = yaml.safe_load((ACTION / "action.yml").read_text())["runs"]["steps"]
    (job,) = rendered(TEMPLATE, {"command": "make"}).values()
    scripts = [step["run"] for step in steps] + ["\n".join([*job["before_script"], *job["script"]])]
    scripts.append((ROOT / PLUGIN / "hooks/command").read_text())
    for number, script in enumerate(scripts):
        path = tmp_path / f"{number}.sh"
        path.write_text(script)
        done = subprocess.run([shellcheck, "--shell=bash", path], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
