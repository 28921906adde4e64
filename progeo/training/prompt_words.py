"""Words of a text tower's vocabulary nearest to every learned prompt vector."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progeo.file_sets import FileSet, read_set
from progeo.files import write_csv
from progeo.models.prompts import load_prompt_tower
from progeo.models.state_dicts import weights_digest
from progeo.models.vocabulary import NearestWords, nearest_words
from progeo.places.cells import class_ids
from progeo.training.prompt_files import DESCRIPTION, PROMPTS, description_of, load_clip_of_prompts, read_prompts

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
    words: Sequence[str] = ()
    """Words of each class that stand in its prompt; empty if no class has any."""


@dataclass(frozen=True)
class PromptWords:
    """The words nearest to the learned vectors of classes."""

    contexts: Contexts
    nearest: NearestWords
    file: Path
    """CSV file with the words of all classes."""

    def __str__(self) -> str:
        return f"{_as_text(self.contexts, self.nearest)}\nall {len(self.contexts.class_ids)} classes: {self.file}"


def nearest_prompt_words(
    run: Path,
    *,
    at: tuple[float, ...] | None = None,
    num_words: int = 5,
    out: Path | None = None,
    spreadsheet_safe: bool = False,
) -> PromptWords:
    """Find the words nearest to the learned vectors of a run and write them as a CSV.

    Args:
        run: folder of the run, or of its stage 1.
        at: east and north, or east, north and heading, of the class to show; None shows all classes.
        num_words: number of words for each vector.
        out: the CSV file; None writes prompts.csv next to the prompts.
        spreadsheet_safe: see `write_csv`.

    Raises:
        FileNotFoundError: the run has no prompts.
        ValueError: there is no class at this point, or the weights of the CLIP changed.
    """
    folder = run if (run / DESCRIPTION).is_file() else run / "stage1"
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"There are no prompts in {run}: name a run whose stage 1 has finished.")
    description, contexts = read_set(folder / DESCRIPTION, _read_contexts)
    if at is not None:
        contexts = _contexts_at(contexts, at, description["partition"]["settings"])
    clip = load_clip_of_prompts(folder)
    tower = load_prompt_tower(
        clip.architecture, clip.weights, configuration=clip.configuration, seed=description["seed"]
    )
    if weights_digest({"token_embedding": tower.token_embedding.weight}) != description["vocabulary"]:
        raise ValueError(
            f"The prompts in {folder} were learned with other weights than {clip.weights} of "
            f"{clip.architecture} are now, so that words would mean nothing."
        )
    nearest = nearest_words(tower, contexts.vectors.flatten(0, 1), num_words)
    file = out or folder / "prompts.csv"
    write_csv(file, _rows(contexts, nearest), spreadsheet_safe=spreadsheet_safe)
    return PromptWords(contexts, nearest, file)


def _read_contexts(files: FileSet) -> tuple[dict[str, Any], Contexts]:
    """Read the description of prompts and their context vectors."""
    description, path = description_of(files), files.path(PROMPTS)
    num_groups = len(description["groups"])
    if not num_groups:
        raise ValueError(f"{files.folder / DESCRIPTION} has no groups: it is corrupt. Run stage 1 again.")
    ids, vectors = (
        read_prompts(path, [f"group_{index}.{name}" for index in range(num_groups)])
        for name in ("class_ids", "context")
    )
    length, width = vectors[0].shape[1:] if vectors[0].ndim == 3 else (0, 0)
    if description.get("shared_context"):
        vectors = [contexts.expand(len(part), -1, -1) for part, contexts in zip(ids, vectors, strict=True)]
    for part, contexts in zip(ids, vectors, strict=True):
        fits = part.dtype == torch.int64 and part.shape == (len(contexts), 3) and contexts.is_floating_point()
        if not fits or contexts.shape != (len(part), length, width):
            raise ValueError(f"{path} is corrupt: its groups do not hold the classes of prompts.")
    groups = np.repeat(np.arange(1, num_groups + 1), [len(part) for part in ids])
    words = [text for of_group in description.get("class_words", ()) for text in of_group]
    if len(words) not in (0, len(groups)):
        raise ValueError(f"{files.folder / DESCRIPTION} is corrupt: it has words of {len(words)} classes.")
    return description, Contexts(groups, torch.cat(ids).numpy(), torch.cat(vectors), words)


def _contexts_at(contexts: Contexts, point: tuple[float, ...], cells: Mapping[str, int]) -> Contexts:
    """Select the classes that contain a point: east and north in meters, and the heading in degrees if it is given."""
    east, north, heading = (np.array([number]) for number in (*point, 0.0)[:3])
    (class_id,) = class_ids(
        east, north, heading, cell_side_m=cells["cell_side_m"], heading_bin_deg=cells["heading_bin_deg"]
    )
    chosen = (contexts.class_ids[:, : len(point)] == class_id[: len(point)]).all(axis=1)
    if not chosen.any():
        distances_m = np.linalg.norm(contexts.class_ids[:, :2] - class_id[:2], axis=1)
        nearest = ",".join(map(str, contexts.class_ids[distances_m.argmin()]))
        given = ",".join(f"{number:.15g}" for number in point)
        raise ValueError(f"There is no class at {given}: the nearest is {nearest}, {distances_m.min():.0f} m away.")
    return Contexts(
        contexts.groups[chosen],
        contexts.class_ids[chosen],
        contexts.vectors[torch.from_numpy(chosen)],
        [text for text, is_chosen in zip(contexts.words, chosen, strict=False) if is_chosen],
    )


def _as_text(contexts: Contexts, nearest: NearestWords) -> str:
    lines = []
    length = contexts.vectors.shape[1]
    for index, class_id in enumerate(contexts.class_ids[:_MAX_CLASSES_SHOWN].tolist()):
        words_of_class = f": {contexts.words[index] or 'no words'}" if contexts.words else ""
        lines.append(f"class {','.join(map(str, class_id))} of group {contexts.groups[index]}{words_of_class}")
        for vector in range(length):
            row = index * length + vector
            words = zip(nearest.words[row], nearest.distances[row].tolist(), strict=True)
            lines.append(f"  vector {vector + 1}: {', '.join(f'{word} {distance:.3f}' for word, distance in words)}")
    return "\n".join(lines)


def _rows(contexts: Contexts, nearest: NearestWords) -> Iterator[Sequence[Any]]:
    """Yield the rows of the CSV file."""
    length = contexts.vectors.shape[1]
    of_class = ["class_words"] if contexts.words else []
    yield ["group", "east", "north", "heading", *of_class, "vector", "rank", "word", "distance"]
    for row, words in enumerate(nearest.words):
        index, vector = divmod(row, length)
        for rank, word in enumerate(words):
            distance = nearest.distances[row, rank].item()
            class_id = [*contexts.class_ids[index].tolist(), *contexts.words[index : index + 1]]
            yield [contexts.groups[index], *class_id, vector + 1, rank + 1, word, f"{distance:.4f}"]
