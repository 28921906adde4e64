"""Tensors packed into one buffer come back as they were, on any device."""

import pytest
import torch

from progeo.data.augmentation import ColorPlan
from progeo.engine.transfer import fetched, packed, to_device, unpacked

CUDA = torch.device("cuda", 0)
TENSORS = {
    "bool": torch.tensor([True, False, True]),
    "float64": torch.tensor([1.5, -2.5, 1e300], dtype=torch.float64),
    "int64 of one": torch.tensor(2**40),
    "half": torch.tensor([0.5], dtype=torch.float16),
    "bytes": torch.arange(65, dtype=torch.uint8),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(12).view(3, 4).t(),
    "channels last": torch.arange(48, dtype=torch.uint8).view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
    "a column": torch.arange(6.0).view(2, 3)[:, 1],
    "repeated": torch.tensor([[1.0], [2.0]]).expand(2, 3),
}


def are_same(one, two):
    return one.dtype == two.dtype and torch.equal(one, two)


@pytest.mark.parametrize("names", [list(TENSORS), list(reversed(TENSORS)), ["empty"]])
def test_tensors_of_any_type_and_layout_come_back_from_a_buffer(names):
    tensors = [TENSORS[name] for name in names]
    again = unpacked(packed(tensors), tensors)
    assert all(are_same(one, two) for one, two in zip(again, tensors, strict=True))
    assert all(each.data_ptr() % each.element_size() == 0 for each in again)


def test_on_a_cpu_nothing_is_copied():
    images = torch.ones(2)
    moved = to_device((images, {"plan": ColorPlan(images, images, images, None)}), torch.device("cpu"))
    assert moved[0] is images and moved[1]["plan"] == ColorPlan(images, images, images, None)
    assert fetched(images)() == [1.0, 1.0]


@pytest.mark.gpu
def test_nested_tensors_arrive_on_a_gpu_and_come_back():
    large = torch.rand(3, 2**20)
    there = torch.ones(2, device=CUDA)
    plan = ColorPlan(TENSORS["transposed"], TENSORS["float64"], TENSORS["empty"], None)
    tree = (large, plan, {**TENSORS, "there": there, "pinned": large.pin_memory(), "name": "x"}, [large])
    moved, moved_plan, targets, (again,) = to_device(tree, CUDA)
    assert targets["there"] is there and targets["name"] == "x" and moved_plan.angles is None
    pairs = [(moved, large), (again, large), *zip(moved_plan[:3], plan[:3], strict=True)]
    pairs += [(targets[name], tensor) for name, tensor in TENSORS.items()] + [(targets["pinned"], large)]
    assert all(one.device == CUDA and are_same(one.cpu(), two) for one, two in pairs)
    assert fetched(targets["float64"] * 2)() == [3.0, -5.0, 2e300]
