"""Page of runs: their curves over one another, what differs in their settings, and the results of groups."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from progeo.pages.page import shown_path, write_page
from progeo.runs.curves import averaged_in_words, charts_of
from progeo.runs.reading import Stage, by_title, final_of_groups, number
from progeo.runs.summary import HEADER, different_settings, setting_text, summarize


def write_runs_page(
    path: Path,
    stages: Sequence[Stage],
    *,
    written: datetime,
    reload_s: int | None = None,
    show_paths: bool = False,
) -> None:
    """Write the page of one or several runs.

    Args:
        path: HTML file.
        stages: stages of the runs.
        written: time of writing, with its time zone.
        reload_s: let the page reload itself after so many seconds, while a run is followed; None does not.
        show_paths: show absolute paths in settings.
    """
    names = list(dict.fromkeys(stage.run for stage in stages))
    write_page(
        path,
        "runs.html",
        title=f"Run {names[0]}" if len(names) == 1 else "Runs compared",
        show_paths=show_paths,
        summaries=[summarize(stage) for stage in stages],
        header=HEADER,
        sections=[_section(title, some, show_paths=show_paths) for title, some in by_title(stages).items()],
        written=written.isoformat(timespec="seconds"),
        written_in_words=f"{written:%Y-%m-%d %H:%M:%S}",
        reload_s=reload_s,
    )


def _section(title: str, stages: Sequence[Stage], *, show_paths: bool) -> dict[str, Any]:
    names = sorted({name for stage in stages for name in stage.settings})
    return {
        "title": title,
        "runs": [stage.run for stage in stages],
        "charts": charts_of(stages),
        "averaged": averaged_in_words(stages),
        "groups": _of_groups(stages),
        "different": _paths(different_settings(stages), show_paths) if len(stages) > 1 else {},
        "settings": {stage.run: {name: setting_text(stage.settings, name) for name in names} for stage in stages},
    }


def _paths(settings: Mapping[str, Sequence[str]], show_paths: bool) -> dict[str, list[str]]:
    return {name: [shown_path(text, show_paths) for text in texts] for name, texts in settings.items()}


def _of_groups(stages: Sequence[Stage]) -> dict[str, Any]:
    """Return the header and the rows of a table of groups; empty if no stage has several."""
    results = {stage.run: final_of_groups(stage) for stage in stages}
    rows = [(run, group, row) for run, groups in results.items() for group, row in groups.items()]
    found = dict.fromkeys(name for _, _, row in rows for name in row if name == "loss" or name.endswith("_accuracy"))
    if not rows:
        return {}
    return {
        "header": ["group", *(name.replace("_", " ") for name in found)],
        "rows": [
            [f"{run}, group {group + 1}", *(_text(number(row.get(name)), name) for name in found)]
            for run, group, row in rows
        ],
    }


def _text(value: float, name: str) -> str:
    if value != value:
        return "-"
    return f"{value:.4f}" if name == "loss" else f"{value:.1f} %"
