"""Commands that are killed at any change they make to files, and run again."""

import dataclasses
import os
import random
import re

import pytest
import writing_commands
from file_events import Plan
from writing_commands import COMMANDS, Count, differences, is_hidden, prepare, tree

SEED = 0
MOST_KILLS = int(os.environ.get("PROGEO_KILLS", "1000000"))
"""Number of kills of a command, a sample of them all."""
NUMBER = re.compile(r"[0-9a-f]{8,}|\d+")


def after_interruption(world, name, plan, expected):
    """Interrupt a command, run it again, and return what is wrong then, or nothing."""
    folder = prepare(world, name)
    ended = writing_commands.run(world, name, dataclasses.replace(plan, folder=str(folder)))
    if ended.code == 0:
        return ""
    if ended.code != -(plan.signal):
        return f"ended with {ended.code}: {ended.sentence}"
    left = tree(folder)
    again = writing_commands.run(world, name, None, *COMMANDS[name].again)
    if again.has_traceback:
        return f"traceback: {again.sentence}"
    if again.code:
        visible = {path: content for path, content in left.items() if not is_hidden(path)}
        is_finished = not differences(visible, expected)
        return "" if is_finished else f"refused: {again.sentence}"
    if wrong := differences(tree(folder), expected):
        return f"different: {', '.join(wrong)}"
    return ""


def kills_of(name, events, *, thinned):
    """Plans of kills: at every event, within what was written before an fsync, and within files of every size."""
    seen: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        seen.setdefault(NUMBER.sub("0", event), []).append(number)
    chosen = {number for each in seen.values() for number in ((each[0], each[-1]) if thinned else each)}
    for number in sorted(chosen):
        yield Plan("", at=number)
        if events[number].startswith("fsync "):
            yield Plan("", at=number, act="tear")


def sizes_of(expected):
    sizes = {len(content) for content in expected.values() if isinstance(content, bytes)}
    for size in sorted(sizes):
        yield Plan("", max_file_bytes=max(size - 1, 1), dies_of_size=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_is_run_again_with_the_same_result(name, world, undisturbed):
    expected, events = undisturbed(name)
    prepare(world, name)
    assert writing_commands.run(world, name).code == 0
    assert differences(tree(world.work), expected) == []  # or nothing could be said
    assert not any(map(is_hidden, expected))
    count = Count(len(events))
    plans = [*kills_of(name, events, thinned=not COMMANDS[name].is_quick), *sizes_of(expected)]
    for plan in random.Random(f"{SEED} {name}").sample(plans, min(MOST_KILLS, len(plans))):
        where = f"{plan.act} at {events[plan.at]}" if plan.at is not None else f"kill at {plan.max_file_bytes} bytes"
        count.add(where, after_interruption(world, name, plan, expected))
    print(f"\n{name}: {count}", *count.wrong[:20], sep="\n")
    assert count.wrong == []


QUICK = ("dataset scan", "index add")


@pytest.mark.parametrize("name", QUICK)
def test_a_command_killed_somewhere_is_run_again_with_the_same_result(name, world, undisturbed):
    expected, events = undisturbed(name)
    plans = [*kills_of(name, events, thinned=False)]
    for plan in random.Random(f"{SEED} {name}").sample(plans, 2):
        assert after_interruption(world, name, plan, expected) == ""
