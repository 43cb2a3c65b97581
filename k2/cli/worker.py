"""`k2 worker`: Faust's worker with K2's app, as `faust -A k2.app worker`; or a query worker."""

from __future__ import annotations

import os

import click

from k2 import settings as k2_settings
from k2.settings import ROLES

__all__ = ["worker"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-l", "--loglevel", default="info", show_default=True, help="Least level logged.")
@click.option("--role", type=click.Choice(ROLES), help="What it does; else K2_ROLE.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(loglevel: str, role: str | None, arguments: tuple[str, ...]) -> None:
    """Ingest and serve until SIGTERM; ARGUMENTS go to Faust's worker command.

    \b
    all     ingests, and answers queries
    ingest  ingests; answers health, metrics, and what other workers ask
    query   answers queries; asks the ingest workers of K2_PEERS for what is live
    """
    settings = k2_settings.load(role=role)
    if settings.role == "query":
        if arguments:
            raise click.UsageError(f"{' '.join(arguments)}: a query worker is none of Faust's")
        _answer(loglevel, settings)
        return
    os.environ["K2_ROLE"] = settings.role  # the app reads its settings when it is imported
    from faust.cli.faust import cli as faust_cli

    from k2.app import app
    from k2.keys import require_keys
    from k2.topics import check_topics

    require_keys(app.settings, app.settings.bind)
    check_topics(app.settings)  # says within seconds what is missing; Faust would try for ever
    faust_cli.main(["-A", "k2.app", "worker", "-l", loglevel, *arguments], prog_name="k2")


def _answer(loglevel: str, settings: k2_settings.Settings) -> None:
    from mode.utils.logging import setup_logging

    from k2.web.query import run

    setup_logging(loglevel=loglevel)  # as Faust's worker does
    run(settings)
