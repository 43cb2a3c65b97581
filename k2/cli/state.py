"""`k2 state`: the stored state of the sequence check, compared with the tables, and made anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import click
import orjson
from pyiceberg.catalog import Catalog

from k2.changelog import Changelog
from k2.cli.output import note, opened, show_sources
from k2.errors import BadQuery, K2Error
from k2.lake.catalog import open_catalog
from k2.lake.moves import Offsets
from k2.lake.offsets import Source
from k2.lake.states import count
from k2.logs import Logs
from k2.schemas import kind_of
from k2.sequence import SymbolState
from k2.settings import Settings, load
from k2.tables.epochs import Stored, forgotten, parse, read_states, unfit

__all__ = ["state"]

OK = "ok"
MISSING = "missing"
INCOMPLETE = "incomplete"
AHEAD = "ahead of the table"
BEHIND_LOG = "behind the log's start"
NOT_IN_TABLE = "not in the table: begins anew"
NO_REACH = "the log does not reach: `k2 offsets show`"
NOT_READ = "its log is no longer read"


@click.group()
def state() -> None:
    """Look at the states of the sequence check, and let workers make them anew from the tables.

    \b
    k2 state show
    k2 state rebuild market.trades.sim 0
    k2 state rebuild market.trades.sim 0 --yes
    """


@dataclass(frozen=True, slots=True)
class _Parts:
    """All that tells what a worker will find at its next assignment."""

    settings: Settings
    catalog: Catalog
    tables: Offsets
    logs: Logs
    changelog: Changelog

    def kept(self) -> tuple[dict[Source, Stored], dict[Source, list[bytes]]]:
        """What the changelog says of each source, as `parse` returns it; and then the tables.

        Read later, the tables are never behind a state that is sound. Memory: a state a symbol,
        as in the workers.
        """
        partitions = self.logs.partitions(self.changelog.topic)
        kept = parse(self.changelog.newest(partitions).items())
        self.tables.refresh()
        return kept

    def rows(self, source: Source, first: int, end: int) -> int:
        """Rows of the table that a worker has to read."""
        kind = kind_of(source.topic)
        return count(self.catalog, self.settings, kind, source, first, end) if kind else 0


@contextmanager
def _parts() -> Iterator[_Parts]:
    settings = load()
    with opened():
        catalog = open_catalog(settings)
        tables = Offsets(catalog, settings)
        with (
            closing(Logs(settings, tables.topics)) as logs,
            closing(Changelog(settings)) as changelog,
        ):
            yield _Parts(settings, catalog, tables, logs, changelog)


@state.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
def show(as_json: bool) -> None:
    """Show the stored state of every partition, and what a worker will make of it.

    Read from the changelog in Kafka, which is what a worker on another machine would find. Exit
    code 0 also if a state is of no use: the next worker makes it anew by itself.

    \b
    k2 state show
    k2 state show --json | jq 'select(.verdict != "ok")'
    """
    with _parts() as parts:
        stored, keys = parts.kept()
        read = {source for source in parts.tables.records if parts.logs.has(source)}
        rows = [
            _row(source, stored.get(source), source in keys, parts)
            for source in sorted({*keys, *read})
        ]
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row))
    else:
        _show(rows)


def _row(source: Source, found: Stored | None, written: bool, parts: _Parts) -> dict[str, Any]:
    watermark, symbols = read_states(found)
    return {
        **source._asdict(),
        "epoch": found.epoch if found else None,
        "watermark": watermark,
        "symbols": len(symbols),
        "open_gaps": sum(map(_open_gaps, symbols.values())),
        "next_offset": parts.tables.records.get(source),
        "verdict": _verdict(source, found, written, parts),
    }


def _open_gaps(symbol: SymbolState) -> int:
    """Those that a late record would still fill, of all sessions that are remembered."""
    memory = symbol.unpack()
    chains = (memory.chain, *memory.earlier.values())
    return sum(gap.reported for chain in chains for gap in chain.gaps)


def _verdict(source: Source, found: Stored | None, written: bool, parts: _Parts) -> str:
    log, following = parts.logs.log(source), parts.tables.records.get(source)
    if log is None:
        return NOT_READ
    if following is None:
        return NOT_IN_TABLE
    if not log.start <= following <= log.end:
        return NO_REACH
    watermark, symbols = read_states(found)
    rebuilt = unfit(source, watermark, symbols, log.start, following, parts.tables.moves)
    if rebuilt is not None:
        first, basis = rebuilt
        why = BEHIND_LOG if basis else AHEAD
        if watermark is None:
            why = INCOMPLETE if written and not _is_forgotten(found) else MISSING
        return f"{why}: rebuilt from {parts.rows(source, first, following):,} rows"
    behind = following - (watermark or 0)
    return f"behind: {behind:,} offsets are read again" if behind else OK


def _show(rows: list[dict[str, Any]]) -> None:
    titles = ("partition", "epoch", "watermark", "symbols", "open gaps", "next offset")
    shown = ({**row, "epoch": _number(row["epoch"])}.values() for row in rows)
    show_sources(titles, shown, "no states yet")


def _number(epoch: str | None) -> str | None:
    return epoch.partition("-")[0] if epoch else None


@state.command()
@click.argument("topic", required=False)
@click.argument("partition", type=click.IntRange(0), required=False)
@click.option("--yes", is_flag=True, help="Do it. Else only say what would be done.")
@click.option("--force", is_flag=True, help="Although workers run.")
def rebuild(topic: str | None, partition: int | None, yes: bool, force: bool) -> None:
    """Forget the states of all partitions, or of those named; --yes does it.

    Every worker on every machine then takes them for missing: at its next assignment it makes them
    anew from the committed rows, and goes on from there. Refused while workers run.

    \b
    k2 state rebuild
    k2 state rebuild market.trades.sim
    k2 state rebuild market.trades.sim 0 --yes
    """
    with _parts() as parts:
        _require(topic, partition, parts)
        stored, keys = parts.kept()
        chosen = {
            source: keys[source]
            for source in sorted(keys)
            if topic in (None, source.topic)
            and partition in (None, source.partition)
            and parts.logs.has(source)
            and not _is_forgotten(stored.get(source))
        }
        for source in chosen:
            click.echo(_forgetting(source, stored.get(source), parts))
        if not chosen:
            note("nothing done: there is no state to forget")
        elif not yes:
            note("nothing done: --yes does it")
        else:
            _forget(chosen, force, parts)
            click.echo("done")


def _require(topic: str | None, partition: int | None, parts: _Parts) -> None:
    if topic is None:
        return
    there = parts.logs.partitions(topic)
    if not there:
        raise BadQuery("topic", f"{topic}: no such topic at {parts.settings.broker}")
    if partition is not None and partition not in there:
        raise BadQuery("partition", f"{topic}[{partition}]: the topic has {len(there)} partitions")


def _is_forgotten(found: Stored | None) -> bool:
    return found is not None and found.watermark is None


def _forgetting(source: Source, found: Stored | None, parts: _Parts) -> str:
    what = "an incomplete state"
    if found is not None:
        what = f"the states of {len(read_states(found)[1]):,} symbols at {found.watermark}"
    rows = parts.rows(source, 0, parts.tables.records.get(source, 0))
    return f"{source}: {what} to be forgotten; a worker then reads {rows:,} rows of the table"


def _forget(chosen: dict[Source, list[bytes]], force: bool, parts: _Parts) -> None:
    if not force and (found := parts.logs.workers()):
        raise K2Error(
            f"{found}. Stop them first; with --force those that run go on with the states that "
            "they have until their next assignment"
        )
    for source, keys in chosen.items():
        # In a batch of its own: of Tansu's log a worker may not be shown the last batch.
        parts.changelog.write(source.partition, [forgotten(keys)])
        parts.changelog.write(source.partition, [(key, None) for key in keys])
