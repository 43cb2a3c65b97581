"""`k2 verify`: the exactly-once audit."""

from __future__ import annotations

import sys
from typing import Any

import click
import orjson
from confluent_kafka import KafkaException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from k2.errors import BrokerUnavailable
from k2.holes import BrokerHoles
from k2.lake.audit import Report, audit
from k2.lake.catalog import open_catalog
from k2.lake.moves import Offsets
from k2.settings import Settings, load

__all__ = ["inspect", "verify"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON on stdout.")
@click.option("--offline", is_flag=True, help="Do not ask the broker to explain holes.")
def verify(as_json: bool, offline: bool) -> None:
    """Audit the tables: no offset lost or twice, no sequence twice, no file twice.

    Reads the newest snapshots, also beside running workers, in bounded memory
    (K2_QUERY_MEMORY_MAX). Files that no snapshot names are warnings, if older than
    K2_ORPHAN_AGE_MIN_MS. Exit code 1 when something is wrong, with the findings; 0 when all holds.

    \b
    k2 verify
    k2 verify --json | jq '.findings[] | select(.severity == "error")'
    """
    report = inspect(load(), Console(stderr=True), offline=offline)
    if as_json:
        sys.stdout.write(orjson.dumps(_as_dict(report)).decode() + "\n")
    else:
        _show(report)
    sys.exit(0 if report.passed else 1)


def inspect(settings: Settings, messages: Console, *, offline: bool = False) -> Report:
    """Audit with a progress bar on `messages`, asking the broker about holes unless offline."""
    catalog = open_catalog(settings)
    holes: BrokerHoles | None = None
    if not offline:
        try:
            holes = BrokerHoles(settings, Offsets(catalog, settings).topics)
        except (BrokerUnavailable, KafkaException) as exc:
            messages.print(f"holes stay unexplained: {exc}", style="yellow", soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, TimeElapsedColumn(), console=messages, transient=True) as bars:
            task = bars.add_task("reading the tables", total=None)
            return audit(
                catalog,
                settings,
                holes.explain if holes else None,
                lambda what, done, of: bars.update(
                    task, description=what, completed=done, total=of
                ),
            )
    finally:
        if holes:
            holes.close()


def _as_dict(report: Report) -> dict[str, Any]:
    return {
        "passed": report.passed,
        "snapshot_id": report.snapshot_id,
        "rows": report.rows,
        "files": report.files,
        "sources": [
            {
                "cluster": s.source.cluster,
                "topic": s.source.topic,
                "partition": s.source.partition,
                "rows": s.rows,
                "first": s.first,
                "last": s.last,
                "next_offset": s.next_offset,
            }
            for s in report.sources
        ],
        "findings": [
            {"kind": f.kind, "severity": f.severity, "detail": f.detail} for f in report.findings
        ],
    }


def _show(report: Report) -> None:
    console = Console()
    table = Table("topic", "partition", "rows", "first", "last", "next offset", title="Sources")
    for s in report.sources:
        cells = (s.source.topic, s.source.partition, s.rows, s.first, s.last, s.next_offset)
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    console.print(table)
    for finding in report.findings:
        console.print(f"{finding.severity}: {finding.kind}: {finding.detail}", soft_wrap=True)
    verdict = "passed" if report.passed else "FAILED"
    console.print(f"{verdict}: {report.rows:,} rows in {report.files:,} files")
