"""Similarities: (moved, target) -> (b,), smallest if the two agree. Each has its own file, and its own settings in conf."""

from rdmm.similarity.correlation_ratio import CorrelationRatio
from rdmm.similarity.hausdorff import HausdorffDivergence, SoftMinDivergence
from rdmm.similarity.kernel import EnergyDistance, KernelDistance
from rdmm.similarity.lncc import LNCC, MultiKernelLNCC
from rdmm.similarity.mind import MIND
from rdmm.similarity.ncc import NCC
from rdmm.similarity.nmi import NMI
from rdmm.similarity.sinkhorn_images import GridSinkhorn
from rdmm.similarity.sinkhorn_measures import SinkhornDivergence
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
