"""`k2 instruments`: what is known of what is traded, straight from the topic."""

from __future__ import annotations

from contextlib import closing

import click

from k2.changelog import Changelog
from k2.cli.output import form_of, note, write
from k2.codec import InstrumentReader
from k2.codec.instruments import table_of
from k2.errors import FeedError
from k2.query.rows import Rows, Stop
from k2.registry import open_registry
from k2.schemas import INSTRUMENTS
from k2.settings import load
from k2.topics import INSTRUMENTS_TOPIC, require_instruments

__all__ = ["instruments"]


@click.group(invoke_without_command=True)
@click.option("--exchange", metavar="E", help="Of this exchange only, such as ASX.")
@click.option("--symbol", "symbols", metavar="S", multiple=True, help="Of this symbol; repeatable.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Rows at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a header.")
@click.pass_context
def instruments(
    context: click.Context,
    exchange: str | None,
    symbols: tuple[str, ...],
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show the instruments, ordered by exchange and symbol.

    Read from the topic, to its end: no worker has to run. A table of the first 20 for people; with
    --json or --csv all of them, with the columns of /v1/instruments. What --csv writes,
    `k2 load --kind instruments` reads.

    \b
    k2 instruments --exchange ASX --symbol BHP
    k2 instruments remove ASX.DVN
    """
    if context.invoked_subcommand is not None:
        return
    form, most = form_of(as_json, as_csv, limit)
    settings = load()
    require_instruments(settings)
    reader = InstrumentReader(open_registry(settings))
    with closing(Changelog(settings, INSTRUMENTS_TOPIC)) as topic:
        pairs = topic.newest([0])
    found = []
    for key, value in sorted(pairs.items()):
        try:
            row = reader.read(key, value)
        except ValueError as exc:
            note(f"{key!r} is left out: {exc}")
            continue
        if exchange in (None, row["exchange"]) and (not symbols or row["symbol"] in symbols):
            found.append(row)
    table = table_of(found)
    shown = table if most is None else table.slice(0, most)
    rows = Rows(INSTRUMENTS, iter(shown.to_batches()), None, shown.num_rows < table.num_rows)
    write(rows, form, Stop(), tuple(INSTRUMENTS.names))


@instruments.command()
@click.argument("keys", nargs=-1, required=True, metavar="EXCHANGE.SYMBOL...")
def remove(keys: tuple[str, ...]) -> None:
    """Remove instruments: all of those named, or none if there is one that is not known.

    \b
    k2 instruments remove ASX.DVN ASX.MWR
    """
    settings = load()
    require_instruments(settings)
    wanted = [key.encode() for key in dict.fromkeys(keys)]
    with closing(Changelog(settings, INSTRUMENTS_TOPIC)) as topic:
        known = topic.newest([0])
        if missing := [key.decode() for key in wanted if key not in known]:
            raise FeedError(f"{', '.join(missing)}: no such instrument; nothing is removed")
        topic.write(0, [(key, None) for key in wanted])
    click.echo(f"removed: {', '.join(dict.fromkeys(keys))}")
