"""Sockets, processes and files, as in production: on asyncio alone. The unit and contract suites run on trio as well."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """What the daemon runs on."""
    return "asyncio", {"use_uvloop": True}
