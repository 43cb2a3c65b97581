"""Live rows as segments of symbols: which there are, and what a checkpoint writes.

Three families of them:
- ("live",): a row a symbol, its last record and its session
- ("bars", -1): bars of the newest minute, and those that were touched of late
- ("bars", H): bars of the hour that begins H seconds after the epoch

So a checkpoint writes few bytes while one minute runs, and few records where a day of history is
read in a second. Recent bars move into their hours as they become many.

A segment has the symbols of one residue of their hash; its name is its family's, then FORM,
modulus, residue and slot, 0 or 1. A segment that is written anew takes the other slot, and a family
whose segments grow is written anew by twice the modulus: so what a mark names (`stored`) is never
written over, and whatever was cut short, the segments of the mark before are all there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.live.forms import BAR_NS, BARS, Form
from k2.live.packed import pack, unpack
from k2.live.pieces import merge

__all__ = [
    "BARS_AGE_MAX_NS", "LATEST_SEGMENTS", "RECENT", "Families", "Family", "Name", "Writing",
    "residue",
]  # fmt: skip

Name = tuple[str | int, ...]
Family = tuple[str | int, ...]
Hashes = npt.NDArray[np.int64]

LATEST_SEGMENTS: Family = ("live",)
RECENT: Family = ("bars", -1)

#: Another number with each change of the columns: segments of another form are as good as none.
FORM = 2
#: Bars that begin so long before the newest one of the partition, or longer, are not kept.
BARS_AGE_MAX_NS = 86_400_000_000_000
#: More of them, and the recent bars but those of the newest minute move into their hours.
RECENT_ROWS_MAX = 4096
#: Latest rows are written anew for few symbols: smaller segments. A record may have a megabyte.
SEGMENT_BYTES_MAX = {LATEST_SEGMENTS: 64 * 1024}
OTHER_SEGMENT_BYTES_MAX = 512 * 1024
_MODULUS_MAX = 1 << 16
#: A segment.
_MANY_ROWS = 64

_HOUR_NS = 60 * BAR_NS
_SECOND_NS = 1_000_000_000


class Families:
    """The segments of a partition: of each family a modulus, and the slot of each residue."""

    def __init__(self, names: Iterable[Name] = ()) -> None:
        """`names`: of whatever segments there are, all of this form."""
        self._of: dict[Family, tuple[int, dict[int, int]]] = {}
        for name in names:
            family, (modulus, own, slot) = name[:-4], map(int, name[-3:])
            self._of.setdefault(family, (modulus, {}))[1][own] = slot

    def __iter__(self) -> Iterator[Family]:
        return iter(self._of)

    def of(self, family: Family) -> tuple[int, Mapping[int, int]]:
        """Return modulus, and the slots by residue."""
        return self._of.get(family, (1, {}))

    def names(self, family: Family) -> list[Name]:
        modulus, slots = self.of(family)
        return [_name(family, modulus, own, slots[own]) for own in sorted(slots)]

    def all_names(self) -> list[Name]:
        return [name for family in self for name in self.names(family)]

    def name_for(self, family: Family, exchange: str, symbol: str) -> Name | None:
        """Where a symbol is, if the family knows it."""
        modulus, slots = self.of(family)
        own = residue(exchange, symbol, modulus)
        return _name(family, modulus, own, slots[own]) if own in slots else None

    def replaced(self, changed: Mapping[Family, tuple[int, dict[int, int]] | None]) -> Families:
        """The same with other families in their place; None: without this one."""
        new = Families()
        new._of = {f: v for f, v in {**self._of, **changed}.items() if v is not None}
        return new


class Writing:
    """What one checkpoint writes; reads what it merges with, so it belongs into a thread."""

    def __init__(self, families: Families, read: Callable[[Name], bytes], end: int) -> None:
        """`end`: the offset below which all records count in what is written."""
        self.changed: dict[Name, bytes] = {}
        self.removed: list[Name] = []
        self._families, self._read, self._end = families, read, end
        self._moved: dict[Family, tuple[int, dict[int, int]] | None] = {}

    @property
    def families(self) -> Families:
        """As they are when this is written."""
        return self._families.replaced(self._moved)

    def add(self, family: Family, form: Form, rows: pa.Table, hashes: Hashes | None = None) -> None:
        """Merge rows, one a key, into the segments that have their symbols.

        Args:
            hashes: of the rows' symbols, if they are known.
        """
        modulus, slots = self._families.of(family)
        touched = set(slots)
        if rows.num_rows < _MANY_ROWS * modulus:  # many touch all segments, most likely
            hashes = _hashes(rows) if hashes is None else hashes
            touched &= set(np.unique(hashes % modulus).tolist())
        if touched:
            rows, hashes = merge(form, [*self._rows(family, form, touched), rows]), None
        self._write(family, form, rows, touched, hashes)

    def add_bars(self, bars: Iterable[pa.Table]) -> None:
        """Merge bars into the recent ones, and move these on where they are many."""
        every = set(self._families.of(RECENT)[1])
        recent = merge(BARS, [*self._rows(RECENT, BARS, every), *bars])
        if recent.num_rows == 0:
            return
        starts = recent.column("start").to_numpy()
        newest = int(starts.max())
        oldest = newest - BARS_AGE_MAX_NS
        if recent.num_rows > RECENT_ROWS_MAX:
            hours, hashes = starts // _HOUR_NS, _hashes(recent)
            moving = (starts > oldest) & (starts < newest)
            for hour in np.unique(hours[moving]).tolist():
                own = np.flatnonzero(moving & (hours == hour))
                family = ("bars", hour * _HOUR_NS // _SECOND_NS)
                self.add(family, BARS, recent.take(pa.array(own)), hashes[own])
            recent = recent.filter(pa.array(starts == newest))
        else:
            recent = recent.filter(pa.array(starts > oldest))
        self._write(RECENT, BARS, recent, every)
        for each in self._families:
            last_bar = int(each[-1]) * _SECOND_NS + _HOUR_NS - BAR_NS if len(each) > 1 else None
            if last_bar is not None and each != RECENT and last_bar <= oldest:
                self.removed += self._families.names(each)
                self._moved[each] = None

    def copy(self, names: Iterable[Name]) -> None:
        """Write segments as they are, but for those that are written anew, or removed."""
        self.changed |= {name: self._read(name) for name in set(names) - set(self.removed)}

    def _rows(self, family: Family, form: Form, residues: Iterable[int]) -> list[pa.Table]:
        return [unpack(form, self._read(name)) for name in self._names(family, residues)]

    def _names(self, family: Family, residues: Iterable[int]) -> list[Name]:
        modulus, slots = self._families.of(family)
        return [_name(family, modulus, own, slots[own]) for own in residues]

    def _bytes(self, family: Family, rows: pa.Table, others: Iterable[int]) -> int:
        """Of a whole family; where that is little, one symbol is long, and no split helps."""
        stored = sum(len(self._read(name)) for name in self._names(family, others))
        return int(rows.nbytes) + stored

    def _write(
        self,
        family: Family,
        form: Form,
        rows: pa.Table,
        former: Set[int],
        hashes: Hashes | None = None,
    ) -> None:
        """Write rows, which are all that there are of the residues `former`."""
        known, slots = self._families.of(family)
        most = SEGMENT_BYTES_MAX.get(family, OTHER_SEGMENT_BYTES_MAX)
        while not slots and known < _MODULUS_MAX and rows.nbytes > 4 * most * known:
            known *= 2  # packed they take a quarter; so most are packed once
        modulus, parts = known, _split(rows, known, hashes)
        packed = {own: pack(part, self._end) for own, part in parts.items()}
        while (
            modulus < _MODULUS_MAX
            and any(len(value) > most for value in packed.values())
            and self._bytes(family, rows, slots.keys() - former) > most * modulus // 4
        ):
            if former != slots.keys():
                rows = pa.concat_tables([rows, *self._rows(family, form, slots.keys() - former)])
                former = slots.keys()
            modulus *= 2
            parts = _split(rows, modulus)
            packed = {own: pack(part, self._end) for own, part in parts.items()}
        self.removed += self._names(family, former)
        left = {own: slot for own, slot in slots.items() if own not in former}
        # Never where the mark before has something: cut short, this is as good as not written.
        taken = slots if modulus == known else {}
        new = {own: 1 - taken.get(own, 1) for own in packed}
        self.changed |= {
            _name(family, modulus, own, new[own]): value for own, value in packed.items()
        }
        self._moved[family] = modulus, left | new


def residue(exchange: str, symbol: str, modulus: int) -> int:
    """Which segment a symbol is in, 0..modulus-1: the same in every process and release."""
    return crc32(f"{exchange}\0{symbol}".encode()) % modulus


def _name(family: Family, modulus: int, own: int, slot: int) -> Name:
    return (*family, FORM, modulus, own, slot)


def _split(rows: pa.Table, modulus: int, hashes: Hashes | None = None) -> dict[int, pa.Table]:
    """Rows by the residue of their symbols."""
    if rows.num_rows == 0:
        return {}
    if modulus == 1:
        return {0: rows}
    own = (_hashes(rows) if hashes is None else hashes) % modulus
    order = np.argsort(own.astype(np.uint16), kind="stable")
    rows, own = rows.take(pa.array(order)), own[order]
    bounds = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), len(own)]
    return {int(own[a]): rows.slice(a, b - a) for a, b in pairwise(bounds)}


def _hashes(rows: pa.Table) -> Hashes:
    """Of each row's symbol; Python looks at each symbol once."""
    if rows.num_rows == 0:
        return np.zeros(0, np.int64)
    exchange, symbol = (
        rows.column(name).combine_chunks().dictionary_encode() for name in ("exchange", "symbol")
    )
    begun, symbols = (
        coded.dictionary.cast(pa.binary()).to_numpy(zero_copy_only=False).tolist()
        for coded in (exchange, symbol)
    )
    # The checksum goes on from that of the exchange: no pair of both is put together.
    begun = [crc32(name + b"\0") for name in begun]
    of_rows = symbol.indices.to_numpy()
    if len(begun) > 1:
        code = exchange.indices.to_numpy().astype(np.int64) * len(symbols) + of_rows
        pairs, of_rows = np.unique(code, return_inverse=True)
        begun = [begun[pair // len(symbols)] for pair in pairs.tolist()]
        symbols = [symbols[pair % len(symbols)] for pair in pairs.tolist()]
    else:
        begun *= len(symbols)
    hashes = np.fromiter(map(crc32, symbols, begun), np.int64, len(symbols))
    found: Hashes = hashes[of_rows]
    return found
