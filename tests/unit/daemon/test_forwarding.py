"""What a daemon needs to forward, and that one that does not forward needs and loads nothing of it."""

import subprocess
import sys

import pytest

_WITHOUT = "import sys; sys.modules[sys.argv[1]] = None\n"


def run(code: str, *args: str) -> str:
    """Run it in a process of its own, as what is imported stays; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("module", ["nats", "nacl"])
def test_without_the_engines_client_it_is_said_what_to_install(module: str) -> None:
    code = (
        _WITHOUT
        + "from agent.errors import ConfigError\ntry:\n import agent.daemon.forwarding\nexcept ConfigError as error: print(error)"
    )
    assert run(code, module) == (
        f"forward.servers: needs {module}, which is not installed: "
        "pip install '.[fleet]' in a checkout installs the agent with it\n"
    )


def test_who_forwards_everything_loads_no_client_of_the_api() -> None:
    code = (
        "import sys, agent.daemon.app, agent.daemon.forwarding, agent.cli.main; print({'httpx'} & sys.modules.keys())"
    )
    assert run(code) == "set()\n"


def test_nothing_of_it_is_loaded_where_nothing_is_forwarded() -> None:
    code = "import sys, agent.daemon.app, agent.control.metrics, agent.cli.main; print({'nats', 'nacl'} & sys.modules.keys())"
    assert run(code) == "set()\n"
