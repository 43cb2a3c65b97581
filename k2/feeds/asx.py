"""ASX files: CSV rows to batches of trades or quotes, exactly, without a Python loop over rows.

A file holds the trades or the quotes of one symbol, in the order of events. It carries no sequence
number, so the row order within a day (Sydney's date, which is also the session) is the sequence,
from 1. A bad row has its number like any other: it shows as a gap, and the repaired file, loaded
again, fills it. Files of one day have to be loaded by one command, in their order: numbers go on
from file to file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from k2.errors import FeedError
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import QUOTES, TRADES, Kind

__all__ = ["ZONE", "BadRow", "read"]

#: The files state local time, so this belongs to the format and is no setting.
ZONE = "Australia/Sydney"

_DATE = r"^\d{2}/\d{2}/\d{4}$"
_TIME = r"^([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}$"
_AMOUNT = rf"^\d{{1,{PRICE_PRECISION - PRICE_SCALE}}}(\.\d{{1,{PRICE_SCALE}}})?$"
_ZERO = r"^0+(\.0+)?$"
_CODE = r"^\d+$"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out; `line` counts from 1."""

    file: str
    line: int
    reason: str


def read(
    kind: Kind,
    path: str | Path,
    symbol: str,
    exchange: str = "ASX",
    before: dict[str, int] | None = None,
) -> tuple[pa.Table, list[BadRow]]:
    """Read one file; the bad rows are values, the rest loads.

    Times are Sydney's by the zone's rules: the hour that summer time's end repeats is taken as its
    first pass, and a time that summer time's start skips is a bad row. `ts_recv` is `ts_event`, so
    that loading a file twice gives equal records. BuyerID is not used. Of a quote, 0
    as price and size says that the side is empty.

    Args:
        kind: what the file holds: trades in 7 columns, quotes in 6.
        path: CSV without header, CRLF or LF; read whole (its size in memory, times ~10).
        symbol: the symbol of every row, not empty.
        exchange: the exchange of every row, not empty.
        before: rows of each date in the files before this one; this file's are added to it.

    Returns:
        n rows of `kind.columns`, in file order; and the bad rows in line order.

    Raises:
        FeedError: the file cannot be read, or symbol or exchange is empty.
    """
    if not symbol or not exchange:
        raise FeedError(f"{path}: symbol {symbol!r} and exchange {exchange!r} must not be empty")
    try:
        content = Path(path).read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as exc:
        raise FeedError(f"{path}: {exc.strerror or exc}") from exc
    parsed = _number(_parse(_FORMS[kind], content), {} if before is None else before)
    good = parsed.filter(pl.col("reason").is_null())
    bad = parsed.filter(pl.col("reason").is_not_null())
    rejects = [
        BadRow(str(path), line, reason) for line, reason in bad["line", "reason"].iter_rows()
    ]
    return _batch(kind, good, symbol, exchange), rejects


def _parse(form: _Form, content: str) -> pl.DataFrame:
    """One row a line: `line`, its fields' texts, `local`, `utc`, and `reason` (null: good)."""
    # Split here and not by a CSV reader: readers skip blank lines or join quoted ones, and then
    # the line numbers that we report would be wrong.
    lines = pl.DataFrame({"text": [content]}).select(pl.col("text").str.split("\n").explode())
    lines = lines.with_columns(pl.col("text").str.strip_suffix("\r"))
    lines = lines.with_row_index("line", offset=1).cast({"line": pl.Int64})
    if lines["text"][-1] == "":
        lines = lines.head(-1)  # what follows the last line end is no line
    split = pl.col("text").str.split_exact(",", len(form.fields) - 1)
    rows = lines.with_columns(split.struct.rename_fields(list(form.fields)).alias("f")).unnest("f")
    stamp = pl.concat_str("date", "time", separator=" ")
    rows = rows.with_columns(
        pl.when(pl.col("date").str.contains(_DATE) & pl.col("time").str.contains(_TIME))
        .then(stamp)
        .str.to_datetime("%m/%d/%Y %H:%M:%S%.3f", time_unit="ns", strict=False)
        .alias("local")
    )
    rows = rows.with_columns(
        pl.col("local")
        .dt.replace_time_zone(ZONE, ambiguous="earliest", non_existent="null")
        .dt.epoch("ns")
        .alias("utc")
    )
    return rows.with_columns(_reason(form).alias("reason"))


def _number(rows: pl.DataFrame, before: dict[str, int]) -> pl.DataFrame:
    """Add `sequence`; a row without a date counts to the day of the row before it."""
    real = pl.col("date").str.to_date("%m/%d/%Y", strict=False).is_not_null()
    dated = pl.when(pl.col("date").str.contains(_DATE) & real).then(pl.col("date"))
    rows = rows.with_columns(day=dated.forward_fill().backward_fill())
    start = pl.col("day").replace_strict(before, default=0, return_dtype=pl.Int64)
    counted = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("day")
    rows = rows.with_columns(sequence=start + counted)
    last = rows.group_by("day").agg(pl.col("sequence").max())
    before.update({day: last for day, last in last.iter_rows() if day is not None})
    return rows


def _reason(form: _Form) -> pl.Expr:
    """The first thing wrong with a row, as text; null where nothing is."""
    commas = pl.col("text").str.count_matches(",", literal=True)
    of_all = (
        pl.when(pl.col("text") == "")
        .then(pl.lit("empty line"))
        .when(commas != len(form.fields) - 1)
        .then(pl.format(f"{{}} fields, not {len(form.fields)}", commas + 1))
        .when(pl.col("local").is_null())
        .then(pl.format("'{} {}' is not MM/DD/YYYY HH:MM:SS.mmm", "date", "time"))
        .when(pl.col("utc").is_null())
        .then(pl.format(f"'{{}} {{}}' does not exist in {ZONE}", "date", "time"))
        .otherwise(pl.lit(None, pl.String))
    )
    return pl.coalesce(of_all, *form.wrong)


_DIGITS = f"at most {PRICE_PRECISION - PRICE_SCALE} digits before and {PRICE_SCALE} after the point"


def _is_zero(name: str) -> pl.Expr:
    return pl.col(name).str.contains(_ZERO)


def _no_amount(name: str, what: str = "a decimal", or_zero: bool = True) -> pl.Expr:
    wrong = ~pl.col(name).str.contains(_AMOUNT)
    if not or_zero:
        wrong |= _is_zero(name)
    return pl.when(wrong).then(pl.format(f"{name} '{{}}' is not {what} with {_DIGITS}", name))


def _one_sided(price: str, size: str) -> pl.Expr:
    wrong = _is_zero(price) != _is_zero(size)
    text = f"{price} '{{}}' with {size} '{{}}': only an empty side has 0, and then in both"
    return pl.when(wrong).then(pl.format(text, price, size))


def _amount(name: str) -> pl.Expr:
    # The patterns have bounded the digits, so this conversion is exact: no float, no rounding.
    return pl.col(name).str.to_decimal(scale=PRICE_SCALE).cast(pl.Decimal(38, PRICE_SCALE))


def _side(name: str) -> pl.Expr:
    return pl.when(~_is_zero(name)).then(_amount(name))


@dataclass(frozen=True, slots=True)
class _Form:
    """What a file of a kind is made of."""

    fields: tuple[str, ...]
    wrong: tuple[pl.Expr, ...]  # of a row with these fields: what is wrong with it, or null
    columns: dict[str, pl.Expr]  # of a good row, beside those that all kinds have


_FORMS = {
    TRADES: _Form(
        ("date", "time", "price", "volume", "qualifiers", "venue", "buyer"),
        (
            _no_amount("price", "a decimal above 0", or_zero=False),
            _no_amount("volume", "a decimal above 0", or_zero=False),
            pl.when(~pl.col("qualifiers").str.contains(_CODE)).then(
                pl.format("qualifiers '{}' is not an integer code", "qualifiers")
            ),
        ),
        {
            "price": _amount("price"),
            "size": _amount("volume"),
            "side": pl.lit("NONE"),
            "conditions": pl.col("qualifiers"),
            "venue": pl.when(pl.col("venue") != "").then(pl.col("venue")),
        },
    ),
    QUOTES: _Form(
        ("date", "time", "bid", "ask", "bid_volume", "ask_volume"),
        (
            *map(_no_amount, ("bid", "ask", "bid_volume", "ask_volume")),
            _one_sided("bid", "bid_volume"),
            _one_sided("ask", "ask_volume"),
        ),
        {
            "bid_price": _side("bid"),
            "bid_size": _side("bid_volume"),
            "ask_price": _side("ask"),
            "ask_size": _side("ask_volume"),
        },
    ),
}


def _batch(kind: Kind, good: pl.DataFrame, symbol: str, exchange: str) -> pa.Table:
    """Good rows to `kind.columns`."""
    known = {
        "exchange": pl.lit(exchange),
        "symbol": pl.lit(symbol),
        "sequence": pl.col("sequence"),
        "ts_event": pl.col("utc"),
        "ts_recv": pl.col("utc"),
        **_FORMS[kind].columns,
    }
    none = pl.lit(None, pl.String)
    columns = good.select(**{name: known.get(name, none) for name in kind.columns.names})
    return columns.to_arrow().cast(kind.columns)
