"""The command `k2`. Tables for people, `--json` and `--csv` for pipes, messages on stderr."""

from __future__ import annotations

import importlib
from typing import Any

import click

from k2 import __version__
from k2.errors import K2Error

__all__ = ["cli", "main"]

#: Command: where it stands. Imported when used, so that `k2 --help` is quick.
COMMANDS = {
    "bars": "k2.cli.query:bars",
    "demo": "k2.cli.demo:demo",
    "gaps": "k2.cli.gaps:gaps",
    "init": "k2.cli.stack:init",
    "instruments": "k2.cli.instruments:instruments",
    "keys": "k2.cli.keys:keys",
    "load": "k2.cli.feeds:load",
    "offsets": "k2.cli.offsets:offsets",
    "quotes": "k2.cli.query:quotes",
    "rejects": "k2.cli.rejects:rejects",
    "replay": "k2.cli.replay:replay",
    "resume": "k2.cli.resume:resume",
    "silence": "k2.cli.silence:silence",
    "snapshots": "k2.cli.snapshots:snapshots",
    "simulate": "k2.cli.feeds:simulate",
    "sql": "k2.cli.sql:sql",
    "state": "k2.cli.state:state",
    "status": "k2.cli.query:status",
    "symbol": "k2.cli.symbol:symbol",
    "trades": "k2.cli.query:trades",
    "up": "k2.cli.stack:up",
    "verify": "k2.cli.verify:verify",
    "worker": "k2.cli.worker:worker",
}


INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Commands(click.Group):
    """A group that imports a command when it is used.

    An error of K2's own is one line on stderr and exit code 2; Ctrl-C is quiet.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except K2Error as exc:
            click.echo(f"k2: {exc}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="k2")
def cli() -> None:
    """K2: market data from Kafka into Apache Iceberg, exactly once, and out by query.

    Settings come from K2_* variables, for example K2_BROKER, K2_DATA, K2_PORT.
    """


def main() -> None:
    """Run a command."""
    cli()
