"""The verdict on a finished registration: good, check or failed, with reasons. Run.json, page, tables and terminal show it.

Each check looks at the result only, never at the ground truth of an experiment, and states what it saw in numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from rdmm import metrics
from rdmm.registration.background import find_background
from rdmm.spatial.image import Image
from rdmm.spatial.ops import jacobian_determinant
from rdmm.spatial.pair import overlap_fraction, with_field_of_view
from rdmm.stages.base import Result
from rdmm.types import option

if TYPE_CHECKING:
    from rdmm.registration.images import Registration
    from rdmm.registration.shapes import ShapeRegistration

Grade = Literal["good", "check", "failed"]

MIN_GAIN = 1e-2
"""A similarity that falls by less than this fraction of itself has not improved, and one that rises by more has become worse."""

EQUAL_IMAGES = 1e-3
"""Mean difference of two images, over the standard deviation of the fixed one, below which there is nothing to register."""

MIN_LOSS, LOST_DICE_SHARE = 0.01, 0.5
"""A fall of Dice, or a relative rise of the landmarks' distance, that counts; and the share of Dice that must be left."""

MIN_DISPLACEMENT_VOXELS = 0.02
"""A deformation that moves no point by more has done nothing."""

CHECK_FOLDS_PERCENT, FAILED_FOLDS_PERCENT = 0.1, 5.0
"""Percentages of folded cells. The benchmark's pairs have up to .04 %. The second is not measured."""

MAX_DRIFT = 0.01
"""Change of the Hamiltonian along a geodesic, which conserves it."""

CHECK_OVERLAP, FAILED_OVERLAP = 0.5, 0.01
"""Share of the overlap by the files' geometry that the result must keep, and the overlap below which nothing was compared."""

CHECK_RELATION, FAILED_RELATION = 0.5, 0.3
"""Correlation ratio of the two images at low resolution. It was at least .82 on 16 pairs, also of other contrasts or with 15 % of noise,
and at most .22 after noise was registered to noise or to an anatomy (benchmarks/README.md)."""

RELATION_VOXELS = 32
"""Voxels along the longest edge at which the relation is measured: noise averages out, and nothing can follow it."""

MIN_LABEL_VOXELS = 8
"""Smaller labels may vanish by rounding."""

MAX_SHAPE_GROWTH = 1.5
"""Growth of the distance between two shapes above which the registration has failed."""

MAX_BACKGROUND_SD, MAX_BACKGROUND_RATIO = 0.3, 0.5
"""SDlogJ of the background, and its ratio to that of the subject, above which a deformation chases noise. It was at most .13 on four
pairs with a still background, and at least .44 in eleven runs with noise there (benchmarks/README.md)."""


@dataclass(frozen=True)
class Doubt:
    """One reason not to trust a result."""

    grade: Literal["check", "failed"]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """``good``: nothing speaks against the result; ``check``: look at it; ``failed``: do not use it.

    ``reasons`` has one sentence per doubt, the worst first.
    """

    grade: Grade = "good"
    reasons: Sequence[str] = ()

    @classmethod
    def of(cls, doubts: Sequence[Doubt]) -> Verdict:
        """The worst grade of the doubts, and all reasons."""
        ranked = sorted(doubts, key=lambda doubt: doubt.grade != "failed")
        return cls(ranked[0].grade, [doubt.reason for doubt in ranked]) if ranked else cls()

    def __str__(self) -> str:
        return ": ".join([self.grade, *(["; ".join(self.reasons)] if self.reasons else [])])


def judge_images(done: Registration) -> Verdict:
    """The verdict on a registration of images."""
    checks: list[Callable[[Registration], Iterator[Doubt]]] = [
        _doubts_of_relation,
        _doubts_of_folds,
        _doubts_of_overlap,
        _doubts_of_labels,
        _doubts_of_background,
    ]
    with torch.no_grad():
        is_equal = _difference(done.moved, done.pair.fixed) < EQUAL_IMAGES
        has_stalled = done.result.has_stalled or _moves_nothing(done)
        doubts = [*_doubts_of_search(done.result, done.status, has_stalled, is_equal), *_doubts_of_metrics(done.metrics)]
        return Verdict.of([*doubts, *(doubt for check in checks for doubt in check(done))])


def judge_shapes(done: ShapeRegistration) -> Verdict:
    """The verdict on a registration of shapes."""
    is_equal = done.metrics["distance_after_mm"] < EQUAL_IMAGES * done.frame.length
    doubts = _doubts_of_search(done.result, done.status, done.result.has_stalled, is_equal)
    return Verdict.of([*doubts, *_doubts_of_metrics(done.metrics), *_doubts_of_distance(done.metrics)])


def _doubts_of_distance(values: Mapping[str, Any]) -> Iterator[Doubt]:
    before, after = values["distance_before_mm"], values["distance_after_mm"]
    if after > before * (1 + MIN_LOSS):
        grade: Literal["check", "failed"] = "failed" if after > MAX_SHAPE_GROWTH * before else "check"
        yield Doubt(grade, f"the shapes are farther apart than before: {before:.3g} mm before, {after:.3g} mm after")


def _moves_nothing(done: Registration) -> bool:
    """Whether there was a deformable stage, and its deformation is the identity but for rounding."""
    return done.dynamics is not None and float(done.deformation.abs().max()) < MIN_DISPLACEMENT_VOXELS * min(done.grid.spacing)


def _doubts_of_search(result: Result, status: str, has_stalled: bool, is_equal: bool) -> Iterator[Doubt]:
    """``has_stalled``: the deformation did nothing; ``is_equal``: the moved and the fixed shape agree, so there is nothing to improve."""
    if status == "interrupted":
        yield Doubt("check", "the search was interrupted before it ended")
    yield from (Doubt("check", remark) for remark in result.remarks)
    before, after = result.similarities or (math.nan, math.nan)
    if after > before + MIN_GAIN * abs(before) and not is_equal:
        yield Doubt("failed", f"fixed and moving agree less than before (dissimilarity {before:.4g} before, {after:.4g} after)")
    if has_stalled and not is_equal:
        is_improved = after < before - MIN_GAIN * abs(before)
        grade: Literal["check", "failed"] = "check" if is_improved or status == "interrupted" else "failed"
        yield Doubt(grade, "the deformation made no progress: it moves nothing, though fixed and moving differ")


def _doubts_of_metrics(values: Mapping[str, Any]) -> Iterator[Doubt]:
    if (drift := values.get("energy_drift", 0.0)) > MAX_DRIFT:
        yield Doubt("check", f"the energy drifts by {100 * drift:.2g} % along the geodesic: the integration is inexact")
    before, after = (values.get(k, math.nan) for k in ("dice_before", "dice"))
    if after < before - MIN_LOSS:
        grade: Literal["check", "failed"] = "failed" if after < LOST_DICE_SHARE * before else "check"
        yield Doubt(grade, f"Dice of the labels became worse: {before:.3g} before, {after:.3g} after")
    before, after = (values.get(k, math.nan) for k in ("tre_before_mm", "tre_mm"))
    if after > before * (1 + MIN_LOSS):
        yield Doubt("check", f"the landmarks' distance became larger: {before:.3g} mm before, {after:.3g} mm after")


def _doubts_of_relation(done: Registration) -> Iterator[Doubt]:
    """The warped image should tell something about the fixed one, whatever the contrast. Numbers of labels do not."""
    if done.inputs.by_labels:
        return
    if float(done.moved.data.std()) <= 1e-6 * float(done.pair.moving.data.std()):
        yield Doubt("failed", "the warped image is constant: the map leads out of the moving image")
        return
    fixed = done.pair.fixed.scaled(min(1.0, RELATION_VOXELS / max(done.grid.shape)))
    warped = with_field_of_view(done.pair).moved_by(done.result.transform).resampled(fixed.grid)
    weight = torch.ones_like(fixed.data[:, :1]) if fixed.mask is None else fixed.mask
    weight = weight if warped.mask is None else weight * warped.mask
    a, b = (x.data[:, :1] for x in (fixed, warped))
    relation = max(metrics.correlation_ratio(a, b, weight), metrics.correlation_ratio(b, a, weight))
    if relation < CHECK_RELATION:
        yield Doubt(
            "failed" if relation < FAILED_RELATION else "check",
            f"the images hardly agree: at low resolution one explains {100 * max(relation, 0):.0f} % of the other",
        )


def _doubts_of_folds(done: Registration) -> Iterator[Doubt]:
    folded = max(done.metrics["folded_cells_percent"], done.metrics["folds_percent"])
    if folded > CHECK_FOLDS_PERCENT:
        yield Doubt("failed" if folded > FAILED_FOLDS_PERCENT else "check", f"{folded:.3g} % of the cells fold")


def _doubts_of_overlap(done: Registration) -> Iterator[Doubt]:
    before = overlap_fraction(done.pair)
    after = overlap_fraction(done.pair.with_initial(done.pair.total_map(done.result.transform)))
    if after < CHECK_OVERLAP * before or after < FAILED_OVERLAP:
        text = f"the map leads out of the moving image: {100 * after:.3g} % of the fixed image lie inside it, {100 * before:.3g} % before"
        yield Doubt("failed" if after < FAILED_OVERLAP else "check", text)


def _doubts_of_labels(done: Registration) -> Iterator[Doubt]:
    if done.warped_labels is None or done.inputs.moving_labels is None:
        return
    labels, counts = (x.tolist() for x in done.inputs.moving_labels.data.unique(return_counts=True))
    sizes = {label: n for label, n in zip(labels, counts, strict=True) if label != 0}
    left = set(done.warped_labels.data.unique().tolist()) - {0}
    lost = [label for label, n in sizes.items() if label not in left and n >= MIN_LABEL_VOXELS]
    if lost:
        shown = ", ".join(f"{label} ({sizes[label]} voxels)" for label in lost[:5]) + (", ..." if len(lost) > 5 else "")
        yield Doubt("check" if left else "failed", f"{len(lost)} of {len(sizes)} labels are lost in the warped label map: {shown}")


def _doubts_of_background(done: Registration) -> Iterator[Doubt]:
    """The deformation should be smooth where there is nothing to align."""
    background = find_background(done.pair.fixed)
    if background is None:
        return
    det = jacobian_determinant(done.deformation, done.grid)
    outside, inside = (metrics.spread(det, mask) for mask in (background, 1 - background))
    if outside > MAX_BACKGROUND_SD and outside > MAX_BACKGROUND_RATIO * inside:
        yield Doubt(
            "check",
            f"the deformation follows noise in the background: SDlogJ is {outside:.2g} there and {inside:.2g} in the subject; "
            f"give {option('fixed_mask', 'MASK')} or a lower similarity_weight. One subject? Use {option('transform', 'rigid')}",
        )


def _difference(a: Image, b: Image) -> float:
    """Mean absolute difference of two images on one grid, in standard deviations of ``b``."""
    return float((a.data - b.data).abs().mean() / b.data.std().clamp_min(torch.finfo(b.data.dtype).tiny))
