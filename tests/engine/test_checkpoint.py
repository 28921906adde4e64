import pytest
import torch

from progeo.engine.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint


def test_a_nested_state_comes_back_equal_with_its_integer_keys(tmp_path):
    state = {
        "epoch": 3,
        "none": None,
        "nested": {"list": [1.5, torch.arange(3)], "flag": True, "text": "ä"},
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}, 12: {"m": torch.ones(2, 2).T}}, "groups": []},
    }
    again = load_checkpoint(save_checkpoint(tmp_path, "epoch_3", state))
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
    path = save_checkpoint(tmp_path, "one", {"layer": layer.state_dict(), "optimizer": optimizer.state_dict()})
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
    path = save_checkpoint(tmp_path, "one", {"layer": layer.state_dict(), "optimizer": optimizer.state_dict()})
    step(layer, optimizer, 2)
    other, other_optimizer = build()
    state = load_checkpoint(path)
    assert state["layer"]["weight"].stride() == layer.weight.stride()
    other.load_state_dict(state["layer"])
    other_optimizer.load_state_dict(state["optimizer"])
    step(other, other_optimizer, 2)
    assert torch.equal(other.weight, layer.weight)


def test_a_checkpoint_cut_off_while_written_is_not_found(tmp_path):
    save_checkpoint(tmp_path, "epoch_000001", {"epoch": 1})

    class FullDisk:
        """Cannot be written as JSON, as if the disk were full."""

    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, "epoch_000002", {"epoch": 2, "x": FullDisk()})
    assert newest_checkpoint(tmp_path).name == "epoch_000001"
    assert load_checkpoint(newest_checkpoint(tmp_path))["epoch"] == 1


def test_a_checkpoint_left_half_written_by_a_kill_is_not_found(tmp_path):
    save_checkpoint(tmp_path, "epoch_000001_step_000000", {"weight": torch.ones(3)})
    unfinished = tmp_path / ".unfinished-epoch_000002_step_000000"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "epoch_000001_step_000000"


def test_there_is_no_newest_checkpoint_where_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for epoch in (1, 2, 10):
        save_checkpoint(tmp_path, f"epoch_{epoch:06d}", {"epoch": epoch})
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000002", "epoch_000010"]
    assert newest_checkpoint(tmp_path).name == "epoch_000010"


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, full_disk):
    kept = save_checkpoint(tmp_path, "epoch_1", {"weights": torch.ones(10)})
    with full_disk(), pytest.raises(OSError, match=r"could not be written: .*/epoch_1 is whole: make room"):
        save_checkpoint(tmp_path, "epoch_2", {"weights": torch.ones(10**6)})
    assert newest_checkpoint(tmp_path) == kept
    assert list(tmp_path.iterdir()) == [kept]
    assert torch.equal(load_checkpoint(kept)["weights"], torch.ones(10))
