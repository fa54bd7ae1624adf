"""Affine registration of images and of shapes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from rdmm.optim.lbfgs import History
from rdmm.optim.problem import Similarity
from rdmm.similarity import NCC, SinkhornDivergence
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair, with_field_of_view
from rdmm.spatial.transform import Affine
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

AXES_HANDICAP = 1.1
"""A start from principal axes is taken only if its similarity is better by this factor, so that noise rotates no image. Not measured."""

SIMILARITY_NOISE = 1e-3
"""Smaller differences of similarities are treated as equal, so that a symmetric image is not rotated by chance."""

WARN_ROTATION_DEG = 45.0
"""Warn if the search rotates by more."""

MAX_SCALE = 1.6
"""Warn if the search makes the image larger or smaller by more: a wrong unit or voxel size changes it by 2 or more. Not measured."""

AMBIGUITY_RATIO = 1.15
"""Orientations whose similarities differ by a smaller factor are reported as ambiguous. On the benchmark's pairs the wrong
orientation is 1.4 to 8 times worse."""


@dataclass(frozen=True)
class AffineOpt:
    """Affine registration of images: model after model (translation, rigid, similarity, affine), coarse to fine, by L-BFGS.

    Args:
        similarity: a global one is best; NMI for two modalities.
        models: fitted in this order on the coarsest level; finer levels fit the last one only.
        voxels: sizes of the levels, as the number of voxels along the longest edge; levels finer than the image are left out.
        iterations: of each model on each level.
        init: where the search starts: ``header`` (the files' geometry), ``com`` (centers of mass), ``axes`` (principal axes), or
            ``auto``: whichever is best after a rigid search on the coarsest level.
        tolerance: relative decrease of the similarity below which a search stops.
    """

    similarity: Similarity = field(default_factory=NCC)
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
        levels = [ImageObjective(self.similarity, level) for level in self._levels(pair)]
        best, ambiguity = self._best_start(levels[0])
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
        longest = max(pair.fixed.grid.shape)
        factors = sorted({min(1.0, n / longest) for n in self.voxels})
        return [with_field_of_view(pair.scaled(f)) for f in factors]

    def _best_start(self, level: ImageObjective) -> tuple[Candidate, list[str]]:
        """The start whose rigid search ends lowest, and doubts about it; another orientation must clearly beat that of the files."""
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
        best = min(candidates, key=_rank)
        log.info("affine start: %s", best.start.name)
        return best, _doubts_of_orientation(best, candidates) if self.init == "auto" else []


def _rank(candidate: Candidate) -> float:
    """The similarity by which starts are compared: that from principal axes counts as a little worse."""
    f = candidate.similarity
    return AXES_HANDICAP * f + SIMILARITY_NOISE if candidate.start.name == "axes" else f


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


def _doubts_of_orientation(best: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """A doubt if another orientation fits almost as well."""
    chosen, doubts = best.matrix(), []
    inverse = torch.linalg.inv(chosen)
    others = [(c.similarity, rotation_degrees(c.matrix() @ inverse)) for c in candidates]
    others = [(f, angle) for f, angle in others if angle > WARN_ROTATION_DEG]
    if others and min(others)[0] < AMBIGUITY_RATIO * best.similarity + SIMILARITY_NOISE:
        similarity, angle = min(others)
        doubts.append(
            f"rotated by another {angle:.0f} degrees the images agree about as well (dissimilarity {similarity:.3g}; that of the result is "
            f"{best.similarity:.3g}); if the result is wrong, use {option('init', 'header')} or {option('initial', 'TRANSFORM')}"
        )
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
