"""The demo: the real daemon on temporary sockets, an API that misbehaves on cue, and builds that replay a recording.

    run_demo          the one thing that others call
    ├── script        what is shown, in its order: read this first
    ├── stage         the running parts, and the ways to wait for them and to show them
    ├── agent_process the daemon as a process, seen from outside: its files, its control socket, its end
    ├── build         a build as a process: `python -m agent.demo.build`
    ├── api           the API's server
    ├── recording     what the builds replay
    ├── report        what is proved at the end
    └── view          a terminal's panel, or plain lines

It imports nothing here, because every build is a process that passes through this module.
"""


def run_demo(*, fast: bool = False) -> int:
    """Show the agent at work, on standard output; return the exit code.

    It is 0 if the ledger is exact and the API has every event but the poisoned one, 1 if not, and 128 + the signal's number
    if SIGINT (Ctrl-C: 130), SIGTERM or SIGHUP ended it. Whatever happens, its processes are ended and its temporary directory
    is removed; it touches nothing else.

    `fast` leaves out the pauses for a reader; where standard output is no terminal, they are left out in any case.
    """
    from agent.demo import run

    return run.run(fast=fast)
