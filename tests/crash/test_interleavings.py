"""Two processes at once: the first is stopped at any change it makes to files while the second runs."""

import json
import os
import random
import shutil

import pytest
import writing_commands
from file_events import Plan
from writing_commands import COMMANDS, begin, differences, finish, is_hidden, prepare, proceed, tree

from progeo.localization.place_index import open_place_index
from progeo.models.weight_files.tensor_files import read_safetensors

pytestmark = pytest.mark.slow
SEED = 0
IN_USE = f"is in use by process {{}} on {os.uname().nodename}: let it end, or set --wait to wait for it."
NAMELESS = "is in use by another process: let it end, or set --wait to wait for it."


def stops(name, events, count):
    """Numbers of some events, always the same."""
    return sorted(random.Random(f"{SEED} {name}").sample(range(len(events)), min(count, len(events))))


def stopped(world, name, number, *others):
    """Start a command that is stopped before an event."""
    started = begin(world, name, Plan(str(world.work), at=number, act="SIGSTOP"), *others)
    ended = finish(started)
    assert ended.code is None, f"It was not stopped: {ended.said}"
    return started


def interleavings(label, world, name, events, count, *others):
    """Start a command again and again, stopped before some of its events; yield the event, its folder and the start."""
    numbers = stops(label, events, count)
    for number in numbers:
        folder = prepare(world, name)
        yield events[number], folder, stopped(world, name, number, *others)
    print(f"\n{label}: {len(numbers)} interleavings")


def second_to(world, name, started, *others):
    """Run a command beside one that is stopped; return whether it was refused since the folder is in use."""
    ended = writing_commands.run(world, name, None, *others)
    assert not ended.has_traceback, ended.said
    if ended.code == 0:
        return False
    sentences = (IN_USE.format(started.process), NAMELESS, "already holds")
    assert any(sentence in ended.sentence for sentence in sentences), ended.said
    return True


def test_two_evaluations_share_a_cache(world, undisturbed):
    expected, events = undisturbed("evaluate")
    for event, folder, first in interleavings("two evaluations", world, "evaluate", events, 25):
        second = writing_commands.run(world, "evaluate", None, "--out", folder / "others")
        assert second.code == 0, second.said
        assert proceed(first).code == 0
        found = tree(folder)
        others = {name: content for name, content in found.items() if name.startswith("others")}
        mine = {name: content for name, content in found.items() if name not in others}
        assert differences(mine, expected) == [], event
        renamed = {name.replace("others", "results", 1): content for name, content in others.items()}
        results = {name: content for name, content in expected.items() if name.startswith("results")}
        assert differences(renamed, results) == [], event


def test_two_evaluations_write_to_one_folder(world, undisturbed):
    expected, events = undisturbed("evaluate")
    for event, folder, first in interleavings("two evaluations in one folder", world, "evaluate", events, 15):
        assert writing_commands.run(world, "evaluate").code == 0
        assert proceed(first).code == 0
        assert differences(tree(folder), expected) == [], event


@pytest.mark.parametrize("name", ["train prompts", "train encoder, last"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_second_training_in_a_folder_is_refused_or_waits(name, waits, world, undisturbed):
    expected, events = undisturbed(name)
    refused, again = [], COMMANDS[name].again
    label = f"{name}, {'waits' if waits else 'refused'}"
    for event, folder, first in interleavings(label, world, name, events, 12, *again):
        if waits:
            second = begin(world, name, None, *again, "--wait")
            ended = [proceed(first), finish(second)]
            assert [each.code for each in ended] == [0, 0], (event, ended[0].said, ended[1].said)
        else:
            refused.append(second_to(world, name, first, *again))
            after = proceed(first)
            assert not after.has_traceback, after.said
            assert after.code == 0 or "already holds" in after.sentence or "in use" in after.sentence, after.said
        assert differences(tree(folder), expected) == [], event
    assert waits or sum(refused) > len(refused) / 2


def test_a_run_that_is_resumed_twice_at_once_ends_as_if_it_had_been_once(world, undisturbed):
    name = "train encoder, last"
    expected, events = undisturbed(name)
    middle = next(number for number, event in enumerate(events) if "epoch_000001_step_000000" in event)
    numbers, refused = stops("resumed", events, 12), 0
    for number in numbers:
        folder = prepare(world, name)
        writing_commands.run(world, name, Plan(str(folder), at=middle + 20))
        first = begin(world, name, Plan(str(folder), at=number % (len(events) - middle), act="SIGSTOP"), "--resume")
        if finish(first).code is None:
            refused += second_to(world, name, first, "--resume")
            after = proceed(first)
            assert not after.has_traceback, after.said
        assert differences(tree(folder), expected) == [], events[number]
    assert refused > len(numbers) / 2
    print(f"\nresumed twice: {len(numbers)} interleavings")


def test_two_commands_that_add_to_an_index_lose_nothing(world, undisturbed):
    _, events = undisturbed("index add")
    for event, folder, first in interleavings("two index add", world, "index add", events, 20):
        second = writing_commands.run(world, "index add", None, "--folder", world.city / "val/database")
        assert second.code == 0 or IN_USE.format(first.process) in second.sentence, second.said
        assert proceed(first).code == 0
        if second.code:
            again = writing_commands.run(world, "index add", None, "--folder", world.city / "val/database")
            assert again.code == 0, again.said
        opened = open_place_index(folder / "index")
        names = {opened.images.path(row).name for row in range(len(opened.images))}
        added = [path for side in ("test", "val") for path in (world.city / side / "database").iterdir()]
        assert len(names) == opened.metadata.images
        assert {path.name for path in added} <= names, event
        assert not any(map(is_hidden, tree(folder)))


def test_an_export_of_a_run_that_trains_on_is_of_one_epoch(world):
    name = "train encoder, last"
    every = ("--training.keep_every", 1, "--training.epochs", 3)
    folder = prepare(world, name)
    trace = folder.parent / "trains.trace"
    assert writing_commands.run(world, name, Plan(str(folder), trace=str(trace)), *every).code == 0
    events = trace.read_text().splitlines()
    weights = {
        int(path.name.rpartition("_")[2]): read_safetensors(path / "model.safetensors")
        for path in (folder / "run/stage2/epochs").iterdir()
    }
    near = [number for number, event in enumerate(events) if "/last" in event or "epochs" in event]
    numbers = sorted(random.Random(SEED).sample(near, min(30, len(near))))
    exported = 0
    for number in numbers:
        prepare(world, name)
        first = stopped(world, name, number, *every)
        out = folder.parent / "exported"
        shutil.rmtree(out, ignore_errors=True)
        (second,) = writing_commands.start_program("export", folder / "run", "--out", out)
        ended = finish(second)
        assert not ended.has_traceback, ended.said
        assert proceed(first).code == 0
        if ended.code == 0:
            exported += 1
            epoch = json.loads((out / "model.json").read_text())["provenance"]["epoch"]
            found = read_safetensors(out / "model.safetensors")
            assert all((found[each] == tensor).all() for each, tensor in weights[epoch].items()), events[number]
    assert exported > len(numbers) / 2
    print(f"\nexport of a run that trains on: {len(numbers)} interleavings, {exported} exported")
