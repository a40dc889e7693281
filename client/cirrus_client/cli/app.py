"""The `cirrus` command line: its verbs, one file each, and the options before the verb."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cirrus_client import __version__
from cirrus_client.cli.console import set_log_level
from cirrus_client.cli.failures import as_messages
from cirrus_client.cli.signals import raise_in_verb
from cirrus_client.cli.verbs import Verbs

PLUGINS = "cirrus.commands"
"""Entry points by which other packages add verbs; `cirrus_export` and `cirrus_bench` do."""

_OWN = ("embed", "index", "search", "suggest", "serve", "verify", "push", "pull", "doctor", "mcp")


class _Cirrus(TyperGroup):
    """Loads a verb when it is asked for, and ends every verb's expected errors in a message."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        own = [EntryPoint(name, f"cirrus_client.cli.{name}:{name}", PLUGINS) for name in _OWN]
        self.commands = Verbs([*own, *entry_points(group=PLUGINS)])

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        with as_messages(lambda: None):  # --help and --version print
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        resolved = super().resolve_command(ctx, args)
        raise_in_verb()
        return resolved

    def invoke(self, ctx: Any) -> Any:
        with as_messages(lambda: ctx.invoked_subcommand):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Cirrus,
    help="Composed image retrieval: from a trained checkpoint to an answered query.",
    no_args_is_help=True,
    context_settings={"auto_envvar_prefix": "CIRRUS"},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cirrus {__version__}")
        raise typer.Exit


@app.callback()
def _before_the_verb(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print debug messages, and tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and warnings only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    if verbose and quiet:
        raise typer.BadParameter("give one of them", param_hint="--verbose, --quiet")
    set_log_level(verbose=verbose, quiet=quiet)
