"""Promises that every encoder and every training keeps, whatever rows of the tables it is made of."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from running import parsed
from torch import nn

from progeo.commands.train_encoder import build_training, check_method, read_training_images
from progeo.engine.accelerator import start_accelerator
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import StopRequest
from progeo.export.onnx import save_onnx
from progeo.export.program import save_program
from progeo.export.weights import load_encoder, save_encoder
from progeo.models.backbones.position_embedding import sample_size
from progeo.models.encoder import Encoder
from progeo.training.image_training import ImageTraining
from progeo.training.trainer import Trainer


def sizes_of(encoder: Encoder) -> list[tuple[int, int]]:
    """A small image size that the encoder takes, and another that is not square if it takes one."""
    side, _ = sample_size(encoder.traits)
    step = encoder.traits.side_multiple if encoder.traits.side_multiple > 1 else encoder.traits.stride
    return [encoder.traits.only_size] if encoder.traits.only_size else [(side, side), (side + step, side)]


def images_of(encoder: Encoder, batch: int = 3) -> Iterator[torch.Tensor]:
    for size in sizes_of(encoder):
        yield torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def check_shapes(encoder: Encoder) -> None:
    """Descriptors have the dimension promised, the features that of the traits, and neither depends on the batch."""
    traits = encoder.traits
    for images in images_of(encoder):
        descriptors, features = encoder(images, with_features=True)
        assert descriptors.shape == (3, encoder.descriptor_dim)
        assert torch.equal(encoder(images), descriptors)
        assert torch.equal(encoder.aggregate(features), descriptors)
        lengths = descriptors.norm(dim=1)
        assert not encoder.spec.normalized or torch.allclose(lengths, torch.ones(3), atol=1e-5)
        if features.map is not None:
            rows, columns = (-(-side // traits.stride) for side in images.shape[2:])
            assert features.map.shape == (3, traits.channels, rows, columns)
        if features.token is not None:
            assert features.token.shape == (3, traits.token_dim)
        alone = torch.cat([encoder(image[None]) for image in images])
        torch.testing.assert_close(descriptors, alone, rtol=0, atol=1e-5)


def check_gradients(encoder: Encoder) -> None:
    """The gradient reaches every parameter."""
    encoder.zero_grad(set_to_none=True)
    for images in images_of(encoder):
        encoder(images).cos().sum().backward()
        assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []
        assert all(weight.grad.isfinite().all() for weight in encoder.parameters())
        encoder.zero_grad(set_to_none=True)


@torch.no_grad()
def check_reload(encoder: Encoder, folder: Path) -> None:
    """An encoder that is saved and loaded is equal bit for bit."""
    again = load_encoder(save_encoder(folder, encoder, provenance={}, recalls={}))
    assert again.spec == encoder.spec
    assert not again.training
    assert all(tensor.device.type == "cpu" for tensor in [*again.parameters(), *again.buffers()])
    assert again.state_dict().keys() == encoder.state_dict().keys()
    for images in images_of(encoder):
        assert torch.equal(again(images), encoder(images))


def check_onnx(encoder: Encoder, folder: Path, refused: str | None = None) -> None:
    """The ONNX file of an encoder computes its descriptors, or is refused before it is written.

    Args:
        refused: beginning of the sentence that it is refused with.
    """
    if _is_written(save_onnx, encoder, folder, refused):
        session = onnxruntime.InferenceSession(folder / "model")
        _check_graph(encoder, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))


def check_program(encoder: Encoder, folder: Path, refused: str | None = None) -> None:
    """The same as `check_onnx`, of a program of `torch.export`."""
    if _is_written(save_program, encoder, folder, refused):
        _check_graph(encoder, torch.export.load(folder / "model").module())


def _is_written(save: Callable[..., float], encoder: Encoder, folder: Path, refused: str | None) -> bool:
    if refused is None:
        save(folder / "model", encoder)
        return True
    with pytest.raises(ValueError) as error:
        save(folder / "model", encoder)
    assert str(error.value).startswith(refused) and "\n" not in str(error.value)
    assert not list(folder.iterdir())
    return False


@torch.no_grad()
def _check_graph(encoder: Encoder, graph: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for batch in (1, 3):
        for images in images_of(encoder, batch):
            found, expected = graph(images), encoder(images)
            print(f"{encoder.spec.architecture} {tuple(images.shape)}: {(found - expected).abs().max():.1e}")
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def training_builder(config: Path, changed: Mapping[str, object]) -> Callable[[], ImageTraining]:
    """A function that builds the training of a configuration with changed settings, in a folder of its own."""
    folders = {"out": config.parent / "contracts", "text.prompts": config.parent / "run/stage1"}
    changed = {**folders, **changed}
    words = [word for name, value in changed.items() for word in (f"--{name}", *str(value).split(" "))]
    settings = parsed("train encoder", "--config", config, *words)["settings"]
    check_method(settings)
    images = read_training_images(settings)
    return lambda: build_training(settings, images, start_accelerator("no"))


def settings_for(needs: Collection[str], teacher: Path) -> dict[str, object]:
    """Settings with which a training on the toy city gives loss terms what they need, beside the images of classes.

    Args:
        teacher: folder of an encoder.
    """
    settings: dict[str, object] = {"training.images_per_class": 2 if "pairs" in needs else 1}
    if "tuples" in needs:
        settings |= {"training.batches": "tuples", "mining.negatives": 3, "mining.pool": 10, "mining.queries": 4}
    if {"regions", "target_regions"} & set(needs):
        settings |= {"encoder.aggregation": "netvlad", "encoder.descriptor_dim": "null"}
        settings |= {"encoder.aggregation_options": "num_clusters=3 regions=quarters"}
    if "target_regions" in needs:
        settings |= {"training.epochs": 2, "training.generations": "1 1"}
    if {"teacher", "teacher_map"} & set(needs):
        settings["teacher.encoder"] = teacher
    return settings


def trainer_of(training: ImageTraining, folder: Path) -> Trainer:
    run = RunFolder(folder)
    how = {"checkpoints": run.checkpoints, "seed": 0, "accelerator": training.accelerator}
    return Trainer(training, training.options, run, **how)


def stop_after_a_step(trainer: Trainer, *, epochs_before: int = 0) -> None:
    stop = StopRequest()
    trainer.resume()
    for _ in range(epochs_before):
        trainer.train_epoch(stop)
    stop.received = True
    with pytest.raises(KeyboardInterrupt, match="after step 1"):
        trainer.train_epoch(stop)


def check_resume(build: Callable[[], ImageTraining], folder: Path, *, epochs_before: int = 0) -> None:
    """An epoch of two steps that is stopped after the first and resumed ends with the same bits.

    Args:
        build: builds the training, the same at every call.
        epochs_before: number of epochs before.
    """
    whole, stopped, resumed = (trainer_of(build(), folder / name) for name in ("whole", "stopped", "stopped"))
    assert whole.task.steps_per_epoch == 2
    whole.resume()
    for _ in range(epochs_before):
        whole.train_epoch(StopRequest())
    terms = whole.train_epoch(StopRequest())
    stop_after_a_step(stopped, epochs_before=epochs_before)
    assert resumed.resume() is not None
    assert resumed.steps_done == 2 * epochs_before + 1
    assert resumed.train_epoch(StopRequest()) == terms
    assert_same_state(resumed.state_dict(), whole.state_dict())
    assert resumed.task.validate(resumed.model) == whole.task.validate(whole.model)


def assert_same_state(state: dict[str, Any], other: dict[str, Any]) -> None:
    """Two nested states have the same names and, bit for bit, the same values."""
    ours, theirs = dict(flat(state)), dict(flat(other))
    assert sorted(ours.keys() ^ theirs.keys()) == []
    different = [name for name, value in ours.items() if not _is_equal(value, theirs[name])]
    assert different == []


def flat(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested state by their dotted names."""
    if isinstance(state, dict | list | tuple):
        for name, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from flat(value, f"{prefix}{name}.")
    else:
        yield prefix.removesuffix("."), state


def _is_equal(value: Any, other: Any) -> bool:
    return torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def module_with(names: dict[str, Any], state: dict[str, torch.Tensor]) -> nn.Module:
    """The first module among named values whose state dict has all of `state`, bit for bit."""
    modules = [value for value in names.values() if isinstance(value, nn.Module)]
    for module in modules:
        own = module.state_dict()
        if all(name in own and torch.equal(own[name], tensor) for name, tensor in state.items()):
            return module
    raise AssertionError(f"{len(modules)} modules, none with {len(state)} such tensors")
