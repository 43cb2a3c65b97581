"""The parameters by which rows are chosen, of whichever resource."""

from __future__ import annotations

from k2.web.formats import MEDIA_TYPES
from k2.web.params import DATE, FLAG, NAMES, RANGE, TEXT, TIME, WHOLE, Parameter

__all__ = [
    "AS_OF",
    "COLUMNS",
    "CURSOR",
    "END",
    "EXCHANGE",
    "FORMAT",
    "FRESH",
    "LIMIT",
    "OF_EXCHANGE",
    "OF_SYMBOL",
    "RANGE_OF_TIME",
    "SESSION",
    "START",
    "SYMBOL",
    "TIMES",
]

EXCHANGE = Parameter("exchange", TEXT, "Of this exchange only.", "ASX")
SYMBOL = Parameter("symbol", NAMES, "Of these symbols only, with commas between.", "BHP,RIO")
OF_EXCHANGE = Parameter("exchange", TEXT, "The exchange.", "ASX", required=True)
OF_SYMBOL = Parameter("symbol", TEXT, "The symbol.", "BHP", required=True)

START = Parameter(
    "start", TIME, "From this time on: ns since the epoch, ISO 8601, `now`, or `-1h`.", "2014-03-10"
)
END = Parameter(
    "end",
    TIME,
    "Before this time, which is written as `start` is; or a duration from `start`: `1d`.",
    "2014-03-11",
)
RANGE_OF_TIME = Parameter(
    "range", RANGE, "Both in one: `FIRST:END`. Not together with the two.", "2014-03-10:1d"
)
#: Either `range`, or the others.
TIMES = (START, END, RANGE_OF_TIME)
SESSION = Parameter("session", DATE, "Of this session: a date of the exchange.", "2014-03-10")

LIMIT = Parameter(
    "limit", WHOLE, "At most so many rows.", "100", most="query_rows_max", more={"minimum": 1}
)
FORMAT = Parameter(
    "format", TEXT, "The format of the answer, else the header `Accept` chooses.",
    "json", among=tuple(MEDIA_TYPES),
)  # fmt: skip
CURSOR = Parameter(
    "cursor",
    TEXT,
    "The `next` of an answer: go on behind its last row. Only `limit` and `format` may differ.",
)
COLUMNS = Parameter("columns", NAMES, "These columns only, in this order.", "ts_event,price,size")
AS_OF = Parameter(
    "as_of",
    TIME,
    "The table as it was: the id of a snapshot, or a time. Not together with `fresh`.",
    "-1h",
)
FRESH = Parameter(
    "fresh", FLAG, "`true`: with what workers have in hand and is not committed yet.", "true",
    default="false",
)  # fmt: skip
