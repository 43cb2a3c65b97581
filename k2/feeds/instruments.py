"""Files of instruments: CSV with a header, in our own columns or as ASX reference data.

A file of our own names its columns as `INSTRUMENTS` does, in any order: symbol, and what is known.
ASX's company_info.csv is told by its header. Its start_date and end_date bound what the row covers,
and are not used: a company was listed before the one, and is not delisted at the other.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from k2.errors import FeedError
from k2.feeds.asx import BadRow
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import INSTRUMENTS

__all__ = ["read_instruments"]

#: Columns of ASX's reference data, and what they are here; None: not used.
_ASX = {
    "company_id": "company_id",
    "symbol": "symbol",
    "company_name": "name",
    "ISIN": "isin",
    "start_date": None,
    "end_date": None,
}
_DIGITS = PRICE_PRECISION - PRICE_SCALE
_AMOUNT = re.compile(rf"[0-9]{{1,{_DIGITS}}}(\.[0-9]{{1,{PRICE_SCALE}}})?")
_ISIN = re.compile(r"[A-Z]{2}[A-Z0-9]{9}[0-9]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def read_instruments(path: str | Path, exchange: str) -> tuple[pa.Table, list[BadRow]]:
    """Read one file; the bad rows are values, the rest loads.

    Args:
        path: CSV in UTF-8 with a header; read whole.
        exchange: of rows whose file has no column for it.

    Returns:
        n rows of `INSTRUMENTS`, in file order; and the bad rows in line order, each named by its
        last line.

    Raises:
        FeedError: the file cannot be read, or its header is of neither form; or `exchange` is no
            name that a row could have.
    """
    try:
        row_exchange = _exchange(exchange.strip())
    except ValueError as exc:
        raise FeedError(f"exchange {exchange!r} {exc}") from exc
    if not row_exchange:
        raise FeedError(f"exchange {exchange!r} is empty")
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise FeedError(f"{path}: {exc.strerror or exc}") from exc
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise FeedError(f"{path}:{line}: not UTF-8: byte {data[exc.start]:#04x}") from exc
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    good: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    seen: dict[tuple[str, str], int] = {}
    columns: list[str | None] | None = None
    try:
        for fields in lines:
            if columns is None:
                columns = _columns(path, fields)
                continue
            try:
                row = _row(columns, fields, row_exchange)
                _note(seen, row, lines.line_num)
            except ValueError as exc:
                bad.append(BadRow(str(path), lines.line_num, str(exc)))
            else:
                good.append(row)
    except csv.Error as exc:
        raise FeedError(f"{path}:{lines.line_num}: no CSV: {exc}") from exc
    if columns is None:
        raise FeedError(f"{path}: empty; the first line names the columns")
    return pa.Table.from_pylist(good, INSTRUMENTS), bad


def _columns(path: str | Path, header: list[str]) -> list[str | None]:
    if set(header) == set(_ASX) and len(header) == len(_ASX):
        return [_ASX[name] for name in header]
    for number, name in enumerate(header, 1):
        if name not in INSTRUMENTS.names:
            known = ", ".join(INSTRUMENTS.names)
            raise FeedError(f"{path}:1: column {number}: {name!r} is none of {known}")
        if header.index(name) + 1 < number:
            raise FeedError(f"{path}:1: column {number}: {name!r} again")
    if "symbol" not in header:
        raise FeedError(f"{path}:1: no column 'symbol'")
    return list(header)


def _row(columns: list[str | None], fields: list[str], exchange: str) -> dict[str, Any]:
    """A row of `INSTRUMENTS`; ValueError says which column is wrong, and why."""
    if not fields:
        raise ValueError("empty line")
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} fields, not {len(columns)}")
    row: dict[str, Any] = {"exchange": exchange}
    for name, text in _named(columns, fields):
        try:
            row[name] = _PARSERS[name](text)
        except ValueError as exc:
            raise ValueError(f"{name} {text!r} {exc}") from exc
    if not row.get("symbol"):
        raise ValueError("symbol is empty")
    listed, delisted = row.get("listed"), row.get("delisted")
    if listed and delisted and delisted < listed:
        raise ValueError(f"delisted '{delisted}' is before listed '{listed}'")
    return row


def _note(seen: dict[tuple[str, str], int], row: dict[str, Any], line: int) -> None:
    """Which of two rows of a symbol is right, nobody can say but who wrote them."""
    first = seen.setdefault((row["exchange"], row["symbol"]), line)
    if first != line:
        raise ValueError(f"symbol {row['symbol']!r} again, after line {first}")


def _named(columns: list[str | None], fields: list[str]) -> Iterator[tuple[str, str]]:
    for name, field in zip(columns, fields, strict=True):
        if name is not None and (text := field.strip()):
            yield name, text


def _exchange(text: str) -> str:
    # The key is <EXCHANGE>.<SYMBOL>: what stands before the first point is the exchange.
    if "." in text:
        raise ValueError("has a point")
    return text


def _amount(text: str) -> Decimal:
    # The pattern bounds the digits: exact, and nothing is rounded later.
    if not _AMOUNT.fullmatch(text) or not Decimal(text):
        digits = f"at most {_DIGITS} digits before and {PRICE_SCALE} after the point"
        raise ValueError(f"is not a decimal above 0 with {digits}")
    return Decimal(text)


def _isin(text: str) -> str:
    if not _ISIN.fullmatch(text):
        raise ValueError("is not an ISIN: 2 letters, 9 letters or digits, and a digit")
    return text


def _date(text: str) -> dt.date:
    if not _DATE.fullmatch(text):
        raise ValueError("is not a date like 2014-03-10")
    try:
        return dt.date.fromisoformat(text)
    except ValueError as exc:
        raise ValueError("does not exist") from exc


_PARSERS: dict[str, Callable[[str], Any]] = {
    "exchange": _exchange,
    "symbol": str,
    "name": str,
    "isin": _isin,
    "company_id": str,
    "tick_size": _amount,
    "lot_size": _amount,
    "listed": _date,
    "delisted": _date,
}
