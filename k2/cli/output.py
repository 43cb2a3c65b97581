"""What commands that show rows share: options, an engine, Ctrl-C, tables and pipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import click
import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from rich import box
from rich.console import Console
from rich.table import Table

from k2.errors import BadQuery, CatalogUnavailable
from k2.lake.catalog import open_catalog
from k2.query.engine import Engine
from k2.query.formats import Encoder, plain
from k2.query.rows import Coverage, Rows, Stop
from k2.query.snapshots import AsOf
from k2.query.times import bounds_ns, iso, range_ns
from k2.settings import load

__all__ = [
    "as_of_of",
    "bounds",
    "console",
    "form_of",
    "listed",
    "note",
    "opened",
    "ranged",
    "run",
    "show_sources",
    "write",
]

#: Rows of a table for people, unless `--limit` says otherwise.
LIMIT_SHOWN = 20
#: A table is not cut to the terminal's width: a digit less would be another price.
WIDTH_MAX = 1000
#: Columns of times, and their titles.
TIMES = {
    "committed_at": "committed (UTC)",
    "quote_ts_event": "quote (UTC)",
    "valid_through": "valid through (UTC)",
}
_LOOK_EVERY_S = 0.1
_STOP_EVERY_S = 0.02

_T = TypeVar("_T")
_Command = Callable[..., None]


def ranged(command: _Command) -> _Command:
    """The options that every command with rows has, in the order of the help."""
    shared = (
        click.option("--exchange", metavar="E", help="Of this exchange only, such as ASX."),
        click.option(
            "--range",
            "range_",
            metavar="R",
            help="FIRST:END instead of them: -1h:now, 2014-03-10:1d, 2014-03-10T10:00:5m.",
        ),
        click.option(
            "--start",
            metavar="T",
            help="First moment: ISO 8601 (without a zone UTC), ns, -1h.",
        ),
        click.option("--end", metavar="T", help="First moment no longer asked for; 1d: from T."),
        click.option(
            "--as-of",
            metavar="A",
            help="As it was: a snapshot's id (`k2 snapshots`), or a time.",
        ),
        click.option(
            "--limit",
            metavar="N",
            type=int,
            help=f"Rows at most. Default: {LIMIT_SHOWN} in a table, else K2_QUERY_ROWS_MAX.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON)."),
        click.option("--csv", "as_csv", is_flag=True, help="CSV with a header."),
    )
    for option in reversed(shared):
        command = option(command)
    return command


@contextmanager
def opened() -> Iterator[tuple[Engine, Stop]]:
    """An engine and the stop of its one query; Ctrl-C ends quietly.

    Raises:
        CatalogUnavailable: nothing is there yet, and how to make it; or it cannot be read.
    """
    settings = load()
    # The URI itself may hold a password.
    place = "the catalog of K2_CATALOG_URI" if settings.catalog_uri else settings.data
    hint = f"no tables in {place}: run `k2 init`, or `k2 up` (K2_DATA names the folder)"
    if not settings.catalog_uri and not (settings.data / "catalog.db").exists():
        raise CatalogUnavailable(hint)  # to open the catalog would make it
    engine = Engine(open_catalog(settings), settings)
    try:
        yield engine, Stop()
    except CatalogUnavailable as exc:
        if isinstance(exc.__cause__, NoSuchTableError):
            raise CatalogUnavailable(hint) from exc
        raise
    finally:
        engine.close()


def run(stop: Stop, call: Callable[[], _T]) -> _T:
    """Run `call` in a thread, so that Ctrl-C is heard at once; it stops the query."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(call)
        try:
            # A signal may come to any thread, and only a main thread that wakes up hears of it.
            while not future.done():
                wait([future], _LOOK_EVERY_S)
            return future.result()
        finally:
            while not future.done():
                stop.now()
                wait([future], _STOP_EVERY_S)


def form_of(as_json: bool, as_csv: bool, limit: int | None) -> tuple[str | None, int | None]:
    """The format (None: a table) and its limit (None: the engine's own)."""
    if as_json and as_csv:
        raise BadQuery("csv", "not together with json")
    if as_json or as_csv:
        return "ndjson" if as_json else "csv", limit
    return None, min(LIMIT_SHOWN, load().query_rows_max) if limit is None else limit


def bounds(
    start: str | None, end: str | None, range_: str | None = None
) -> tuple[int | None, int | None]:
    """[start, end) of the options `--start` and `--end`, or of `--range`."""
    if range_ is None:
        return bounds_ns(start, end)
    if start is not None or end is not None:
        raise BadQuery("range", "not together with start or end")
    return range_ns("range", range_)


def as_of_of(text: str | None) -> AsOf | None:
    return None if text is None else AsOf.read(text)


def listed(_context: click.Context, _option: click.Parameter, text: str | None) -> list[str] | None:
    """`A,B` as a list: the callback of such an option."""
    return None if text is None else [part.strip() for part in text.split(",")]


def write(
    rows: Rows, form: str | None, stop: Stop, shown: tuple[str, ...], *, newest: bool = False
) -> None:
    """Show rows, or write them; `newest`: a limit left those out that came before."""
    if form is None:
        count = _show(rows, stop, shown)
    else:
        encoder = Encoder(form, rows)
        click.echo(encoder.begin(), nl=False)
        while (batch := run(stop, rows.next_batch)) is not None:
            click.echo(encoder.rows(batch), nl=False)
        count = encoder.count
    if rows.truncated:
        which = "newest" if newest else "first"
        note(f"only the {which} {count:,} rows; there are more (--limit, K2_QUERY_ROWS_MAX)")
    elif count == 0:
        note("no rows")
    if rows.known is not None and (coverage := rows.known.coverage) != Coverage():
        note(_incomplete(coverage))


def _incomplete(coverage: Coverage | None) -> str:
    if coverage is None:
        return "no gap ledger: nobody knows whether records are missing (`k2 init` makes it)"
    if coverage.complete:
        return f"complete but for {coverage.accepted:,} missing sequences that were accepted"
    return (
        f"not complete: {coverage.missing:,} sequences are missing, in {coverage.gaps:,} gaps that "
        "may lie in what was asked for (`k2 gaps`)"
    )


def _show(rows: Rows, stop: Stop, shown: tuple[str, ...]) -> int:
    table = Table(box=box.SIMPLE_HEAD)
    for name in shown:
        numeric = not pa.types.is_string(rows.schema.field(name).type)
        table.add_column(_title(name), justify="right" if numeric else "left")
    while (batch := run(stop, rows.next_batch)) is not None:
        columns = [_readable(name, batch.column(name)) for name in shown]
        for cells in zip(*columns, strict=True):
            table.add_row(*cells)
    console().print(table)
    return table.row_count


def _title(name: str) -> str:
    return "time (UTC)" if name in ("ts_event", "start") else TIMES.get(name, name)


def _readable(name: str, column: pa.Array) -> list[str]:
    """Cells as people read them: times as dates, decimals without zeros at the end."""
    if _title(name) != name:
        return ["" if ns is None else iso(ns) for ns in column.to_pylist()]
    values = plain(column) if pa.types.is_decimal(column.type) else column
    return ["" if value is None else str(value) for value in values.to_pylist()]


def show_sources(numbers: Sequence[str], rows: Iterable[Iterable[object]], nothing: str) -> None:
    """A table for people of what is known of each source.

    Args:
        numbers: titles between cluster and topic on the left, and the verdict on the right.
        rows: as many values each as there are columns; None is shown as "-".
        nothing: what is said where there are no rows.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("cluster", "topic"):
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row))
    console().print(table)
    if not table.row_count:
        note(nothing)


def console(*, stderr: bool = False) -> Console:
    if stderr:
        return Console(stderr=True)
    return Console(width=WIDTH_MAX, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    click.echo(f"k2: {text}", err=True)
