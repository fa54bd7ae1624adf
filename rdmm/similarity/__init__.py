"""Similarities: (moved, target) -> (b,), smallest if the two agree. Each has its own file, and its own settings in conf;
those of points, curves and surfaces are in ``shapes``."""

from rdmm.similarity.correlation_ratio import CorrelationRatio
from rdmm.similarity.lncc import LNCC, MultiKernelLNCC
from rdmm.similarity.mind import MIND
from rdmm.similarity.ncc import NCC
from rdmm.similarity.nmi import NMI
from rdmm.similarity.shapes.hausdorff import HausdorffDivergence, SoftMinDivergence
from rdmm.similarity.shapes.kernel import EnergyDistance, KernelDistance
from rdmm.similarity.shapes.sinkhorn import SinkhornDivergence
from rdmm.similarity.sinkhorn_images import GridSinkhorn
from rdmm.similarity.ssd import SSD
from rdmm.similarity.sum import Sum

__all__ = [
    "LNCC",
    "MIND",
    "NCC",
    "NMI",
    "SSD",
    "CorrelationRatio",
    "EnergyDistance",
    "GridSinkhorn",
    "HausdorffDivergence",
    "KernelDistance",
    "MultiKernelLNCC",
    "SinkhornDivergence",
    "SoftMinDivergence",
    "Sum",
]
