"""The words in a text tower's vocabulary that are nearest to learned prompt vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from progeo.models.text_towers.tower import TextTower
from progeo.progress import followed

_VECTORS_AT_ONCE = 256


@dataclass(frozen=True)
class NearestWords:
    """The K nearest words of each of N vectors, nearest first."""

    words: list[list[str]]
    """N lists of K words; a hyphen marks where a token starts or continues a longer word."""
    distances: Tensor
    """Euclidean distances to the token embeddings of the words, (N, K)."""


@torch.inference_mode()
def nearest_words(tower: TextTower, vectors: Tensor, num_words: int) -> NearestWords:
    """Find the `num_words` token embeddings of a text tower that are nearest to each of the vectors (N, W).

    Raises:
        ValueError: `num_words` exceeds the vocabulary.
    """
    ids = tower.tokenizer.word_ids
    ids = ids[ids < tower.token_embedding.num_embeddings]
    vocabulary = tower.embedding(ids)
    if num_words > len(vocabulary):
        raise ValueError(f"num_words must be at most {len(vocabulary)}, all words that there are, got {num_words}.")
    found, distances = [], []
    parts = vectors.to(vocabulary).split(_VECTORS_AT_ONCE)
    for part in followed(parts, "finding words", total=len(vectors), size=len, unit="vectors"):
        nearest = torch.cdist(part, vocabulary).topk(num_words, largest=False).indices
        exact = torch.linalg.vector_norm(vocabulary[nearest] - part[:, None], dim=2)  # cdist rounds small distances
        exact, order = exact.sort(dim=1)
        found += ids[nearest.gather(1, order).cpu()].tolist()
        distances.append(exact)
    return NearestWords([list(map(tower.tokenizer.word, row)) for row in found], torch.cat(distances))
