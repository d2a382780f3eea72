"""What crashes, rots and fails at every call runs thousands of times here: to trace its lines as well would double the CPU.

The unit tests cover those lines, and the gate on the pure modules holds them to it.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage in the tests of this directory."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("no_cover")
