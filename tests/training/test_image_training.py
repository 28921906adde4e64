"""What stage 2 can be told to train, and how: an epoch of two steps each."""

import dataclasses
import json
import math
import re
import shutil
from contextlib import nullcontext
from functools import partialmethod

import pytest
import torch
from running import parsed

from progeo.commands.train_encoder import build_training, check_method, read_training_images
from progeo.data.augmentation import draw_changes
from progeo.data.options import Augmentation
from progeo.engine.accelerator import start_accelerator
from progeo.engine.randomness import seeded_generator
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import StopRequest
from progeo.models.aggregation import AGGREGATIONS
from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.state_dicts import weights_digest
from progeo.training.augmented_encoder import AugmentedEncoder
from progeo.training.overview import estimated_memory, overview
from progeo.training.trainer import Trainer

VIT = ("--model.architecture", "tiny-vit", "--encoder.aggregation", "gem")  # no batch norm
BACKBONES = ("vgg16", "resnet18", "resnet50", "resnet101", "resnet152", *(f"efficientnet_b{i}" for i in range(8)))
QUICK = ("efficientnet_b0",)


def settings_of(config, *arguments):
    return parsed("train encoder", "--config", config, *arguments)["settings"]


@pytest.fixture
def build(config, run):
    """A training with changed settings, before its first step."""

    def built(*arguments):
        settings = settings_of(config, "--text.prompts", run / "stage1", *arguments)
        places = read_training_images(settings)
        return build_training(settings, places, start_accelerator(settings.mixed_precision))

    return built


@pytest.fixture
def train(build, tmp_path):
    """A training after an epoch, and the means of its loss terms."""

    def trained(*arguments):
        training = build(*arguments)
        return training, one_epoch(training, tmp_path)

    return trained


def one_epoch(training, folder):
    """Train an epoch, from the first on."""
    run, options = RunFolder(folder), training.options
    trainer = Trainer(training, options, run, checkpoints=run.checkpoints, seed=0, accelerator=training.accelerator)
    trainer.resume()
    return trainer.train_epoch(StopRequest())


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_descriptors_stay_comparable_with_texts_only_where_they_are_trained_toward_those(build, run, tmp_path):
    digests = {}
    for name, seed in (("a", 3), ("b", 4)):
        clip = load_clip("tiny-vit", "random", seed=seed)
        digests[name] = weights_digest({"token_embedding": clip.token_embedding.weight})
        torch.save(clip.state_dict(), tmp_path / f"{name}.pt")
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    description = json.loads((run / "stage1/prompts.json").read_text())
    assert (description["architecture"], description["weights"]) == ("tiny-resnet", "random")

    def text_weights(architecture, weights, *arguments, words="a"):
        configuration = named_configuration(architecture).to_json()
        changed = {**description, "architecture": architecture, "configuration": configuration, "weights": str(weights)}
        changed["vocabulary"] = digests[words]
        (tmp_path / "stage1/prompts.json").write_text(json.dumps(changed))
        own = ["--model.weights", tmp_path / "a.pt", "--text.prompts", tmp_path / "stage1"]
        vit = ["--model.architecture", "tiny-vit", "--encoder.descriptor_dim", "null"]
        return build(*vit, *own, *arguments).encoder.spec.text_weights

    assert text_weights("tiny-vit", tmp_path / "a.pt") == str(tmp_path / "a.pt")
    assert text_weights("tiny-vit", tmp_path / "stage1/../a.pt") == str(tmp_path / "a.pt")
    assert text_weights("tiny-vit", tmp_path / "b.pt") is None  # a.pt with another visual tower
    with pytest.raises(ValueError, match=r"tiny-vit is of another \(they differ in their weights\): name"):
        text_weights("tiny-vit", tmp_path / "b.pt", words="b")
    sentence = r"CLIP tiny-vit-quickgelu \(.*a.pt\), the encoder of tiny-vit is of another \(they differ in quick_gelu"
    with pytest.raises(ValueError, match=sentence):
        text_weights("tiny-vit-quickgelu", tmp_path / "a.pt")
    assert text_weights("tiny-vit", tmp_path / "a.pt", "--text.weight", "0") is None


def test_a_run_of_an_earlier_version_resumes_only_if_its_backbone_was_what_its_name_says(build, tmp_path):
    values = named_configuration("tiny-vit").to_json()
    values["vision_cfg"]["norm_kwargs"] = {"eps": 0.1}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": values}))
    torch.save(load_clip("tiny-vit", "random").state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for weights, is_refused in (("random", False), (tmp_path, True)):
        own = ("--model.architecture", "tiny-vit", "--model.weights", weights, "--encoder.aggregation", "gem")
        learned = build(*own, "--text.weight", 0, "--text.prompts", "null").learned_from
        dataclasses.replace(learned, configuration=None).keep(run)
        with pytest.raises(ValueError, match="begun by an earlier version") if is_refused else nullcontext():
            learned.check(run, ())


def test_a_run_of_an_earlier_version_with_dinov2_resumes_only_if_it_did_not_resize_positions(build, tmp_path):
    dinov2 = ("--model.architecture", "timm/vit_small_patch14_dinov2", "--encoder.image_size", 70)
    training = build(*dinov2, "--encoder.descriptor_dim", "null", "--text.weight", 0, "--text.prompts", "null")
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    dataclasses.replace(training.learned_from, configuration=None).keep(run)
    with pytest.raises(ValueError, match="begun by an earlier version, which built another network"):
        training.learned_from.check(run, ())
    training.encoder.spec = dataclasses.replace(training.encoder.spec, image_size=(518, 518))
    training.learned_from.check(run, ())


@pytest.mark.parametrize(
    "architecture", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
def test_every_backbone_trains_with_places_and_texts(build, train, architecture):
    words = ("--model.architecture", architecture, "--encoder.image_size", "32")
    training, terms = train(*words)
    assert set(terms) == {"loss", "cosface", "image_text"}
    assert all(math.isfinite(value) and value > 0 for value in terms.values())
    untrained = dict(build(*words).encoder.named_parameters())
    assert all(not torch.equal(untrained[name], weight) for name, weight in training.encoder.named_parameters())


@pytest.mark.parametrize("kind", ["cosface", "arcface", "linear"])
def test_every_head_trains_with_its_weight(train, kind):
    _, whole = train("--head.kind", kind, "--training.iterations_per_epoch", "1")
    training, half = train("--head.kind", kind, "--head.weight", "0.5", "--training.iterations_per_epoch", "1")
    assert half[kind] == pytest.approx(whole[kind] / 2)
    assert half["image_text"] == whole["image_text"]
    assert training.terms.terms["head"].heads[0].head.weight.grad.abs().sum() > 0


def test_what_needs_a_head_is_refused_without_one(config):
    check_method(settings_of(config, "--validation.kind", "classification"))
    without = settings_of(config, "--validation.kind", "classification", "--head.weight", 0)
    with pytest.raises(
        ValueError, match=r"`validation.kind` classification needs the vectors .*set `head.weight` above"
    ):
        check_method(without)


def test_the_constant_schedule_stays_and_warms_up_when_asked(train):
    training, _ = train("--training.warmup_steps", "4")
    assert [group["lr"] for group in training.optimizer.param_groups[:3]] == pytest.approx([5e-4, 5e-4, 5e-3])
    training, _ = train("--training.schedule", "constant")
    assert [group["lr"] for group in training.optimizer.param_groups[:3]] == pytest.approx([1e-3, 1e-3, 1e-2])


def test_the_backbone_may_have_a_rate_of_its_own(build):
    training = build("--training.backbone_factor", "0.2", "--training.weight_decay", "0.1")
    rest, rest_norms, backbone, backbone_norms, *heads = training.optimizer.param_groups
    assert [each["lr"] for each in (rest, rest_norms, backbone, backbone_norms)] == pytest.approx(
        [1e-3, 1e-3] + [2e-4] * 2
    )
    assert [each["weight_decay"] for each in (rest, rest_norms, backbone, backbone_norms)] == [0.1, 0, 0.1, 0]
    of_backbone = {*training.encoder.backbone.parameters()}
    assert {*backbone["params"], *backbone_norms["params"]} == of_backbone
    assert {*rest["params"], *rest_norms["params"]} == {*training.encoder.parameters()} - of_backbone
    assert all(each.ndim > 1 for each in backbone["params"]) and all(
        each.ndim <= 1 for each in backbone_norms["params"]
    )
    assert training.learning_rates == pytest.approx(
        {"encoder_learning_rate": 1e-3, "backbone_learning_rate": 2e-4, "head_learning_rate": 1e-2}
    )
    assert [len(heads), *build().learning_rates] == [3, "encoder_learning_rate", "head_learning_rate"]


def test_crops_may_be_smaller_than_the_images_of_the_encoder(build, config, tmp_path):
    words = ("--training.image_size", "[32, 48]", "--data.fast_decode", "true")
    training = build(*words)
    ((piece,), *_) = training.batches(0, first_step=0)
    assert piece.images.shape[2:] == (32, 48)
    assert (training.encoder.image_size, training.drawn.crop.size) == ((64, 64), (32, 48))
    lines = overview(training, model=settings_of(config).model)
    assert lines[2] == "epochs      3, each of 2 steps of 4 images, cropped to 32 x 48 pixels"
    assert math.isfinite(one_epoch(training, tmp_path)["loss"])
    with pytest.raises(ValueError, match=r"^`training.image_size` must be at least 32 pixels a side, got 16 x 16"):
        build("--training.image_size", "16")


@pytest.mark.parametrize(
    "change", [("--training.micro_batches", "2"), ("--training.gradient_checkpointing", "true")], ids=lambda c: c[0]
)
def test_what_saves_memory_takes_the_same_steps(train, change):
    one_step = (*VIT, "--training.iterations_per_epoch", "1")
    plain, terms = train(*one_step)
    saving, same_terms = train(*one_step, *change)
    assert same_terms == pytest.approx(terms, rel=1e-5)
    for name, weight in saving.encoder.named_parameters():
        torch.testing.assert_close(weight.grad, plain.encoder.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax_weighted", "batch_hard"])
def test_triplets_train_alone_on_several_images_of_a_place(build, train, kind):
    alone = ["--head.weight", "0", "--text.weight", "0", "--triplet.weight", "2", "--triplet.kind", kind]
    training, terms = train(*alone, "--training.images_per_class", "2")
    assert set(terms) == {"loss", "triplet"}
    assert not torch.equal(
        weights(training.encoder), weights(build(*alone, "--training.images_per_class", "2").encoder)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--triplet.weight", "1"], "`triplet.weight` above 0 needs several .*: set `images_per_class` to 2 or more"),
        (["--triplet.weight", "1", "--training.images_per_class", "4"], "below `training.batch_size` 4"),
        (
            ["--triplet.weight", "1", "--training.images_per_class", "2", "--training.micro_batches", "2"],
            "needs several images of a class in a batch, compared together: `micro_batches` must be 1, got 2",
        ),
        (["--head.weight", "0", "--text.weight", "0"], "`head.weight`, .* are all 0: there is no loss to train with"),
        (["--training.batches", "tuples"], "`head.weight` above 0 needs class labels .*: nothing in"),
        (
            ["--training.batches", "pairs"],
            "`training.batches` must be one of classes, places, tuples, images, got 'pairs'",
        ),
    ],
)
def test_choices_that_do_not_fit_are_refused(config, arguments, words):
    with pytest.raises(ValueError, match=words):
        check_method(settings_of(config, *arguments))


def test_a_margin_without_its_kind_of_triplets_is_refused_at_once(config):
    with pytest.raises(ValueError, match=r"`triplet\.margin` is for `triplet.kind` batch_hard only"):
        settings_of(config, "--triplet.margin", "0.3")


def test_gradient_checkpointing_of_what_is_no_vit_is_refused(build):
    with pytest.raises(ValueError, match="is not possible with a ResNet of open_clip"):
        build("--training.gradient_checkpointing", "true")


def test_a_temperature_is_learned_where_asked(train):
    cosines = ["--text.normalized", "true", "--text.temperature", "0.07"]
    fixed, terms = train(*cosines)
    learned, same_first = train(*cosines, "--text.learn_temperature", "true")
    assert fixed.terms.terms["text"].space.log_temperature.exp().item() == pytest.approx(0.07)
    assert learned.terms.terms["text"].space.log_temperature.exp().item() != pytest.approx(0.07, rel=1e-3)
    assert same_first["image_text"] == pytest.approx(terms["image_text"], rel=0.05)


def test_the_temperature_of_the_clip_comes_with_its_prompts(train, build, run, tmp_path):
    cosines = ("--text.normalized", "true", "--text.temperature")
    _, by_clip = train(*cosines, "clip")
    _, by_number = train(*cosines, "0.07")  # which a random CLIP begins with
    assert by_clip["image_text"] == pytest.approx(by_number["image_text"], rel=1e-5)
    description = json.loads((run / "stage1/prompts.json").read_text())
    assert description["logit_scale"] == pytest.approx(1 / 0.07)
    assert description["logit_bias"] is None
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    del description["logit_scale"], description["logit_bias"]
    (tmp_path / "stage1/prompts.json").write_text(json.dumps(description))
    of_before = ("--text.prompts", tmp_path / "stage1", "--text.normalized", "true", "--text.temperature")
    with pytest.raises(ValueError, match=r"prompts\.json is of an earlier version, which did not record the temp"):
        build(*of_before, "clip")
    build(*of_before, "0.07")


@pytest.mark.parametrize("section", ["text", "prompts"])
def test_the_temperature_of_a_clip_is_for_cosines_alone(section, config):
    command = {"text": "train encoder", "prompts": "train prompts"}[section]
    words = ("--config", config, f"--{section}.temperature", "clip", f"--{section}.normalized")
    with pytest.raises(
        ValueError, match=rf"`{section}\.temperature` clip .* set `{section}\.normalized` true, or give"
    ):
        parsed(command, *words, "false")
    settings = parsed(command, *words, "true")["settings"]
    options = settings.prompts if section == "prompts" else settings.losses["text"]
    assert options.temperature == "clip"


def test_the_overview_counts_images_groups_and_parameters(build, config, city):
    training, settings = build("--encoder.frozen", "[layer1]"), settings_of(config)
    lines = overview(training, model=settings.model)
    assert lines[0] == "images      84 of 84 are in groups"
    assert lines[2] == "epochs      3, each of 2 steps of 4 images, cropped to 64 x 64 pixels"
    assert lines[3] == "validation  6 queries, 12 database images"
    frozen = sum(p.numel() for p in training.encoder.backbone.layer1.parameters())
    trained = sum(p.numel() for p in training.encoder.parameters()) - frozen
    assert f"tiny-resnet: {trained:,} parameters trained, {frozen:,} frozen" in lines[4]
    assert lines[5].endswith("for 4 images at a time")
    assert lines[6] == "precision   float32"
    before = "conv1.weight, bn1.weight, bn1.bias, conv2.weight ..."
    assert lines[7] == (
        f"frozen      a gradient passes frozen layers to {before}: freeze these, too, for faster steps in less memory"
    )
    assert lines[8] == (
        "pixels      bilinear, mean (0.4815, 0.4578, 0.4082), std (0.2686, 0.2613, 0.2758), "
        "CLIP's since random weights have none of their own"
    )
    assert lines[9].startswith("decoding    the training process (`data.num_workers` 0) on ")
    milliseconds, per_second = re.search(r": ([0-9.]+) ms per image, measured; ([0-9,]+) per second", lines[9]).groups()
    assert float(milliseconds) * float(per_second.replace(",", "")) == pytest.approx(1000, rel=0.1)


def test_the_memory_of_states_and_images_is_that_of_a_count_by_hand(build):
    training = build("--text.weight", "0", "--encoder.frozen", "[layer1]", "--training.cache_images", "true")
    memory = estimated_memory(training)
    parameters = sum(p.numel() for p in training.encoder.parameters())
    trained = sum(p.numel() for p in training.encoder.parameters() if p.requires_grad)
    classes = max(training.terms.source.classes_per_group)
    # Weights; gradients and two means of Adam for what is trained.
    assert memory.states == 4 * (parameters + 3 * trained + 4 * classes * 32)
    assert memory.cached == 84 * 3 * 64 * 64
    averaged = build("--text.weight", "0", "--encoder.frozen", "[layer1]", "--training.ema_decay", "0.9")
    assert estimated_memory(averaged).states == memory.states + 4 * parameters
    frozen = ("--text.weight", "0", "--encoder.frozen", "[layer1]")
    again = build(*frozen, "--training.optimizer", "sgd", "--training.generations", "[1,2]")
    # The momentum only; the first weights and the target.
    assert estimated_memory(again).states == memory.states + 4 * (2 * parameters - trained - classes * 32)
    halves = estimated_memory(build("--text.weight", "0", "--training.micro_batches", "2"))
    assert (memory.images_at_once, halves.images_at_once) == (4, 2)
    assert halves.images < memory.images * 0.6 + 4 * parameters


def test_the_layers_draw_otherwise_in_every_piece_and_other_than_the_augmentation(build, tmp_path, monkeypatch):
    training = build(*VIT, "--training.micro_batches", "2", "--training.iterations_per_epoch", "1")
    drawn = []
    training.encoder.register_forward_pre_hook(lambda *_: drawn.append(torch.empty(2).uniform_(0.3, 1.7)))
    one_epoch(training, tmp_path)
    assert len(drawn) == 2
    assert not torch.equal(*drawn)
    shares = draw_changes(Augmentation(), 2, seeded_generator(0, 0, 0)).shares[:, 0]
    assert not torch.allclose(drawn[0], shares)


def test_an_aggregation_is_initialized_with_local_features_unless_its_encoder_was_trained(build, run, monkeypatch):
    def fill(module, features, seed):
        assert features.shape == (84 * 100, 512)  # of all images, with 4 local features each
        torch.nn.init.constant_(module.linear.bias, 7)

    def replace(module, features, seed):
        module.linear.bias = torch.nn.Parameter(torch.zeros(32))

    def begun(initialize, *arguments):
        row = dataclasses.replace(AGGREGATIONS["gem"], initialize=initialize)
        monkeypatch.setitem(AGGREGATIONS, "gem", row)
        training = build("--text.weight", 0, "--training.iterations_per_epoch", 128, *arguments)
        training.begin()
        return training.encoder.aggregation.linear.bias[0].item()

    assert begun(fill) == 7
    assert begun(fill, "--model.weights", run) != 7
    with pytest.raises(ValueError, match="`initialize` of the aggregation gem must fill its parameters, not replace"):
        begun(replace)


@pytest.mark.parametrize(
    ("minimum", "schedule", "sentence"),
    [
        (1e-3, "step", "0.001 must not be above `encoder_learning_rate` 0.0001: no epoch would be trained"),
        (1e-5, "constant", "is for a `training.schedule` that lowers the learning rate, not for constant"),
    ],
)
def test_a_minimum_of_the_learning_rate_that_does_nothing_or_all_is_refused(config, minimum, schedule, sentence):
    words = ("--training.encoder_learning_rate", 1e-4, "--training.schedule", schedule)
    with pytest.raises(ValueError, match=f"^`training.min_learning_rate` {sentence}"):
        settings_of(config, *words, "--training.min_learning_rate", minimum)


def test_only_a_validation_that_needs_the_classifier_gets_it(build):
    training = build("--text.weight", 0)
    given = []
    training.validation.measure = lambda *_, classifier: given.append(classifier)
    for training.validation.needs_classifier in (False, True):
        training.validate(training.encoder)
    assert given[0] is None and len(given[1]) == sum(training.terms.source.classes_per_group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("inductor", VIT),
        ("aot_eager", ("--training.micro_batches", "2", "--training.ema_decay", "0.5")),  # which takes less long
    ],
)
def test_encoder_and_augmentation_are_compiled_once_and_train_as_plain_ones(
    build, tmp_path, monkeypatch, backend, words
):
    monkeypatch.setattr(AugmentedEncoder, "compile", partialmethod(torch.nn.Module.compile, backend=backend))

    def two_epochs(name, *more):
        training, run = build(*words, "--training.epochs", "2", *more), RunFolder(tmp_path / name)
        run.path.mkdir()
        how = {"checkpoints": run.checkpoints, "seed": 0, "accelerator": training.accelerator}
        trainer = Trainer(training, training.options, run, **how)
        trainer.resume()
        return training, list(trainer.epochs())

    plain, terms = two_epochs("plain")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, same_terms = two_epochs("compiled", "--training.compile", "true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # none for validation
    for mean, same_mean in zip(terms, same_terms, strict=True):
        assert same_mean == pytest.approx(mean, rel=1e-3)
    assert compiled.encoder.state_dict().keys() == plain.encoder.state_dict().keys()
