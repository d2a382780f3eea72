"""`demo`: the whole agent at work, on temporary sockets."""

import click


@click.command()
@click.option("--fast", is_flag=True, help="Do not pause for the reader.")
def demo(fast: bool) -> int:
    """Show the agent at work: queue, trouble, recovery, ledger.

    It starts the real daemon and a small server of the API, sends recorded events from several processes, lets the server
    fail, kills the daemon, and ends with the ledger. It needs no account, and writes only to a temporary directory.

    To try your own build tool against such a server: `devserver`.
    """
    from agent.demo import run_demo

    return run_demo(fast=fast)
