"""Affine registration of images and of shapes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from rdmm.optim.lbfgs import History
from rdmm.optim.problem import Similarity
from rdmm.similarity import LNCC, NCC, NMI, CorrelationRatio, SinkhornDivergence
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Affine, on_device
from rdmm.stages.affine_model import (
    Model,
    image_center_and_covariance,
    in_frame,
    parameter_count,
    rotation_degrees,
    scale_factor,
    shape_center_and_covariance,
    starts,
    world_matrix,
)
from rdmm.stages.affine_search import (
    Candidate,
    ImageObjective,
    Init,
    ShapeObjective,
    affine_result,
    check_search,
    fit,
    fit_models,
    history_row,
)
from rdmm.stages.base import Result
from rdmm.types import ConfigError, DivergenceError, InputError, Tensor, option, require_finite_fields

log = logging.getLogger(__name__)

START_TRANSLATION_ITERATIONS = 8
"""Iterations of the translation that comes first from each start. It only has to bring the images to overlap. Not measured."""

START_MODEL_ITERATIONS = 12
"""Iterations of the rigid search by which the starts are compared. It ranks them and need not converge. Not measured."""

CLEAR_GAIN, CLOSE_GAIN = 1.3, 0.95
"""Ratios of dissimilarities. A rotation by more than WARN_ROTATION_DEG is taken if two measures improve by more than the first factor, and
said to be possible if both reach the second, or one the first. On twelve pairs of brain slices in six contrasts, a wrong rotation stayed
below .91 by one measure; a missing one reached 1.18 and 1.28 at least, and 2.3 and 1.95 in the median, if the contrasts are equal. One of
ten small scenes looks right when turned, by 1.7 and 1.2 (benchmarks/README.md)."""

SECOND_MEASURE = LNCC(5)
"""Compares orientations by their details, and so independently of the correlation ratio."""

SIMILARITY_NOISE = 1e-3
"""Smaller differences of similarities are treated as equal, so that a symmetric image is not rotated by chance."""

WARN_ROTATION_DEG = 45.0
"""The files' geometry is trusted up to this angle: a larger one needs two measures, and is said."""

MAX_SCALE = 1.6
"""Warn if the search makes the image larger or smaller by more: a wrong unit or voxel size changes it by 2 or more. Not measured."""


@dataclass(frozen=True)
class AffineOpt:
    """Affine registration of images: model after model (translation, rigid, similarity, affine), coarse to fine, by L-BFGS.

    The search runs on the CPU, whatever the device of the images: its levels are too small to keep a GPU busy.

    Args:
        similarity: a global one is best. The correlation ratio finds the start in any two contrasts; then NCC finds the map more exactly
            if they are linearly related, and NMI if not.
        models: fitted in this order on the coarsest level; finer levels fit the last one only.
        voxels: sizes of the levels, as the number of voxels along the longest edge; levels finer than the image are left out.
        iterations: of each model on each level.
        init: where the search starts: ``header`` (the files' geometry), ``com`` (centers of mass), ``axes`` (principal axes), or
            ``auto``: whichever is best after a rigid search on the coarsest level, except rotations that are not clearly better.
        tolerance: relative decrease of the similarity below which a search stops.
    """

    similarity: Similarity = field(default_factory=CorrelationRatio)
    models: Sequence[Model] = ("translation", "rigid", "similarity", "affine")
    voxels: Sequence[int] = (24, 48, 80)
    iterations: int = 40
    init: Init = "auto"
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        require_finite_fields(self)
        enough = bool(self.voxels) and self.iterations >= 1 and min(self.voxels) >= 8
        check_search(self.models, self.init, enough, "one level of 8 voxels or more, and one iteration are")

    def check(self, pair: Pair) -> None:
        """Raise ConfigError for shapes."""
        if not isinstance(pair.fixed, Image):
            raise ConfigError("affine=opt is for images; for shapes (points, curves, surfaces) use affine=points")

    def __call__(self, pair: Pair) -> Result:
        begin = time.perf_counter()
        self.check(pair)
        levels = [ImageObjective(self.similarity, on_device(level, torch.device("cpu"))) for level in self._levels(pair)]
        finer = levels[min(1, len(levels) - 1)]
        best, ambiguity = self._best_start(levels[0], finer)
        if isinstance(self.similarity, CorrelationRatio):
            is_linear = self.similarity.is_linear(finer.moved(best.matrix()), finer.pair.fixed)
            levels = [replace(level, similarity=NCC() if is_linear else NMI()) for level in levels]
        history: History = []
        for k, level in enumerate(levels):
            models = self.models if k == 0 else self.models[-1:]
            for candidate in fit_models(level, best.start, best.parameters, models, self.iterations, self.tolerance):
                best = candidate
                history.append(history_row(best, k))
                size = "x".join(map(str, level.pair.fixed.grid.shape))
                log.info("affine level %d %s, model %s: dissimilarity %.5f", k, size, best.model, best.similarity)
        matrix = world_matrix(best.parameters.double(), best.start, pair.fixed.grid.length)
        transform, remarks = in_frame(matrix, pair.fixed.grid), [*_doubts_of_placement(matrix, "image"), *ambiguity]
        for remark in remarks:
            log.warning("affine: %s", remark)
        return replace(affine_result(transform, best.similarity, history, begin), remarks=remarks)

    def _levels(self, pair: Pair) -> list[Pair]:
        """The pair at each size, coarsest first, each made from the next finer one. Sizes beyond that of the image are one level."""
        longest = max(pair.fixed.grid.shape)
        levels: list[Pair] = []
        for n in sorted({min(n, longest) for n in self.voxels}, reverse=True):
            pair = pair.scaled(min(1.0, n / max(pair.fixed.grid.shape)))
            levels.insert(0, pair)
        return levels

    def _best_start(self, level: ImageObjective, finer: ImageObjective) -> tuple[Candidate, list[str]]:
        """The start whose rigid search on ``level`` ends lowest per overlap, and doubts about it. A rotation must clearly beat the files'
        geometry, by two measures on the level ``finer``."""
        ranked = sorted(self._candidates(level), key=lambda c: level.per_overlap(c.matrix()))
        log.debug("affine starts, the best first: %s", ", ".join(f"{c.start.name} {c.similarity:.4f}" for c in ranked))
        unturned, others = ([c for c in ranked if _turns(c.matrix()) is turned] for turned in (False, True))
        if self.init != "auto" or not unturned or not others:
            return ranked[0], []
        kept, turned = unturned[0], others[0]
        gains = [_gain(replace(finer, similarity=measure), unturned, turned) for measure in (self.similarity, SECOND_MEASURE)]
        if min(gains) > CLEAR_GAIN:
            return turned, []
        close = min(gains) > CLOSE_GAIN or max(gains) > CLEAR_GAIN
        return kept, [_possible_rotation(kept, turned, gains)] if close else []

    def _candidates(self, level: ImageObjective) -> list[Candidate]:
        """What a short rigid search finds from each start. Raises InputError if no start makes the images overlap."""
        fixed, moving = (image_center_and_covariance(x) for x in (level.pair.fixed, level.pair.moving))
        middle = level.pair.fixed.grid.corners().mean(0)
        model: Model = "rigid" if "rigid" in self.models else self.models[0]
        candidates: list[Candidate] = []
        for start in starts(fixed, moving, middle, self.init, self.models):
            p = torch.zeros(parameter_count("translation", level.ndim), dtype=torch.float64)
            try:
                p = fit(level, start, p, "translation", START_TRANSLATION_ITERATIONS, self.tolerance).parameters
                candidates.append(fit(level, start, p, model, START_MODEL_ITERATIONS, self.tolerance))
            except DivergenceError as error:
                log.debug("affine start %s: %s", start.name, error)
        if not candidates:
            raise InputError(
                f"no start of the affine search makes the images overlap; check the files' geometry, or try {option('init', 'com')}"
            )
        return candidates


def _turns(matrix: Tensor) -> bool:
    """Whether a map turns by more than the files' geometry is doubted."""
    return rotation_degrees(matrix) > WARN_ROTATION_DEG


def _gain(objective: ImageObjective, unturned: Sequence[Candidate], turned: Candidate) -> float:
    """By which factor the dissimilarity of ``turned`` is smaller than that of the best of ``unturned``; 0 if it cannot be compared."""
    found = [_dissimilarity(objective, c) for c in unturned]
    before, after = min(found), _dissimilarity(objective, turned)
    return before / after if math.isfinite(before) and math.isfinite(after) else 0.0


def _dissimilarity(objective: ImageObjective, candidate: Candidate) -> float:
    """That of a candidate, which SIMILARITY_NOISE keeps from 0; infinite where the images hardly overlap."""
    with torch.no_grad():
        try:
            return float(objective(candidate.matrix())) + SIMILARITY_NOISE
        except DivergenceError:
            return math.inf


def _possible_rotation(kept: Candidate, turned: Candidate, gains: Sequence[float]) -> str:
    angle = rotation_degrees(turned.matrix() @ torch.linalg.inv(kept.matrix()))
    return (
        f"rotated by another {angle:.0f} degrees the images agree about as well (dissimilarity times {1 / gains[0]:.2g} and "
        f"{1 / gains[1]:.2g} by two measures); the files' geometry was kept; if it is wrong, use {option('init', 'axes')} or "
        f"{option('initial', 'TRANSFORM')}"
    )


def _doubts_of_placement(matrix: Tensor, what: str) -> list[str]:
    """Doubts if a map turns by more than 45 degrees against the files' geometry, or changes the size by more than MAX_SCALE."""
    doubts = []
    if (angle := rotation_degrees(matrix)) > WARN_ROTATION_DEG:
        doubts.append(
            f"the moving {what} was rotated by {angle:.0f} degrees against the files' geometry; if that is wrong, use "
            f"{option('init', 'header')}"
        )
    if not 1 / MAX_SCALE < (scale := scale_factor(matrix)) < MAX_SCALE:
        doubts.append(f"the sizes in the files differ by a factor of {max(scale, 1 / scale):.2g}; are the units and voxel sizes right?")
    return doubts


@dataclass(frozen=True)
class PointAffine:
    """Affine registration of shapes: model after model from each start, by L-BFGS on transport at a wide blur.

    Args:
        similarity: of measures; its lengths are in domain units.
        models, iterations, init, tolerance: as in AffineOpt; ``header``: the positions in the files.
        count: largest number of points used of each shape; larger shapes are thinned evenly.
    """

    similarity: Similarity = field(default_factory=lambda: SinkhornDivergence(0.1))
    models: Sequence[Model] = ("translation", "rigid", "similarity", "affine")
    iterations: int = 30
    init: Init = "com"
    tolerance: float = 1e-4
    count: int = 2000

    def __post_init__(self) -> None:
        require_finite_fields(self)
        check_search(self.models, self.init, self.iterations >= 1 and self.count >= 4, "one iteration and four points are")

    def check(self, pair: Pair) -> None:
        """Raise ConfigError for images."""
        if not isinstance(pair.fixed, Measure):
            raise ConfigError("affine=points is for shapes (points, curves, surfaces); for images use affine=opt")

    def __call__(self, pair: Pair[Measure]) -> Result:
        begin = time.perf_counter()
        self.check(pair)
        fixed, moving = (m.thinned(self.count) for m in (pair.fixed, pair.source))
        objective = ShapeObjective(self.similarity, fixed, moving)
        low, high = fixed.bounds()
        middle = ((low + high) / 2).cpu().double().numpy()
        candidates: list[Candidate] = []
        domain, target = shape_center_and_covariance(moving), shape_center_and_covariance(fixed)
        for start in starts(domain, target, middle, self.init, self.models):
            p = torch.zeros(parameter_count("translation", fixed.ndim), dtype=torch.float64)
            candidates.append(list(fit_models(objective, start, p, self.models, self.iterations, self.tolerance))[-1])
        best = min(candidates, key=lambda c: c.similarity)
        remarks = _doubts_of_placement(best.matrix(), "shape")
        for remark in remarks:
            log.warning("affine: %s", remark)
        log.info("affine of shapes, start %s: dissimilarity %.6f", best.start.name, best.similarity)
        return replace(affine_result(Affine(best.matrix()), best.similarity, [history_row(best)], begin), remarks=remarks)
