"""`k2 up`: the whole stack on this machine. `k2 init`: what must exist before a worker runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from k2 import settings as k2_settings
from k2.dev import stack as dev_stack
from k2.dev.stack import Stack

__all__ = ["init", "running", "up"]

DATA = click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Data folder.")


@click.command()
@DATA
@click.option("--port", type=int, help="Port of the first worker's web views.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option(
    "--query",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Query workers, on the first ports; the others then only ingest.",
)
def up(data: Path | None, port: int | None, workers: int, query: int) -> None:
    """Start a broker (unless K2_BROKER is set) and workers; Ctrl-C stops them gracefully."""
    stack = Stack(k2_settings.load(data=data, port=port), workers, query=query)
    with running(stack):
        views = stack.views[:query] or stack.views
        click.echo(_banner(stack.settings.broker, views, stack.settings.data), err=True)
        stack.supervise()


@contextmanager
def running(stack: Stack) -> Iterator[None]:
    """Start the stack; at the end, which Ctrl-C or SIGTERM may ask for, stop it gracefully.

    Raises:
        KeyboardInterrupt: interrupted while it started.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    started = False
    try:
        stack.start()
        started = True
        yield
    except KeyboardInterrupt:
        click.echo("k2: stopping", err=True)
        if not started:
            raise  # there is nothing to return to
    finally:
        # A second Ctrl-C must not cut the last commit short; the stop has its own deadline.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stack.stop()


@click.command()
@DATA
def init(data: Path | None) -> None:
    """Create the topics, Iceberg tables and schemas that do not exist; safe to repeat."""
    settings = k2_settings.load(data=data)
    created = dev_stack.init(settings)
    click.echo(f"k2: topics created: {', '.join(created) or 'none, all exist'}", err=True)
    click.echo(f"k2: Iceberg tables and schemas are in {settings.data}", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _banner(broker: str, views: list[str], data: Path) -> str:
    lines = [f"k2 is up. Broker {broker} (K2_BROKER), data in {data} (K2_DATA). Web views:"]
    return "\n".join([*lines, *(f"  {url}" for url in views), "Ctrl-C stops."])
