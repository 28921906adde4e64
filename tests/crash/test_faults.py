"""Disks that are full, broken or read-only: one sentence, nothing wrong left, and the command can be run again."""

import random
import re

import pytest
import writing_commands
from file_events import Plan
from writing_commands import COMMANDS, differences, is_hidden, prepare, tree

SEED = 0
CALLS = "^(open|fsync|rename|mkdir|symlink) "
TRIALS = 8
"""Number of calls that fail, for each error."""


def after_fault(world, name, plan, expected):
    """Run a command into a fault, and again without it; return what is wrong, or nothing."""
    folder = prepare(world, name)
    ended = writing_commands.run(world, name, plan)
    if ended.has_traceback:
        return f"traceback: {ended.sentence}"
    left = tree(folder)
    if hidden := list(filter(is_hidden, left)):
        return f"left {', '.join(hidden)}"
    if ended.code == 0:  # what failed was not needed
        wrong = differences(left, expected)
        return f"different: {', '.join(wrong)}" if wrong else ""
    if ended.code != 1 or ": error: " not in ended.sentence:
        return f"ended with {ended.code}: {ended.said[-300:]}"
    again = writing_commands.run(world, name, None, *COMMANDS[name].again)
    if again.code:
        return f"refused: {again.sentence}" if differences(left, expected) else ""
    wrong = differences(tree(folder), expected)
    return f"different: {', '.join(wrong)}" if wrong else ""


def faults_of(name, folder, events, expected):
    """Plans of calls that fail at some events, of a disk that is full from some size on, and of a folder read-only."""
    draw = random.Random(f"{SEED} {name}")
    calls = [number for number, event in enumerate(events) if re.match(CALLS, event)]
    for act in ("ENOSPC", "EIO"):
        for number in sorted(draw.sample(calls, min(TRIALS, len(calls)))):
            # Events of the threads of a command come in another order each time.
            yield f"{act} at {events[number]}", Plan(folder, matching=CALLS, after=number, act=act)
    sizes = {len(content) for content in expected.values() if isinstance(content, bytes)}
    sizes = {size for size in sizes if size > 1000}  # for what the command says is written to a file, too
    for size in sorted(draw.sample(sorted(sizes), min(TRIALS // 2, len(sizes)))):
        yield f"no file above {size - 1} bytes", Plan(folder, max_file_bytes=max(size - 1, 1))
    yield "read-only", Plan(folder, matching="^(open|rename|mkdir|symlink|link|remove|rmdir) ", act="EROFS", lasts=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_ends_in_a_sentence_and_the_command_goes_on_without_it(name, world, undisturbed):
    expected, events = undisturbed(name)
    found = {
        where: after_fault(world, name, plan, expected)
        for where, plan in faults_of(name, str(world.work), events, expected)
    }
    wrong = [f"{where}: {reason}" for where, reason in found.items() if reason]
    print(f"\n{name}: {len(found)} faults, {len(wrong)} wrong", *wrong, sep="\n")
    assert wrong == []
