"""Programs that tests need. Under CI a missing one is a failure, elsewhere a skip that says what to install."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def require_tool(name: str, package_hint: str) -> Path:
    """Return the program's path, or end the test; `package_hint` is a command or a package, fit for the message."""
    path = shutil.which(name)
    return Path(path) if path else missing(name, package_hint)


def missing(what: str, hint: str) -> NoReturn:
    """End the test because something is not installed."""
    message = f"{what} is not installed; install it with: {hint}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
