"""Loss terms from outside the package: what they get, what they are called, and what is refused."""

import math
from dataclasses import dataclass, make_dataclass, replace

import numpy as np
import pytest
import torch
from running import parsed
from torch import nn

from progeo.engine.accelerator import start_accelerator
from progeo.models.options import HeadOptions
from progeo.training.loss_terms import LOSS_TERMS, LossTerm, needs_of
from progeo.training.terms import Terms, TermSource

pytestmark = pytest.mark.usefixtures("plugins_forgotten")
INPUTS = {"descriptors": torch.ones(4, 3), "labels": torch.tensor([0, 0, 1, 1]), "map": torch.ones(4, 5, 2, 2)}


@dataclass(frozen=True, kw_only=True)
class Options:
    weight: float = 2.0


def terms_of(name, function, needs):
    LOSS_TERMS.clear()
    LOSS_TERMS[name] = LossTerm(Options, function, needs)
    source = TermSource(3, [2, 2], [torch.zeros(2, 3), torch.ones(2, 3)])
    terms = Terms({name: Options()}, source, seed=0, accelerator=start_accelerator("no"))
    terms.begin_group(1, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    return terms


def test_a_function_gets_what_it_needs_and_the_texts_of_the_group():
    found = {}

    def own(**given):
        found.update(given)
        return (given["descriptors"] @ given["text"].T).mean()

    assert terms_of("own", own, ("descriptors", "text"))(INPUTS)["own"].item() == 6.0
    assert found.keys() == {"descriptors", "text"}


def test_a_head_needs_positions_only_to_smooth_its_labels():
    ids = [np.array([[0, 0, 0], [40, 0, 0], [0, 40, 0]])]
    own = torch.tensor([[0.0, 0], [9, -3]])
    inputs = {"descriptors": torch.randn(2, 3), "labels": torch.tensor([0, 1]), "positions": own}
    found = {}
    for smoothing_m in (None, 15.0, 1e-3):
        options = {name: replace(row.options(), weight=0.0) for name, row in LOSS_TERMS.items()}
        options["head"] = HeadOptions(smoothing_m=smoothing_m)
        assert needs_of(options) == {"descriptors", "labels"} | ({"positions"} if smoothing_m else set())
        terms = Terms(options, TermSource(3, [3], None, ids), seed=0, accelerator=start_accelerator("no"))
        terms.begin_group(0, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
        found[smoothing_m] = terms(inputs)["cosface"].item()
    logits = terms.terms["head"].heads[0].head(inputs["descriptors"], inputs["labels"]).double().log_softmax(dim=1)
    distances = [[0, 40, 40], [math.hypot(49, 3), math.hypot(9, 3), math.hypot(49, 43)]]
    targets = (-torch.tensor(distances, dtype=torch.float64) / 15).softmax(dim=1)
    assert found[15.0] == pytest.approx(-(targets * logits).sum(dim=1).mean().item(), rel=1e-5)
    assert found[None] == pytest.approx(found[1e-3], rel=1e-6) != pytest.approx(found[15.0], rel=1e-3)


@pytest.mark.parametrize(("need", "count"), [("pairs", 8), ("map", 4)])
def test_pairs_are_those_of_all_processes(need, count, monkeypatch):
    terms = terms_of("own", lambda descriptors, **_: descriptors.new_tensor(len(descriptors)), ("descriptors", need))
    monkeypatch.setattr(terms.accelerator, "gather", lambda rows: torch.cat([rows, rows]))
    assert terms(INPUTS)["own"].item() == 2 * count


def test_a_term_that_is_no_scalar_is_refused():
    terms = terms_of("own", lambda descriptors: descriptors.sum(dim=1), ("descriptors",))
    with pytest.raises(ValueError, match=r"The loss term own must be a scalar, got the shape \(4,\)"):
        terms(INPUTS)


@pytest.mark.parametrize("name", ["loss", "epoch", "cosface"])
def test_a_term_named_as_another_number_is_refused(name):
    head = dict(LOSS_TERMS)["head"]
    source = TermSource(3, [2])
    LOSS_TERMS[name] = LossTerm(Options, lambda descriptors: descriptors.mean(), ("descriptors",))
    options = {each: row.options() if row is head else Options(weight=each == name) for each, row in LOSS_TERMS.items()}
    with pytest.raises(ValueError, match=f"The loss term {name} is called {name} in logs, as another number is"):
        Terms(options, source, seed=0, accelerator=start_accelerator("no"))


def test_a_row_without_a_weight_or_with_a_text_of_needs_is_refused():
    with pytest.raises(ValueError, match="Pull needs a field `weight`"):
        LossTerm(make_dataclass("Pull", ["power"]), torch.mean, ("descriptors",))
    with pytest.raises(ValueError, match=r"a tuple, such as \('map',\), got 'map'"):
        LossTerm(Options, torch.mean, "map")


def test_a_class_that_is_no_term_is_refused():
    with pytest.raises(ValueError, match="The class Linear of a loss term must be a subclass of Term"):
        terms_of("own", nn.Linear, ("descriptors",))


def test_a_row_named_as_a_setting_is_refused(config):
    LOSS_TERMS["training"] = LossTerm(Options, torch.mean, ("descriptors",))
    with pytest.raises(ValueError, match="training is a setting already"):
        parsed("train encoder", "--config", config)
