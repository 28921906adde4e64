"""A loss of power: what was not written to the disk when a command said that it was done is gone."""

import os
import re
import shutil
import subprocess
from pathlib import PurePosixPath

import pytest
import writing_commands
from file_events import Plan
from writing_commands import COMMANDS, differences, prepare, tree


def lost(events, folders=()):
    """The files and folders that a loss of power at the end could take, or bring back.

    Files and folders that are renamed need an fsync of their folder after it, files one of themselves before it.
    Removed names need an fsync of their folder, if that is not removed, too, and removed folders one of themselves.

    Args:
        events: lines of a trace.
        folders: the folders that are there at the end; those that were made need an fsync of the folder around them.
    """
    found = []
    for number, event in enumerate(events):
        kind, *paths = event.split(" ")
        if kind == "mkdir" and paths[0] in folders and f"fsync {PurePosixPath(paths[0]).parent}" not in events[number:]:
            found.append(f"the folder {paths[0]}")
        if kind == "rmdir" and f"fsync {paths[0]} (deleted)" not in events[number:]:
            found.append(f"the removed folder {paths[0]}")
        if kind in ("remove", "rmdir"):
            folder = str(PurePosixPath(paths[0]).parent)
            if not {f"fsync {folder}", f"rmdir {folder}"}.intersection(events[number:]):
                found.append(f"the removed name {paths[0]}")
        if kind not in ("rename", "link"):
            continue
        source, target = paths
        folder = str(PurePosixPath(target).parent)
        is_file = f"open {source}" in events[:number]
        if is_file and f"fsync {source}" not in events[:number]:
            found.append(f"the content of {target}")
        if f"fsync {folder}" not in events[number:]:
            found.append(f"the name {target}")
    return found


def test_files_without_fsync_count_as_lost():
    written = ["open .a", "fsync .a", "rename .a a", "fsync ."]
    assert lost(written) == []
    assert lost(written[:3]) == ["the name a"]
    assert lost([written[0], *written[2:]]) == ["the content of a"]
    assert lost(["mkdir a", "fsync a"], ["a"]) == ["the folder a"]
    assert lost(["mkdir a", "fsync ."], ["a"]) == []
    removed = ["remove a/b", "rmdir a", "fsync a (deleted)", "fsync ."]
    assert lost(removed) == []
    assert lost(removed[:3]) == ["the removed name a"]
    assert lost([*removed[:2], removed[3]]) == ["the removed folder a"]
    assert lost(removed[:1]) == ["the removed name a/b"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_a_command_has_written_is_lost(name, undisturbed):
    left, events = undisturbed(name)
    first = {event: number for number, event in reversed(list(enumerate(events))) if event.startswith("mkdir ")}
    made = [event for number, event in enumerate(events) if first.get(event, number) == number]  # others were there
    folders = {path for path, content in left.items() if content == "folder"}
    assert lost(made, folders.difference(COMMANDS[name].given)) == []


def mount(image, folder):
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True, capture_output=True)


@pytest.fixture(params=["^has_journal", "has_journal"])
def disk(request, world, tmp_path):
    """The image of a file system, without and with a journal, which is mounted where commands write."""
    if os.geteuid() or not all(map(shutil.which, ("mkfs.ext4", "mount", "e2fsck"))):
        pytest.skip("needs root, and the programs of ext4")
    image = tmp_path / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(200 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", request.param, str(image)], check=True)
    world.work.mkdir(exist_ok=True)
    try:
        mount(image, world.work)
    except subprocess.CalledProcessError:
        pytest.skip("needs loop devices")
    yield image
    subprocess.run(["umount", str(world.work)], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["train encoder, last", "train prompts"])
def test_a_training_goes_on_from_what_was_on_the_disk(name, which, undisturbed, world, disk):
    expected, events = undisturbed(name)
    saved = re.compile(r"rename .*/checkpoints/(group_\d+/)?(epoch_\d+_step_\d+|group_\d+\.safetensors)")
    renamed = [number for number, event in enumerate(events) if saved.fullmatch(event)]
    done = [events.index(f"fsync {PurePosixPath(events[n].split()[-1]).parent}", n) for n in renamed]
    folder = prepare(world, name)
    subprocess.run(["sync", "-f", str(folder)], check=True)  # what the test itself has written
    # Training continues while a checkpoint is written: up to three other events may come before its last one.
    started = writing_commands.begin(world, name, Plan(str(folder), at=done[which] + 4, act="SIGSTOP"))
    assert writing_commands.finish(started).code is None
    copy = disk.with_name("copy.img")
    subprocess.run(["cp", "--sparse=always", str(disk), str(copy)], check=True)
    assert writing_commands.proceed(started).code == 0
    subprocess.run(["umount", str(folder)], check=True)
    assert subprocess.run(["e2fsck", "-fy", str(copy)], check=False, capture_output=True).returncode <= 1
    mount(copy, folder)
    assert any(re.search(r"checkpoints/.*epoch_|checkpoints/group_\d", path) for path in tree(folder))
    again = writing_commands.run(world, name, None, *COMMANDS[name].again)
    assert again.code == 0, again.said
    found = {path: content for path, content in tree(folder).items() if not path.startswith("lost+found")}
    assert differences(found, expected) == []
