"""An operator's word that a finding of the gap ledger is all right: a further row of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyiceberg.expressions
from pyiceberg.catalog import Catalog

from k2.errors import BadQuery, CatalogUnavailable
from k2.lake.catalog import gaps_name, load_table
from k2.lake.commit import Sink
from k2.lake.replays import operator
from k2.schemas import GAPS
from k2.settings import Settings

__all__ = ["accept"]

#: Untyped: the annotations of these pydantic classes know their keywords only.
_iceberg: Any = pyiceberg.expressions


def accept(
    catalog: Catalog, settings: Settings, gap_ids: Sequence[str], reason: str
) -> list[dict[str, Any]]:
    """Let findings be accepted: all of them, or none if one cannot be.

    The new row has the revision of the newest one, which it follows in time: what a worker tells
    of the finding from there on counts, be it told at the same moment.

    Returns:
        The rows that were added, of GAPS.

    Raises:
        BadQuery: no such finding, one that is filled, or no reason.
        CatalogUnavailable: the table cannot be read.
        CommitFailed: the catalog refused.
    """
    if not reason.strip():
        raise BadQuery("reason", "empty: say why")
    newest = _newest(catalog, settings, gap_ids)
    if unknown := [gap_id for gap_id in gap_ids if gap_id not in newest]:
        raise BadQuery("id", f"{', '.join(unknown)}: no such finding in the gap ledger")
    if filled := [gap_id for gap_id, row in newest.items() if row["status"] == "filled"]:
        raise BadQuery("id", f"{', '.join(filled)}: filled, so there is nothing to accept")
    now, who = datetime.now(UTC), operator()
    rows = [
        {
            **row,
            "status": "accepted",
            "severity": "info",
            "operator": who,
            "reason": reason,
            # A worker's clock may be ahead of ours.
            "ingest_time": max(now, row["ingest_time"] + timedelta(microseconds=1)),
        }
        for row in newest.values()
    ]
    sink = Sink(catalog, gaps_name(settings), settings)
    sink.commit(sink.write(pa.Table.from_pylist(rows, GAPS)), {}, {})
    return rows


def _newest(
    catalog: Catalog, settings: Settings, gap_ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    table = load_table(catalog, gaps_name(settings))
    try:
        rows = table.scan(row_filter=_iceberg.In("gap_id", set(gap_ids))).to_arrow().to_pylist()
    except (pa.ArrowException, OSError) as exc:
        raise CatalogUnavailable(f"{gaps_name(settings)}: {exc}") from exc
    rows.sort(key=lambda row: (row["revision"], row["ingest_time"]))
    return {row["gap_id"]: row for row in rows}
