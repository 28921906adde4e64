"""Tokenizers of CLIPs: the ids that a text tower reads of a text, or of a prompt with learned vectors in it."""

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from open_clip import CLIPTextCfg, SimpleTokenizer
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from progeo.models.backbones.clip_configurations import (
    ClipConfiguration,
    brought_content,
    own_spelling,
    resolve_configuration,
)
from progeo.models.clip_files import tokenizer_files
from progeo.printable import first_line

_MIN_CONTEXT = 5
"""Minimum number of tokens that a text tower reads: those of the test sentence's first words and of its frame."""
LEARNED = -1
"""Stands for a learned vector in a sequence of ids."""
VOCABULARY = 49408
"""Number of tokens of CLIP's byte pair encoding."""
PACKAGES = ("transformers", "sentencepiece", "google.protobuf")
"""Modules of the packages of `progeo[tokenizers]`."""
_CLEANING = ("lower", "whitespace", "canonicalize")
SENTENCE = "A photo of the Rue de l'Église, Zürich: no. 7!"
"""Test sentence with capitals, punctuation and accents, which tokenizers encode differently."""
_STARTS, _CONTINUES = ("▁", "Ġ"), "##"
"""Marks of tokens that start a word, and that continue one."""


@dataclass(frozen=True)
class Frame:
    """The ids around the words of a text: `before`, words, `after`, padding, `last`."""

    before: Sequence[int]
    after: Sequence[int]
    last: Sequence[int] = ()
    pads_left: bool = False
    """Whether the padding stands before `before` instead."""


class Tokenizer(ABC):
    """Convert texts and prompts to token ids.

    Args:
        context_length: number of tokens L that the text tower reads.
        pad_id: id of the padding.
        frame: ids around the words.
    """

    def __init__(self, context_length: int, pad_id: int, frame: Frame) -> None:
        self.context_length, self.pad_id, self.frame = context_length, pad_id, frame

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return the ids int64 (N, L) of texts as open_clip does: cleaned, framed, padded and truncated."""

    @abstractmethod
    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of the words of a text alone; `continues` if there are others before it in its sentence."""

    @property
    @abstractmethod
    def word_ids(self) -> Tensor:
        """Ids of ordinary tokens, int64 (V,), ascending."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of tokens of the vocabulary."""

    @abstractmethod
    def word(self, token: int) -> str:
        """Return a token as text; a hyphen marks where it starts or continues a longer word."""

    def num_tokens(self, text: str) -> int:
        """Return the number of tokens of a text with those around its words."""
        return len(self._framed(self.encode(text)))

    def sequence(self, parts: Sequence[str | int]) -> tuple[int, ...]:
        """Return the L ids of a prompt, with `LEARNED` for each learned vector.

        Args:
            parts: words as texts, and numbers of learned vectors, in their order.

        Raises:
            ValueError: the prompt is too long.
        """
        words: list[int] = []
        for part in _joined(parts):
            words += [LEARNED] * part if isinstance(part, int) else self.encode(part, continues=bool(words))
        num_pads = self.context_length - len(self._framed(words))
        if num_pads < 0:
            raise ValueError(
                f"`template` takes {self.context_length - num_pads} tokens, but the text tower reads "
                f"{self.context_length}: shorten it."
            )
        return tuple(self._framed(words, num_pads))

    def _framed(self, words: Sequence[int], num_pads: int = 0) -> list[int]:
        frame, pads = self.frame, [self.pad_id] * num_pads
        left, right = (pads, []) if frame.pads_left else ([], pads)
        return [*left, *frame.before, *words, *frame.after, *right, *frame.last]


class BytePairTokenizer(Tokenizer):
    """CLIP's own byte pair encoding."""

    def __init__(self, context_length: int, clean: str = "lower") -> None:
        self._tokenizer = _byte_pairs(clean)
        frame = Frame([self._tokenizer.sot_token_id], [self._tokenizer.eot_token_id])
        super().__init__(context_length, pad_id=0, frame=frame)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return the ids int64 (N, L) of texts, see `Tokenizer.ids`."""
        return self._tokenizer(list(texts), self.context_length)

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of the words of a text."""
        return self._tokenizer.encode(text)

    @property
    def word_ids(self) -> Tensor:
        """Return the ids of ordinary tokens, int64 (V,), ascending."""
        return torch.tensor(sorted(set(range(self.size)) - set(self._tokenizer.all_special_ids)))

    @property
    def size(self) -> int:
        """Return the number of tokens of the vocabulary."""
        return self._tokenizer.vocab_size

    def word(self, token: int) -> str:
        """Return a token as text."""
        text = self._tokenizer.decode([token])
        return text.strip() if text.endswith(" ") else f"{text}-"


class HubTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's hub, used as open_clip's `HFTokenizer` uses it."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer, self._hub = tokenizer, tokenizer.tokenizer
        super().__init__(tokenizer.context_length, self._hub.pad_token_id, self._find_frame())

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return the ids int64 (N, L) of texts, see `Tokenizer.ids`."""
        return self._tokenizer(list(texts))

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Return the ids of the words of a text; one that continues a sentence is encoded after a word and a space."""
        if continues:
            word = self.encode("x")
            for joined in (f"x{text}", f"x {text}"):
                ids = self.encode(joined)
                if ids[: len(word)] == word:
                    return ids[len(word) :]
        return self._hub(self._tokenizer.clean_fn(text), add_special_tokens=False).input_ids

    def _framed(self, words: Sequence[int], num_pads: int = 0) -> list[int]:
        ids = super()._framed(words, num_pads)
        return [0 if token == self._hub.sep_token_id else token for token in ids] if self._strips_sep else ids

    @property
    def _strips_sep(self) -> bool:
        return self._tokenizer.strip_sep_token and self._tokenizer.tokenizer_mode != "clips"

    def _find_frame(self) -> Frame:
        hub = self._hub
        if self._tokenizer.tokenizer_mode == "clips":
            return Frame([hub.bos_token_id], [hub.eos_token_id], [hub.cls_token_id])
        word, framed = self.encode("a"), hub("a").input_ids
        start = next(start for start in range(len(framed)) if framed[start : start + len(word)] == word)
        return Frame(framed[:start], framed[start + len(word) :], pads_left=hub.padding_side == "left")

    @functools.cached_property
    def word_ids(self) -> Tensor:
        """Return the ids of ordinary tokens, int64 (V,), ascending."""
        special = {*self._hub.all_special_ids, *self._hub.added_tokens_decoder}
        return torch.tensor(sorted(set(self._hub.get_vocab().values()) - special))

    @property
    def size(self) -> int:
        """Return the number of tokens of the vocabulary."""
        return len(self._hub)

    def word(self, token: int) -> str:
        """Return a token as text."""
        piece = self._hub.convert_ids_to_tokens(token)
        text = self._hub.decode([token]).strip().removeprefix(_CONTINUES)
        continues = piece.startswith(_CONTINUES) if self._has_continuations else not piece.startswith(_STARTS)
        return f"-{text}" if continues else text or piece

    @functools.cached_property
    def _has_continuations(self) -> bool:
        """Whether tokens that continue a word are marked, instead of those that start one."""
        return any(piece.startswith(_CONTINUES) for piece in self._hub.get_vocab())


def load_tokenizer(configuration: ClipConfiguration) -> Tokenizer:
    """Load the tokenizer of a CLIP.

    Raises:
        ValueError: see `check_tokenizer`; or it cannot be loaded, or encodes prompts other than texts.
    """
    check_tokenizer(configuration)
    text = configuration.text
    options = _options(text)
    if not text.hf_tokenizer_name:
        return BytePairTokenizer(text.context_length, **options)
    folder = configuration.folder
    name = str(folder) if folder is not None and tokenizer_files(folder) else text.hf_tokenizer_name
    try:
        options |= {"tokenizer_mode": text.tokenizer_mode, "trust_remote_code": False}
        tokenizer = HubTokenizer(HFTokenizer(name, text.context_length, **options))
        same = all(
            tokenizer.ids([sentence])[0].tolist() == list(tokenizer.sequence([sentence]))
            for sentence in ("a", SENTENCE)
            if tokenizer.num_tokens(sentence) <= text.context_length
        )
    except Exception as error:  # of another library, of a download, or of files that are not a tokenizer's
        raise ValueError(f"the tokenizer {name} could not be loaded: {first_line(error)}") from None
    if not same:
        raise ValueError(f"the tokenizer {name} frames texts in a way that is not known")
    return tokenizer


def configuration_with_tokenizer(
    configuration: ClipConfiguration | None, architecture: str, weights: str
) -> ClipConfiguration:
    """Return a recorded configuration with the folder of the weights, which may hold the tokenizer.

    Args:
        configuration: as recorded, without a folder; None takes that of architecture and weights.
        architecture, weights: see `load_clip`.

    Raises:
        ValueError: see `resolve_configuration`.
    """
    if configuration is None:
        return resolve_configuration(architecture, weights)
    _, folder = brought_content(weights, own_spelling(architecture))
    return replace(configuration, folder=folder)


def check_tokenizer(configuration: ClipConfiguration) -> None:
    """Refuse a CLIP whose texts cannot be read right, before anything is fetched or built.

    Raises:
        ValueError: a package is not installed, nobody can know its tokens, or it has no feature of a text.
    """
    text, values = configuration.text, configuration.values
    if text.pool_type == "none" and not text.hf_model_name:
        raise ValueError("it has no feature of a text, but one for each token (pool_type none)")
    if text.embed_cls and not values.get("custom_text") and "multimodal_cfg" not in values:
        raise ValueError("open_clip cannot compute its text features: embed_cls needs custom_text")
    if text.hf_pooler_type == "max_pooler":
        raise ValueError("open_clip cannot compute its text features: its max_pooler fails")
    if (text.context_length or 0) < _MIN_CONTEXT:
        raise ValueError(f"it reads {text.context_length} tokens, too few for a prompt")
    options = _options(text)
    allowed = {"clean"}
    if text.hf_tokenizer_name or text.hf_model_name:
        allowed |= {"strip_sep_token", "language"}
        if missing := [name for name in PACKAGES if not _is_installed(name)]:
            raise ValueError(
                f"its texts are read with packages that are not installed ({', '.join(missing)}): "
                f"pip install 'progeo[tokenizers]'"
            )
    if unknown := options.keys() - allowed:
        raise ValueError(f"its tokenizer has options that are not supported ({', '.join(sorted(unknown))})")
    if (clean := options.get("clean", "lower")) not in _CLEANING:
        raise ValueError(f"its tokenizer cleans texts in a way that is not known ({clean})")
    if text.tokenizer_mode not in (None, "", "clips"):
        raise ValueError(f"its tokenizer has a mode that is not known ({text.tokenizer_mode})")
    if text.hf_tokenizer_name:
        return
    if text.hf_model_name:
        raise ValueError(f"its configuration names no tokenizer for its text tower, {text.hf_model_name}")
    if text.vocab_size != VOCABULARY:
        raise ValueError(
            f"its configuration names no tokenizer, and its vocabulary of {text.vocab_size} tokens is not that of "
            f"CLIP's byte pair encoding, {VOCABULARY}"
        )


def _options(text: CLIPTextCfg) -> dict[str, Any]:
    """Return the options of a tokenizer that are set."""
    return {name: value for name, value in (text.tokenizer_kwargs or {}).items() if value is not None}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _joined(parts: Sequence[str | int]) -> Iterator[str | int]:
    """Join neighboring texts."""
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        neighbors = list(group)
        yield from ["".join(map(str, neighbors))] if is_text else neighbors


@functools.cache
def _byte_pairs(clean: str) -> SimpleTokenizer:
    return SimpleTokenizer(clean=clean)
