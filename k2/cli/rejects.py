"""`k2 rejects`: what K2 could not take, looked at, and sent again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import orjson
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from k2.cli.output import bounds, console, form_of, note, opened, run, write
from k2.cli.record import show_record
from k2.errors import BadQuery
from k2.feeds.resend import NOT_REPLAYED, Outcome, Resender
from k2.lake.catalog import open_catalog
from k2.lake.moves import Offsets
from k2.lake.offsets import anew
from k2.lake.replays import Ledger
from k2.query.rejects import Selection
from k2.query.rows import Rows, Stop
from k2.query.times import iso
from k2.settings import load

__all__ = ["rejects"]

DETAIL_SHOWN = 60
BYTES_SHOWN = 512
DOUBTS_SHOWN = 20

_Command = Callable[..., None]


def _filtered(command: _Command) -> _Command:
    """The options that choose rejects."""
    shared = (
        click.option(
            "--reason", "reasons", metavar="R", multiple=True, help="Of this reason; repeatable."
        ),
        click.option("--topic", metavar="T", help="From this topic only."),
        click.option("--cluster", metavar="C", help="From this Kafka cluster only."),
        click.option("--start", metavar="T", help="Rejected from: ISO 8601 (else UTC) or ns."),
        click.option("--end", metavar="T", help="First moment no longer asked for."),
    )
    for option in reversed(shared):
        command = option(command)
    return command


@click.group()
def rejects() -> None:
    """Look at records that K2 could not take, and send them again.

    \b
    k2 rejects list --summary
    k2 rejects show market.trades.sim 0 4711
    k2 rejects replay --reason unknown_schema --dry-run
    """


@rejects.command("list")
@_filtered
@click.option("--limit", metavar="N", type=int, help="Newest N only. Default: 20 in a table.")
@click.option("--summary", is_flag=True, help="Counts by reason.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a header.")
def list_(
    reasons: tuple[str, ...],
    topic: str | None,
    cluster: str | None,
    start: str | None,
    end: str | None,
    limit: int | None,
    summary: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List rejects, newest last; START and END are the time of the reject.

    \b
    k2 rejects list --reason unknown_schema --start 2026-01-02
    k2 rejects list --summary
    k2 rejects list --json | jq -r .detail
    """
    form, most = form_of(as_json, as_csv, limit)
    clusters = (cluster,) if cluster else ()
    which = Selection(reasons, clusters, topic, None, None, *bounds(start, end))
    with opened() as (engine, stop):
        if summary:
            rows = run(stop, lambda: engine.reject_counts(which, stop))
            if form is None:
                _show_counts(rows, stop)
                return
        else:
            rows = run(stop, lambda: engine.rejects(which, most, stop))
            if form is None:
                _show_list(rows, stop)
                return
        write(rows, form, stop, ())


def _show_list(rows: Rows, stop: Stop) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("rejected (UTC)", "place", "reason", "detail"):
        table.add_column(name)
    table.add_column("bytes", justify="right")
    table.add_column("replayed")
    while (batch := run(stop, rows.next_batch)) is not None:
        for row in batch.to_pylist():
            detail = row["detail"]
            table.add_row(
                iso(row["rejected_at"]),
                f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}",
                row["reason"],
                detail if len(detail) <= DETAIL_SHOWN else f"{detail[: DETAIL_SHOWN - 3]}...",
                "null" if row["value_bytes"] is None else f"{row['value_bytes']:,}",
                row["replayed"],
            )
    console().print(table)
    if rows.truncated:
        note(f"only the newest {table.row_count:,}; there are more (--limit, --summary)")
    elif table.row_count == 0:
        note("no rejects")


def _show_counts(rows: Rows, stop: Stop) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("reason")
    for name in ("rejects", "replayed", "bytes"):
        table.add_column(name, justify="right")
    for name in ("first (UTC)", "last (UTC)"):
        table.add_column(name)
    while (batch := run(stop, rows.next_batch)) is not None:
        for row in batch.to_pylist():
            table.add_row(
                row["reason"],
                f"{row['rejects']:,}",
                f"{row['replayed']:,}",
                f"{row['value_bytes'] or 0:,}",
                iso(row["first_rejected_at"]),
                iso(row["last_rejected_at"]),
            )
    console().print(table)
    if table.row_count == 0:
        note("no rejects")


@rejects.command()
@click.argument("topic")
@click.argument("partition", type=int)
@click.argument("offset", type=int)
@click.option("--cluster", metavar="C", help="Of this Kafka cluster, where several have the place.")
@click.option("--all", "everything", is_flag=True, help=f"All bytes, not the first {BYTES_SHOWN}.")
@click.option(
    "--raw", type=click.Path(path_type=Path, dir_okay=False), help="Write the value's bytes here."
)
def show(
    topic: str, partition: int, offset: int, cluster: str | None, everything: bool, raw: Path | None
) -> None:
    """Show one reject: why it is one, and its bytes.

    \b
    k2 rejects show market.trades.sim 0 4711
    k2 rejects show market.trades.sim 0 4711 --raw value.bin
    """
    which = Selection((), (cluster,) if cluster else (), topic, partition, offset)
    with opened() as (engine, stop):
        rows = run(stop, lambda: engine.reject_records(which, stop).read_all()).to_pylist()
    if not rows:
        raise BadQuery("offset", f"{topic}[{partition}]@{offset} is no reject")
    if len(rows) > 1:
        clusters = ", ".join(sorted({row["kafka_cluster"] for row in rows}))
        raise BadQuery("cluster", f"the place is one in {clusters}: name one with --cluster")
    (row,) = rows
    show_record(row, None if everything else BYTES_SHOWN)
    if raw is not None:
        if row["value"] is None:
            raise BadQuery("raw", "the value is null: there are no bytes to write")
        raw.write_bytes(row["value"])
        note(f"{len(row['value']):,} bytes written to {raw}")


@rejects.command()
@click.argument("place", nargs=-1, metavar="[TOPIC PARTITION OFFSET]")
@_filtered
@click.option("--dry-run", is_flag=True, help="Send nothing; say what would be sent.")
@click.option("--force", is_flag=True, help="Also what was replayed before, or is in doubt.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def replay(
    place: tuple[str, ...],
    reasons: tuple[str, ...],
    topic: str | None,
    cluster: str | None,
    start: str | None,
    end: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Send rejects again, key and value as they came, to the topic and partition they came from.

    Each is sent once, whoever asks on whichever machine: the table `replays` remembers. Where a
    replay died in between, the next one looks for its records in the log; those that are not there
    are named, and sent again by --force only. Rejects of other clusters than the present one need
    --cluster, duplicates and broken records their --reason.

    Exit code 1 when some are in doubt.

    \b
    k2 rejects replay --reason unknown_schema --dry-run
    k2 rejects replay market.trades.sim 0 4711
    """
    topic, partition, offset = _one(place, topic)
    named = reasons if offset is None else NOT_REPLAYED  # a place is named whatever its reason
    settings = load()
    with opened() as (engine, stop):
        catalog = open_catalog(settings)
        sender = Resender(settings, Ledger(catalog, settings))
        # Topics that were made anew are logs of their own, of the same cluster.
        known = Offsets(catalog, settings).topics.items()
        anews = [t.cluster for t, n in known if t.cluster == anew(sender.cluster, n)]
        clusters = (cluster,) if cluster else (sender.cluster, *anews)
        which = Selection(reasons, clusters, topic, partition, offset, *bounds(start, end))
        counted = run(stop, lambda: engine.reject_counts(which, stop).read_all())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        screen = console(stderr=True)
        try:
            with Progress(*columns, console=screen, transient=True) as bars:
                total = sum(counted["rejects"].to_pylist())
                task = bars.add_task("checking" if dry_run else "replaying", total=total)
                outcome = run(
                    stop,
                    lambda: sender.replay(
                        engine.reject_records(which, stop),
                        named,
                        force=force,
                        dry_run=dry_run,
                        progress=lambda n: bars.update(task, completed=n),
                    ),
                )
        finally:
            sender.close()
    if as_json:
        click.echo(orjson.dumps(_as_dict(outcome, dry_run)))
    else:
        _show_outcome(outcome, dry_run)
    sys.exit(1 if outcome.in_doubt else 0)


def _one(place: tuple[str, ...], topic: str | None) -> tuple[str | None, int | None, int | None]:
    if not place:
        return topic, None, None
    if len(place) != 3 or topic is not None:
        raise BadQuery("place", "name TOPIC PARTITION OFFSET, or choose by options")
    try:
        return place[0], int(place[1]), int(place[2])
    except ValueError as exc:
        raise BadQuery("place", f"{' '.join(place)} is not TOPIC PARTITION OFFSET") from exc


def _as_dict(outcome: Outcome, dry_run: bool) -> dict[str, Any]:
    return {
        "replay": outcome.replay,
        "dry_run": dry_run,
        "selected": outcome.selected,
        "sent": outcome.sent,
        "already_replayed": outcome.already,
        "found_in_log": outcome.found,
        "left_out": dict(outcome.left_out),
        "in_doubt": [place._asdict() for place in outcome.in_doubt],
    }


def _show_outcome(outcome: Outcome, dry_run: bool) -> None:
    verb = "would be sent" if dry_run else "sent"
    click.echo(f"{outcome.sent:,} of {outcome.selected:,} {verb}")
    if outcome.already:
        note(f"{outcome.already:,} were replayed before")
    if outcome.found:
        note(f"{outcome.found:,} in doubt were found in the log: they had been sent")
    for reason in NOT_REPLAYED:
        if count := outcome.left_out[reason]:
            note(f"{count:,} left out: replayed only with --reason {reason}")
    for place in outcome.in_doubt[:DOUBTS_SHOWN]:
        note(f"in doubt: {place}: a replay may have sent it, and it is not in the log")
    if outcome.in_doubt:
        note(f"{len(outcome.in_doubt):,} in doubt: --force sends them again")
