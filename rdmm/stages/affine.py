"""Affine registration of images and of shapes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from rdmm.optim.lbfgs import History, minimize
from rdmm.optim.problem import Similarity
from rdmm.similarity import NCC, SinkhornDivergence
from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair, with_field_of_view
from rdmm.spatial.transform import Affine
from rdmm.stages.affine_model import (
    Model,
    Start,
    in_frame,
    moments_of,
    moments_of_points,
    parameter_count,
    starts,
    turned_by,
    widened,
    world_matrix,
)
from rdmm.stages.base import Result
from rdmm.types import ConfigError, DivergenceError, InputError, Tensor

log = logging.getLogger(__name__)


Init = Literal["auto", "header", "com", "axes"]


LEAST_OVERLAP = 0.2


TURNED = 45.0
"""Degrees from which on a turn is told."""


ALIKE = 1.15
"""Ratio of two similarities up to which one cannot tell which is right; on the benchmark's pairs the wrong turn is 1.4 to 8 times worse."""


EQUAL = 1e-3
"""Difference of two similarities that says nothing: a symmetric image must not turn by chance."""


@dataclass(frozen=True)
class AffineOpt:
    """Affine registration: model after model (translation, rigid, similarity, affine), coarse to fine, by L-BFGS.

    Args:
        similarity: global ones serve best; NMI for two modalities.
        models: in this order on the coarsest scale; the last one goes on to finer scales.
        voxels: sizes of the levels, as the number of voxels along the longest edge; levels finer than the image are left out.
        iterations: of each model on each level.
        init: ``header``, ``com``, ``axes``, or ``auto``: the best of all after a rigid search on the coarsest level.
    """

    similarity: Similarity = field(default_factory=NCC)
    models: Sequence[Model] = ("translation", "rigid", "similarity", "affine")
    voxels: Sequence[int] = (24, 48, 80)
    iterations: int = 40
    init: Init = "auto"
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.init not in get_args(Init):
            raise ConfigError(f"affine.init must be one of {', '.join(get_args(Init))}, not {self.init!r}")
        if not self.models or not self.voxels or self.iterations < 1 or min(self.voxels) < 8:
            raise ConfigError("affine: at least one model, one level of 8 voxels or more, and one iteration are needed")
        for model in self.models:
            parameter_count(model, 3)

    def __call__(self, pair: Pair) -> Result:
        begin = time.perf_counter()
        if not isinstance(pair.fixed, Image):
            raise ConfigError("affine=opt is for images; for shapes (points, curves, surfaces) use affine=points")
        levels = self._levels(pair)
        start, p = self._best_start(levels[0])
        d = pair.fixed.grid.ndim
        history: History = []
        for k, level in enumerate(levels):
            for model in self.models if k == 0 else self.models[-1:]:
                if parameter_count(model, d) < p.numel():
                    continue
                p, f = self._search(level, start, widened(p, model, d), self.iterations)
                history.append({"level": float(k), "parameters": float(p.numel()), "total": f, "similarity": f})
                log.info("affine level %d %s %s: similarity %.5f", k, "x".join(map(str, level.fixed.grid.shape)), model, f)
        matrix = world_matrix(p.double(), start, pair.fixed.grid.length)
        transform = in_frame(matrix, pair.fixed.grid)
        energy = {"total": f, "similarity": f, "velocity": 0.0, "weights": 0.0}
        return Result(transform, transform.inverse(), energy, None, history, {"affine": time.perf_counter() - begin})

    def _levels(self, pair: Pair) -> list[Pair]:
        longest = max(pair.fixed.grid.shape)
        factors = sorted({min(1.0, n / longest) for n in self.voxels})
        return [with_field_of_view(pair.scaled(f)) for f in factors]

    def _best_start(self, level: Pair[Image]) -> tuple[Start, Tensor]:
        """The start whose rigid search ends lowest; another orientation must beat the files' own clearly."""
        d = level.fixed.grid.ndim
        model: Model = "rigid" if "rigid" in self.models else self.models[0]
        candidates: list[tuple[float, Start, Tensor]] = []
        middle = level.fixed.grid.corners().mean(0)
        for start in starts(moments_of(level.fixed), moments_of(level.moving), middle, self.init):
            p = torch.zeros(parameter_count("translation", d), dtype=torch.float64)
            try:
                p, _ = self._search(level, start, p, 8)
                p, f = self._search(level, start, widened(p, model, d), 12)
            except DivergenceError as error:
                log.debug("affine start %s: %s", start.name, error)
                continue
            candidates.append((f, start, p))
        if not candidates:
            raise InputError("no start of the affine search makes the images overlap; check the files' geometry, or try --init com")
        best, start, p = min(candidates, key=lambda c: 1.1 * c[0] + EQUAL if c[1].name == "axes" else c[0])
        log.info("affine start: %s", start.name)
        if self.init == "auto":
            _warn_of_turns(best, start, p, candidates, level.fixed.grid.length)
        return start, p

    def _search(self, level: Pair, start: Start, p: Tensor, iterations: int) -> tuple[Tensor, float]:
        grid = level.fixed.grid

        def objective(p: Tensor) -> tuple[float, Tensor]:
            p = p.detach().requires_grad_()
            moved = level.moved_by(in_frame(world_matrix(p, start, grid.length), grid))
            if moved.mask is not None and float(ops.total(moved.mask, 0)) < LEAST_OVERLAP * moved.mask.numel():
                raise DivergenceError("the images hardly overlap")
            f = self.similarity(moved, level.fixed).sum()
            (gradient,) = torch.autograd.grad(f, p)
            return float(f.detach()), gradient

        return minimize(
            objective,
            p.double(),
            iterations=iterations,
            first_step=lambda g: 0.02 / float(g.abs().max()),
            tolerance=self.tolerance,
        )


def _warn_of_turns(best: float, start: Start, p: Tensor, candidates: Sequence[tuple[float, Start, Tensor]], length: float) -> None:
    """Say so where the images were turned against their files' geometry, or fit about as well another way round."""
    taken = world_matrix(p, start, length)
    if (angle := turned_by(taken)) > TURNED:
        log.warning(
            "affine: the moving image was turned by %.0f degrees against the files' geometry; if that is wrong, use --init header", angle
        )
    others = [(f, a) for f, s, q in candidates if (a := turned_by(world_matrix(q, s, length) @ torch.linalg.inv(taken))) > TURNED]
    if others and min(others)[0] < ALIKE * best + EQUAL:
        log.warning(
            "affine: turned by another %.0f degrees the images agree about as well (similarity %.3g, as taken %.3g); "
            "if what was taken is wrong, use --init header or --initial",
            *reversed(min(others)),
            best,
        )


@dataclass(frozen=True)
class PointAffine:
    """Affine registration of shapes: model after model from each start, by L-BFGS on transport at a wide blur.

    Args:
        similarity: of measures; its lengths are domain units.
        models, iterations, init, tolerance: as AffineOpt; ``header``: the files' own positions.
        count: points that the search looks at, spread over each shape.
    """

    similarity: Similarity = field(default_factory=lambda: SinkhornDivergence(0.1))
    models: Sequence[Model] = ("translation", "rigid", "similarity", "affine")
    iterations: int = 30
    init: Init = "com"
    tolerance: float = 1e-4
    count: int = 2000

    def __post_init__(self) -> None:
        if self.init not in get_args(Init):
            raise ConfigError(f"affine.init must be one of {', '.join(get_args(Init))}, not {self.init!r}")
        if not self.models or self.iterations < 1 or self.count < 4:
            raise ConfigError("affine: at least one model, one iteration and four points are needed")
        for model in self.models:
            parameter_count(model, 3)

    def __call__(self, pair: Pair[Measure]) -> Result:
        begin = time.perf_counter()
        if not isinstance(pair.fixed, Measure):
            raise ConfigError("affine=points is for shapes (points, curves, surfaces); for images use affine=opt")
        fixed, moving = (m.thinned(self.count) for m in (pair.fixed, pair.source))
        low, high = fixed.bounds()
        middle, d = ((low + high) / 2).cpu().double().numpy(), fixed.ndim
        found: list[tuple[float, Start, Tensor]] = []
        for start in starts(moments_of_points(moving), moments_of_points(fixed), middle, self.init):
            p = torch.zeros(parameter_count("translation", d), dtype=torch.float64)
            for model in self.models:
                p, f = self._search(fixed, moving, start, widened(p, model, d))
            found.append((f, start, p))
        f, start, p = min(found, key=lambda c: c[0])
        log.info("affine of shapes, start %s: similarity %.6f", start.name, f)
        transform = Affine(world_matrix(p, start, 1.0))
        energy = {"total": f, "similarity": f, "velocity": 0.0, "weights": 0.0}
        history: History = [{"level": 0.0, "parameters": float(p.numel()), "total": f, "similarity": f}]
        return Result(transform, transform.inverse(), energy, None, history, {"affine": time.perf_counter() - begin})

    def _search(self, fixed: Measure, moving: Measure, start: Start, p: Tensor) -> tuple[Tensor, float]:
        def objective(p: Tensor) -> tuple[float, Tensor]:
            p = p.detach().requires_grad_()
            f = self.similarity(moving.moved_by(Affine(world_matrix(p, start, 1.0))), fixed).sum()
            (gradient,) = torch.autograd.grad(f, p)
            return float(f.detach()), gradient

        step = {"iterations": self.iterations, "tolerance": self.tolerance}
        return minimize(objective, p, first_step=lambda g: 0.02 / float(g.abs().max().clamp_min(1e-12)), **step)  # type: ignore[arg-type]
