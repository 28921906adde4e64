"""Show runs of training: a table, a page or a picture, also while they are trained."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progeo.runs.reading import Stage
    from progeo.runs.summary import Summaries

_RELOAD_S = 10


def show_runs(
    runs: tuple[Path, ...], *, out: Path | None = None, follow: bool = False, show_paths: bool = False
) -> "Summaries":
    """Summarize runs of training, and draw their losses, learning rates, recalls, throughput and memory.

    Args:
        runs: Folders of runs, with their stages in subfolders, or of single stages. Several are compared.
        out: File to write: a page if it ends with .html, or a picture if it ends with .png or .svg, which needs
            matplotlib. null writes none.
        follow: Write out again whenever the metrics change, or without out print each new row, until nobody has trained
            the runs for a minute, or Ctrl-C. The page reloads itself meanwhile.
        show_paths: Show absolute paths in the page, which are shortened otherwise.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: no run is given, or one twice; a file of a run is corrupt; out has another ending.
    """
    from progeo.engine.log import LOGGER
    from progeo.runs.reading import read_stages
    from progeo.runs.summary import Summaries, summarize

    if not runs:
        raise ValueError("Name the runs to show, such as runs/city.")
    write = _writer(out, show_paths=show_paths)
    if follow:
        _follow(runs, write, prints=out is None)
    stages = read_stages(runs)
    write(stages, None)
    if out is not None:
        LOGGER.info("written to %s", out)
    return Summaries([summarize(stage) for stage in stages])


def _follow(runs: Sequence[Path], write: "Callable[[list[Stage], int | None], None]", *, prints: bool) -> None:
    """Write or print what changes, until nobody trains the runs, or Ctrl-C."""
    from progeo.engine.log import LOGGER
    from progeo.engine.stopping import Terminated
    from progeo.printable import escaped
    from progeo.runs.following import changes, new_rows

    known: dict[Path, int] = {}
    LOGGER.info("following; Ctrl-C ends it")
    try:
        for stages in changes(runs):
            write(stages, _RELOAD_S)
            for line in new_rows(stages, known) if prints else ():
                print(escaped(line), flush=True)
    except Terminated:
        raise
    except KeyboardInterrupt:
        return


def _writer(out: Path | None, *, show_paths: bool) -> "Callable[[list[Stage], int | None], None]":
    """Return the function that writes stages, and how often their page reloads itself, to a file of this ending.

    Raises:
        ValueError: the ending is not known, or matplotlib is missing.
    """
    from progeo.runs.figure import check_figure

    writers: dict[str, Callable[..., None]] = {
        ".html": partial(_write_page, show_paths=show_paths),
        ".png": _write_figure,
        ".svg": _write_figure,
    }
    if out is None:
        return lambda stages, reload_s: None
    kind = out.suffix.lower()
    if kind not in writers:
        raise ValueError(f"`out` {out} must end with {', '.join(writers)}.")
    if kind != ".html":
        check_figure(out)
    return partial(writers[kind], out)


def _write_page(out: Path, stages: "list[Stage]", reload_s: int | None, *, show_paths: bool) -> None:
    from datetime import datetime

    from progeo.runs.page import write_runs_page

    now = datetime.now().astimezone()
    write_runs_page(out, stages, written=now, reload_s=reload_s, show_paths=show_paths)


def _write_figure(out: Path, stages: "list[Stage]", reload_s: int | None) -> None:
    from progeo.runs.curves import charts_of
    from progeo.runs.figure import write_figure
    from progeo.runs.reading import by_title

    write_figure(out, {title: charts_of(some) for title, some in by_title(stages).items()})
