"""`k2 worker`: Faust's worker with K2's app; the same as `faust -A k2.app worker -l info`."""

from __future__ import annotations

import click

__all__ = ["worker"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-l", "--loglevel", default="info", show_default=True, help="Least level logged.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(loglevel: str, arguments: tuple[str, ...]) -> None:
    """Ingest and serve until SIGTERM; ARGUMENTS go to Faust's worker command."""
    from faust.cli.faust import cli as faust_cli

    from k2.app import app
    from k2.keys import require_keys
    from k2.topics import check_topics

    require_keys(app.settings, app.settings.bind)
    check_topics(app.settings)  # says within seconds what is missing; Faust would try for ever
    faust_cli.main(["-A", "k2.app", "worker", "-l", loglevel, *arguments], prog_name="k2")
