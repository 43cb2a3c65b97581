"""`k2 sql`: one SELECT over the tables, in the same sandbox as `POST /v1/sql`, without a worker."""

from __future__ import annotations

from typing import Any, TextIO

import click
import pyarrow as pa
from rich import box
from rich.table import Table

from k2.cli.output import LIMIT_SHOWN, console, note, opened, run
from k2.errors import BadQuery, BadSql
from k2.lake.catalog import open_catalog
from k2.query.formats import Encoder
from k2.query.rows import Rows, Stop
from k2.sandbox.pool import Pool
from k2.settings import load
from k2.web.formats import MEDIA_TYPES

__all__ = ["sql"]


@click.command()
@click.argument("statement", required=False)
@click.option("-f", "--file", type=click.File("r"), help="Read the statement from a file.")
@click.option(
    "-p",
    "--parameter",
    "parameters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Value of $NAME in the statement, as text; repeat for more.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=LIMIT_SHOWN,
    show_default=True,
    help="Rows of the table for people.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a header.")
@click.option("--format", "form", type=click.Choice(list(MEDIA_TYPES)), help="Any other format.")
def sql(
    statement: str | None,
    file: TextIO | None,
    parameters: tuple[str, ...],
    limit: int,
    as_json: bool,
    as_csv: bool,
    form: str | None,
) -> None:
    """Run one SELECT over trades, quotes, bars, gaps and snapshots.

    All of DuckDB's SQL for reading: ASOF JOIN, time_bucket, window functions. It runs in a process
    that can open and reach nothing, within K2_SQL_TIMEOUT_MS and the other limits of that name.
    Without STATEMENT and --file it is read from stdin. A table for people, times in UTC.

    \b
    k2 sql "SELECT symbol, count(*) FROM trades GROUP BY ALL"
    k2 sql 'SELECT * FROM bars WHERE symbol = $s' -p s=BHP --csv > bars.csv
    k2 sql -f report.sql --format arrow > report.arrow
    """
    chosen = [name for name, on in (("ndjson", as_json), ("csv", as_csv), (form, form)) if on]
    if len(chosen) > 1:
        raise BadQuery("format", f"one of {', '.join(map(str, chosen))}")
    wanted = chosen[0] if chosen else None
    text, values = _text(statement, file), _values(parameters)
    settings = load()
    with opened() as (_, stop):
        pool = Pool(open_catalog(settings), settings)
        try:
            rows = run(stop, lambda: pool.run(text, values, wanted or "csv", stop))
            _write(rows, wanted, limit, stop)
        except BadSql as exc:
            _point(text, exc)
            raise
        finally:
            pool.close()


def _text(statement: str | None, file: TextIO | None) -> str:
    if statement is not None and file is not None:
        raise BadQuery("file", "not together with a statement")
    text = statement if statement is not None else (file or click.get_text_stream("stdin")).read()
    if not text.strip():
        raise BadQuery("statement", "empty")
    return text


def _values(parameters: tuple[str, ...]) -> dict[str, Any] | list[Any]:
    values = {}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not (name and equals):
            raise BadQuery("parameter", f"{parameter!r} is not NAME=VALUE")
        values[name] = value
    return values or []


def _write(rows: Rows, form: str | None, limit: int, stop: Stop) -> None:
    if form is None:
        _show(rows, limit, stop)
        return
    encoder = Encoder(form, rows)
    click.echo(encoder.begin(), nl=False)
    while (batch := run(stop, rows.next_batch)) is not None:
        click.echo(encoder.rows(batch), nl=False)
    click.echo(encoder.end(), nl=False)
    if rows.truncated:
        note(f"only the first {encoder.count:,} rows; there are more (K2_SQL_ROWS_MAX)")


def _show(rows: Rows, limit: int, stop: Stop) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for field in rows.schema:
        numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(field.name, justify="right" if numeric else "left")
    more = False
    while not more and (batch := run(stop, rows.next_batch)) is not None:
        shown = batch.slice(0, limit - table.row_count)
        more = shown.num_rows < batch.num_rows
        for cells in zip(*(column.to_pylist() for column in shown.columns), strict=True):
            table.add_row(*("" if cell is None else str(cell) for cell in cells))
    rows.close()
    console().print(table)
    if more or rows.truncated:
        note(f"only the first {table.row_count:,} rows; there are more (--limit, --json, --csv)")


def _point(text: str, exc: BadSql) -> None:
    """The line of the statement that is wrong, and a caret below the place."""
    if exc.position is not None:
        line, column = exc.position["line"], exc.position["column"]
        shown = text.split("\n")[line - 1]
        note(f"line {line}, column {column}:")
        click.echo(f"  {shown}\n  {' ' * (column - 1)}^", err=True)
