"""The records on the wire: what a trade is, in one place.

Avro schemas derive from these classes; Arrow and Iceberg schemas derive from them in
`k2.schemas`. Times are nanoseconds since the epoch, UTC. Prices and sizes are exact decimals.
"""

import enum
from dataclasses import dataclass
from typing import Optional

from dataclasses_avroschema import AvroModel, types

__all__ = ["PRICE_PRECISION", "PRICE_SCALE", "Side", "Trade"]

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
