"""Accuracy (Dice, HD95, TRE) and regularity (folds, SDlogJ) of a registration. Folds are counted two ways, model (46) and (47)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from rdmm.spatial import ops
from rdmm.spatial.folds import non_diffeomorphic_volume
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.transform import Identity, Transform
from rdmm.types import Tensor


def dice(a: Tensor, b: Tensor, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice of each label (default: all labels of either map but 0); NaN for a label that one of the maps lacks."""
    a, b = a.flatten().round().long(), b.flatten().round().long()
    in_a, in_b, in_both = _count_values(a), _count_values(b), _count_values(a[a == b])
    if labels is None:
        labels = sorted((set(in_a) | set(in_b)) - {0})
    return {int(k): 2 * in_both.get(k, 0) / (in_a[k] + in_b[k]) if k in in_a and k in in_b else math.nan for k in labels}


def _count_values(x: Tensor) -> dict[int, int]:
    """How often each value occurs in x (n,) of whole numbers."""
    if x.numel() == 0:
        return {}
    low = int(x.min())
    if int(x.max()) - low < 2**20:
        n = torch.bincount(x - low)
        (there,) = n.nonzero(as_tuple=True)
        return dict(zip((there + low).tolist(), n[there].tolist(), strict=True))
    return dict(zip(*(y.tolist() for y in x.unique(return_counts=True)), strict=True))


def mean_dice(values: dict[int, float]) -> tuple[float, int]:
    """Mean over labels present in both maps, and their number; (NaN, 0) if there are none."""
    valid = [v for v in values.values() if not math.isnan(v)]
    return (sum(valid) / len(valid), len(valid)) if valid else (math.nan, 0)


def hd95(moved: Tensor, fixed: Tensor, voxel: Sequence[float], labels: Iterable[int] | None = None) -> dict[int, float]:
    """95 % Hausdorff distance of each label (default: all labels of either map but 0), in millimeters.

    It is the larger of the 95th percentiles in the two directions, with surface elements weighted by their area (the package
    surface-distance, as in Learn2Reg). NaN for a label that ``fixed`` lacks; inf for one that only ``moved`` lacks: the map has removed
    it, which is a failure.
    """
    import surface_distance

    a, b = (x.detach().cpu().round().long().squeeze(1).squeeze(0).numpy() for x in (moved, fixed))
    if labels is None:
        labels = sorted((set(np.unique(a).tolist()) | set(np.unique(b).tolist())) - {0})
    out = {}
    for label in labels:
        in_a, in_b = a == label, b == label
        if not in_b.any():
            out[int(label)] = math.nan
        elif not in_a.any():
            out[int(label)] = math.inf
        else:
            with warnings.catch_warnings():  # the library uses deprecated names of scipy
                warnings.simplefilter("ignore", DeprecationWarning)
                found = surface_distance.compute_surface_distances(in_b, in_a, [float(h) for h in voxel])
            out[int(label)] = float(surface_distance.compute_robust_hausdorff(found, 95))
    return out


def overlap(moved: Tensor, fixed: Tensor, before: Tensor, voxel: Sequence[float], labels: Iterable[int] | None = None) -> dict[str, Any]:
    """Dice and HD95 of a warped label map, of each label and as means.

    Args:
        moved: the moving labels on the fixed grid, warped by the map.
        fixed: the fixed labels.
        before: the moving labels on the fixed grid, placed by the images' headers alone.
        voxel: voxel sizes, in millimeters.
        labels: the labels to compare; None: all labels of either map but 0.

    Returns:
        ``dice_before`` and ``dice``, means over the ``dice_n_valid`` labels that both maps have; ``hd95_mm``, the mean of the finite
        distances; ``hd95_empty``, the number of labels that the map has removed (failures, not in the mean); ``dice_per_label`` and
        ``hd95_per_label``.
    """
    out: dict[str, Any] = {}
    out["dice_before"], _ = mean_dice(dice(before, fixed, labels))
    values = dice(moved, fixed, labels)
    out["dice"], out["dice_n_valid"] = mean_dice(values)
    distances = hd95(moved, fixed, voxel, labels)
    finite = [v for v in distances.values() if math.isfinite(v)]
    out["hd95_mm"] = sum(finite) / len(finite) if finite else math.nan
    out["hd95_empty"] = sum(math.isinf(v) for v in distances.values())
    return {**out, "dice_per_label": values, "hd95_per_label": distances}


def correlation_ratio(a: Tensor, b: Tensor, weight: Tensor, bins: int = 16) -> float:
    """Share of the variance of ``a`` that a function of ``b`` explains (Roche et al. 1998): 1 if a = f(b), about 0 if they are unrelated.

    Args:
        a, b, weight: (b, 1, *s); ``weight``, 0 or more, says how much each voxel counts.
        bins: number of intervals of ``b``, between its 0.5th and its 99.5th percentile.
    """
    a, b, weight = (x.detach().flatten().double() for x in (a, b, weight))
    low, high = np.percentile(b[weight > 0].cpu().numpy(), [0.5, 99.5]) if (weight > 0).any() else (0.0, 0.0)
    index = ((b - low) / max(high - low, 1e-300) * bins).clamp(0, bins - 1).long()
    counts = torch.zeros(bins).to(a).index_add_(0, index, weight)
    means = torch.zeros(bins).to(a).index_add_(0, index, weight * a) / counts.clamp_min(1e-300)
    mean = (weight * a).sum() / weight.sum().clamp_min(1e-300)
    variance = float((weight * (a - mean) ** 2).sum())
    return 1 - float((weight * (a - means[index]) ** 2).sum()) / variance if variance > 0 else 0.0


def tre(fixed: np.ndarray, moving: np.ndarray, transform: Transform | None = None) -> np.ndarray:
    """Target registration error: distances (n,) from the mapped fixed landmarks to the moving ones.

    Points (n, d), the map (None: the identity) and the distances are in world millimeters.
    """
    mapped = fixed if transform is None else transform(torch.as_tensor(fixed.T[None])).detach()[0].numpy().T
    return np.linalg.norm(mapped - moving, axis=1)


def distance_mm(u: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Distance (b, 1, *s) in mm between where two displacements (b, d, *s) in domain units take each voxel."""
    return grid.length * (u.double() - v).square().sum(1, keepdim=True).sqrt()


def map_errors(error: Tensor, before: Tensor, regions: Mapping[str, Tensor], grid: Grid) -> dict[str, float]:
    """The mean error of a map, and in each region the mean of the identity, the mean, the largest, and the mean in percent of the longest
    edge.

    Args:
        error, before: distance from the true map, of the map and of the identity, (1, 1, *s) in mm.
        regions: by name, (1, 1, *s), 1 inside.
    """
    out = {"error_mm": float(error.mean())}
    for name, mask in regions.items():
        inside = mask > 0
        mean = float(error[inside].mean())
        out[f"error_{name}_before_mm"] = float(before[inside].mean())
        out[f"error_{name}_mm"], out[f"error_{name}_max_mm"] = mean, float(error[inside].max())
        out[f"error_{name}_percent"] = 100 * mean / grid.length
    return out


def folds(u: Tensor, grid: Grid) -> dict[str, float]:
    """Folds by central differences of phi = id + u, u (b, d, *s) in domain units.

    Returns:
        ``folds_percent``, the percentage of voxels with det <= 0; and ``folds_sum``, the papers' "folds": the sum of |det| where it is
        negative, model (46).
    """
    return _folds(ops.jacobian_determinant(u, grid))


def _folds(det: Tensor) -> dict[str, float]:
    return {"folds_percent": 100 * float((det <= 0).double().mean()), "folds_sum": float(det.clamp_max(0).sum().abs())}


def sd_log_jacobian(u: Tensor, grid: Grid, mask: Tensor | None = None) -> float:
    """Standard deviation of log det D phi (central differences, det clamped at 1e-3), model (48), over the mask (b, 1, *s).

    NaN for a mask of fewer than two voxels.
    """
    return spread(ops.jacobian_determinant(u, grid), mask)


def spread(det: Tensor, mask: Tensor | None = None) -> float:
    """Standard deviation of log det of determinants (b, *s), otherwise as ``sd_log_jacobian``."""
    inside = det if mask is None else det[(mask[:, 0] > 0.5).expand_as(det)]
    return float(inside.clamp_min(1e-3).log().std()) if inside.numel() > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Subject:
    """Where the subject is in the fixed image.

    Args:
        inside: (b, 1, *s), 1 in the subject and 0 elsewhere.
        source: what said so.
    """

    inside: Tensor
    source: Literal["mask", "labels", "foreground"]


def find_subject(fixed: Image, labels: Image | None = None, *, by_mask: bool = False) -> Subject:
    """Where the subject is: in the mask, or where there are labels, or in the foreground. What is masked out is never a part of it.

    The foreground is that of ``Image.mass``, the mean of the channels above the darkest intensity (below the brightest, on bright
    ground), by Otsu's threshold. An image without any ground has a foreground, too: the brighter part of the tissue.

    Args:
        fixed: the fixed image, (b, c, *s).
        labels: a label map on any grid: the subject is where it is not 0; None: there is none.
        by_mask: whether the mask of ``fixed`` says where the subject is. Other masks only leave out a part, such as a lesion.
    """
    inside = torch.ones_like(fixed.data[:, :1]) if fixed.mask is None else (fixed.mask[:, :1] > 0).to(fixed.data)
    if by_mask:
        return Subject(inside, "mask")
    if labels is not None:
        return Subject(inside * (labels.moved_by(Identity(), fixed.grid, mode="nearest").data != 0), "labels")
    mass = fixed.inpainted().mass()
    return Subject(inside * (mass > otsu_threshold(mass[inside[0, 0] > 0])), "foreground")


def otsu_threshold(values: Tensor, bins: int = 256) -> float:
    """The threshold that splits values (n,) into two classes of least variance (Otsu, IEEE Trans. Syst. Man Cybern. 9, 1979).

    It is one of the edges of ``bins`` intervals between the .1th and the 99.9th percentile, so that a few values far out do not count
    (of all values, if these two are equal).
    """
    numbers = values.detach().cpu().double().numpy()
    low, high = np.percentile(numbers, [0.1, 99.9])
    if low == high:
        low, high = numbers.min(), numbers.max()
    if low == high:
        return float(low)
    counts, edges = np.histogram(numbers.clip(low, high), bins, (low, high))
    centers = (edges[1:] + edges[:-1]) / 2
    below, sum_below = counts.cumsum()[:-1], (counts * centers).cumsum()[:-1]
    above, mean = counts.sum() - below, (counts * centers).sum() / counts.sum()
    between = (mean * below - sum_below) ** 2 / (below * above)  # no class is empty: both ends of the range are values
    return float(edges[1:-1][between.argmax()])


def inverse_consistency(transform: Transform, inverse: Transform, grid: Grid) -> float:
    """Mean |T(T^{-1}(x)) - x|, model (49), in millimeters, over the voxels x with T^{-1}(x) inside the grid."""
    return inverse_errors(transform, inverse, grid)["inverse_consistency_mm"]


def inverse_errors(transform: Transform, inverse: Transform, grid: Grid, subject: Subject | None = None) -> dict[str, float]:
    """How far a point is from where it started, after T^{-1} and T.

    Returns:
        ``inverse_consistency_mm``; and with a subject ``inverse_consistency_subject_mm``, the mean over the x whose T^{-1}(x) is inside it.
    """
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    y = inverse(x)
    far = torch.tensor(grid.extent, dtype=x.dtype).view(1, -1, *(1,) * grid.ndim)
    inside = ((y >= 0) & (y <= far)).all(1)
    error = (transform(y) - x).square().sum(1).sqrt() * grid.length
    out = {"inverse_consistency_mm": float(error[inside].mean())}
    if subject is None:
        return out
    within = ops.sample(subject.inside.to(y), y, grid, mode="nearest", outside="zero")[:, 0] > 0
    return out | {"inverse_consistency_subject_mm": float(error[within].mean())}


def regularity(u: Tensor, grid: Grid, subject: Subject | None = None) -> dict[str, Any]:
    """All regularity metrics of id + u, u (b, d, *s) in domain units.

    Returns:
        those of ``folds`` and ``non_diffeomorphic_volume``; ``sd_log_jacobian`` over the whole volume, whose still surroundings hide how
        rough a map is; and with a subject, ``sd_log_jacobian_subject`` inside it, and ``subject``, what said where it is.
    """
    det = ops.jacobian_determinant(u, grid)
    out: dict[str, Any] = {**_folds(det), **non_diffeomorphic_volume(u, grid), "sd_log_jacobian": spread(det)}
    if subject is None:
        return out
    return out | {"sd_log_jacobian_subject": spread(det, subject.inside), "subject": subject.source}
