"""`k2 offsets`: where each log goes on, compared with the log itself, and moved by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import orjson

from k2.cli.output import note, opened, show_sources
from k2.errors import BadQuery, BrokerUnavailable, K2Error
from k2.lake.catalog import open_catalog
from k2.lake.moves import Offsets
from k2.lake.offsets import Source, Topic, anew, known_ids
from k2.logs import Log, Logs
from k2.settings import load

__all__ = ["offsets"]

OK = "ok"
OTHER_CLUSTER = "other cluster"
NO_TOPIC = "no such topic"
NOT_ASKED = "broker not asked"
STARTS_ABOVE = "log starts above: lost by retention"
ENDS_BELOW = "log ends below: truncated or recreated"
RECREATED = "topic made anew: another id"
FORMER_TOPIC = "former topic"

_Command = Callable[..., None]


@click.group()
def offsets() -> None:
    """Compare where K2 goes on with what the logs still have, and move it.

    \b
    k2 offsets show
    k2 offsets move market.trades.sim 0 --to start --reason "retention outran us" --yes
    k2 offsets accept market.trades.sim --reason "deleted by mistake" --yes
    k2 offsets forget --cluster k2-4f0e --reason "the old broker is gone" --yes
    """


@offsets.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
def show(as_json: bool) -> None:
    """Show the next offset of every source, its log's bounds, and a verdict.

    Exit code 1 when a log of the present cluster does not reach from the next offset, or is not the
    one of its name that K2 has read.

    \b
    k2 offsets show
    k2 offsets show --json | jq 'select(.verdict != "ok")'
    """
    with _both() as (stored, logs):
        rows = [_row(source, stored, logs) for source in stored.sources]
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row))
    else:
        _show(rows)
        for move in stored.moves:
            note(f"{move.source}: {move}")
    wrong = (STARTS_ABOVE, ENDS_BELOW, RECREATED)
    sys.exit(1 if any(row["verdict"] in wrong for row in rows) else 0)


def _row(source: Source, stored: Offsets, logs: Logs | None) -> dict[str, Any]:
    following = stored.records.get(source)
    log = logs.log(source) if logs is not None else None
    return {
        **source._asdict(),
        "next_offset": following,
        "rejects": stored.rejects.get(source),
        "log_start": log.start if log else None,
        "log_end": log.end if log else None,
        "lag": max(0, log.end - (following or log.start)) if log else None,
        "verdict": _verdict(source, following, logs, log),
    }


def _verdict(source: Source, following: int | None, logs: Logs | None, log: Log | None) -> str:
    if logs is None:
        return NOT_ASKED
    if log is None:
        return _verdict_without(source, logs)
    if following is not None and following < log.start:
        return STARTS_ABOVE
    if following is not None and following > log.end:
        return ENDS_BELOW
    return OK


def _verdict_without(source: Source, logs: Logs) -> str:
    if source.cluster != logs.cluster and not source.cluster.startswith(anew(logs.cluster, "")):
        return OTHER_CLUSTER
    if source.partition not in logs.partitions(source.topic):
        return NO_TOPIC
    return RECREATED if logs.kept_under(source.topic) is None else FORMER_TOPIC


def _show(rows: list[dict[str, Any]]) -> None:
    titles = ("partition", "next offset", "rejects", "log start", "log end", "lag")
    show_sources(titles, (row.values() for row in rows), "no offsets yet")


def _changing(command: _Command) -> _Command:
    """The options that every change has."""
    shared = (
        click.option("--reason", metavar="TEXT", required=True, help="Why; kept in the tables."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done: the default."),
        click.option("--yes", is_flag=True, help="Do it."),
        click.option(
            "--force", is_flag=True, help="Although workers run, or offsets would be read again."
        ),
    )
    for option in reversed(shared):
        command = option(command)
    return command


@offsets.command()
@click.argument("topic")
@click.argument("partition", type=click.IntRange(0))
@click.option("--to", "target", metavar="OFFSET|start|end", required=True, help="Go on here.")
@_changing
def move(
    topic: str, partition: int, target: str, reason: str, dry_run: bool, yes: bool, force: bool
) -> None:
    """Let K2 go on at another offset of a log of the present cluster; --yes does it.

    Its table, rejects and the gap ledger get it in a fenced commit each, with who, when and why, so
    that `k2 verify` knows that the records between were given up. Refused while workers run.

    \b
    k2 offsets move market.trades.sim 0 --to start --reason "retention outran us"
    k2 offsets move market.trades.sim 0 --to 4711 --reason "skip the broken hour" --yes
    """
    with _both() as (stored, logs):
        if logs is None:
            raise BrokerUnavailable("the log's bounds are needed, and the broker does not answer")
        log = logs.bounds(topic, partition)
        if log is None:
            at = f"{topic}[{partition}] at {load().broker}"
            raise BadQuery("topic", f"{at}: no such topic and partition")
        cluster = logs.kept_under(topic)
        if cluster is None:
            raise BadQuery("topic", f"{topic} was made anew: see `k2 offsets accept --help`")
        source = Source(cluster, topic, partition)
        to = _target(target, log)
        before = stored.records.get(source)
        if not log.start <= to <= log.end and not force:
            raise BadQuery("to", f"{to} is outside of the log, {log.start}..{log.end}")
        if before is not None and to < before and not force:
            raise BadQuery(
                "to",
                f"{to} is below the next offset {before}: offsets {to}..{before - 1} would be in "
                "the tables twice, which `k2 verify` will say; --force does it all the same",
            )
        click.echo(f"{source}: next offset {before} -> {to} (log {log.start}..{log.end})")
        if before is not None and to > before:
            click.echo(f"{to - before:,} offsets are given up: {before}..{to - 1}")
        if _confirmed(logs, yes, dry_run, force):
            stored.move(source, to, reason)
            click.echo("done")


def _target(text: str, log: Log) -> int:
    if text in ("start", "end"):
        return log.start if text == "start" else log.end
    if not text.isdecimal():
        raise BadQuery("to", f"{text!r} is neither an offset nor start nor end")
    return int(text)


@offsets.command()
@click.argument("topic")
@_changing
def accept(topic: str, reason: str, dry_run: bool, yes: bool, force: bool) -> None:
    """Let K2 read a topic that was deleted and made anew, from its start; --yes does it.

    Its offsets mean other records than those of the former topic, so it becomes a log of its own:
    its rows are kept under the cluster CLUSTER/TOPIC_ID. Rows and offsets of the former topic stay;
    what is sent again becomes duplicates. Refused while workers run.

    
    k2 offsets accept market.trades.sim --reason "deleted by mistake"
    k2 offsets accept market.trades.sim --reason "deleted by mistake" --yes
    """
    with _both() as (stored, logs):
        if logs is None:
            raise BrokerUnavailable("the topic's id is needed, and the broker does not answer")
        partitions, number = logs.partitions(topic), logs.topic_id(topic)
        if not partitions:
            raise BadQuery("topic", f"{topic}: no such topic at {load().broker}")
        if number is None:
            raise BadQuery("topic", f"{topic}: the broker names no id; `k2 offsets move --help`")
        former = known_ids(logs.cluster, topic, stored.topics)
        unread = not any(s[:2] == (logs.cluster, topic) for s in stored.sources)
        if number in former or (unread and not former):
            raise BadQuery("topic", f"{topic} (id {number}) was not made anew: nothing to accept")
        cluster = anew(logs.cluster, number)
        # Tables from before K2 carried ids know none.
        known = list(former)[-1] if former else "unknown"
        click.echo(f"{topic}: id {known} -> {number}, to be kept under {cluster}")
        starts: dict[Source, int] = {}
        for partition in partitions:
            if (log := logs.bounds(topic, partition)) is not None:
                source = Source(cluster, topic, partition)
                starts[source] = log.start
                click.echo(f"{source}: is read from {log.start} (log {log.start}..{log.end})")
        if _confirmed(logs, yes, dry_run, force):
            stored.accept(Topic(cluster, topic), number, starts, reason)
            click.echo("done")


@offsets.command()
@click.option("--cluster", metavar="C", required=True, help="That no longer exists.")
@_changing
def forget(cluster: str, reason: str, dry_run: bool, yes: bool, force: bool) -> None:
    """Forget the next offsets of a cluster's logs; its rows stay. --yes does it.

    \b
    k2 offsets forget --cluster k2-4f0e --reason "the old broker is gone" --yes
    """
    with _both() as (stored, logs):
        gone = [source for source in stored.sources if source.cluster == cluster]
        if not gone:
            raise BadQuery("cluster", f"{cluster}: no offsets of such a cluster")
        present = logs is not None and (
            logs.cluster == cluster or any(logs.has(source) for source in gone)
        )
        if present and not force:
            raise BadQuery(
                "cluster",
                f"{cluster} is the present one: all of its logs would be read again from their "
                "start; --force does it all the same",
            )
        for source in gone:
            click.echo(f"{source}: next offset {stored.records.get(source)} -> none")
        if _confirmed(logs, yes, dry_run, force):
            # A present topic that is made anew one day must still be told from its former self.
            stored.forget(gone, reason, topics=logs is not None and not present)
            click.echo("done")


def _confirmed(logs: Logs | None, yes: bool, dry_run: bool, force: bool) -> bool:
    if not yes or dry_run:
        note("nothing done: --yes does it")
        return False
    # A worker at it would be fenced and rejoin, but what it buffers is then read again for nothing.
    if not force and logs is not None and (found := logs.workers()):
        raise K2Error(
            f"{found}. Stop them first; with --force those that run drop what they have in hand "
            "and go on at the new offset"
        )
    return True


@contextmanager
def _both() -> Iterator[tuple[Offsets, Logs | None]]:
    """The stored offsets, and the logs if the broker answers."""
    settings = load()
    with opened():
        stored = Offsets(open_catalog(settings), settings)
        logs: Logs | None = None
        try:
            logs = Logs(settings, stored.topics)
        except BrokerUnavailable as exc:
            note(f"the logs are not compared: {exc}")
        try:
            yield stored, logs
        finally:
            if logs is not None:
                logs.close()
