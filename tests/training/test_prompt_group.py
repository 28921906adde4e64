"""The loss of a group of stage 1."""

import numpy as np
import pytest
import torch

from progeo.engine.accelerator import start_accelerator
from progeo.engine.loop import take_steps
from progeo.features.store import ShardedRows
from progeo.losses import supervised_contrastive
from progeo.models.backbones.clips import load_clip
from progeo.models.text_towers.tower import build_text_tower
from progeo.training.options import PromptOptions
from progeo.training.prompt_group import GroupImages, GroupTraining

LABELS = np.array([0, 0, 1, 2, 2, 2])


@pytest.fixture
def training(tmp_path):
    """Build the training of three classes with random image features, for a CLIP with or without a logit bias."""

    def build(bias=None, words=(), **options):
        clip = load_clip("tiny-vit", "random").requires_grad_(False)
        clip.logit_scale.fill_(np.log(20))
        if bias is not None:
            clip.logit_bias = torch.nn.Parameter(torch.tensor(bias), requires_grad=False)
        accelerator = start_accelerator("no")
        values = np.random.default_rng(0).normal(size=(6, clip.text_projection.shape[1])).astype(np.float16)
        features = ShardedRows(tmp_path, num_rows=6, width=values.shape[1], shard_size=6)
        features.write_shard(0, values)
        images = GroupImages(features, np.arange(6), labels=LABELS, accelerator=accelerator, on_device=True)
        prompts = PromptOptions(**options)
        return GroupTraining(
            0,
            3,
            images=images,
            words=words,
            tower=build_text_tower(clip),
            prompts=prompts,
            seed=0,
            accelerator=accelerator,
        )

    return build


def losses(training):
    return [loss.item() for loss in training.losses(np.arange(6)).values()]


def test_the_images_of_a_step_are_counted_over_an_epoch_whose_last_batch_is_smaller(training):
    group = training(batch_size=4)
    assert (group.steps_per_epoch, group.images_per_step) == (2, 3.0)


@pytest.mark.parametrize("bias", [None, -16.5])
def test_the_temperature_of_a_clip_is_one_over_its_scale_and_its_constant_bias_changes_nothing(training, bias):
    by_clip = losses(training(bias, normalized=True, temperature="clip"))
    assert by_clip == pytest.approx(losses(training(normalized=True, temperature=0.05)), rel=1e-5)
    assert by_clip != pytest.approx(losses(training(normalized=True, temperature=0.07)), rel=1e-2)


def test_a_bias_of_all_logits_does_not_change_a_softmax_over_classes():
    images, texts = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(LABELS)
    constant = torch.ones(6, 1, dtype=torch.float64)
    biased = torch.cat([images, -16.5 * constant], dim=1), torch.cat([texts, constant], dim=1)  # dot products - 16.5
    torch.testing.assert_close(
        supervised_contrastive(*biased, labels, labels), supervised_contrastive(images, texts, labels, labels)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("words", [(), ("North Street", "", "South Street")])
def test_a_step_does_not_wait_for_a_gpu(training, words):
    group = training(words=words)
    steps = take_steps([[np.arange(6)]] * 2, group.losses, group.optimizer, group.accelerator, alone=True)
    next(steps)  # the first makes the state of the optimizer
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.result.applied


@pytest.mark.parametrize("words", [(), ("North Street", "", "South Street")])
def test_steps_with_the_gradient_of_the_classes_of_a_batch_alone_are_those_of_dense_adam(training, words):
    ours, dense = training(words=words), training(words=words)
    dense.learner.sparse = False
    dense.optimizer = torch.optim.Adam(dense.learner.parameters(), lr=ours.prompts.learning_rate, fused=True)
    for batch in ([0, 1, 3], [4, 5], [2, 0], [1, 1]):
        for each in (ours, dense):
            each.optimizer.zero_grad()
            sum(each.losses(np.array(batch)).values()).backward()
            assert each.learner.context.grad.is_sparse == (each is ours)
            each.optimizer.step()
    assert torch.equal(ours.learner.context, dense.learner.context)
