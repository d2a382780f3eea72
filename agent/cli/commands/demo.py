"""`demo`: the whole agent at work, on temporary sockets."""

import click


@click.command()
@click.option("--fast", is_flag=True, help="Do not stop for people to read.")
def demo(fast: bool) -> int:
    """Show the agent at work: queue, trouble, recovery, ledger.

    It starts the real daemon against a small server that is built in, sends it recorded events from several processes,
    makes trouble and ends with the ledger. It needs no account and touches nothing but a temporary directory.
    """
    from agent.demo import run_demo

    return run_demo(fast=fast)
