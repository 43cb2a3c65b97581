"""What owners of partitions know of one symbol, and the answer that is made of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Context, Decimal
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from k2.errors import PeerUnavailable
from k2.lake.offsets import Source
from k2.live import BARS, LATEST, Asked, merge
from k2.live.forms import NOTIONAL, VOLUME
from k2.live.limbs import joined
from k2.live.packed import pack, unpack
from k2.query.bars import divide
from k2.schemas import QUOTES, TRADES, Kind, kind_of
from k2.sequence import SymbolState

__all__ = ["Part", "answer", "decode", "encode", "part_of"]

_SCALE = 8
_EXACT = Context(prec=80)
_EPOCH = date(1970, 1, 1)

#: Of a row: what the answer says elsewhere.
_SAID = ("exchange", "symbol")


class Part(NamedTuple):
    """What the owner of one partition knows of the symbol."""

    source: Source
    next_offset: int  # all records below it are in
    latest: pa.Table  # no row or one, of the form `LATEST`
    bars: pa.Table  # of the running session, of the form `BARS`; none if they were not asked for
    sequences: dict[str, Any] | None  # of the sequence check, where the symbol is known

    @property
    def kind(self) -> Kind:
        return _kind(self.source)


def part_of(asked: Asked, source: Source, state: SymbolState | None, *, bars: bool) -> Part:
    """What this worker knows; in a thread.

    Args:
        state: of the sequence check.
        bars: whether they are asked for.
    """
    latest = asked.latest()
    of_session = BARS.schema.empty_table()
    if bars and latest.num_rows and asked.kind is TRADES:
        of_session = asked.bars(latest.column("session")[0].as_py())
    sequences = _sequences(state) if state is not None and latest.num_rows else None
    return Part(source, asked.next_offset, latest, of_session, sequences)


def _sequences(state: SymbolState) -> dict[str, Any]:
    memory = state.unpack()
    chain = memory.chain
    gaps = [gap for gap in chain.gaps if gap.reported]
    missing = sum(last - first + 1 for gap in gaps for first, last in gap.missing)
    return {
        "session": _day(memory.session) if memory.session else None,
        "last_sequence": chain.last,
        "rows": memory.rows,
        # Of what is forgotten nobody knows any more whether it came.
        "health": "gaps" if gaps or chain.forgotten_through is not None else "complete",
        "open_gaps": len(gaps),
        "missing": missing,
        "gaps": [
            {
                "missing_first": gap.first,
                "missing_last": gap.last,
                "remaining": [{"first": first, "last": last} for first, last in gap.missing],
                "from_ts": gap.from_ts,
                "to_ts": gap.ts,
                "seen_at": gap.seen_at,
            }
            for gap in gaps
        ],
        "gaps_found": memory.gaps_found,
        "missing_found": memory.missing,
        "late": memory.late,
        "duplicates": memory.duplicates,
        "resets": memory.resets,
    }


def encode(parts: Sequence[Part]) -> bytes:
    """What one worker tells another."""
    return orjson.dumps(
        [
            {
                "source": list(part.source),
                "next_offset": part.next_offset,
                "latest": base64.b64encode(pack(part.latest, part.next_offset)).decode(),
                "bars": base64.b64encode(pack(part.bars, part.next_offset)).decode(),
                "sequences": part.sequences,
            }
            for part in parts
        ]
    )


def decode(body: bytes | bytearray) -> list[Part]:
    """Return what another worker told.

    Raises:
        PeerUnavailable: it is of another release.
    """
    found = []
    try:
        for told in orjson.loads(body):
            source = Source(*told["source"])
            form = LATEST[_kind(source)]
            latest, bars = (base64.b64decode(told[name]) for name in ("latest", "bars"))
            rows = unpack(form, latest), unpack(BARS, bars)
            found.append(Part(source, told["next_offset"], *rows, told["sequences"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise PeerUnavailable(f"another worker's answer: {exc}") from exc
    return found


def answer(
    exchange: str, symbol: str, parts: Sequence[Part], *, bars: bool
) -> dict[str, Any] | None:
    """What is known of a symbol, times in ns and decimals as strings; None: nothing.

    Where a symbol's records are in several partitions the answer is of all of them.
    """
    known = {kind: [part for part in parts if part.kind is kind] for kind in (TRADES, QUOTES)}
    latest = {kind: _one(kind, of_kind) for kind, of_kind in known.items()}
    trade, quote = latest[TRADES], latest[QUOTES]
    if trade is None and quote is None:
        return None
    session = max(row["session"] for row in (trade, quote) if row is not None)
    found = {
        "exchange": exchange,
        "symbol": symbol,
        "trade": _record(TRADES, trade),
        "quote": _record(QUOTES, quote),
        "session": _session(session, trade, quote),
        "sequences": {
            kind.name: _newest_sequences(latest[kind], of_kind) for kind, of_kind in known.items()
        },
        "as_of": [{**part.source._asdict(), "next_offset": part.next_offset} for part in parts],
    }
    if bars:
        rows = merge(BARS, [part.bars for part in known[TRADES]]).sort_by("start").to_pylist()
        found["bars"] = [
            {"start": row["start"], **_statistics(row, row["close"]), "trades": row["records"]}
            for row in rows
            if row["session"] == session
        ]
    return found


def _one(kind: Kind, parts: Sequence[Part]) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = merge(LATEST[kind], [part.latest for part in parts]).to_pylist()
    return rows[0] if rows else None


def _record(kind: Kind, row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    own = {name: row[name] for name in kind.batch.names if name not in _SAID}
    plain = {k: _text(v) if isinstance(v, Decimal) else v for k, v in own.items()}
    return {"session": _day(row["session"]), **plain}


def _session(
    session: int, trade: dict[str, Any] | None, quote: dict[str, Any] | None
) -> dict[str, Any]:
    """Statistics of the running session; a kind that has none of it yet counts 0."""
    found: dict[str, Any] = {"session": _day(session), "trades": 0, "quotes": 0}
    if quote is not None and quote["session"] == session:
        found["quotes"] = quote["records"]
    if trade is not None and trade["session"] == session:
        close = int(trade["price"].scaleb(_SCALE))
        found |= {"trades": trade["records"], **_statistics(trade, close)}
        found["notional"] = _text(_scaled(joined(trade[name] for name in NOTIONAL), 2 * _SCALE))
        found |= {"first_ts": trade["first_ts"], "last_ts": trade["ts_event"]}
    return found


def _statistics(row: dict[str, Any], close: int) -> dict[str, Any]:
    volume, notional = (joined(row[name] for name in limbs) for limbs in (VOLUME, NOTIONAL))
    numbers = {
        "open": row["open"],
        "high": row["high"],
        "low": row["low"],
        "close": close,
        "volume": volume,
        "vwap": divide(notional, volume),
    }
    return {k: None if v is None else _text(_scaled(v, _SCALE)) for k, v in numbers.items()}


def _newest_sequences(row: dict[str, Any] | None, parts: Sequence[Part]) -> dict[str, Any] | None:
    """Of the partition that has the last record."""
    for part in parts:
        if row is not None and part.latest.num_rows:
            own = part.latest.to_pylist()[0]
            if all(own[name] == row[name] for name in ("session", *LATEST[part.kind].last)):
                return part.sequences
    return None


def _kind(source: Source) -> Kind:
    kind = kind_of(source.topic)
    if kind is None:
        raise ValueError(f"{source}: no topic of records")
    return kind


def _day(days: int) -> str:
    return (_EPOCH + timedelta(days=days)).isoformat()


def _scaled(unscaled: int, scale: int) -> Decimal:
    return Decimal(unscaled).scaleb(-scale, _EXACT)


def _text(value: Decimal) -> str:
    """Without exponent, and without zeros at the end."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
