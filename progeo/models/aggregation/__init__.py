"""Aggregation (pooling) of feature maps into descriptors: one file per method."""

from progeo.models.aggregation.gem import GeM
from progeo.models.aggregation.mean import L2Norm, MeanLinear, MeanPool

__all__ = ["GeM", "L2Norm", "MeanLinear", "MeanPool"]
