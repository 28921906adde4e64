"""Modules of other programs are told from each other by all that they hold."""

import copy
import functools
import threading
from types import MethodType

import pytest
import torch
from torch import nn

from progeo.models.fingerprint import module_fingerprint
from progeo.models.thumbnail import ThumbnailEncoder


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.1)
        self.power = 2.0
        self.names = {"b", "a"}
        self.plain = torch.ones(2)
        self.register_buffer("mean", torch.zeros(3), persistent=False)


class Other(Network):
    pass


def cube(values):
    return values**3


def halve(values):
    return values / 2


halve.__name__ = "cube"  # by which pickle would tell its methods


def same_bytes(network):
    network.linear.weight = nn.Parameter(network.linear.weight.detach().view(torch.int32), requires_grad=False)


CHANGES = {
    "another weight": lambda network: nn.init.ones_(network.linear.bias),
    "weights of another shape": lambda network: setattr(
        network.linear, "weight", nn.Parameter(network.linear.weight.detach().reshape(4, 2))
    ),
    "the same bytes of another kind": same_bytes,
    "a buffer that is not saved": lambda network: network.mean.add_(1),
    "a tensor that is no buffer": lambda network: network.plain.add_(1),
    "an attribute": lambda network: setattr(network, "power", 3.0),
    "an attribute of a part": lambda network: setattr(network.drop, "p", 0.2),
    "a set": lambda network: network.names.add("c"),
    "a function of a name": lambda network: setattr(network, "power", cube),
    "a method of its own": lambda network: setattr(network, "power", MethodType(cube, network)),
    "another method of that name": lambda network: setattr(network, "power", MethodType(halve, network)),
    "a hook": lambda network: network.linear.register_forward_hook(nn.functional.relu),
    "its mode": lambda network: network.eval(),
    "another layer": lambda network: setattr(network, "drop", nn.Identity()),
    "another class": lambda network: setattr(network, "__class__", Other),
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def test_equal_modules_have_one_fingerprint(network):
    torch.manual_seed(0)
    assert module_fingerprint(network) == module_fingerprint(Network()) == module_fingerprint(copy.deepcopy(network))
    assert module_fingerprint(ThumbnailEncoder()) == module_fingerprint(ThumbnailEncoder())


def test_whatever_is_changed_gives_another_fingerprint(network):
    found = {"none": module_fingerprint(network)}
    for name, change in CHANGES.items():
        changed = copy.deepcopy(network)
        change(changed)
        found[name] = module_fingerprint(changed)
    assert len(set(found.values())) == 1 + len(CHANGES), found


def local_module():
    class Local(nn.Module):
        pass

    return Local()


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (lambda values: values, "lambda.* is not what has this name in a file"),
        (local_module(), "Local is not what has this name in a file"),
        (MethodType(lambda self: 3, 4), "lambda.* is not what has this name in a file"),
        (functools.wraps(cube)(lambda values: 3), "cube is not what has this name in a file"),
        (functools.partial(functools.wraps(cube)(lambda values: 3)), "cube is not what has this name in a file"),
        (type("Network", (Network,), {})(), "Network is not what has this name in a file"),
        (type("Network", (), {"__module__": "hubconf"}), "Network is not what has this name in a file"),
        ({lambda: 3}, "lambda.* is not what has this name in a file"),
        (threading.Lock(), "cannot pickle"),
    ],
)
def test_what_cannot_be_told_is_refused(held, reason, network):
    network.held = held
    with pytest.raises(ValueError, match=rf"^A Network cannot be told from others .* cannot be kept: .*{reason}.*\.$"):
        module_fingerprint(network)
