"""Records of a replay: what they consist of, and one schema for all of them in Arrow.

In JSON a record has exactly the fields of its type, null or not. In Arrow every record has the
columns of all kinds that were asked for; what only findings have, and what K2 itself says, is JSON
in `detail`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from k2.schemas import COLUMNS, KINDS, Kind

__all__ = ["FIELDS", "FINDING", "FOUND", "TYPES", "finding_columns", "record_columns", "schema"]

#: By kind the type of its records.
TYPES = {kind: kind.name.removesuffix("s") for kind in KINDS}
FINDING = "gap"

#: What the ledger says of a finding, but for where its own row came from.
FOUND = (
    "gap_id", "kind", "status", "severity", "missing_first", "missing_last", "count",
    "remaining_count", "from_ts", "from_offset", "to_ts", "to_offset", "revision",
)  # fmt: skip

_WHERE = ("exchange", "symbol", "session", "ts_event", "kafka_topic", "kafka_partition")

#: By type the fields of a record in JSON, in their order.
FIELDS = {
    **{TYPES[kind]: ("type", *COLUMNS[kind], "cursor") for kind in KINDS},
    FINDING: ("type", *_WHERE, *FOUND, "cursor"),
}


def schema(kinds: Sequence[Kind]) -> pa.Schema:
    """The schema of a replay of some kinds in Arrow."""
    fields = {name: kind.table.field(name) for kind in kinds for name in COLUMNS[kind]}
    last = [name for name in fields if name == "verdict" or name.startswith("kafka_")]
    order = [name for name in fields if name not in last] + last
    return pa.schema(
        [
            pa.field("type", pa.string(), nullable=False),
            *(fields[name].with_nullable(True) for name in order),
            pa.field("detail", pa.string()),
            pa.field("cursor", pa.string(), nullable=False),
        ]
    )


def record_columns(kind: Kind) -> str:
    """What is selected of a kind's table."""
    return f"'{TYPES[kind]}' AS type, {', '.join(COLUMNS[kind])}"


def finding_columns(place: str) -> str:
    """What is selected of the gap ledger; `place`: the expression of the time it stands at."""
    own = (name for name in (*_WHERE, *FOUND) if name != "ts_event")
    return f"'{FINDING}' AS type, {place} AS ts_event, {', '.join(own)}"
