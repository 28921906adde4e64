"""Prompts that the published stage 1 pickled: read without its classes, and handed on where that is true."""

import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from open_clip import SimpleTokenizer
from running import build_catalogue
from safetensors.torch import load_file, save_file
from torch import nn

from progeo.cli import main
from progeo.commands.import_weights import import_weights
from progeo.models.backbones.clips import load_clip
from progeo.places.cells import build_partition
from progeo.training.prompt_files import load_text_features

CELLS = {"cell_side_m": 10, "heading_bin_deg": 30, "groups_per_side": 2, "groups_per_heading": 1}
NAME = "raw_M10_N2_alpha30_L1_mipc2.torch"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    model = load_clip("tiny-vit", "random", seed=3)
    torch.save(model.state_dict(), path)
    return model, str(path)


@pytest.fixture
def learner_class(monkeypatch):
    """A class of the published name, which only the pickling of a test sees."""
    module = ModuleType("cosplace_model.cosplace_network_stage1")

    class PromptLearner(nn.Module):
        def __init__(self, context, prefix, suffix):
            super().__init__()
            self.tokenized_prompts = torch.zeros(1, 77, dtype=torch.long)
            self.cls_ctx = nn.Parameter(context)
            self.register_buffer("token_prefix", prefix)
            self.register_buffer("token_suffix", suffix)
            self.num_class, self.n_cls_ctx = len(context), 4

    PromptLearner.__module__, PromptLearner.__qualname__ = module.__name__, "PromptLearner"
    module.PromptLearner = PromptLearner
    for name, value in (("cosplace_model", ModuleType("cosplace_model")), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, value)
    return PromptLearner


def word_vectors(clip):
    """Return the word vectors around the learned ones of `A photo of a X X X X street.`"""
    tokenizer = SimpleTokenizer()
    ids = [tokenizer.sot_token_id, *tokenizer.encode("A photo of a X X X X street."), tokenizer.eot_token_id]
    embedding = clip.token_embedding.weight[[*ids, *[0] * (77 - len(ids))]].detach()[None]
    return embedding[:, :5].clone(), embedding[:, 9:].clone()


def partition_of(num_groups):
    """Nine classes in each of four groups, two images each, as stage 1 sees them."""
    middles = range(5, 65, 10)
    names = [f"@{east}@{north}@10@S@@@{n}@@45@@@@@@.jpg" for east in middles for north in middles for n in range(2)]
    return build_partition(
        build_catalogue(Path("train"), names), **CELLS, min_images_per_class=2, num_groups=num_groups
    )


def published_order(partition, order):
    """Return the content of the published cache: groups in the given order, classes of each in any order."""
    generator = np.random.default_rng(0)
    groups = [
        [tuple(int(n) for n in row) for row in generator.permutation(partition.groups[i].class_ids)] for i in order
    ]
    images = {class_id: ["a.jpg", "b.jpg"] for group in groups for class_id in group}
    return groups, images


def plain_text_features(clip, prefix, context, suffix):
    """The forward of the published text encoder."""
    tokens = torch.cat([prefix.expand(len(context), -1, -1), context, suffix.expand(len(context), -1, -1)], dim=1)
    hidden = clip.transformer(tokens + clip.positional_embedding, attn_mask=clip.attn_mask)
    end = prefix.shape[1] + context.shape[1] + 2  # street, full stop, end of text
    return clip.ln_final(hidden)[:, end] @ clip.text_projection


def learned(learner_class, clip, groups):
    prefix, suffix = word_vectors(clip)
    return [learner_class(torch.randn(len(group), 4, 64) * 0.02, prefix, suffix) for group in groups]


def test_prompts_of_all_groups_become_those_of_stage_1_in_our_order(clip, learner_class, tmp_path):
    partition = partition_of(4)
    groups, images = published_order(partition, [2, 0, 3, 1])
    learners = learned(learner_class, clip[0], groups)
    torch.save(learners, tmp_path / "last.pth")
    torch.save((groups, images), tmp_path / NAME)
    options = ["--class_order", tmp_path / NAME, "--clip", "tiny-vit", "--clip_weights", clip[1]]
    main(["import", *map(str, [tmp_path / "last.pth", "--out", tmp_path / "prompts", *options])])
    assert {path.name for path in (tmp_path / "prompts").iterdir()} == {"prompts.safetensors", "prompts.json"}
    features = load_text_features(tmp_path / "prompts", partition)
    prefix, suffix = word_vectors(clip[0])
    for index, published in enumerate([1, 3, 0, 2]):
        rows = [groups[published].index(tuple(row)) for row in partition.groups[index].class_ids.tolist()]
        context = learners[published].cls_ctx.detach()[rows]
        with torch.no_grad():
            expected = plain_text_features(clip[0], prefix, context, suffix)
        torch.testing.assert_close(features[index], expected, rtol=1e-3, atol=1e-4)
    main(["prompts", "show", str(tmp_path / "prompts"), "--at", "10,10,45"])
    assert (tmp_path / "prompts/prompts.csv").is_file()


@pytest.mark.parametrize(
    ("order", "with_classes", "with_clip", "reason"),
    [
        ([2, 0, 3, 1], False, False, "name the file with their classes with --class_order"),
        ([2, 0, 3, 1], True, False, "name the CLIP whose text tower encodes them with --clip"),
        ([2, 0, 3, 1], True, True, "the 2 groups that it met first of 4, stage 2 here takes the first 2"),
    ],
)
def test_prompts_whose_groups_are_not_ours_are_plain_tensors(
    order, with_classes, with_clip, reason, clip, learner_class, tmp_path, capsys
):
    groups, images = published_order(partition_of(4), order)
    learners = learned(learner_class, clip[0], groups[:2])
    torch.save(learners, tmp_path / "last.pth")
    torch.save((groups, images), tmp_path / NAME)
    options = ["--class_order", tmp_path / NAME] if with_classes else []
    options += ["--clip", "tiny-vit", "--clip_weights", clip[1]] if with_clip else []
    main(["import", *map(str, [tmp_path / "last.pth", "--out", tmp_path / "prompts", *options])])
    names = {"prompt_learners.safetensors", "prompt_learners.json"}
    assert {path.name for path in (tmp_path / "prompts").iterdir()} == names
    assert reason in capsys.readouterr().err
    found = load_file(tmp_path / "prompts/prompt_learners.safetensors")
    assert torch.equal(found["token_prefix"], learners[0].token_prefix)
    assert torch.equal(found["token_suffix"], learners[1].token_suffix)
    for index, group in enumerate(groups[:2]):
        assert torch.equal(found[f"group_{index}.context"], learners[index].cls_ctx)
        assert (f"group_{index}.class_ids" in found) == with_classes
        assert not with_classes or found[f"group_{index}.class_ids"].tolist() == [list(row) for row in group]
    assert json.loads((tmp_path / "prompts/prompt_learners.json").read_text())["groups"] == 2


def test_the_first_groups_alone_are_ours_where_the_published_code_met_them_first(clip, learner_class, tmp_path):
    groups, images = published_order(partition_of(4), [1, 0, 3, 2])
    torch.save(learned(learner_class, clip[0], groups[:2]), tmp_path / "last.pth")
    torch.save((groups, images), tmp_path / NAME)
    options = ["--class_order", tmp_path / NAME, "--clip", "tiny-vit", "--clip_weights", clip[1]]
    main(["import", *map(str, [tmp_path / "last.pth", "--out", tmp_path / "prompts", *options])])
    assert len(load_text_features(tmp_path / "prompts", partition_of(2))) == 2


@pytest.mark.parametrize("shape", [(), (9,), (0, 4), (9, 4, 1)])
def test_text_features_of_another_shape_are_refused(tmp_path, shape):
    partition = partition_of(1)
    save_file({"group_0.text_features": torch.zeros(shape)}, tmp_path / "prompts.safetensors")
    described = {"partition": partition.describe(), "architecture": "RN50", "weights": "openai", "seed": 1}
    (tmp_path / "prompts.json").write_text(json.dumps({**described, "vocabulary": "1", "groups": [{}]}))
    with pytest.raises(ValueError, match=r"prompts\.safetensors should hold text features of 9 classes, has"):
        load_text_features(tmp_path, partition)


def test_classes_or_a_clip_that_do_not_fit_are_refused(clip, learner_class, tmp_path):
    groups, images = published_order(partition_of(4), range(4))
    learners, order = learned(learner_class, clip[0], groups), tmp_path / NAME
    torch.save(learners, tmp_path / "last.pth")

    def failure(*options):
        with pytest.raises(SystemExit) as stop:
            main(["import", *map(str, [tmp_path / "last.pth", "--out", tmp_path / "prompts", *options])])
        assert not (tmp_path / "prompts").exists()
        return str(stop.value)

    torch.save((groups, images), order)
    other = ["--class_order", order, "--clip", "tiny-vit", "--clip_weights", "random"]
    assert "was learned with other word vectors than those of tiny-vit with random" in failure(*other)
    torch.save((groups, images), tmp_path / "classes.torch")
    assert "The cell settings are missing from the name classes.torch" in failure(
        "--class_order", tmp_path / "classes.torch", "--clip", "tiny-vit", "--clip_weights", clip[1]
    )
    torch.save((groups[:3], images), order)
    assert f"holds prompts of 4 groups, {order} has 3" in failure("--class_order", order)
    torch.save(([groups[0][1:], *groups[1:]], images), order)
    assert f"holds prompts of 9 classes in group 0, {order} has 8" in failure("--class_order", order)
    torch.save({"a": torch.rand(2)}, order)
    assert "is no order of classes" in failure("--class_order", order)
    torch.save(([[*groups[0][:-1], groups[0][0]], *groups[1:]], images), order)
    assert f"{order} names a class twice" in failure("--class_order", order)
    torch.save((groups, images), tmp_path / "raw_M0_N2_alpha30_L1_mipc2.torch")
    assert "missing from the name raw_M0_N2_alpha30_L1_mipc2.torch" in failure(
        "--class_order", tmp_path / "raw_M0_N2_alpha30_L1_mipc2.torch", "--clip", "tiny-vit", "--clip_weights", clip[1]
    )  # fmt: skip
    others = (["--image_size", "64"], ["--quickgelu", "true"], ["--normalized", "false"], ["--head", "arcface"])
    for option in (*others, ["--mean", "[0.5,0.5,0.5]"], ["--std", "[0.5,0.5,0.5]"]):
        listed = (
            "--weights_in, --image_size, --normalized, --quickgelu, --mean, --std, --resize and --head are for encoders"
        )
        assert listed in failure(*option)
    del learners[1].token_suffix
    torch.save(learners, tmp_path / "last.pth")
    assert "the prompt learner of group 1 has no token_suffix" in failure()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("cls_ctx", lambda values: values[:, :3], "another number of learned vectors, or other words around them"),
        ("token_prefix", lambda values: values + 1, "another number of learned vectors, or other words around them"),
        (
            "token_suffix",
            lambda values: values[:, :-1],
            "another number of learned vectors, or other words around them",
        ),
        (
            "token_prefix",
            lambda values: values[:0],
            r"\(1, n, W\), has \(9, 4, 64\) of torch\.float32, \(0, 5, 64\) and",
        ),
        ("cls_ctx", lambda values: values.long(), r"of fractions and .* has \(9, 4, 64\) of torch\.int64"),
        ("cls_ctx", lambda values: values[..., :32], r"has \(9, 4, 32\) of torch\.float32, \(1, 5, 64\) and"),
    ],
)
def test_a_group_that_does_not_belong_with_the_others_is_refused(name, change, reason, clip, learner_class, tmp_path):
    groups, _ = published_order(partition_of(4), range(4))
    learners = learned(learner_class, clip[0], groups)
    values = change(getattr(learners[2], name).detach())
    setattr(learners[2], name, nn.Parameter(values, requires_grad=False) if name == "cls_ctx" else values)
    torch.save(learners, tmp_path / "last.pth")
    with pytest.raises(SystemExit, match=rf"the prompt learner of group 2 (should have|has) .*{reason}"):
        main(["import", str(tmp_path / "last.pth"), "--out", str(tmp_path / "prompts")])
    assert not (tmp_path / "prompts").exists()


def test_an_import_that_cannot_write_its_last_file_leaves_nothing(clip, learner_class, tmp_path):
    groups, images = published_order(partition_of(4), range(4))
    file = tmp_path / os.fsdecode(b"last\xff.pth")  # a name that cannot be written to prompts.json
    with file.open("wb") as stream:
        torch.save(learned(learner_class, clip[0], groups), stream)
    torch.save((groups, images), tmp_path / NAME)
    options = {"class_order": tmp_path / NAME, "clip": "tiny-vit", "clip_weights": clip[1]}
    with pytest.raises(ValueError, match="surrogates not allowed"):
        import_weights(file, out=tmp_path / "prompts", **options)
    assert {path.name for path in tmp_path.iterdir()} == {file.name, NAME}


def test_a_pickle_hidden_in_a_prompt_learner_is_refused(clip, learner_class, tmp_path):
    class Hidden:
        def __reduce__(self):
            return open, (str(tmp_path / "marker"), "w")

    (learner,) = learned(learner_class, clip[0], [[1, 2]])
    learner.extra = OrderedDict(a=Hidden())
    torch.save([learner], tmp_path / "last.pth")
    with pytest.raises(SystemExit, match=r"nothing of it was run: it asks for (_?io)\.open, which"):
        main(["import", str(tmp_path / "last.pth"), "--out", str(tmp_path / "prompts")])
    assert {path.name for path in tmp_path.iterdir()} == {"last.pth"}
