"""Words of the classes of stage 1: the most frequent name of the images of each, such as that of its street."""

import hashlib
import json
from collections.abc import Sequence

from progeo.datasets.readers.image_names import read_image_names
from progeo.engine.log import LOGGER
from progeo.models.prompts import initial_vectors, prompt_parts
from progeo.models.text_space import chosen_temperature
from progeo.models.text_towers.tokenizers import Tokenizer
from progeo.models.text_towers.tower import TextTower
from progeo.places.cells import Partition
from progeo.training.options import PromptOptions
from progeo.training.places import TrainingPlaces

_LONGEST = 100
ClassWords = Sequence[Sequence[str]]
"""Words of the classes of each group, "" for a class without any."""


def read_class_words(prompts: PromptOptions, places: TrainingPlaces) -> ClassWords:
    """Read the words of all classes; without a table no class has any.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it lacks a column, or names none of the images.
    """
    groups = places.partition.groups
    if prompts.class_names is None:
        return [[""] * group.num_classes for group in groups]
    try:
        names = read_image_names(prompts.class_names, places.catalogue, prompts.class_names_column)
    except ValueError as error:
        raise ValueError(f"{error} `prompts.class_names_column` is {prompts.class_names_column}.") from None
    return [names.of_classes(group.rows, group.labels, group.num_classes) for group in groups]


def log_class_words(prompts: PromptOptions, words: ClassWords) -> None:
    """Log how many classes have words, and warn of classes that these do not tell apart in a shared context."""
    if prompts.class_names is None:
        return
    everything = [text for of_group in words for text in of_group]
    LOGGER.info(
        "%s: words for %d of %d classes, %d different; the others have none",
        *(prompts.class_names, len(everything) - everything.count(""), len(everything), len({*everything} - {""})),
    )
    for number, of_group in enumerate(words, 1):
        if prompts.shared_context and (count := len({*of_group})) < len(of_group):
            LOGGER.warning(
                "group %d: its %d classes have %d different texts, as classes of the same words share theirs, too",
                *(number, len(of_group), count),
            )


def words_digest(words: ClassWords) -> str | None:
    """Return a digest of the words of all classes; None if no class has any."""
    if not any(map(any, words)):
        return None
    return hashlib.sha256(json.dumps([list(of_group) for of_group in words]).encode()).hexdigest()


def check_prompts(tower: TextTower, prompts: PromptOptions, partition: Partition, words: ClassWords) -> None:
    """Check the prompts of all classes before images are read.

    Raises:
        ValueError: a prompt is too long, its words are special tokens, the vectors cannot start from the initial words,
            all texts of a group would be equal (the message names the first such class), or the temperature cannot be
            that of the CLIP.
    """
    chosen_temperature(prompts.temperature, tower.logit_scale)
    tower.tokenizer.sequence(prompt_parts(prompts.template, prompts.context_length))
    if prompts.initial_words is not None:
        initial_vectors(tower, prompts.initial_words, prompts.template, prompts.context_length)
    checked: set[str] = set()
    for number, (group, of_group) in enumerate(zip(partition.groups, words, strict=True), 1):
        if prompts.shared_context and len({*of_group}) == 1 < len(of_group):
            raise ValueError(
                f"All classes of group {number} have the same words, {of_group[0]!r}, and with "
                f"`prompts.shared_context` the same text: leave it out, or give other `prompts.class_names`."
            )
        for class_id, text in zip(group.class_ids, of_group, strict=True):
            if text in checked:
                continue
            try:
                _check_words(tower.tokenizer, prompts, text)
            except ValueError as error:
                place = ",".join(map(str, class_id))
                raise ValueError(f"The words of class {place} are {text[:_LONGEST]!r}: {error}") from None
            checked.add(text)


def _check_words(tokenizer: Tokenizer, prompts: PromptOptions, words: str) -> None:
    parts = prompt_parts(prompts.template, prompts.context_length, words, prompts.class_token_position or "end")
    tokenizer.sequence(parts)
    frame = tokenizer.frame
    if {*frame.before, *frame.after, *frame.last} & {*tokenizer.encode(words)}:
        raise ValueError("they hold a special token of the text tower. Remove it from `prompts.class_names`.")
