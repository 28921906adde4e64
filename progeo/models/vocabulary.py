"""CLIP's vocabulary, and the words in it that are nearest to learned prompt vectors."""

import functools
from dataclasses import dataclass

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor

_VECTORS_AT_ONCE = 256


@dataclass(frozen=True)
class NearestWords:
    """The K nearest words of each of N vectors, nearest first."""

    words: list[list[str]]
    """N lists of K words; a token that starts or continues a longer word has a hyphen appended."""
    distances: Tensor
    """Euclidean distances to the token embeddings of the words, (N, K)."""


@functools.cache
def clip_tokenizer() -> SimpleTokenizer:
    """Return CLIP's tokenizer, whose tables are read once."""
    return SimpleTokenizer()


@torch.inference_mode()
def nearest_words(clip: CLIP, vectors: Tensor, num_words: int) -> NearestWords:
    """Find the `num_words` token embeddings of a CLIP that are nearest to each of the vectors (N, W).

    Raises:
        ValueError: `num_words` exceeds the vocabulary.
    """
    tokenizer = clip_tokenizer()
    special = (tokenizer.sot_token_id, tokenizer.eot_token_id)
    ids = torch.tensor([token for token in range(tokenizer.vocab_size) if token not in special])
    vocabulary = clip.token_embedding.weight[ids]
    if num_words > len(vocabulary):
        raise ValueError(f"num_words must be at most {len(vocabulary)}, all words that there are, got {num_words}.")
    found, distances = [], []
    for part in vectors.to(vocabulary).split(_VECTORS_AT_ONCE):
        nearest = torch.cdist(part, vocabulary).topk(num_words, largest=False).indices
        exact = torch.linalg.vector_norm(vocabulary[nearest] - part[:, None], dim=2)  # cdist rounds small distances
        exact, order = exact.sort(dim=1)
        found += ids[nearest.gather(1, order)].tolist()
        distances.append(exact)
    return NearestWords([[_word(tokenizer, token) for token in row] for row in found], torch.cat(distances))


def _word(tokenizer: SimpleTokenizer, token: int) -> str:
    text = tokenizer.decode([token])
    return text.strip() if text.endswith(" ") else f"{text}-"
