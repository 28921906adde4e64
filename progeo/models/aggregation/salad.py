"""SALAD: local features assigned to clusters by optimal transport, beside a global token (Izquierdo, CVPR 2024)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.counts import check_counts
from progeo.models.aggregation.precision import full_precision

_ITERATIONS = 3


class SALAD(nn.Module):
    """SALAD head: local features, reduced and summed by their assignment to clusters, beside the reduced token.

    Three perceptrons reduce the local features, score them for each cluster, and reduce the token (equations 3 to 8).

    Args:
        in_channels: C, channels of the feature map.
        token_in_dim: E, dimension of the token of the backbone.
        num_clusters: m.
        cluster_dim: l, dimension of a reduced local feature.
        token_dim: g, dimension of the reduced token.
        hidden_dim: width of the hidden layer of each perceptron.
        dropout: probability of dropout in the hidden layers of those of local features.

    Raises:
        ValueError: a number below 1, or a probability that is none.
    """

    def __init__(
        self,
        in_channels: int,
        token_in_dim: int,
        *,
        num_clusters: int = 64,
        cluster_dim: int = 128,
        token_dim: int = 256,
        hidden_dim: int = 512,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_salad(
            num_clusters=num_clusters,
            cluster_dim=cluster_dim,
            token_dim=token_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
        )
        self.num_clusters = num_clusters
        self.token_features = _perceptron(token_in_dim, hidden_dim, token_dim)
        self.cluster_features = _perceptron(in_channels, hidden_dim, cluster_dim, nn.Dropout(dropout))
        self.score = _perceptron(in_channels, hidden_dim, num_clusters, nn.Dropout(dropout))

    def forward(self, feature_map: Tensor, token: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) and (B, E) into L2-normalized descriptors (B, g + l m).

        Everything after the perceptrons is computed in float32 under autocast, too.

        Raises:
            ValueError: not more local features than clusters.
        """
        height, width = feature_map.shape[2:]
        if height * width <= self.num_clusters:
            raise ValueError(
                f"salad needs more local features than its {self.num_clusters} clusters, since the dustbin gets the "
                f"rest, and a feature map of {height} x {width} has {height * width}: use larger images."
            )
        local_features, dtype = feature_map.flatten(2).mT, self.score[0].weight.dtype
        reduced, scores = self.cluster_features(local_features).to(dtype), self.score(local_features).to(dtype)
        token = self.token_features(token).to(dtype)
        with full_precision(feature_map):
            sums = reduced.mT @ assignments(scores)
            parts = (F.normalize(token, dim=1), F.normalize(sums, dim=1).flatten(1))
            return F.normalize(torch.cat(parts, dim=1), dim=1)


def assignments(scores: Tensor) -> Tensor:
    """Assign local features to clusters by three iterations of Sinkhorn's algorithm on logarithms.

    The mass of a local feature is 1, that of a cluster is 1, and the dustbin gets the rest. (The published code divides
    all masses by n + m, and multiplies the result by it.) The score of the dustbin, which the published code learns, is
    the same for all local features: the first half of an iteration scales it away, so that there is none here.

    Args:
        scores: of n local features for m clusters, (B, n, m), n above m.

    Returns:
        (B, n, m).
    """
    count, num_clusters = scores.shape[1:]
    rest = torch.full((), count - num_clusters, dtype=scores.dtype, device=scores.device).log()
    of_features = scores.new_zeros(scores.shape[:2])
    for _ in range(_ITERATIONS):
        of_clusters = -(scores + of_features[:, :, None]).logsumexp(dim=1)
        of_bin = rest - of_features.logsumexp(dim=1)
        of_features = -torch.logaddexp((scores + of_clusters[:, None]).logsumexp(dim=2), of_bin[:, None])
    return (scores + of_clusters[:, None] + of_features[:, :, None]).exp()


def check_salad(*, dropout: float, **sizes: int) -> None:
    """Check the options of SALAD.

    Raises:
        ValueError: a number below 1, or a probability that is none.
    """
    check_counts("salad", **sizes)
    if not 0 <= dropout < 1:
        raise ValueError(f"`aggregation_options`: dropout of salad must be from 0 to below 1, got {dropout}.")


def min_side_cells(num_clusters: int) -> int:
    """Return the minimum rows and columns of feature maps that all have more cells than there are clusters."""
    return math.isqrt(num_clusters) + 1


def _perceptron(in_dim: int, hidden_dim: int, out_dim: int, *before_activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), *before_activation, nn.ReLU(), nn.Linear(hidden_dim, out_dim))
