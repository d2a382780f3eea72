"""Debian's Chromium, driven by playwright-core, with axe-core to judge what it shows. Both come from npm."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.tools import missing, require_tool
from tests.support.waiting import HUNG_AFTER

_HOME = Path(__file__).parents[1] / "npm"


def look_at(views: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Show pages, and return what was found on each: see tests/npm/look_at_pages.mjs."""
    node = require_tool("node", "apt-get install nodejs npm")
    chromium = require_tool("chromium", "apt-get install chromium")
    if not all((_HOME / "node_modules" / name).exists() for name in ("playwright-core", "axe-core")):
        missing("playwright-core or axe-core", "npm install --prefix tests/npm")
    done = subprocess.run(
        [node, _HOME / "look_at_pages.mjs", chromium],
        input=json.dumps(views),
        text=True,
        capture_output=True,
        timeout=HUNG_AFTER,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
