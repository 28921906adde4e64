"""Show learned prompts: the words of CLIP's vocabulary nearest to every learned vector."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from progeo.config.encoders import ShowPromptsSettings
from progeo.files import replacing
from progeo.models.backbones.open_clip import weights_digest
from progeo.models.prompts import load_prompt_clip
from progeo.models.vocabulary import NearestWords, nearest_words
from progeo.places.cells import class_ids
from progeo.training.prompt_files import DESCRIPTION, PROMPTS, read_prompts, read_prompts_description

_MAX_CLASSES_SHOWN = 20


@dataclass(frozen=True)
class Contexts:
    """The learned context vectors of C classes."""

    groups: np.ndarray
    """Group of each class, counted from 1, int64 (C,)."""
    class_ids: np.ndarray
    """Class ids, int64 (C, 3), see `places.cells.class_ids`."""
    vectors: Tensor
    """Context vectors, (C, length, W)."""


def show_prompts(settings: ShowPromptsSettings) -> Path:
    """Print the words nearest to the learned vectors, write them as a CSV, and return its path."""
    folder = settings.run if (settings.run / DESCRIPTION).is_file() else settings.run / "stage1"
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"There are no prompts in {settings.run}: name a run whose stage 1 has finished.")
    description = read_prompts_description(folder)
    contexts = _load_contexts(folder, len(description["groups"]))
    if settings.class_ is not None:
        contexts = _chosen(contexts, settings.class_, description["partition"]["settings"])
    clip = load_prompt_clip(description["architecture"], description["weights"], seed=description["seed"])
    if weights_digest({"token_embedding": clip.token_embedding.weight}) != description["vocabulary"]:
        raise ValueError(
            f"The prompts in {folder} were learned with other weights than {description['weights']} of "
            f"{description['architecture']} are now, so that words would mean nothing."
        )
    nearest = nearest_words(clip, contexts.vectors.flatten(0, 1), settings.num_words)
    out = settings.out or folder / "prompts.csv"
    _write_csv(out, contexts, nearest)
    print(_as_text(contexts, nearest))
    print(f"all {len(contexts.class_ids)} classes: {out}")
    return out


def _load_contexts(folder: Path, num_groups: int) -> Contexts:
    ids, vectors = (
        read_prompts(folder / PROMPTS, [f"group_{index}.{name}" for index in range(num_groups)])
        for name in ("class_ids", "context")
    )
    groups = np.repeat(np.arange(1, num_groups + 1), [len(part) for part in ids])
    return Contexts(groups, torch.cat(ids).numpy(), torch.cat(vectors))


def _chosen(contexts: Contexts, wanted: str, cells: Mapping[str, int]) -> Contexts:
    """Select the classes that contain these points, given as EAST,NORTH or EAST,NORTH,HEADING, separated by spaces."""
    chosen = np.zeros(len(contexts.class_ids), bool)
    for point in wanted.split():
        numbers = _numbers(point)
        east, north, heading = (np.array([number]) for number in (*numbers, 0.0)[:3])
        (class_id,) = class_ids(
            east, north, heading, cell_side_m=cells["cell_side_m"], heading_bin_deg=cells["heading_bin_deg"]
        )
        held = (contexts.class_ids[:, : len(numbers)] == class_id[: len(numbers)]).all(axis=1)
        if not held.any():
            distances_m = np.linalg.norm(contexts.class_ids[:, :2] - class_id[:2], axis=1)
            nearest = ",".join(map(str, contexts.class_ids[distances_m.argmin()]))
            raise ValueError(f"There is no class at {point}: the nearest is {nearest}, {distances_m.min():.0f} m away.")
        chosen |= held
    return Contexts(contexts.groups[chosen], contexts.class_ids[chosen], contexts.vectors[torch.from_numpy(chosen)])


def _numbers(point: str) -> list[float]:
    try:
        numbers = [float(number) for number in point.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise ValueError(
            f"A class is given as EAST,NORTH or EAST,NORTH,HEADING in UTM meters and degrees, got {point}."
        )
    return numbers


def _as_text(contexts: Contexts, nearest: NearestWords) -> str:
    lines = []
    length = contexts.vectors.shape[1]
    for place, class_id in enumerate(contexts.class_ids[:_MAX_CLASSES_SHOWN].tolist()):
        lines.append(f"class {','.join(map(str, class_id))} of group {contexts.groups[place]}")
        for vector in range(length):
            row = place * length + vector
            words = zip(nearest.words[row], nearest.distances[row].tolist(), strict=True)
            lines.append(f"  vector {vector + 1}: {', '.join(f'{word} {distance:.3f}' for word, distance in words)}")
    return "\n".join(lines)


def _write_csv(path: Path, contexts: Contexts, nearest: NearestWords) -> None:
    length = contexts.vectors.shape[1]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["group", "east", "north", "heading", "vector", "rank", "word", "distance"])
        for row, words in enumerate(nearest.words):
            place, vector = divmod(row, length)
            for rank, word in enumerate(words):
                distance = nearest.distances[row, rank].item()
                class_id = contexts.class_ids[place].tolist()
                writer.writerow([contexts.groups[place], *class_id, vector + 1, rank + 1, word, f"{distance:.4f}"])
