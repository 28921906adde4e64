"""Put runs together that differ in their seed only: mean and standard deviation of their recalls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from progeo.evaluation.comparison import ALL, Compared
from progeo.evaluation.comparison_page import shown_names
from progeo.evaluation.latex import PREAMBLE, as_latex, latex_table
from progeo.files import write_csv, write_json, write_text
from progeo.printable import markdown_table

_SEED = "settings.seed"
STAGE1 = "stage1."
"""Prefix of the settings of the prompts that a run learned from."""
_OF_A_RUN = (
    *(
        f"{prefix}{name}"
        for prefix in ("settings.", STAGE1)
        for name in ("seed", "out", "resume", "wait", "data.license")
    ),
    *("settings.text.prompts", f"{STAGE1}prompts.feature_cache", "epoch", "encoder"),
)
"""What differs between runs of one configuration: the seed, folders, the best epoch, and what trains nothing."""
_MEANING = "Mean ± standard deviation (of a sample) over runs whose settings differ in their seed only."


@dataclass(frozen=True)
class Configuration:
    """Runs of one configuration, or a single encoder."""

    name: str
    """What the names of the runs have in common, with * in place of the rest; the name of a single encoder."""
    encoders: tuple[str, ...]
    seeds: tuple[int, ...]
    """Seed of each run; empty for a single encoder that is no run."""


@dataclass(frozen=True)
class OverSeeds:
    """Recalls of the runs of one configuration on the queries of a data set, or on those of one condition."""

    data: str
    condition: str
    """Condition of the queries, or all."""
    configuration: Configuration
    measure: str
    """Name of recall: R of R@N, or LR of LR@N."""
    recalls: Mapping[int, tuple[float, ...]]
    """Recall of each run in percent, by N."""

    def mean(self, n: int) -> float:
        """Return the mean recall of the runs in percent."""
        return fmean(self.recalls[n])

    def std(self, n: int) -> float | None:
        """Return the sample standard deviation (divided by the number of runs - 1) in percent; None for one run."""
        return stdev(self.recalls[n]) if len(self.recalls[n]) > 1 else None


def configurations_of(provenances: Mapping[str, Mapping[str, Any]]) -> list[Configuration]:
    """Group runs whose settings are equal but for the seed, in the order of the first of each.

    Args:
        provenances: by the name of each encoder, how it was made, by dotted names such as `settings.seed`, and from
            `STAGE1` on, where they are known, the settings of the prompts that it learned from.

    Raises:
        ValueError: no two runs belong together, with the settings that differ; or two of them have the same seed.
    """
    groups: list[list[str]] = []
    for name, own in provenances.items():
        same = (each for each in groups if _SEED in own and not _differing(own, provenances[each[0]]))
        if (group := next(same, None)) is not None:
            group.append(name)
        else:
            groups.append([name])
    if all(len(group) == 1 for group in groups):
        raise ValueError(f"`seeds` needs runs that differ in their seed only: {_why_none(provenances)}")
    names = [_common_name(group) for group in groups]
    found = []
    for name, group in zip(names, groups, strict=True):
        seeds = tuple(int(provenances[each][_SEED]) for each in group if _SEED in provenances[each])
        if len(set(seeds)) < len(group) > 1:
            raise ValueError(
                f"`seeds` needs runs of different seeds, and {', '.join(group)} have the seeds "
                f"{', '.join(map(str, seeds))}: name one of each seed."
            )
        found.append(Configuration(name if names.count(name) == 1 else ", ".join(group), tuple(group), seeds))
    return found


def over_seeds(rows: Iterable[Compared], configurations: Sequence[Configuration]) -> list[OverSeeds]:
    """Put the recalls of the runs of each configuration together, by data set and condition.

    Args:
        rows: what `compare_evaluated` and `compare_by_condition` returned.
    """
    groups: dict[tuple[str, str], dict[str, Compared]] = {}
    for row in rows:
        groups.setdefault(row.group, {})[row.encoder] = row
    found = []
    for (data, condition), by_encoder in groups.items():
        for configuration in configurations:
            runs = [by_encoder[name] for name in configuration.encoders]
            recalls = {n: tuple(run.recalls[n] for run in runs) for n in runs[0].recalls}
            found.append(OverSeeds(data, condition, configuration, runs[0].measure, recalls))
    return found


def write_seeds(
    out: Path,
    found: Sequence[OverSeeds],
    *,
    latex: bool = False,
    show_paths: bool = False,
    spreadsheet_safe: bool = False,
) -> str:
    """Write seeds.json, seeds.csv (see `write_csv`), seeds.md and, on request, seeds.tex; return the text of seeds.md.

    Args:
        found: what `over_seeds` returned.
        latex: whether to write seeds.tex.
        show_paths: write whole paths in seeds.tex.
        spreadsheet_safe: see `write_csv`.
    """
    write_json(out / "seeds.json", [_as_json(each) for each in found])
    write_csv(out / "seeds.csv", _as_rows(found), spreadsheet_safe=spreadsheet_safe)
    text = _as_markdown(found)
    write_text(out / "seeds.md", text)
    if latex:
        write_text(out / "seeds.tex", _as_latex(found, show_paths=show_paths))
    return text


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that make two runs different configurations."""
    names = [name for name in dict.fromkeys((*one, *other)) if name not in _OF_A_RUN]
    are_known = [any(name.startswith(STAGE1) for name in own) for own in (one, other)]
    return [
        name for name in names if one.get(name) != other.get(name) and (all(are_known) or not name.startswith(STAGE1))
    ]


def _why_none(provenances: Mapping[str, Mapping[str, Any]]) -> str:
    """Say why no two encoders are runs of one configuration, by the two that differ least."""
    runs = [name for name, own in provenances.items() if _SEED in own]
    if len(runs) < 2:
        return f"of {', '.join(provenances)}, {len(runs)} know the settings that they were trained with."
    pairs = {pair: _differing(*(provenances[name] for name in pair)) for pair in combinations(runs, 2)}
    (one, other), names = min(pairs.items(), key=lambda each: len(each[1]))
    return f"{one} and {other} differ in {', '.join(name.removeprefix('settings.') for name in names)}."


def _common_name(names: Sequence[str]) -> str:
    """Name runs by what their names have in common at both ends."""
    if len(names) == 1:
        return names[0]
    start = _common_start(names)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end}" if start else ", ".join(names)


def _common_start(texts: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def _as_json(each: OverSeeds) -> dict[str, Any]:
    return {
        "data": each.data,
        "condition": each.condition,
        "configuration": each.configuration.name,
        "encoders": each.configuration.encoders,
        "seeds": each.configuration.seeds,
        "recalls": {
            f"{each.measure}@{n}": {"mean": each.mean(n), "std": each.std(n), "values": values}
            for n, values in each.recalls.items()
        },
    }


def _as_rows(found: Sequence[OverSeeds]) -> list[list[str]]:
    """Return a row for each measure, the names of the columns first."""
    rows = [["data", "condition", "configuration", "seeds", "measure", "mean", "std", "values"]]
    for each in found:
        for n, values in each.recalls.items():
            std = each.std(n)
            rows.append(
                [
                    each.data,
                    each.condition,
                    each.configuration.name,
                    " ".join(map(str, each.configuration.seeds)),
                    f"{each.measure}@{n}",
                    f"{each.mean(n):.2f}",
                    "" if std is None else f"{std:.2f}",
                    " ".join(f"{value:.2f}" for value in values),
                ]
            )
    return rows


def _as_markdown(found: Sequence[OverSeeds]) -> str:
    """Format a table, with the first recall of each run, and say what its numbers are."""
    shows = {"data": len({each.data for each in found}) > 1, "condition": {each.condition for each in found} != {ALL}}
    lines = []
    for each in found:
        group = {name: text for name, text in (("data", each.data), ("condition", each.condition)) if shows[name]}
        seeds = ", ".join(map(str, each.configuration.seeds))
        recalls = {f"{each.measure}@{n}": _mean_and_std(each, n, " ± ") for n in each.recalls}
        first_n = min(each.recalls)
        of_each = ", ".join(f"{value:.1f}" for value in each.recalls[first_n])
        first = {f"{each.measure}@{first_n} of each seed": of_each}
        lines.append({**group, "configuration": each.configuration.name, "seeds": seeds, **recalls, **first})
    text = markdown_table([[*lines[0]], *([*each.values()] for each in lines)], num_texts=2 + sum(shows.values()))
    return f"{text}\n{_MEANING}\n"


def _as_latex(found: Sequence[OverSeeds], *, show_paths: bool) -> str:
    names = shown_names([each.configuration.name for each in found], show_paths)
    sets = shown_names([each.data for each in found], show_paths)
    groups: dict[str, list[str]] = {}
    cells: dict[Configuration, list[str]] = {}
    for each in found:
        heading = sets[each.data] if each.condition == ALL else f"{sets[each.data]}, {each.condition}"
        groups[heading] = [f"{each.measure}@{n}" for n in each.recalls]
        cells.setdefault(each.configuration, []).extend(_mean_and_std(each, n, r" $\pm$ ") for n in each.recalls)
    lines = [
        [as_latex(names[configuration.name]), str(len(configuration.encoders)), *row]
        for configuration, row in cells.items()
    ]
    caption = as_latex(f"{found[0].measure}@N in percent. {_MEANING}")
    return f"{PREAMBLE}\n{latex_table('seeds', caption, ('Configuration', 'Runs'), groups, lines)}"


def _mean_and_std(each: OverSeeds, n: int, between: str) -> str:
    std = each.std(n)
    return f"{each.mean(n):.1f}" if std is None else f"{each.mean(n):.1f}{between}{std:.1f}"
