"""Which CI system this is, told from the environment, by turbo's rules and names."""

from __future__ import annotations

import os

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


def detect_ci(environ: Mapping[str, str]) -> str | None:
    """Return turbo's name of the CI system that an environment shows, or None."""
    return next((name for name, rule in CI_VENDORS if _matches(rule, environ)), None)


def detect_interactive(environ: Mapping[str, str], ci: str | None) -> Literal[0, 1]:
    """Return 1 if standard output is a terminal and neither `ci` nor the environment speaks of a CI system, else 0."""
    return 1 if ci is None and not _matches(_ANY_CI, environ) and os.isatty(1) else 0


def _matches(rule: str, environ: Mapping[str, str]) -> bool:
    return any(all(_holds(term, environ) for term in terms.split("+")) for terms in rule.split("|"))


def _holds(term: str, environ: Mapping[str, str]) -> bool:
    name, _, wanted = term.partition("==")
    value = environ.get(name)
    return value == wanted if wanted else bool(value)
