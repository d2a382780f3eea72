"""`completion`: the script with which a shell completes this command."""

import click

from agent.cli.views.output import write
from agent.cli.views.words import PROGRAM

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ARTIFACTS_AGENT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: artifacts-agent completion bash > ~/.local/share/bash-completion/completions/artifacts-agent
    zsh:  artifacts-agent completion zsh > ~/.zfunc/_artifacts-agent      (with ~/.zfunc in fpath)
    fish: artifacts-agent completion fish > ~/.config/fish/completions/artifacts-agent.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.BadParameter(f"there is no completion for {shell}")
    script = kind(ctx.find_root().command, {}, PROGRAM, VARIABLE)
    # Not script.source(): for bash that starts a bash, to find out its version.
    write(script.source_template % script.source_vars())
