"""Looks for symbols and topics that have fallen silent, in the partitions of this worker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from faust.types import TP
from k2.agents.assignment import Partition

from k2 import calendars, metrics
from k2.schemas import KINDS
from k2.sequence import header_columns
from k2.settings import Settings
from k2.silence import Hours, Int64s, hours, quiet

__all__ = ["Silence"]

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a partition's states say."""

    newest: int  # ns, ts_event; of all symbols
    silent: list[tuple[str, int]]  # symbol, ts_event of its last record
    whole: bool  # the log has been read to its end


class Silence:
    """Keeps what the last look found.

    Of a partition that is not read to its end it can be said that it speaks, not that it is silent.
    """

    def __init__(self, settings: Settings) -> None:
        self.limits = settings.exchange_silence_limits
        self._codes, self._zones = settings.exchange_calendars, settings.exchange_zones
        names = settings.exchange_names
        self._topics = {kind.topic(name): (name, kind) for kind in KINDS for name in names}
        self._heard: dict[TP, _Heard] = {}
        self._silent: dict[str, int] = {}  # topics, and the ts_event of their last record
        self._watched: tuple[str, ...] = ()  # topics of which partitions are here, with records
        self._closed: set[str] = set()  # exchanges

    async def run(
        self, partitions: Mapping[TP, Partition], log_end: Callable[[TP], int | None]
    ) -> None:
        """Look again and again; ends by cancellation, at once where nothing is watched.

        Args:
            partitions: those of this worker, as they are at each look.
            log_end: of a partition, as the last fetch had it; None: nothing was fetched yet.

        Raises:
            SettingError: a calendar does not exist.
        """
        for exchange in self.limits:
            # Seconds, the first time.
            await asyncio.to_thread(calendars.load, self._codes.get(exchange, "24/7"))
        while self.limits:
            self.look(partitions, log_end, time.time_ns())
            await asyncio.sleep(LOOK_EVERY_S)

    def look(
        self,
        partitions: Mapping[TP, Partition],
        log_end: Callable[[TP], int | None],
        now: int,
    ) -> None:
        """Judge the partitions at `now` (ns), set the metrics, and log what changed of topics."""
        moments = {exchange: self._hours(exchange, now) for exchange in self.limits}
        self._closed = {exchange for exchange, moment in moments.items() if moment is None}
        watched: defaultdict[str, list[TP]] = defaultdict(list)
        heard: dict[TP, _Heard] = {}
        for tp, partition in partitions.items():
            exchange, _ = self._topics[tp.topic]
            # One without states never had a record: nobody sends it any.
            if exchange in self.limits and partition.sequences.states:
                watched[tp.topic].append(tp)
                if (moment := moments[exchange]) is not None:
                    whole = partition.is_at(log_end(tp))
                    heard[tp] = self._listen(tp, partition, exchange, moment, whole)
        self._heard, self._watched = heard, tuple(sorted(watched))
        for topic in self._silent.keys() - watched.keys():
            del self._silent[topic]  # its partitions are another worker's
        for topic, tps in watched.items():
            self._judge(topic, tps, moments[self._topics[topic][0]])
        self._measure(watched)

    def _hours(self, exchange: str, now: int) -> Hours | None:
        calendar = calendars.load(self._codes.get(exchange, calendars.ALWAYS_OPEN))
        return hours(calendar, self._zones.get(exchange, "UTC"), now)

    def _listen(
        self, tp: TP, partition: Partition, exchange: str, moment: Hours, whole: bool
    ) -> _Heard:
        last: Int64s = header_columns(list(partition.sequences.states.values()))["last_ts"]
        former = self._heard.get(tp)
        silent = former.silent if former else []
        limit_s, _ = self.limits[exchange]
        if whole and limit_s:
            keys = list(partition.sequences.states)
            places = quiet(last, moment, limit_s)
            found = zip(map(keys.__getitem__, places.tolist()), last[places].tolist(), strict=True)
            silent = [(symbol, at) for (name, symbol), at in found if name == exchange]
        return _Heard(int(last.max()), silent, whole)

    def _judge(self, topic: str, tps: list[TP], moment: Hours | None) -> None:
        """A topic speaks if one of its partitions does, and is silent if all of them are."""
        _, limit_s = self.limits[self._topics[topic][0]]
        if moment is None or not limit_s:
            self._silent.pop(topic, None)
            return
        newest = max(self._heard[tp].newest for tp in tps)
        waited = moment.now - max(newest, moment.open)
        if waited <= limit_s * _S:
            if self._silent.pop(topic, None) is not None:
                log.warning("%s speaks again", topic)
        elif topic not in self._silent and all(self._heard[tp].whole for tp in tps):
            self._silent[topic] = newest
            numbers = ", ".join(str(tp.partition) for tp in sorted(tps))
            said = "%s is silent: no record for %d s in partitions %s"
            log.warning(said, topic, waited // _S, numbers)

    def _measure(self, watched: Mapping[str, list[TP]]) -> None:
        metrics.silent_symbols.clear()
        metrics.silent_topics.clear()
        for topic, tps in watched.items():
            exchange, kind = self._topics[topic]
            count = sum(len(self._heard[tp].silent) for tp in tps if tp in self._heard)
            metrics.silent_symbols.labels(exchange, kind.name).set(count)
            metrics.silent_topics.labels(exchange, kind.name).set(topic in self._silent)

    def report(self, exchange: str | None = None) -> dict[str, Any]:
        """What the last look found, by exchange and kind; times are ts_event in ns.

        `watched`: the topics of which it tells; another worker may have heard of them too.
        """
        topics = [
            {**self._names(topic), "topic": topic, "last_ts_event": last or None}
            for topic, last in sorted(self._silent.items())
        ]
        symbols: list[dict[str, Any]] = [
            {**self._names(tp.topic), "symbol": symbol or None, "last_ts_event": last}
            for tp, heard in self._heard.items()
            for symbol, last in heard.silent
        ]
        symbols.sort(key=lambda row: (row["exchange"], row["kind"], row["symbol"] or ""))
        return {
            "watched": [t for t in self._watched if exchange in (None, self._topics[t][0])],
            "limits": {
                name: {"symbol_seconds": symbol, "topic_seconds": topic, "open": is_open}
                for name, (symbol, topic) in sorted(self.limits.items())
                if exchange in (None, name)
                for is_open in [name not in self._closed]
            },
            "topics": [row for row in topics if exchange in (None, row["exchange"])],
            "symbols": [row for row in symbols if exchange in (None, row["exchange"])],
        }

    def _names(self, topic: str) -> dict[str, str]:
        exchange, kind = self._topics[topic]
        return {"exchange": exchange, "kind": kind.name}
