"""Which CI system this is, and which of its jobs, told from the environment: the system by turbo's rules and names."""

from __future__ import annotations

import os

from .lines import MAX_JOB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final, Literal

# Turbo's names for CI systems, in its order (crates/turborepo-ci/src/vendors.rs), and the variables that tell: A|B is
# any of them, A+B all of them, A==text a value. Empty counts as unset.
CI_VENDORS: Final = (
    ("APPCIRCLE", "AC_APPCIRCLE"),
    ("APPVEYOR", "APPVEYOR"),
    ("CODEBUILD", "CODEBUILD_BUILD_ARN"),
    ("AZURE_PIPELINES", "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI"),
    ("BAMBOO", "bamboo_planKey"),
    ("BITBUCKET", "BITBUCKET_COMMIT"),
    ("BITRISE", "BITRISE_IO"),
    ("BUDDY", "BUDDY_WORKSPACE_ID"),
    ("BUILDKITE", "BUILDKITE"),
    ("CIRCLE", "CIRCLECI"),
    ("CIRRUS", "CIRRUS_CI"),
    ("CODEFRESH", "CF_BUILD_ID"),
    ("CODEMAGIC", "CM_BUILD_ID"),
    ("CODESHIP", "CI_NAME==codeship"),
    ("DRONE", "DRONE"),
    ("DSARI", "DSARI"),
    ("EAS", "EAS_BUILD"),
    ("GITHUB_ACTIONS", "GITHUB_ACTIONS"),
    ("GITLAB", "GITLAB_CI"),
    ("GOCD", "GO_PIPELINE_LABEL"),
    ("GOOGLE_CLOUD_BUILD", "BUILDER_OUTPUT"),
    ("LAYERCI", "LAYERCI"),
    ("GERRIT", "GERRIT_PROJECT"),
    ("HUDSON", "HUDSON"),
    ("JENKINS", "JENKINS_URL+BUILD_ID"),
    ("MAGNUM", "MAGNUM"),
    ("NETLIFY", "NETLIFY"),
    ("NEVERCODE", "NEVERCODE"),
    ("RELEASEHUB", "RELEASE_BUILD_ID"),
    ("RENDER", "RENDER"),
    ("SAIL", "SAILCI"),
    ("SCREWDRIVER", "SCREWDRIVER"),
    ("SEMAPHORE", "SEMAPHORE"),
    ("SHIPPABLE", "SHIPPABLE"),
    ("SOLANO", "TDDIUM"),
    ("SOURCEHUT", "CI_NAME==sourcehut"),
    ("STRIDER", "STRIDER"),
    ("TASKCLUSTER", "TASK_ID|RUN_ID"),
    ("TEAMCITY", "TEAMCITY_VERSION"),
    ("TRAVIS", "TRAVIS"),
    ("VERCEL", "NOW_BUILDER|VERCEL"),
    ("APPCENTER", "APPCENTER"),
    ("WOODPECKER", "CI==woodpecker"),
    ("XCODE_CLOUD", "CI_XCODE_PROJECT"),
    ("XCODE_SERVER", "XCS"),
)

# What turbo takes for some CI system, whichever.
_ANY_CI: Final = "|".join(
    (
        *("BUILD_ID", "BUILD_NUMBER", "CI", "CI_APP_ID", "CI_BUILD_ID", "CI_BUILD_NUMBER"),
        *("CI_NAME", "CONTINUOUS_INTEGRATION", "RUN_ID", "TEAMCITY_VERSION"),
    )
)


JOB_VARIABLE: Final = "ARTIFACTS_AGENT_JOB"

# What a job is called in a CI system, and what no other job has: where there is one, its address. A pattern of which a
# variable is not set is passed over.
JOBS: Final = {
    "APPVEYOR": (
        "{APPVEYOR_JOB_NAME}",
        "{APPVEYOR_URL}/project/{APPVEYOR_ACCOUNT_NAME}/{APPVEYOR_PROJECT_SLUG}/builds/{APPVEYOR_BUILD_ID}/job/{APPVEYOR_JOB_ID}",
    ),
    "AZURE_PIPELINES": (
        "{SYSTEM_JOBDISPLAYNAME}",
        "{SYSTEM_TEAMFOUNDATIONCOLLECTIONURI}{SYSTEM_TEAMPROJECT}/_build/results?buildId={BUILD_BUILDID}&j={SYSTEM_JOBID}",
    ),
    "BITBUCKET": (
        "{BITBUCKET_REPO_FULL_NAME}",
        "{BITBUCKET_GIT_HTTP_ORIGIN}/pipelines/results/{BITBUCKET_BUILD_NUMBER}/steps/{BITBUCKET_STEP_UUID}",
    ),
    "BITRISE": ("{BITRISE_TRIGGERED_WORKFLOW_ID}", "{BITRISE_BUILD_URL}"),
    "BUILDKITE": ("{BUILDKITE_LABEL}", "{BUILDKITE_BUILD_URL}#{BUILDKITE_JOB_ID}"),
    "CIRCLE": ("{CIRCLE_JOB}", "{CIRCLE_BUILD_URL}"),
    "CIRRUS": ("{CIRRUS_TASK_NAME}", "https://cirrus-ci.com/task/{CIRRUS_TASK_ID}"),
    "CODEBUILD": ("", "{CODEBUILD_BUILD_ID}"),
    "CODEFRESH": ("{CF_STEP_NAME}", "{CF_BUILD_URL}"),
    "DRONE": ("{DRONE_STAGE_NAME}", "{DRONE_BUILD_LINK}/{DRONE_STAGE_NUMBER}"),
    # The jobs of a matrix differ in nothing but who runs them.
    "GITHUB_ACTIONS": (
        "{GITHUB_JOB} on {RUNNER_NAME}",
        "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}/attempts/{GITHUB_RUN_ATTEMPT}",
    ),
    "GITLAB": ("{CI_JOB_NAME}", "{CI_JOB_URL}"),
    "HUDSON": ("{JOB_NAME}", "{BUILD_URL}"),
    "JENKINS": ("{JOB_NAME}", "{BUILD_URL}"),
    "SEMAPHORE": ("{SEMAPHORE_JOB_NAME}", "{SEMAPHORE_ORGANIZATION_URL}/jobs/{SEMAPHORE_JOB_ID}"),
    "TEAMCITY": ("{TEAMCITY_BUILDCONF_NAME}", "{BUILD_URL}"),
    "TRAVIS": ("{TRAVIS_JOB_NAME}", "{TRAVIS_JOB_WEB_URL}"),
    "WOODPECKER": ("{CI_WORKFLOW_NAME}", "{CI_PIPELINE_URL}#{CI_WORKFLOW_NUMBER}"),
}


def detect_ci(environ: Mapping[str, str]) -> str | None:
    """Return turbo's name of the CI system that an environment shows, or None."""
    return next((name for name, rule in CI_VENDORS if _matches(rule, environ)), None)


def detect_interactive(environ: Mapping[str, str], ci: str | None) -> Literal[0, 1]:
    """Return 1 if standard output is a terminal and neither `ci` nor the environment speaks of a CI system, else 0."""
    return 1 if ci is None and not _matches(_ANY_CI, environ) and os.isatty(1) else 0


def detect_job(environ: Mapping[str, str]) -> str | None:
    """Return a label for the job that an environment shows, at most MAX_JOB printable ASCII characters; None if it shows none.

    It is ARTIFACTS_AGENT_JOB, which may be empty for none, or else the job's name and address in its CI system.
    """
    given = environ.get(JOB_VARIABLE)
    if given is not None:
        return to_label(given)
    name, address = (_fill(pattern, environ) for pattern in JOBS.get(detect_ci(environ) or "", ("", "")))
    if not address:
        return None
    return to_label(f"{name[: max(MAX_JOB - len(address) - 1, 0)]} {address}")


def to_label(text: str) -> str | None:
    """Return a text as a label, of MAX_JOB characters at most: what is not printable ASCII, or JSON escapes, is replaced.

    So a shell script can write the value of ARTIFACTS_AGENT_JOB into a line as it is.
    """
    plain = text[: 2 * MAX_JOB].replace('"', "'").replace("\\", "/")
    printable = "".join(each if " " <= each <= "~" else "?" for each in plain)
    return printable.strip()[:MAX_JOB].strip() or None


def _fill(pattern: str, environ: Mapping[str, str]) -> str:
    try:
        return pattern.format_map({name: value for name, value in environ.items() if value})
    except KeyError:
        return ""


def _matches(rule: str, environ: Mapping[str, str]) -> bool:
    return any(all(_holds(term, environ) for term in terms.split("+")) for terms in rule.split("|"))


def _holds(term: str, environ: Mapping[str, str]) -> bool:
    name, _, wanted = term.partition("==")
    value = environ.get(name)
    return value == wanted if wanted else bool(value)
