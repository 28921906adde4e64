"""Stage 1, side by side: the plain prompt encoder (77 tokens, one text per image) and ours, on ViT-B/32's text tower.

Run `python -m benchmarks.stage1`. One thread, process CPU time, the two alternating, the minimum of several rounds.
"""

import time
from collections.abc import Callable

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor

from progeo.models.clip import load_clip
from progeo.models.prompts import PromptLearner

BATCH_SIZE = 64
ROUNDS = 5


def main() -> None:
    """Print the CPU time of forward and backward of both, and their ratio."""
    torch.set_num_threads(1)
    clip = load_clip("ViT-B-32", "random").requires_grad_(False)
    learner = PromptLearner(clip, BATCH_SIZE, generator=torch.Generator().manual_seed(0))
    title = f"a batch of {BATCH_SIZE} with"
    print(f"{title:20}{'plain, ms':>12}{'ours, ms':>12}{'ratio':>8}{'prompts/s':>12}")
    for num_classes in (64, 32):
        labels = torch.arange(BATCH_SIZE) % num_classes
        torch.testing.assert_close(learner(labels), plain_text_features(clip, learner, labels), rtol=1e-3, atol=1e-3)
        plain, ours = alternated(
            lambda labels=labels: plain_text_features(clip, learner, labels),
            lambda labels=labels: learner(labels),
        )
        name = f"{num_classes} classes"
        print(f"{name:20}{plain * 1e3:12.0f}{ours * 1e3:12.0f}{plain / ours:8.1f}{BATCH_SIZE / ours:12.0f}")


def plain_text_features(clip: CLIP, learner: PromptLearner, labels: Tensor) -> Tensor:
    """Text features as the published code computes them: the whole context of 77 tokens for every label."""
    ids = SimpleTokenizer()("A photo of a X X X X street.")[0]
    tokens = clip.token_embedding(ids).expand(len(labels), -1, -1)
    prompts = torch.cat([tokens[:, :5], learner.context[labels], tokens[:, 9:]], dim=1)
    hidden = clip.transformer(prompts + clip.positional_embedding, attn_mask=clip.attn_mask)
    return clip.ln_final(hidden)[:, ids.argmax()] @ clip.text_projection


def alternated(*encoders: Callable[[], Tensor]) -> list[float]:
    """The least CPU seconds of forward and backward of each, taken in turns."""
    seconds = [float("inf")] * len(encoders)
    for _ in range(ROUNDS + 1):  # the first round warms up and is soon beaten
        for index, encode in enumerate(encoders):
            start = time.process_time()
            encode().sum().backward()
            seconds[index] = min(seconds[index], time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
