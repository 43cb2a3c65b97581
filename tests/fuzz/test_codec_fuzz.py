"""Batch decode against a reference that reads one record at a time, on generated fetches.

FUZZ_RECORDS says how many trades to compare (and a quarter as many quotes), FUZZ_SEED with which
seed. A failure names its seed and case: FUZZ_SEED=s FUZZ_CASE=c runs that case alone, of each kind.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import pytest
from prometheus_client import REGISTRY

from k2.codec import Decoded, Decoder, Reject
from k2.schemas import KINDS, TRADES, Kind
from tests.fuzz.generate import CASES_PER_POOL, Case, case
from tests.fuzz.reference import Expected, Part, Reference, Refusal, cut
from tests.fuzz.values import SCHEMAS

RECORDS = int(os.environ.get("FUZZ_RECORDS", "2000000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
ONLY_CASE = os.environ.get("FUZZ_CASE")


class Known:
    """Writer schemas of a kind by id."""

    def __init__(self, kind: Kind) -> None:
        self._schemas = SCHEMAS[kind]

    def get(self, schema_id: int) -> dict[str, Any] | None:
        return self._schemas.get(schema_id)


def one_by_one() -> float:
    """Batches that were read record by record so far."""
    return REGISTRY.get_sample_value("k2_decoded_batches_total", {"path": "records"}) or 0.0


def refusal(reject: Reject) -> Refusal:
    return Refusal(reject.offset, reject.reason, reject.key, reject.value, reject.timestamp_ms)


def compare_rest(part: Part, first_offset: int, rejects: list[Reject]) -> None:
    """The first record that nobody can read takes all bytes, those that were to follow none."""
    expected = []
    if part.rest is not None:
        offsets = range(part.rest.offset, part.rest.offset + max(part.rest.count, 1))
        values = [part.rest.raw, *[None] * (len(offsets) - 1)]
        expected = [
            (offset, value)
            for offset, value in zip(offsets, values, strict=True)
            if offset >= first_offset
        ]
    assert [(reject.offset, reject.value) for reject in rejects] == expected
    assert all((reject.reason, reject.key) == ("broken_record", None) for reject in rejects)


def compare(kind: Kind, it: Case, expected: Expected, got: Decoded) -> None:
    assert got.rows.schema.equals(kind.batch)
    got.rows.validate(full=True)
    assert got.rows.equals(expected.rows)
    assert all(reject.detail for reject in got.rejects)
    left = list(got.rejects)
    for section, part in zip(it.sections, expected.parts, strict=True):
        end = section.base + section.last_delta
        here = [reject for reject in left if section.base <= reject.offset <= end]
        assert here == left[: len(here)], "rejects are not in the order of offsets"
        left = left[len(here) :]
        known = len(part.refusals)
        assert [refusal(reject) for reject in here[:known]] == part.refusals
        compare_rest(part, it.fetched.first_offset, here[known:])
    assert left == []


def check(kind: Kind, reference: Reference, number: int) -> tuple[int, int]:
    """Run one case; return how many records were compared, and how many on the fast path."""
    before = one_by_one()
    try:
        it = case(kind, SEED, number)
        batches = [(batch.base_offset, bytes(batch.body)) for batch in it.fetched.batches]
        assert batches == [(section.base, section.body) for section in it.sections]
        expected = reference.expect(it.fetched.first_offset, it.sections)
        compare(kind, it, expected, Decoder(kind, Known(kind)).decode(it.fetched))
        if it.clean:
            assert one_by_one() == before, "a clean fetch left the fast path"
    except BaseException as exc:
        exc.add_note(f"{kind.name}: reproduce with FUZZ_SEED={SEED} FUZZ_CASE={number}")
        raise
    compared = expected.rows.num_rows + sum(len(part.refusals) for part in expected.parts)
    return compared, compared if one_by_one() == before else 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_record_decodes_as_the_reference_says(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows are equal in every value, rejects in offset, reason, key, value and time."""
    if ONLY_CASE is not None:
        check(kind, Reference(kind, SCHEMAS[kind]), int(ONLY_CASE))
        return
    wanted = RECORDS if kind is TRADES else RECORDS // 4
    compared = fast = 0
    for number in count():
        if number % CASES_PER_POOL == 0:
            reference = Reference(kind, SCHEMAS[kind])
        records, on_fast_path = check(kind, reference, number)
        compared += records
        fast += on_fast_path
        if compared >= wanted:
            break
    assert [line.getMessage() for line in caplog.records] == []
    # Both paths must have had their share, or the comparison has shown little.
    assert 0.3 < fast / compared < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_sections_are_what_the_generator_says_they_are(kind: Kind) -> None:
    """The reference's own reading of a section gives the records that were written to it."""
    for number in range(400):
        for section in case(kind, SEED, number).sections:
            if section.records is not None:
                assert cut(section) == (section.records, None)


def test_a_case_is_reproduced_by_its_seed_and_number() -> None:
    """Its pool does not depend on which cases ran before."""
    first = case(TRADES, SEED, 5)
    case(TRADES, SEED + 1, 70)
    case(TRADES, SEED, 2000)
    again = case(TRADES, SEED, 5)
    assert again.sections == first.sections
    assert again.fetched == first.fetched
