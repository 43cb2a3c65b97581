"""The records on the wire: what a trade, a quote and an instrument are, in one place.

Avro schemas derive from these classes; Arrow and Iceberg schemas derive from them in
`k2.schemas`. Times are nanoseconds since the epoch, UTC. Prices and sizes are exact decimals.
"""

import datetime as dt
import enum
from dataclasses import dataclass
from typing import Optional

from dataclasses_avroschema import AvroModel, types

__all__ = ["PRICE_PRECISION", "PRICE_SCALE", "Instrument", "Quote", "Side", "Trade"]

PRICE_PRECISION = 18
PRICE_SCALE = 8

Amount = types.condecimal(max_digits=PRICE_PRECISION, decimal_places=PRICE_SCALE)


class Side(enum.Enum):
    """The aggressor's side."""

    NONE = "NONE"
    BUY = "BUY"
    SELL = "SELL"


@dataclass
class Trade(AvroModel):
    """One trade as the venue reported it."""

    exchange: str
    symbol: str
    sequence: int  # the venue's number, per (exchange, symbol) and session
    ts_event: int  # ns since the epoch, UTC: when the venue made the trade
    ts_recv: int  # ns since the epoch, UTC: when the feed received it
    price: Amount  # type: ignore[valid-type]
    size: Amount  # type: ignore[valid-type]
    side: Side = Side.NONE
    trade_id: Optional[str] = None  # noqa: UP045 - dataclasses-avroschema reads Optional
    conditions: Optional[str] = None  # noqa: UP045
    venue: Optional[str] = None  # noqa: UP045

    class Meta:
        namespace = "k2"


@dataclass
class Quote(AvroModel):
    """The best bid and ask as the venue reported them; a side without orders is null."""

    exchange: str
    symbol: str
    sequence: int  # the venue's number, per (exchange, symbol) and session; not that of trades
    ts_event: int  # ns since the epoch, UTC: when the venue's book became so
    ts_recv: int  # ns since the epoch, UTC: when the feed received it
    bid_price: Optional[Amount] = None  # type: ignore[valid-type]  # noqa: UP045
    bid_size: Optional[Amount] = None  # type: ignore[valid-type]  # noqa: UP045
    ask_price: Optional[Amount] = None  # type: ignore[valid-type]  # noqa: UP045
    ask_size: Optional[Amount] = None  # type: ignore[valid-type]  # noqa: UP045
    conditions: Optional[str] = None  # noqa: UP045
    venue: Optional[str] = None  # noqa: UP045

    class Meta:
        namespace = "k2"


@dataclass
class Instrument(AvroModel):
    """Reference data of what is traded under a symbol; null is what is not known."""

    exchange: str
    symbol: str
    name: Optional[str] = None  # noqa: UP045
    isin: Optional[str] = None  # noqa: UP045
    company_id: Optional[str] = None  # noqa: UP045 - whoever gives it away
    tick_size: Optional[Amount] = None  # type: ignore[valid-type]  # noqa: UP045 - of a price
    lot_size: Optional[Amount] = None  # type: ignore[valid-type]  # noqa: UP045 - of a size
    listed: Optional[dt.date] = None  # noqa: UP045 - first day of trading, the exchange's date
    delisted: Optional[dt.date] = None  # noqa: UP045 - first day without

    class Meta:
        namespace = "k2"
