"""Loss terms of mined tuples, which change from the second generation on."""

import torch
from torch import Tensor

from progeo.losses import hardest_regions, region_similarity, sare, triplet_margin
from progeo.training.options import RegionsOptions, TuplesOptions
from progeo.training.terms import Inputs, Term, TermSource


class Tuples(Term):
    """SARE or triplet loss of a query, its positive and its negatives."""

    def __init__(self, options: TuplesOptions, source: TermSource) -> None:
        super().__init__(options, source)
        self.options = options

    def title(self, name: str) -> str:
        """Return the kind of the loss."""
        return self.options.kind if self.options.kind != "triplet" else "tuple_triplet"

    def forward(self, inputs: Inputs) -> Tensor:
        """Compare whole images, or the hardest region of each negative from the second generation on."""
        options, rows = self.options, inputs["tuples"]
        by_regions = options.hardest_regions and self.generation > 0
        descriptors = inputs["regions"][:, 0] if by_regions else inputs["descriptors"]
        anchors, positives = descriptors[rows[:, 0]], descriptors[rows[:, 1]]
        of_negatives = rows[:, 2:]
        negatives = (
            hardest_regions(anchors, inputs["regions"][of_negatives]) if by_regions else descriptors[of_negatives]
        )
        if options.kind == "triplet":
            return triplet_margin(anchors, positives, negatives, margin=options.margin)
        joint = options.kind == "sare_joint"
        return sare(anchors, positives, negatives, joint=joint, temperature=options.temperature)


class SoftRegions(Term):
    """Cross-entropy of the similarities to regions of difficult positives with those that the target network sees."""

    def __init__(self, options: RegionsOptions, source: TermSource) -> None:
        super().__init__(options, source)
        self.options = options

    def title(self, name: str) -> str:
        """Return `soft_regions`."""
        return "soft_regions"

    def forward(self, inputs: Inputs) -> Tensor:
        """Compare the whole image of each query with all regions of its difficult positives."""
        temperatures = self.options.target_temperatures
        anchors, positives = inputs["tuples"][:, 0], inputs["difficult_positives"]
        return region_similarity(
            _scores(inputs["regions"], anchors, positives),
            _scores(inputs["target_regions"], anchors, positives),
            temperature=self.options.temperature,
            target_temperature=temperatures[min(self.generation, len(temperatures) - 1)],
        )


def _scores(regions: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
    """Return the dot products of whole anchors with regions of positives, (T, P, R), -inf for missing positives."""
    scores = torch.einsum("td,tprd->tpr", regions[anchors, 0], regions[positives])
    return scores.masked_fill((positives < 0)[:, :, None], -torch.inf)
