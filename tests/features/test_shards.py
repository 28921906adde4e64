"""The files of a store, divided among processes."""

import numpy as np
import pytest

from progeo.features.claims import Claims
from progeo.features.options import Share, parse_share
from progeo.features.shards import SharedShards, remove_old_claims
from progeo.features.store import ShardedRows
from progeo.progress import Progress


@pytest.fixture
def process(tmp_path):
    """Build what a process sees of ten rows in five files."""

    def build(left=(0, 1, 2, 3, 4)):
        rows = ShardedRows(tmp_path, num_rows=10, width=1, shard_size=2)
        return SharedShards(rows, Claims(tmp_path), list(left), Progress(hidden=True))

    return build


def write(process, shard):
    process.rows.write_shard(shard, np.zeros((2, 1), np.float16))
    process.written(shard)


def test_each_process_takes_the_next_free_file_and_counts_those_that_others_wrote(process):
    one, other = process(), process()
    mine, others = one.free(), other.free()
    assert [next(mine), next(others), next(mine)] == [0, 1, 2]
    write(one, 0)
    write(one, 2)
    write(other, 1)
    assert next(mine) == 3
    assert one.bar.done == 2  # two images of file 1
    assert list(others) == [4]
    assert other.left == [3]
    assert other.bar.done == 4
    write(one, 3)
    assert list(other.free()) == []
    assert other.left == []
    assert other.bar.done == 6
    assert list(mine) == []
    assert one.left == [4]


def test_files_that_are_not_asked_for_stay_left(process):
    one = process()
    assert next(one.free()) == 0
    assert one.left == [1, 2, 3, 4]


def test_a_file_that_was_written_between_a_look_and_its_claim_is_not_made_again(process, monkeypatch):
    one, other = process([0, 1]), process()
    take = one.claims.take

    def take_late(name):
        if name == "00000":
            write(other, 0)
        return take(name)

    monkeypatch.setattr(one.claims, "take", take_late)
    assert next(one.free()) == 1
    assert one.claims.names() == ["00001"]


def test_claims_of_killed_processes_are_removed_once_their_files_are_written(process):
    killed, other = process(), process()
    assert [shard for shard, _ in zip(killed.free(), range(3), strict=False)] == [0, 1, 2]
    other.rows.write_shard(0, np.zeros((2, 1), np.float16))
    other.rows.write_shard(2, np.zeros((2, 1), np.float16))
    remove_old_claims(other.rows, other.claims)
    assert other.claims.names() == ["00001", "00003"]


def test_a_share_is_every_nth_file(process):
    shards = process().rows.shards
    assert [list(Share(number, 2).of(shards)) for number in (1, 2)] == [[0, 2, 4], [1, 3]]
    assert list(Share(7, 8).of(shards)) == []
    assert parse_share("3/64") == Share(3, 64)
    assert str(parse_share("3/64")) == "3/64"


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "3/", "/4", "a/4", "-1/4", "1/0", "1/2/3"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match=rf"`share` must be .* such as 3/64, got '{text}'\. In a job array"):
        parse_share(text)
