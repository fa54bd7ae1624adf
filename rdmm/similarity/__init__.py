"""Similarities: (moved, target) -> (b,), smallest if the two agree. Each has its own file, and its own settings in conf;
those of points, curves and surfaces are in ``shapes``. Names are loaded when they are first used."""

from typing import TYPE_CHECKING

from rdmm.lazy import lazy_names

__all__, __getattr__ = lazy_names(
    "rdmm.similarity",
    {
        "correlation_ratio": ["CorrelationRatio"],
        "lncc": ["LNCC", "MultiKernelLNCC"],
        "mind": ["MIND"],
        "ncc": ["NCC"],
        "nmi": ["NMI"],
        "shapes.hausdorff": ["HausdorffDivergence", "SoftMinDivergence"],
        "shapes.kernel": ["EnergyDistance", "KernelDistance"],
        "shapes.sinkhorn": ["SinkhornDivergence"],
        "sinkhorn_images": ["GridSinkhorn"],
        "ssd": ["SSD"],
        "sum": ["Sum"],
    },
)

if TYPE_CHECKING:
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
