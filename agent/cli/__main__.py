"""`python -m agent.cli`: the same as the `artifacts-agent` command."""

from agent.cli.main import main

main()
