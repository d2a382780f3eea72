"""What tests need of the machine. Under CI what is missing is a failure, elsewhere a skip that says how to get it.

The only place where tests are skipped, which tests.unit.tools.test_skips checks.
"""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def require_tool(name: str, package_hint: str) -> Path:
    """Return the program's path, or end the test; `package_hint` is a command or a package, fit for the message."""
    path = shutil.which(name)
    return Path(path) if path else missing(name, package_hint)


def require_root() -> None:
    """End the test unless root runs it."""
    if os.geteuid() != 0:
        unavailable("only root can do this; run the tests as root")


def missing(what: str, hint: str) -> NoReturn:
    """End the test because something is not installed."""
    unavailable(f"{what} is not installed; install it with: {hint}")


def unavailable(message: str) -> NoReturn:
    """End the test because the machine lacks something; the message says what, and how to get it."""
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
