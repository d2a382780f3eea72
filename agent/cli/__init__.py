"""The command line: arguments, output and exit codes."""

from agent.cli.main import main

__all__ = ["main"]
