"""Whether the tests may take as long as a night: the one place that says so, and the variable NIGHTLY that tells it."""

import os

NIGHTLY = bool(os.environ.get("NIGHTLY"))
