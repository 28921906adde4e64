"""Aggregation (pooling) of feature maps into descriptors: one file per method."""

from progeo.models.aggregation.gem import GeM
from progeo.models.aggregation.mean import MeanLinear, MeanPool
from progeo.models.aggregation.norm import L2Norm

__all__ = ["GeM", "L2Norm", "MeanLinear", "MeanPool"]
