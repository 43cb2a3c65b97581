"""The sequence states of a partition as segments: many symbols in a record, packed in columns.

A record a symbol would cost a worker a core at 20,000 symbols and a checkpoint a second: what Faust
and a producer spend on a record is many times what they spend on its bytes.

A symbol's segment is the residue of its hash. What grows beyond what a record may hold is split:
by twice the modulus its symbols fall into two segments, and the former one is kept, empty. They are
written in that order, so where a checkpoint was cut short some symbols may be found twice: of two
states that counts which is applied further.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

import pyarrow as pa

from k2.sequence import Key, Symbols, SymbolState

__all__ = ["BUCKETS", "SEGMENT_BYTES_MAX", "Name", "Segments", "Symbols", "bucket", "unpack"]

#: Of a segment within an epoch; the first part says what kind of segment it is.
Name = tuple[str | int, ...]

#: Buckets a partition to begin with. Fewer, and a quiet market's few symbols rewrite many others.
BUCKETS = 16
#: Packed. Half of what Kafka takes in a request by default, and Faust's producer too.
SEGMENT_BYTES_MAX = 512 * 1024
#: A segment of one symbol, or of symbols that no hash tells apart, cannot be split.
_MODULUS_MAX = BUCKETS << 16

_KIND = "sequences"
_SCHEMA = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("state", pa.binary(), nullable=False),
    ]
)
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)


def bucket(exchange: str, symbol: str, modulus: int = BUCKETS) -> int:
    """Where a symbol belongs, 0..modulus-1: the same in every process and release."""
    return _hash((exchange, symbol)) % modulus


def unpack(segments: Mapping[Name, bytes]) -> Symbols:
    """Return the states in segments of any names; those of other kinds are left out.

    Raises:
        ValueError: a segment or a state is not in the form that this release packs.
    """
    found: Symbols = {}
    for name, value in segments.items():
        if name[0] == _KIND:
            for key, state in _states(value):
                if key not in found or found[key].offset < state.offset:
                    found[key] = state
    return found


class Segments:
    """The states of a partition, and which segments have to be written; at first all."""

    def __init__(self, states: Mapping[Key, SymbolState]) -> None:
        self.states: Symbols = {}
        self._segments: dict[Name, _Segment] = {}
        self._place: dict[Key, _Segment] = {}
        self._dirty: set[_Segment] = set()
        self._splits = 0
        self.update(states)

    def __len__(self) -> int:
        """How many segments there are."""
        return len(self._segments)

    def update(self, changed: Mapping[Key, SymbolState]) -> None:
        """Take new states, of new symbols too."""
        known = len(self.states)
        self.states.update(changed)
        if len(self.states) > known:
            for key in changed.keys() - self._place.keys():
                self._add(key)
        # In a busy market all are dirty soon after a checkpoint: then no symbol is looked up.
        if len(self._dirty) < len(self._segments) - self._splits:
            self._dirty.update(map(self._place.__getitem__, changed))

    def take(self) -> dict[Name, bytes]:
        """Return what changed since the last time, in the order in which it is to be written."""
        dirty, self._dirty = self._dirty, set()
        taken: dict[Name, bytes] = {}
        for segment in dirty:
            taken |= self._pack(segment)
        return taken

    def _add(self, key: Key) -> None:
        modulus, number = BUCKETS, _hash(key)
        while (segment := self._at(modulus, number)).split:
            modulus *= 2
        segment.add(key)
        self._place[key] = segment

    def _at(self, modulus: int, number: int) -> _Segment:
        name = (_KIND, modulus, number % modulus)
        if name not in self._segments:
            self._segments[name] = _Segment(name, modulus)
        return self._segments[name]

    def _pack(self, segment: _Segment) -> dict[Name, bytes]:
        packed = segment.pack(self.states)
        if len(packed) <= SEGMENT_BYTES_MAX or not segment.can_split:
            return {segment.name: packed}
        former, segment.keys, segment.split = segment.keys, [], True
        self._splits += 1
        for key in former:
            self._add(key)
        taken: dict[Name, bytes] = {}
        for part in dict.fromkeys(map(self._place.__getitem__, former)):
            taken |= self._pack(part)
        return taken | {segment.name: segment.pack(self.states)}


class _Segment:
    """The symbols of one segment; compared by identity."""

    def __init__(self, name: Name, modulus: int) -> None:
        self.name, self.keys, self.split = name, list[Key](), False
        self._modulus = modulus
        self._columns: list[pa.Array] = []  # of the first symbols; these are never taken out

    @property
    def can_split(self) -> bool:
        return len(self.keys) > 1 and self._modulus < _MODULUS_MAX

    def add(self, key: Key) -> None:
        self.keys.append(key)

    def pack(self, states: Symbols) -> bytes:
        """The states of its symbols."""
        if not self._columns or len(self._columns[0]) != len(self.keys):
            self._columns = [
                pa.array([key[place] for key in self.keys], pa.string()) for place in (0, 1)
            ]
        packed = pa.array(map(states.__getitem__, self.keys), pa.binary())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, _SCHEMA, options=_OPTIONS) as writer:
            writer.write_batch(pa.record_batch([*self._columns, packed], schema=_SCHEMA))
        value: bytes = sink.getvalue().to_pybytes()
        return value


def _states(value: bytes) -> Iterable[tuple[Key, SymbolState]]:
    try:
        with pa.ipc.open_stream(value) as reader:
            table = reader.read_all()
    except (pa.ArrowException, OSError) as exc:
        raise ValueError(f"no segment of sequence states: {exc}") from exc
    if table.schema != _SCHEMA:
        raise ValueError(f"a segment of other columns: {table.schema.names}")
    exchanges, symbols, states = (column.to_pylist() for column in table.columns)
    packed = map(SymbolState.from_bytes, states)
    return zip(zip(exchanges, symbols, strict=True), packed, strict=True)


def _hash(key: Key) -> int:
    return crc32("\0".join(key).encode())
