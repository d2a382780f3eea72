"""`monitoring`: what is ready to use with Prometheus and Grafana."""

from pathlib import Path

import click

from agent.cli.options import config_option, find_config
from agent.cli.views.output import write

ADDRESS = "127.0.0.1:9902"


@click.group(short_help="Print alerts, a dashboard or a scrape configuration.")
def monitoring() -> None:
    """Print what is ready to use with Prometheus and Grafana. Nothing is changed or asked."""


@monitoring.command(short_help="Print Prometheus rules.")
def alerts() -> None:
    """Print alerting and recording rules for Prometheus."""
    write(_file("alerts.yml"))


@monitoring.command(short_help="Print a Grafana dashboard.")
def dashboard() -> None:
    """Print a dashboard, as JSON, for Grafana's import."""
    from agent.monitoring.dashboard import render

    write(render())


@monitoring.command(short_help="Print a scrape configuration.")
@config_option
def scrape(path: Path | None) -> None:
    """Print a scrape configuration for Prometheus, with the address of metrics.listen."""
    import os

    from agent import config

    listen = config.load(find_config(path), os.environ).metrics.listen
    write(_file("scrape.yml").replace("@ADDRESS@", ADDRESS if listen is None or listen.endswith(":0") else listen))


def _file(name: str) -> str:
    from importlib.resources import files

    return files("agent").joinpath("monitoring", name).read_text(encoding="utf-8")
