"""One contract for every loss term, and what a row from elsewhere gets."""

from dataclasses import dataclass, replace

import pytest
import torch
from contracts import check_resume, settings_for, training_builder

from progeo.training.loss_terms import LOSS_TERMS, NEEDS, LossTerm, check_needs, default_losses


@pytest.fixture(params=LOSS_TERMS)
def name(request):
    return request.param


@pytest.fixture
def settings(name, run):
    """Settings with which a term is the only one, but for those of the first generation."""
    row = LOSS_TERMS[name]
    weights = {f"{each}.weight": float(each == name) for each in LOSS_TERMS}
    if row.first_generation:
        weights["tuples.weight"] = 1.0
    return {**weights, "text.prompts": run / "stage1", **settings_for(row.needs, run)}


def value_of(training, name):
    """The value of a term for the first batch that it takes part in, and its name in logs."""
    generation, title = LOSS_TERMS[name].first_generation, training.terms.titles[name]
    training.begin()
    if generation:
        training.begin_generation(generation)
    training.begin_epoch(generation)
    ((piece,), *_) = training.batches(generation, first_step=0)
    values = training.losses(piece)
    assert values.keys() == {title} if not generation else {title} < values.keys()
    return title, values[title]


def test_its_options_have_a_weight(name):
    assert default_losses()[name].weight >= 0


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_it_is_a_number_whose_gradient_reaches_encoder_and_modules_in_any_batch(name, settings, config, classes):
    batch_size = classes * settings["training.images_per_class"]
    training = training_builder(config, {**settings, "training.batch_size": batch_size})()
    title, value = value_of(training, name)
    assert title == training.terms.terms[name].title(name)
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite() and value > 0
    value.backward()
    of_descriptors = {"descriptors", "regions"} & set(LOSS_TERMS[name].needs)
    trained = training.encoder if of_descriptors else training.encoder.backbone
    modules = [trained, *training.terms.modules_of_group(0)]
    parameters = [parameter for module in modules for parameter in module.named_parameters()]
    assert [own for own, parameter in parameters if parameter.requires_grad and parameter.grad is None] == []
    assert any(parameter.grad.abs().sum() > 0 for parameter in trained.parameters())


def by_default(*names):
    """Every row, of which only some are tested by default."""
    return pytest.mark.parametrize(
        "name", [pytest.param(each, marks=() if each in names else pytest.mark.slow) for each in LOSS_TERMS]
    )


@by_default("head", "multi_similarity", "gram")
def test_its_weight_multiplies_it(name, settings, config):
    once, thrice = (training_builder(config, {**settings, f"{name}.weight": weight})() for weight in (1, 3))
    assert value_of(thrice, name)[1].item() == pytest.approx(3 * value_of(once, name)[1].item(), rel=1e-6)


def test_what_it_needs_and_does_not_get_is_refused(name):
    row = LOSS_TERMS[name]
    enabled = {name, "tuples"} if row.first_generation else {name}
    options = {each: replace(own, weight=float(each in enabled)) for each, own in default_losses().items()}
    needs = {need for each in enabled for need in LOSS_TERMS[each].needs}
    check_needs(options, dict.fromkeys(needs, ""))
    for need in row.needs:
        with pytest.raises(ValueError, match=r"\.weight` above 0 needs .*: set this\.$"):
            check_needs(options, {**dict.fromkeys(needs, ""), need: "set this"})
        with pytest.raises(ValueError, match="nothing in this configuration gives it"):
            check_needs(options, {other: "" for other in needs if other != need})
        assert need in NEEDS


@by_default("head", "text", "multi_similarity", "cosine")  # tuples and regions: test_tuples.py
def test_a_training_with_it_alone_that_is_resumed_ends_with_the_same_bits(name, settings, config, tmp_path):
    epochs_before = LOSS_TERMS[name].first_generation
    check_resume(training_builder(config, settings), tmp_path, epochs_before=epochs_before)


def test_a_term_of_later_generations_alone_is_refused():
    options = {each: replace(own, weight=float(each == "regions")) for each, own in default_losses().items()}
    with pytest.raises(ValueError, match=r"^`regions\.weight` above 0 takes part from the second generation on"):
        check_needs(options, dict.fromkeys(NEEDS, ""))


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """A loss of the feature map."""

    weight: float = 0.0
    """Weight of the loss."""
    power: float = 2.0
    """Power of the differences."""


def test_a_row_that_needs_the_map_gets_it(config, monkeypatch):
    seen = []

    def flatness(*, map, labels, power):
        seen.append((tuple(map.shape), tuple(labels.shape), power))
        return (map - map.mean(dim=(2, 3), keepdim=True)).abs().pow(power).mean()

    monkeypatch.setitem(LOSS_TERMS, "flatness", LossTerm(Flatness, flatness, ("map", "labels")))
    settings = {"flatness.weight": 0.5, "flatness.power": 3, "head.weight": 0, "text.weight": 0}
    training = training_builder(config, settings)()
    _, value = value_of(training, "flatness")
    assert seen == [((4, training.encoder.traits.channels, 2, 2), (4,), 3.0)]
    value.backward()
    assert training.encoder.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in training.encoder.aggregation.parameters())
    with pytest.raises(
        ValueError, match=r"`flatness.weight` above 0 needs the feature map .*: `aggregation` token lea"
    ):
        training_builder(config, {**settings, "encoder.aggregation": "token", "encoder.descriptor_dim": "null"})
