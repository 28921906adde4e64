"""The words of CLIP's vocabulary that lie nearest to learned vectors."""

from dataclasses import dataclass

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor

_VECTORS_AT_ONCE = 256


@dataclass(frozen=True)
class NearestWords:
    """For each of N vectors K words, nearest first."""

    words: list[list[str]]
    """Words, or beginnings of words with a hyphen behind them."""
    distances: Tensor
    """Euclidean, (N, K)."""


@torch.inference_mode()
def nearest_words(clip: CLIP, vectors: Tensor, num_words: int) -> NearestWords:
    """Search the token embeddings of a model for vectors (N, W); K is at most the size of the vocabulary."""
    tokenizer = SimpleTokenizer()
    special = (tokenizer.sot_token_id, tokenizer.eot_token_id)
    ids = torch.tensor([token for token in range(tokenizer.vocab_size) if token not in special])
    vocabulary = clip.token_embedding.weight[ids]
    found, distances = [], []
    for part in vectors.to(vocabulary).split(_VECTORS_AT_ONCE):
        nearest = torch.cdist(part, vocabulary).topk(min(num_words, len(ids)), largest=False).indices
        exact = torch.linalg.vector_norm(vocabulary[nearest] - part[:, None], dim=2)  # cdist rounds small ones
        exact, order = exact.sort(dim=1)
        found += ids[nearest.gather(1, order)].tolist()
        distances.append(exact)
    return NearestWords([[_word(tokenizer, token) for token in row] for row in found], torch.cat(distances))


def _word(tokenizer: SimpleTokenizer, token: int) -> str:
    text = tokenizer.decode([token])
    return text.strip() if text.endswith(" ") else f"{text}-"
