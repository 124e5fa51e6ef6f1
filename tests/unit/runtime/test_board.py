"""The page in which a worker says what it does, and the shelf of regions it is lent."""

from __future__ import annotations

import os

from edgekit_runtime.board import EDGES_S, Board, Grip
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.kinds import Kind
from edgekit_runtime.region import CAPACITY, Labels, Region
from edgekit_runtime.session import Place
from edgekit_runtime.shelf import OLD_REGIONS_MAX, Shelf

LABELS = {"model": "m", "digest": "d", "version": "1", "slot": "a", "release": "r"}


def _region(folder, number: int) -> Region:
    labels = Labels(**LABELS, rollout="o", wave=number)
    return Region.create(PosixDisk(), folder / f"{number}.rgn", labels)


def test_what_one_process_writes_the_other_reads():
    descriptor = Board.create(8)
    writer, reader = Board(descriptor, 8), Board(descriptor, 8)
    writer.begin(5)
    writer.queue(3)
    assert (reader.busy_since_ns, reader.in_flight) == (5, 4)
    writer.end(9)
    writer.begin(10)
    writer.end(12)
    assert (reader.busy_since_ns, reader.first_ns, reader.last_ns) == (0, 9, 12)
    writer.count(Kind.PREDICTION, 700.0)
    writer.count(Kind.PREDICTION, 1e9)
    writer.count(Kind.REJECTED, 0.0)
    writer.refuse(429)
    writer.refuse(418)  # not one of ours: ignored, not written elsewhere
    writer.grips[7] = Grip.ASKED
    assert reader.outcomes == {"answered": 2, "error": 0, "rejected": 1}
    assert sum(reader.buckets) == 2
    assert (reader.buckets[EDGES_S.index(0.001)], reader.buckets[-1]) == (1, 1)
    assert {status: n for status, n in reader.refusals.items() if n} == {429: 1}
    assert list(reader.grips) == [0] * 7 + [Grip.ASKED]
    for board in (writer, reader):
        board.close()
    os.close(descriptor)


def test_regions_on_loan_are_never_retired(tmp_path):
    shelf, regions = Shelf(), [_region(tmp_path, number) for number in range(9)]
    for region in regions[:-1]:
        shelf.add(region)
    lent = shelf.lend(regions[7])
    assert list(lent) == [regions[number] for number in (7, 6, 5, 4, 3)]
    shelf.loan_taken()
    shelf.add(regions[8])
    lent = shelf.lend(regions[8])
    assert len(lent) == OLD_REGIONS_MAX + 1
    # The worker may still write to all of the first loan.
    assert shelf.retire(regions[8]) == regions[:3]
    shelf.loan_taken()
    assert shelf.retire(regions[8]) == [regions[3]]
    shelf.loan_returned()
    assert shelf.retire(regions[8]) == []
    assert shelf.regions() == regions[4:]


def test_an_id_counted_by_one_process_is_known_to_the_next(tmp_path):
    first, second = _region(tmp_path, 1), _region(tmp_path, 2)
    theirs = Region.of(os.dup(first.descriptor))
    place = Place.of("1", "a", [theirs])
    assert place.journal.record(theirs, Kind.PREDICTION, 77, time=1.0)
    assert (first.head, first.counted) == (1, 1)
    place = Place.of("2", "b", [second, first])
    assert not place.journal.record(second, Kind.PREDICTION, 77, time=1.0)
    assert place.journal.record(second, Kind.PREDICTION, 78, time=1.0)


def test_only_records_that_are_there_are_drained(tmp_path):
    """On processors that reorder stores a head may be seen before its record."""
    region = _region(tmp_path, 1)
    theirs = Region.of(os.dup(region.descriptor))
    for number in range(3):
        theirs.append(Kind.PREDICTION, request=number + 1, time=1.0)
    assert region.settled() == 3
    kept = region.ring[1].copy()
    region.ring[1] = 0
    assert region.settled() == 1
    region.ring[1] = kept
    assert region.settled() == 3
    theirs.close()
    region.close()
    # Found like that at start it is a power cut's work, and counted without details.
    again = Region(tmp_path / "1.rgn")
    again.ring[1] = 0
    assert again.settled() == 3
    again.close()


def test_the_count_goes_on_beyond_what_a_record_holds(tmp_path):
    region = _region(tmp_path, 1)
    region.append(Kind.PREDICTION, request=1, time=1.0)
    region.close()
    near = 2**32 - 2
    again = Region(tmp_path / "1.rgn")
    again._counted = near
    for _ in range(CAPACITY - 1):
        again.append(Kind.PREDICTION, request=1, time=1.0)
    assert again.counted == near + CAPACITY - 1
    again.close()
    once_more = Region(tmp_path / "1.rgn")
    assert once_more.counted == near + CAPACITY - 1
    once_more.close()
