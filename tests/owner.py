"""Whoever has read more than is committed, as replays and clients that follow ask them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from k2.lake.offsets import Source
from k2.query.fresh import Fresh, Held, choose
from k2.query.room import Room
from k2.query.span import Span
from k2.schemas import GAPS, QUOTES, TRADES, Kind
from tests.lakes import Lake, Row, records, source

SOURCES = {TRADES: [source(TRADES, 0), source(TRADES, 1)], QUOTES: [source(QUOTES, 0)]}


class Owner:
    """Whoever has read more than is committed: what workers have in hand."""

    def __init__(self, lake: Lake, seed: int) -> None:
        self.lake, self.draw = lake, random.Random(seed)
        self.logs: dict[Source, list[Row]] = defaultdict(list)
        self.refusals: list[Exception] = []
        self.findings: list[dict[str, Any]] = []
        self.asked = 0

    def read(self, count: int) -> None:
        for of in (one for several in SOURCES.values() for one in several):
            new = self.draw.randrange(count + 1)
            self.logs[of] += [
                (self.draw.randrange(1000), self.draw.choice("AB")) for _ in range(new)
            ]

    def commit(self, kind: Kind) -> None:
        """All that is in hand of a kind, but for what comes last."""
        chosen = {}
        for of in SOURCES[kind]:
            first = self.lake.following.get(of, 0)
            until = self.draw.randint(first, len(self.logs[of]))
            if until > first:
                chosen[of] = self.logs[of][first:until]
        if chosen:
            self.lake.commit(kind, chosen)

    async def gather(self, kind: Kind, span: Span, after: Mapping[Source, int]) -> Fresh:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop()
        held = []
        for of in SOURCES[kind]:
            first = self.lake.following.get(of)
            some = self.logs[of][first or 0 :]
            tables = [records(kind, of, first or 0, some)] if some else []
            held.append(Held(of, first, len(self.logs[of]), 0, tables))
        gaps = [pa.Table.from_pylist(self.findings, GAPS)] if self.findings else []
        fresh = choose(kind, held, gaps, span, Room(1 << 30, ""), after)
        if self.draw.random() < 0.5:
            self.commit(kind)  # while the answer is under way
        return fresh
