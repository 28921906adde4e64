import shutil
import threading

import pytest
import torch

from progeo.engine.checkpoint import (
    CheckpointWriter,
    finished_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    remove_checkpoints,
    save_checkpoint,
)
from progeo.engine.log import LOGGER

NOT_OURS = [
    ".DS_Store",
    "._epoch_000001_step_000000",
    ".nfs0000000012345678",
    "before_lr_change",
    "best",
    "good",
    "epoch_1",
    "epoch_000001",
    "epoch_0000009_step_000000",
    "epoch_000009_step_000000 copy",
    "epoch_000009_step_000000.bak",
    "epoch_000009_step_000000_old",
    "Epoch_000009_step_000000",
    "zzz_epoch_000009_step_000000",
    ".unfinished-mine",
    ".unfinished-epoch_000009_step_000000 copy",
]


def content_of(folder):
    """Everything below a folder: the bytes of files, where links lead to."""
    return {
        path.relative_to(folder).as_posix(): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def test_a_nested_state_comes_back_equal_with_its_integer_keys(tmp_path):
    state = {
        "epoch": 3,
        "none": None,
        "nested": {"list": [1.5, torch.arange(3)], "flag": True, "text": "ä"},
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}, 12: {"m": torch.ones(2, 2).T}}, "groups": []},
    }
    again = load_checkpoint(save_checkpoint(tmp_path, "epoch_000003_step_000000", state))
    assert again["optimizer"]["state"].keys() == {0, 12}
    assert torch.equal(again["optimizer"]["state"][12]["m"], torch.ones(2, 2))
    assert again["nested"]["list"][0] == 1.5
    assert again["nested"]["list"][1].tolist() == [0, 1, 2]
    assert (again["epoch"], again["none"], again["nested"]["flag"], again["nested"]["text"]) == (3, None, True, "ä")


def test_an_adam_goes_on_from_its_saved_state_as_if_never_stopped(tmp_path):
    def build():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam([{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias]}])

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).pow(2).sum().backward()
        optimizer.step()

    layer, optimizer = build()
    step(layer, optimizer)
    state = {"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}
    path = save_checkpoint(tmp_path, "epoch_000001_step_000000", state)
    step(layer, optimizer)
    other, other_optimizer = build()
    state = load_checkpoint(path)
    other.load_state_dict(state["layer"])
    other_optimizer.load_state_dict(state["optimizer"])
    step(other, other_optimizer)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)


def test_a_fused_adam_of_a_channels_last_kernel_goes_on_from_its_saved_state(tmp_path):
    def build():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return layer, torch.optim.Adam(layer.parameters(), fused=True)

    def step(layer, optimizer, seed):
        optimizer.zero_grad()
        image = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        layer(image).pow(2).sum().backward()
        optimizer.step()

    layer, optimizer = build()
    step(layer, optimizer, 1)
    state = {"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}
    path = save_checkpoint(tmp_path, "epoch_000001_step_000000", state)
    step(layer, optimizer, 2)
    other, other_optimizer = build()
    state = load_checkpoint(path)
    assert state["layer"]["weight"].stride() == layer.weight.stride()
    other.load_state_dict(state["layer"])
    other_optimizer.load_state_dict(state["optimizer"])
    step(other, other_optimizer, 2)
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_checkpoint_whose_files_were_changed_is_refused_although_they_can_be_read(name, tmp_path):
    path = save_checkpoint(tmp_path, "epoch_000001_step_000000", {"epoch": 1, "weight": torch.ones(3)})
    content = (path / name).read_bytes()
    change = {"state.json": (b'"epoch", 1', b'"epoch", 2'), "tensors.safetensors": (b"\0\0\x80\x3f", b"\0\0\0\0")}
    assert content.count(change[name][0])
    (path / name).write_bytes(content.replace(*change[name]))
    with pytest.raises(ValueError, match=rf"The checkpoint {path} is corrupt: {name} is not as it was written"):
        load_checkpoint(path)


def test_a_checkpoint_cut_off_while_written_is_not_found(tmp_path):
    save_checkpoint(tmp_path, "epoch_000001_step_000000", {"epoch": 1})

    class FullDisk:
        """Cannot be written as JSON, as if the disk were full."""

    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, "epoch_000002_step_000000", {"epoch": 2, "x": FullDisk()})
    assert newest_checkpoint(tmp_path).name == "epoch_000001_step_000000"
    assert load_checkpoint(newest_checkpoint(tmp_path))["epoch"] == 1


def test_a_checkpoint_left_half_written_by_a_kill_is_not_found(tmp_path):
    save_checkpoint(tmp_path, "epoch_000001_step_000000", {"weight": torch.ones(3)})
    unfinished = tmp_path / ".unfinished-epoch_000002_step_000000-0123abcd"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "epoch_000001_step_000000"


def test_there_is_no_newest_checkpoint_where_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for epoch in (1, 2, 10):
        newest = save_checkpoint(tmp_path, f"epoch_{epoch:06d}_step_000000", {"epoch": epoch})
    prune_checkpoints(newest, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000002_step_000000", "epoch_000010_step_000000"]
    assert newest_checkpoint(tmp_path).name == "epoch_000010_step_000000"


def test_checkpoints_are_in_the_order_of_their_numbers_not_of_their_digits(tmp_path):
    names = [
        "epoch_000002_step_999999",
        "epoch_000002_step_1000000",
        "epoch_000010_step_000000",
        "epoch_1000000_step_000000",
    ]
    for name in reversed(names):
        newest = save_checkpoint(tmp_path, name, {"name": name})
    assert [path.name for path in finished_checkpoints(tmp_path)] == names
    assert load_newest_checkpoint(tmp_path)[1] == {"name": names[-1]}
    prune_checkpoints(tmp_path / names[2], keep=1)
    assert [path.name for path in finished_checkpoints(tmp_path)] == names[2:]
    assert newest == tmp_path / names[0]


@pytest.mark.parametrize("name", NOT_OURS)
@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
def test_what_the_program_did_not_name_is_neither_read_nor_removed(tmp_path, name, is_folder):
    if is_folder:
        (tmp_path / name).mkdir()
    (tmp_path / name / "state.json" if is_folder else tmp_path / name).write_text("mine")
    mine = content_of(tmp_path)
    assert newest_checkpoint(tmp_path) is None
    assert load_newest_checkpoint(tmp_path) is None
    for epoch in (1, 2):
        newest = save_checkpoint(tmp_path, f"epoch_{epoch:06d}_step_000000", {"epoch": epoch})
        prune_checkpoints(newest, keep=1)
    assert newest_checkpoint(tmp_path) == newest
    remove_checkpoints(tmp_path)
    assert content_of(tmp_path) == mine


@pytest.mark.parametrize("name", ["epoch_000001_step_000000", "epoch_000009_step_000000"])
@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
def test_a_link_or_a_file_with_the_name_of_a_checkpoint_is_not_followed_nor_removed(tmp_path, name, target):
    checkpoints, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    checkpoints.mkdir()
    save_checkpoint(elsewhere, "epoch_000001_step_000000", {"whose": "mine"})
    (elsewhere / "file").write_text("mine")
    targets = {"folder": elsewhere / "epoch_000001_step_000000", "file": elsewhere / "file", "nothing": elsewhere / "x"}
    (checkpoints / name).symlink_to(targets[target])
    before = content_of(tmp_path)
    assert newest_checkpoint(checkpoints) is None
    newest = save_checkpoint(checkpoints, "epoch_000002_step_000000", {"epoch": 2})
    prune_checkpoints(newest, keep=1)
    assert newest_checkpoint(checkpoints) == newest
    with pytest.raises(OSError, match=r"epoch_000002_step_000000 is complete"):
        save_checkpoint(checkpoints, name, {"epoch": 9})
    remove_checkpoints(checkpoints)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tensors.safetensors", None, "no such file"),
        ("tensors.safetensors", b"", "header"),
        ("tensors.safetensors", slice(0, 100), "incomplete"),
        ("tensors.safetensors", b"<html>404</html>", "header"),
        ("state.json", None, "no such file"),
        ("state.json", b"", "is not a json file"),
        ("state.json", slice(0, 30), "is not a json file"),
        ("state.json", b"\x00" * 50, "is not a json file"),
        ("state.json", b"{}", "do not fit together"),
        ("state.json", b"[]", "holds no state"),
        ("state.json", b"null", "holds no state"),
        ("state.json", b'{"items": []}', "holds no state"),
        ("state.json", b'{"items": [["weight", {"tensor": "7", "channels_last": false}]]}', "do not fit together"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_one_that_is_gone_on_from(
    tmp_path, caplog, monkeypatch, file, content, words
):
    good = save_checkpoint(tmp_path, "epoch_000001_step_000005", {"weight": torch.ones(100)})
    bad = save_checkpoint(tmp_path, "epoch_000002_step_000000", {"weight": torch.zeros(100)})
    whole = (bad / file).read_bytes()
    (bad / file).unlink()
    if content is not None:
        (bad / file).write_bytes(whole[content] if isinstance(content, slice) else content)
    monkeypatch.setattr(LOGGER, "propagate", True)
    path, state = load_newest_checkpoint(tmp_path)
    assert path == good
    assert torch.equal(state["weight"], torch.ones(100))
    (message,) = {record.getMessage() for record in caplog.records}
    assert message.startswith(f"The checkpoint {bad} is corrupt: ")
    assert words in message.lower()
    assert message.endswith(f"; resuming from {good}, which was written before it")
    shutil.rmtree(good)
    with pytest.raises(ValueError, match=r"is corrupt: .* There is no other: remove it to begin anew, or name another"):
        load_newest_checkpoint(tmp_path)


def test_those_before_a_damaged_checkpoint_outlive_it(tmp_path):
    first = save_checkpoint(tmp_path, "epoch_000001_step_000000", {"epoch": 1})
    corrupt = save_checkpoint(tmp_path, "epoch_000003_step_000000", {"epoch": 3})
    (corrupt / "state.json").write_text("")
    second = save_checkpoint(tmp_path, "epoch_000002_step_000000", {"epoch": 2})
    prune_checkpoints(second, keep=1)
    assert not first.exists()
    assert load_newest_checkpoint(tmp_path)[0] == second
    prune_checkpoints(save_checkpoint(tmp_path, "epoch_000003_step_000000", {"epoch": 3}), keep=1)
    assert list(tmp_path.iterdir()) == [corrupt]
    assert load_newest_checkpoint(tmp_path) == (corrupt, {"epoch": 3})


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, full_disk):
    kept = save_checkpoint(tmp_path, "epoch_000001_step_000000", {"weights": torch.ones(10)})
    with full_disk(), pytest.raises(OSError, match=r"could not be written: .*1_step_000000 is complete: make room"):
        save_checkpoint(tmp_path, "epoch_000002_step_000000", {"weights": torch.ones(10**6)})
    assert newest_checkpoint(tmp_path) == kept
    assert list(tmp_path.iterdir()) == [kept]
    assert torch.equal(load_checkpoint(kept)["weights"], torch.ones(10))


@pytest.fixture
def held(tmp_path):
    """A writer of checkpoints whose thread begins to write when an event is set."""
    writer, event = CheckpointWriter(tmp_path, keep=2), threading.Event()
    writer._thread.submit(event.wait)
    yield writer, event
    event.set()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_checkpoint_written_later_holds_the_state_as_it_was(tmp_path, held, device):
    writer, event = held
    weights = [torch.ones(3), torch.ones(2, 2).T, torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last)]
    weights = [weight.to(device) for weight in weights]
    state = {"weights": weights, "terms": {"loss": 1.0}, "epochs": [1, 2]}
    same = save_checkpoint(tmp_path / "other", "epoch_000001_step_000000", state)
    writer.save("epoch_000001_step_000000", state)
    for weight in weights:
        weight.zero_()
    state["terms"]["loss"] = 2.0
    state["epochs"].append(3)
    event.set()
    writer.wait()
    assert content_of(tmp_path / "epoch_000001_step_000000") == content_of(same)


def test_a_second_checkpoint_waits_for_the_first_and_old_ones_are_removed(tmp_path, held):
    writer, event = held
    writer.save("epoch_000001_step_000000", {"epoch": 1})
    assert newest_checkpoint(tmp_path) is None
    threading.Timer(0.1, event.set).start()
    with writer:
        writer.save("epoch_000002_step_000000", {"epoch": 2})
        assert newest_checkpoint(tmp_path) is not None
        writer.save("epoch_000003_step_000000", {"epoch": 3})
    assert [path.name[:12] for path in finished_checkpoints(tmp_path)] == ["epoch_000002", "epoch_000003"]


@pytest.mark.parametrize("then", ["save", "wait"])
def test_a_checkpoint_that_could_not_be_written_is_told_at_the_next_occasion(tmp_path, full_disk, then):
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save("epoch_000001_step_000000", {"weights": torch.ones(10)})
    writer.wait()
    with full_disk():
        writer.save("epoch_000002_step_000000", {"weights": torch.ones(10**6)})
        with pytest.raises(OSError, match=r"could not be written: .*1_step_000000 is complete: make room"):
            writer.save("epoch_000003_step_000000", {"epoch": 3}) if then == "save" else writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000001_step_000000"]
    with writer:
        writer.save("epoch_000003_step_000000", {"epoch": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000003_step_000000"]


def test_what_an_earlier_version_did_not_finish_is_removed(tmp_path):
    (tmp_path / ".unfinished-epoch_000001_step_000000").mkdir()
    save_checkpoint(tmp_path, "epoch_000001_step_000000", {"epoch": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000001_step_000000"]
