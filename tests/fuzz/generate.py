"""Fetches of Kafka record batches, all from one seed.

Large ones: half of them clean, the others with few faults or many. Between two of those, small
ones with one fault each, which ask of every single check of the codec whether it is needed.

A case depends on (kind, seed, number) alone. Values are drawn from a pool that several cases share,
so that the reference has to read each distinct value once only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from k2.schemas import Kind
from k2.transport.fetched import Fetched, RecordBatch, parse
from tests.fuzz.frames import inside, lying, packed, record, stretched
from tests.fuzz.reference import Rec, Section
from tests.fuzz.values import (
    SAME_LAYOUT,
    SCHEMAS,
    Piece,
    framed,
    spoiled,
    valid,
    write,
)

__all__ = ["CASES_PER_POOL", "Case", "case"]

CASES_PER_POOL = 420
_LARGE_EVERY = 14  # cases that share a pool
_POOL_VALUES = 1000
_TIMES = (0, 1, -1, 63, -64, 64, 5000, 2**31, -(2**40))
_KEYS = (b"", b"X.S", b"\xff\0", b"k" * 63, b"k" * 64)


@dataclass(frozen=True, slots=True)
class Case:
    """`clean`: nothing in it keeps the decoder from its fast path."""

    fetched: Fetched
    sections: list[Section]
    clean: bool


@dataclass(frozen=True, slots=True)
class Pool:
    ids: list[int]  # of all schemas
    plain: dict[int, list[bytes]]  # values by schema id, of the reader's layout
    odd: list[bytes]  # valid, but evolved, long or wide
    pieces: list[tuple[int, list[Piece]]]  # what is there to be spoiled


@lru_cache(maxsize=2)
def _pool(kind: Kind, seed: int, number: int) -> Pool:
    schemas = SCHEMAS[kind]
    rng = Random(f"{seed} pool {number}")
    plain, odd, pieces = {}, [], []
    for schema_id in SAME_LAYOUT:
        made = [valid(rng, kind.avro) for _ in range(_POOL_VALUES // len(SAME_LAYOUT))]
        plain[schema_id] = [framed(schema_id, write(each)) for each in made]
        pieces += [(schema_id, each) for each in made]
    for schema_id in schemas:
        made = [valid(rng, schemas[schema_id], wild=True) for _ in range(20)]
        odd += [framed(schema_id, write(each)) for each in made]
        pieces += [(schema_id, each) for each in made]
    return Pool(list(schemas), plain, odd, pieces)


class _Batch:
    """One batch while it is being made."""

    def __init__(self, rng: Random, pool: Pool, faults: int, keyed: bool) -> None:
        self.rng, self.pool, self.keyed = rng, pool, keyed
        self.first_timestamp = rng.choice((0, 1_700_000_000_000))
        self.max_timestamp = self.first_timestamp + rng.randrange(10_000)
        self.log_append = rng.random() < 0.3
        self.records: list[Rec] | None = []
        self.deltas: list[int] = []
        self.faults = faults

    def fill(self, n: int, schema_id: int) -> None:
        """Write n records, of which `faults` are spoiled in their value or in their frame."""
        rng = self.rng
        gaps = rng.choice((0, 0, 0, 0.05, 0.9))
        values: list[bytes | None] = [*rng.choices(self.pool.plain[schema_id], k=n)]
        keys: list[bytes | None] = [*rng.choices(_KEYS, k=n)] if self.keyed else [None] * n
        spots = set(rng.choices(range(n), k=self.faults)) if n else set()
        times = rng.choices(_TIMES, k=n)
        pieces, delta = [], -1
        for i in range(n):
            delta += 1 + (rng.randrange(30) if gaps and rng.random() < gaps else 0)
            if i in spots:
                values[i], keys[i], piece = self._spoil(delta, times[i], keys[i])
            else:
                piece = record(delta, times[i], keys[i], values[i])
            pieces.append(piece)
            self.deltas.append(delta)
        made = zip(self.deltas, times, keys, values, map(inside, pieces), strict=True)
        self.records = [Rec(*each) for each in made]
        self.count = n
        self.last_delta = max(delta, 0) + (rng.randrange(100) if gaps else 0)
        self.body = b"".join(pieces)
        if any(not piece for piece in pieces) or self._blind:
            self.records = None

    _blind = False  # some record's frame lies: only reading it tells what is there

    def _spoil(
        self, delta: int, time: int, key: bytes | None
    ) -> tuple[bytes | None, bytes | None, bytes]:
        rng = self.rng
        schema_id, pieces = rng.choice(self.pool.pieces)
        value: bytes | None = framed(schema_id, write(pieces))
        kind = rng.randrange(13)
        if kind < 6:
            fake = record(delta + 1, time, key, value)
            value = spoiled(rng, self.pool.ids, schema_id, pieces, fake)
            return value, key, record(delta, time, key, value)
        if kind == 6:
            value = rng.choice(self.pool.odd)
            return value, key, record(delta, time, key, value)
        if kind == 7:
            key = rng.choice((None, b"", b"other", rng.randbytes(200)))
            return value, key, record(delta, time, key, value)
        if kind == 8:
            headers = rng.choice(([(b"a", b"b")], [(b"", None)] * 3, [(b"h", bytes(99))] * 70))
            attributes = rng.choice((0, 0, 1, 128, 255))
            return value, key, record(delta, time, key, value, attributes, headers)
        if kind == 9:
            return value, key, record(delta, time, key, value, rng.choice((1, 2, 127, 128, 255)))
        if kind == 10:
            return value, key, stretched(rng, delta, time, key, value)
        self._blind = True
        return value, key, lying(rng, delta, time, key, value)

    def damage(self) -> None:
        """Damage the section as a whole; from here on only reading it tells what it holds."""
        rng, body = self.rng, self.body
        self.records = None
        at = rng.randrange(len(body) + 1)
        match rng.randrange(9):
            case 0 if at < len(body):
                body = body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]
            case 1:
                body = body[:at] + rng.randbytes(rng.choice((1, 2, 7))) + body[at:]
            case 2:
                body = body[:at] + body[at + rng.choice((1, 2, 7)) :]
            case 3:
                body = body[:at]
            case 4:
                body += rng.choice((b"\0", b"\0" * 7, rng.randbytes(20), body[:200]))
            case 5:
                self.count = max(1, self.count + rng.choice((-2, -1, 1, 2, 1000, 2**31 - 1)))
                self.count = min(self.count, 2**31 - 1)
            case 6:
                body = rng.randbytes(rng.choice((0, 1, 6, 50, 5000)))
            case 7:
                self.last_delta = rng.randrange(self.last_delta + 1)
            case 8:
                body = self._unordered()
        self.body = body

    def _unordered(self) -> bytes:
        rng = self.rng
        deltas = list(self.deltas)
        for _ in range(min(len(deltas), rng.choice((1, 1, 5)))):
            wrong = (-1, 0, 2**31, -(2**63), 2**63 - 1, self.last_delta, rng.choice(deltas))
            deltas[rng.randrange(len(deltas))] = rng.choice(wrong)
        values = next(iter(self.pool.plain.values()))
        return b"".join(record(delta, 5, b"k", rng.choice(values)) for delta in deltas)

    def section(self, base: int) -> Section:
        return Section(
            base,
            self.last_delta,
            self.count,
            self.first_timestamp,
            self.max_timestamp,
            self.log_append,
            self.body,
            self.records,
        )


def _direct(base: int, first_offset: int, sections: list[Section], rng: Random) -> Fetched:
    end = base
    batches = []
    for each in sections:
        end = each.base + each.last_delta + 1
        body = memoryview(each.body) if rng.random() < 0.5 else each.body
        batches.append(
            RecordBatch(
                each.base,
                each.last_delta,
                each.count,
                each.first_timestamp,
                each.max_timestamp,
                each.log_append,
                body,
            )
        )
    return Fetched("t", 0, first_offset, end, tuple(batches), 0)


def _parsed(
    first_offset: int, sections: list[Section], rng: Random
) -> tuple[Fetched, list[Section]]:
    """Send sections through `parse`, some in transactions, between control and empty batches."""
    raw, kept, aborted = b"", [], []
    shift = 0
    for each in sections:
        each = Section(each.base + shift, *[getattr(each, n) for n in Section.__slots__[1:]])
        kind = rng.choice(("plain", "plain", "commit", "abort", "empty"))
        end = each.base + each.last_delta + 1
        if kind == "empty":
            raw += packed(Section(each.base, 4, 0, 0, 0, False, b"", []), 0)
            shift += 5
            continue
        # Nothing at all in aiokafka's snappy is a header that it does not read back.
        codec = rng.randrange(5) if each.body else 0
        if kind == "plain":
            raw += packed(each, codec)
            kept.append(each)
            continue
        producer = rng.randrange(1, 4)
        raw += packed(each, codec, 0x10, producer)
        marker = record(0, 0, b"\0\0\0" + bytes([kind == "commit"]), b"\0\0\0\0\0\0")
        raw += packed(Section(end, 0, 1, 0, 0, False, marker, []), 0, 0x30, producer)
        shift += 1
        if kind == "commit":
            kept.append(each)
        elif end >= first_offset:  # a broker names those that end in the fetch or behind it
            aborted.append((producer, each.base))
    raw += rng.choice((b"", b"", raw[:60]))  # a last, incomplete batch
    rng.shuffle(aborted)
    kept = [each for each in kept if each.base + each.last_delta >= first_offset]
    return parse("t", 0, first_offset, raw, aborted), kept


def _small(rng: Random, pool: Pool) -> Case:
    """A few records in one batch, and one fault."""
    schema_id, keyed = rng.choice(SAME_LAYOUT), rng.random() < 0.6
    whole = rng.random() < 0.2
    batch = _Batch(rng, pool, faults=0 if whole else 1, keyed=keyed)
    batch.fill(rng.choice((1, 2, 3, 6)), schema_id)
    if whole:
        batch.damage()
    section = batch.section(50)
    first_offset = 50 + (rng.randrange(section.last_delta + 1) if rng.random() < 0.1 else 0)
    return Case(_direct(50, first_offset, [section], rng), [section], clean=False)


def case(kind: Kind, seed: int, number: int) -> Case:
    """Case `number` of a kind and seed."""
    rng = Random(f"{seed} case {number}")
    pool = _pool(kind, seed, number // CASES_PER_POOL)
    if number % _LARGE_EVERY:
        return _small(rng, pool)
    clean = rng.random() < 0.5
    schema_id, keyed = rng.choice(SAME_LAYOUT), rng.random() < 0.8
    size = rng.choice((1, 3, 10, 100, 500, 500, 4000 if clean else 500))
    sections: list[Section] = []
    start = at = rng.choice((0, 1, 10**6, 2**40))
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        faults = 0
        if not clean:
            faults = rng.choice((0, 0, 1, 1, 1, 3, 30))
            if rng.random() < 0.1:
                schema_id, keyed = rng.choice(SAME_LAYOUT), rng.random() < 0.5
        batch = _Batch(rng, pool, faults, keyed)
        batch.fill(rng.randrange(1, 2 * size), schema_id)
        if not clean and rng.random() < 0.15:
            batch.damage()
        sections.append(batch.section(at))
        at += batch.last_delta + 1 + rng.choice((0, 0, 0, 17))
    first_offset = start if rng.random() < 0.7 else rng.randrange(start, at)
    if rng.random() < 0.2:
        fetched, sections = _parsed(first_offset, sections, rng)
        return Case(fetched, sections, clean)
    if rng.random() < 0.02:
        sections = []
    elif rng.random() < 0.1:  # `parse` leaves such out; the decoder does not rely on that
        where = rng.randrange(len(sections) + 1)
        base = sections[where].base if where < len(sections) else at
        sections = [
            *sections[:where],
            Section(base, -1, 0, 0, 0, False, b"", []),
            *sections[where:],
        ]
        clean = False
    return Case(_direct(start, first_offset, sections, rng), sections, clean)
