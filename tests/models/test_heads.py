"""Margin heads against naive re-derivations, float64, gradients included."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch

from progeo.models.heads import build_head
from progeo.models.options import HeadOptions

KINDS = ("cosface", "arcface", "linear")


def cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())


def naive_logits(kind, head, descriptors, labels, easy=False):
    rows = []
    for descriptor, label in zip(descriptors, labels, strict=True):
        row = []
        for index, weight in enumerate(head.weight):
            cos = cosine(descriptor, weight)
            if kind == "linear":
                row.append((descriptor * weight).sum() + head.bias[index])
            elif kind == "cosface":
                row.append(30 * (cos - 0.4 * int(index == label)))
            elif index != label or (easy and cos <= 0):
                row.append(30 * cos)
            elif easy or torch.acos(cos) + 0.4 <= math.pi:
                row.append(30 * torch.cos(torch.acos(cos) + 0.4))
            else:
                row.append(30 * (cos - 0.4 * math.sin(0.4)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "easy"), [*((kind, False) for kind in KINDS), ("arcface", True)])
def test_logits_and_gradients_equal_the_definition(kind, easy):
    torch.manual_seed(0)
    head = build_head(kind, 6, 5, 30.0, 0.4, easy_margin=easy).double()
    descriptors = torch.randn(4, 6, dtype=torch.float64)
    # The last one points away from its class: past pi - m, where the angular margin goes on as a line.
    labels = torch.tensor([0, 4, 2, 3])
    descriptors[3] = -head.weight[3].detach() + 0.01
    ours, plain = descriptors.clone().requires_grad_(), descriptors.clone().requires_grad_()
    weights_of_sum = torch.randn(4, 5, dtype=torch.float64)
    logits, expected = head(ours, labels), naive_logits(kind, head, plain, labels, easy)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad((logits * weights_of_sum).sum(), [ours, head.weight])
    expected_gradients = torch.autograd.grad((expected * weights_of_sum).sum(), [plain, head.weight])
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-7, atol=1e-8)


def test_vectors_without_a_length_have_the_gradients_of_normalized_ones():
    torch.manual_seed(0)
    head = build_head("cosface", 6, 5, 1.0, 0.0).double()
    with torch.no_grad():
        head.weight[1], head.weight[2] = 0, 1e-13 * head.weight[2]
    descriptors = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    plain = torch.nn.functional.normalize(descriptors) @ torch.nn.functional.normalize(head.weight).T
    found, expected = (
        torch.autograd.grad(cosines.square().sum(), [descriptors, head.weight])
        for cosines in (head(descriptors, torch.arange(4)), plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_those_of_full_precision_to_its_rounding(dtype, device):
    torch.manual_seed(0)
    head, labels = build_head("cosface", 64, 50, 30.0, 0.4).to(device), torch.arange(4, device=device)
    descriptors = torch.randn(4, 64).to(device)

    def gradients(precision, head, descriptors):
        with precision:
            loss = torch.nn.functional.cross_entropy(head(descriptors.requires_grad_(), labels), labels)
        return torch.autograd.grad(loss, [descriptors, head.weight])

    exact = gradients(nullcontext(), head, descriptors)
    autocast = gradients(torch.autocast(device, dtype), head, descriptors)
    half = gradients(nullcontext(), copy.deepcopy(head).to(dtype), descriptors.detach().to(dtype))
    for found, kind in ((autocast, torch.float32), (half, dtype)):
        assert [each.dtype for each in found] == [kind, kind]
        for ours, expected in zip(found, exact, strict=True):
            assert (ours - expected).norm() < 2 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_has_a_weight_per_class(kind):
    head = build_head(kind, 6, 5, 30.0, 0.4)
    assert head.weight.shape == (5, 6)
    assert head(torch.randn(2, 6), torch.tensor([0, 4])).shape == (2, 5)


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_the_margin_lowers_only_the_logit_of_the_right_class(kind):
    torch.manual_seed(0)
    strict, lenient = build_head(kind, 6, 5, 30.0, 0.4), build_head(kind, 6, 5, 30.0, 0.0)
    lenient.load_state_dict(strict.state_dict())
    descriptors, labels = torch.randn(3, 6), torch.tensor([0, 1, 2])
    difference = strict(descriptors, labels) - lenient(descriptors, labels)
    right = torch.nn.functional.one_hot(labels, 5).bool()
    assert (difference[right] < -1e-3).all()
    torch.testing.assert_close(difference[~right], torch.zeros(12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_the_margin_is_exact_in_every_precision(kind, dtype):
    torch.manual_seed(0)
    head, descriptors = build_head(kind, 6, 5, 1.0, 0.4).to(dtype), torch.randn(4, 6).to(dtype)
    rows, labels, exact = torch.arange(4), torch.tensor([0, 4, 2, 3]), torch.promote_types(dtype, torch.float32)
    found = head(descriptors, labels)
    products = torch.nn.functional.linear(torch.nn.functional.normalize(descriptors), head.weight)
    cosines = products.double() / head.weight.double().norm(dim=1)
    right = cosines[rows, labels]
    wanted = right - 0.4 if kind == "cosface" else torch.cos(torch.acos(right) + 0.4)
    torch.testing.assert_close(found[rows, labels].double(), wanted, rtol=0, atol=4 * torch.finfo(exact).eps)
    others = torch.nn.functional.one_hot(labels, 5) == 0
    torch.testing.assert_close(found[others].double(), cosines[others], rtol=0, atol=4 * torch.finfo(exact).eps)


def test_the_easy_margin_acts_as_published_where_the_cosine_of_the_correct_class_is_above_0():
    """As AAMC of the published Divide&Classify, in float32 with s = 100 and m = 0.2."""
    torch.manual_seed(0)
    head = build_head("arcface", 16, 40, 100.0, 0.2, easy_margin=True)
    descriptors, labels = torch.randn(32, 16, requires_grad=True), torch.randint(40, (32,))
    cosine = torch.nn.functional.normalize(descriptors) @ torch.nn.functional.normalize(head.weight).T
    sine = torch.sqrt((1.0 - cosine * cosine).clamp(0, 1))
    phi = torch.where(cosine > 0, cosine * math.cos(0.2) - sine * math.sin(0.2), cosine)
    one_hot = torch.nn.functional.one_hot(labels, 40)
    expected = 100 * (one_hot * phi + (1.0 - one_hot) * cosine)
    logits = head(descriptors, labels)
    assert 5 < (cosine.gather(1, labels[:, None]) > 0).sum() < 27
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-5)
    ours, theirs = (
        torch.autograd.grad(
            torch.nn.functional.cross_entropy(value, labels), [descriptors, head.weight], retain_graph=True
        )
        for value in (logits, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_easy_margin_is_for_arcface_only():
    for kind in ("cosface", "linear"):
        with pytest.raises(ValueError, match=f"`easy_margin` is for `kind` arcface only, got {kind}"):
            build_head(kind, 6, 5, 30.0, 0.4, easy_margin=True)
        with pytest.raises(ValueError, match=f"`head.easy_margin` is for `head.kind` arcface only, got {kind}"):
            HeadOptions(kind=kind, easy_margin=True)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`kind` must be one of cosface, arcface, linear, got 'sphere'"):
        build_head("sphere", 6, 5, 30.0, 0.4)
