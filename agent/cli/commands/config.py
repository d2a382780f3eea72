"""`config`: what helps to write the configuration file."""

import click

from agent.cli.views.output import write


@click.group(short_help="Print a JSON Schema of the configuration file.")
def config() -> None:
    """Print what helps to write the configuration file. Nothing is changed or asked."""


@config.command(short_help="Print a JSON Schema of the configuration file.")
def schema() -> None:
    """Print a JSON Schema (draft 7) of the configuration file, for editors.

    Write it to a file beside the configuration, and name it in the configuration's first line: editors that use taplo, such as
    VS Code with Even Better TOML, then complete keys and mark what is wrong.

    \b
        #:schema ./artifacts-agent.schema.json

    `check` sees more: how keys go together, and whether files, sockets and the token are in order.
    """
    import json

    from agent.config.file_schema import file_schema

    write(json.dumps(file_schema(), indent=2))
