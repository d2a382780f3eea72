"""`python -m agent.cli`: the same as the `artifacts-agent` command."""

import sys

from agent.cli import main

sys.exit(main())
