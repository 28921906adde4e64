"""Follow runs while they are trained."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from progeo.locks import may_be_held
from progeo.runs.reading import MEMORY, Row, Stage, number, read_stages, stage_folders
from progeo.training.prompt_files import DESCRIPTION

_FILES = ("config.yaml", "metrics.jsonl", DESCRIPTION)


def changes(
    paths: Sequence[Path],
    *,
    poll_s: float = 3.0,
    patience_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[Stage]]:
    """Yield the stages of runs whenever their metrics have changed, until no process trains them any more.

    Args:
        paths: folders of the runs.
        poll_s: time between two looks at the files.
        patience_s: how long no process may be seen after one was, as between stage 1 and stage 2.
        clock: gives the time in seconds.
        sleep: waits so many seconds.
    """
    folders = [folder for path in paths for folder in stage_folders(path)]
    seen: list[tuple[int, int] | None] = []
    ends = clock()
    while True:
        if any(map(may_be_held, folders)):
            ends = clock() + patience_s
        now = [_state(folder / name) for folder in folders for name in _FILES]
        if now != seen:
            seen = now
            yield read_stages(paths)
        if clock() >= ends:
            return
        sleep(poll_s)


def new_rows(stages: Sequence[Stage], known: dict[Path, int]) -> Iterator[str]:
    """Write rows that came since the last call as lines.

    Args:
        stages: stages with their rows.
        known: number of rows that are known of each metrics file, which is updated.
    """
    for stage in stages:
        path = stage.folder.metrics
        for row in stage.rows[known.get(path, 0) :]:
            yield f"{stage.run}, {stage.title.lower()}: {_in_words(row)}"
        known[path] = len(stage.rows)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _in_words(row: Row) -> str:
    counts = {"group": 1, "epoch": 0, "step": 0}
    words = [f"{name} {int(number(row[name])) + first:,}" for name, first in counts.items() if name in row]
    others = {name: number(value) for name, value in row.items() if name not in (*counts, "steps_per_epoch", *MEMORY)}
    return ", ".join([*words, *(f"{name.replace('_', ' ')} {value:.4g}" for name, value in others.items())])
