import numpy as np

from progeo.data.samplers import ClassSampler, permuted_batches

OFFSETS = np.array([0, 3, 4, 9, 11, 20])  # five classes of 3, 1, 5, 2 and 9 images


def batches(**changes):
    settings = {"batch_size": 4, "num_batches": 50, "seed": 0, "epoch": 0, **changes}
    return list(ClassSampler(OFFSETS, **settings))


def classes_of(batch):
    return np.searchsorted(OFFSETS, batch, side="right") - 1


def test_every_class_comes_once_before_any_comes_again():
    stream = np.concatenate([classes_of(batch) for batch in batches()])
    for start in range(0, 200, 5):
        assert sorted(stream[start : start + 5]) == [0, 1, 2, 3, 4]
    assert len({tuple(stream[start : start + 5]) for start in range(0, 200, 5)}) > 20  # in ever another order


def test_images_of_a_class_are_drawn_evenly():
    drawn = np.concatenate(batches(num_batches=5000))
    share = np.bincount(drawn, minlength=20) / len(drawn)
    np.testing.assert_allclose(share, np.repeat(0.2 / np.diff(OFFSETS), np.diff(OFFSETS)), rtol=0.2)


def test_the_order_follows_seed_and_epoch_and_nothing_else():
    assert batches() == batches()
    assert batches() != batches(seed=1)
    assert batches() != batches(epoch=1)
    assert batches(num_batches=10) == batches(num_batches=50)[:10]


def test_a_batch_may_be_larger_than_the_number_of_classes():
    (batch,) = batches(batch_size=12, num_batches=1)
    assert sorted(np.bincount(classes_of(batch))) == [2, 2, 2, 3, 3]


def test_p_classes_give_k_images_each_that_differ_as_far_as_the_class_has_them():
    drawn = batches(batch_size=9, images_per_class=3, num_batches=2000)
    sizes, seen = np.diff(OFFSETS), [set() for _ in range(5)]
    for batch in drawn:
        by_class = classes_of(batch).reshape(3, 3)
        assert (by_class == by_class[:, :1]).all()
        for label, images in zip(by_class[:, 0], np.reshape(batch, (3, 3)), strict=True):
            assert len(set(images)) == min(3, sizes[label])
            seen[label].add(tuple(sorted(images - OFFSETS[label])))
    assert [len(sets) for sets in seen] == [1, 1, 10, 2, 84]  # C(3,3), C(1,1), C(5,3), twice one of two, C(9,3)
    share = np.bincount(np.concatenate(drawn), minlength=20) / (9 * 2000)
    np.testing.assert_allclose(share, np.repeat(0.2 / sizes, sizes), rtol=0.25)


def test_classes_of_a_region_follow_each_other_and_still_come_once():
    regions = np.array([1, 0, 1, 2, 0])
    orders = set()
    for epoch in range(60):
        stream = np.concatenate([classes_of(batch) for batch in batches(num_batches=5, epoch=epoch, regions=regions)])
        for turn in stream.reshape(4, 5):
            assert sorted(turn) == [0, 1, 2, 3, 4]
            assert np.count_nonzero(np.diff(regions[turn])) == 2
            orders.add(tuple(turn))
    assert len(orders) == 6 * 2 * 2  # of three regions, two of them with two classes


def test_an_epoch_covers_all_once_with_the_remainder_and_no_empty_batch():
    for count, sizes in ((10, [4, 4, 2]), (8, [4, 4]), (3, [3])):
        parts = permuted_batches(count, 4, seed=0, epoch=0)
        assert [len(part) for part in parts] == sizes
        assert sorted(np.concatenate(parts)) == list(range(count))
    first, again, other = (permuted_batches(50, 7, seed=0, epoch=epoch) for epoch in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))


def test_a_later_start_and_the_parts_of_processes_are_cuts_of_the_same_batches():
    settings = {"batch_size": 6, "num_batches": 5, "seed": 3, "epoch": 2}
    offsets = np.array([0, 3, 4, 9, 11])
    whole = list(ClassSampler(offsets, **settings))
    later = ClassSampler(offsets, **settings, first_batch=3)
    assert len(later) == 2
    assert list(later) == whole[3:]
    parts = [list(ClassSampler(offsets, **settings, process=process, num_processes=3)) for process in range(3)]
    assert [[*first, *second, *third] for first, second, third in zip(*parts, strict=True)] == whole
