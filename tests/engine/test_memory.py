import gc
import weakref
from functools import partial

import torch
from torch import nn

from progeo.engine.memory import parameter_bytes, saved_bytes, trained_before_frozen


def test_what_a_network_keeps_for_its_gradient_is_counted_once_and_without_its_weights():
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    images = torch.zeros(8, 10)
    # The first layer keeps its input, the ReLU its output, which is also what the second layer keeps.
    assert saved_bytes(lambda: network(images), network) == 4 * 8 * (10 + 20)


def test_nothing_stays_of_a_network_after_it_was_counted():
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    weight = weakref.ref(network[0].weight)
    saved_bytes(partial(network, torch.zeros(8, 10)), network)
    del network
    gc.collect()
    assert weight() is None


def test_frozen_layers_are_not_among_the_trained():
    network = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    network[0].requires_grad_(False)
    assert parameter_bytes(network) == 4 * (10 * 20 + 20 + 20 * 5 + 5)
    assert parameter_bytes(network, trained_only=True) == 4 * (20 * 5 + 5)


def test_what_is_trained_before_frozen_layers_is_named():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    forward = partial(network, torch.zeros(2, 4))
    network[1].requires_grad_(False)
    assert trained_before_frozen(forward, network) == ["0.weight", "0.bias"]
    network[0].weight.requires_grad_(False)
    assert trained_before_frozen(forward, network) == ["0.bias"]
    network[0].requires_grad_(False)
    assert trained_before_frozen(forward, network) == []
    assert not any(part._forward_pre_hooks for part in network.modules())
