"""Every setting of K2, as data: one table, and the only reader of the environment.

`K2_<NAME>` in the environment sets `<name>`. An unknown `K2_` variable is refused, so that a
misspelt setting never falls back to a default in silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from k2.errors import SettingError

__all__ = ["Settings", "load"]

MIB = 1024 * 1024


def _setting(default: Any, unit: str, help: str, low: Any = None, high: Any = None) -> Any:
    meta = {"unit": unit, "help": help, "low": low, "high": high}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, slots=True)
class Settings:
    """One value a setting; see each field's metadata for unit, help and bounds."""

    data: Path = _setting(
        Path("k2-data"), "folder", "Warehouse, catalog, RocksDB and logs live here."
    )
    broker: str = _setting("127.0.0.1:9092", "host:port[,...]", "Kafka bootstrap servers.")
    group: str = _setting("k2", "name", "Consumer group, and prefix of the changelog topics.")
    worker: str = _setting("0", "name", "Name of this worker: its folder for tables.")
    exchanges: str = _setting(
        "ASX,SIM", "A,B", "Exchanges whose trades are ingested, a topic each."
    )
    timezones: str = _setting(
        "ASX=Australia/Sydney",
        "EXCHANGE=Zone[,...]",
        "Time zone of an exchange's trading date; else UTC.",
    )
    partitions: int = _setting(4, "count", "Partitions of a topic that K2 creates.", 1, 1024)
    replication: int = _setting(1, "count", "Replicas of a topic that K2 creates.", 1, 16)
    registry_url: str = _setting("", "URL", "Confluent Schema Registry; empty: the file in `data`.")
    catalog_uri: str = _setting("", "URI", "Iceberg catalog; empty: SQLite in `data`.")
    warehouse: str = _setting("", "URI", "Iceberg warehouse; empty: a folder in `data`.")
    namespace: str = _setting("market", "name", "Iceberg namespace of K2's tables.")
    port: int = _setting(6066, "port", "The web views' port.", 1, 65535)
    bind: str = _setting("127.0.0.1", "address", "The web views' address.")
    fetch_bytes_max: int = _setting(
        8 * MIB, "bytes", "Fetched from one partition at once: one event.", 64 * 1024, 256 * MIB
    )
    inflight_bytes_max: int = _setting(
        64 * MIB, "bytes", "Fetched and not yet decoded, over all partitions.", MIB, 16384 * MIB
    )
    decode_threads: int = _setting(2, "count", "Threads that decode batches.", 1, 64)
    buffer_rows_max: int = _setting(1_000_000, "rows", "Rows that force a flush.", 1, 100_000_000)
    buffer_bytes_max: int = _setting(
        256 * MIB, "bytes", "Buffered rows, Arrow size; full: fetching waits.", MIB, 65536 * MIB
    )
    flush_age_max_ms: int = _setting(
        1000, "ms", "Oldest buffered row that forces a flush.", 10, 3_600_000
    )
    commit_timeout_ms: int = _setting(
        30_000, "ms", "A commit is retried this long before the worker gives up.", 100, 3_600_000
    )
    snapshots_keep: int = _setting(20, "count", "Newest snapshots that expiry keeps.", 1, 100_000)
    snapshots_expire_every: int = _setting(
        10, "commits", "Commits between two expiries.", 1, 100_000
    )
    snapshot_age_min_ms: int = _setting(
        10_000, "ms", "Snapshots younger than this are kept.", 0, 31_536_000_000
    )
    orphan_age_min_ms: int = _setting(
        3_600_000,
        "ms",
        "Files that no snapshot names are orphans when older; a commit may be in flight.",
        0,
        31_536_000_000,
    )
    reset_window_ms: int = _setting(
        60_000, "ms", "Pause after which a fall of the sequence by half is a reset.", 0, 86_400_000
    )
    gaps_open_max: int = _setting(1000, "count", "Open gaps remembered per symbol.", 1, 1_000_000)
    session_timeout_ms: int = _setting(
        20_000, "ms", "Kafka session timeout; a silent worker loses its partitions.", 6_000, 300_000
    )
    shutdown_timeout_ms: int = _setting(
        15_000, "ms", "Flush deadline at shutdown and at revocation.", 100, 300_000
    )
    query_rows_max: int = _setting(
        10_000_000, "rows", "Largest `limit` of a query.", 1, 1_000_000_000
    )
    query_memory_max: int = _setting(1024 * MIB, "bytes", "DuckDB's memory.", 64 * MIB, 65536 * MIB)

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, low, high = getattr(self, spec.name), spec.metadata["low"], spec.metadata["high"]
            if low is not None and not low <= value <= high:
                raise SettingError(
                    f"K2_{spec.name.upper()}: {value} is outside {low}..{high}"
                    f" (in {spec.metadata['unit']})"
                )
        if self.shutdown_timeout_ms >= self.session_timeout_ms:
            raise SettingError(
                f"shutdown_timeout_ms: {self.shutdown_timeout_ms} must be below "
                f"session_timeout_ms ({self.session_timeout_ms}), else a flush outlives the lease"
            )
        if self.fetch_bytes_max > self.inflight_bytes_max:
            raise SettingError(
                f"fetch_bytes_max: {self.fetch_bytes_max} must not exceed "
                f"inflight_bytes_max ({self.inflight_bytes_max})"
            )
        _ = self.exchange_names, self.exchange_zones

    @property
    def exchange_names(self) -> tuple[str, ...]:
        names = tuple(name.strip() for name in self.exchanges.split(",") if name.strip())
        if not names:
            raise SettingError("exchanges: empty; name at least one exchange")
        return names

    @property
    def exchange_zones(self) -> dict[str, str]:
        zones = {}
        for pair in filter(None, (p.strip() for p in self.timezones.split(","))):
            exchange, equals, zone = pair.partition("=")
            try:
                ZoneInfo(zone)
            except (ZoneInfoNotFoundError, ValueError) as exc:
                raise SettingError(f"timezones: {pair!r} is not EXCHANGE=Zone") from exc
            if not equals:
                raise SettingError(f"timezones: {pair!r} is not EXCHANGE=Zone")
            zones[exchange] = zone
        return zones

    def trades_topic(self, exchange: str) -> str:
        return f"market.trades.{exchange.lower()}"


def load(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Read the settings from `K2_*` in `environ`; `overrides` (not None) win.

    Raises:
        SettingError: a variable is unknown, or a value impossible; names both and the limit.
    """
    known = {spec.name: spec for spec in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("K2_"):
            continue
        name = variable[3:].lower()
        if name not in known:
            all_names = ", ".join(f"K2_{each.upper()}" for each in sorted(known))
            raise SettingError(f"{variable}: no such setting; known: {all_names}")
        values[name] = _parse(variable, text, type(known[name].default))
    values.update((name, value) for name, value in overrides.items() if value is not None)
    return Settings(**values)


def _parse(variable: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as exc:
        raise SettingError(f"{variable}: {text!r} is not a whole number") from exc
