"""The demo: the real daemon on temporary sockets, an API that misbehaves on cue, and builds that replay a recording.

    run_demo              the `demo` command
    ├── run               start and end: signals, the temporary directory, the API's server, the exit code
    ├── scenario          what is shown, in its order: read this first
    ├── harness           the running parts, and the ways to wait for them and to show them
    ├── agent_process     the daemon as a process, seen from outside: its files, its control socket, its end
    ├── build, recording  a build as a process, and the events that it sends
    ├── api               the API's server
    ├── report            what is proved at the end
    ├── fleet             `demo --fleet`: another scenario, with its own parts
    └── view              a panel on a terminal, else plain lines
    devserver             the `devserver` command: the API's server alone, which shows what it receives

Nothing is imported here, because every build is a process that passes through this module.
"""


def run_demo(*, fast: bool = False, fleet: bool = False) -> int:
    """Show the agent at work, on standard output; return the exit code.

    It is 0 if the ledger is exact and the API has every event but the poisoned one, 1 if not, and 128 + the signal's number
    if SIGINT (Ctrl-C: 130), SIGTERM or SIGHUP ended it. Whatever happens, its processes are ended and its temporary directory
    is removed; it touches nothing else.

    `fast` leaves out the pauses for a reader; where standard output is no terminal, they are left out in any case. `fleet` shows
    a fleet in the place of one agent: 0 if its accounts are exact and the API has every event.
    """
    from agent.demo import run

    return run.run(fast=fast, fleet=fleet)
