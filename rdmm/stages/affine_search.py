"""The affine search that images and shapes share: parameters and a start in, the best candidate out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from rdmm.kernels.available import has_kernels
from rdmm.optim.lbfgs import History, minimize
from rdmm.optim.problem import Similarity
from rdmm.similarity.parts import compare
from rdmm.spatial import ops
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair, with_field_of_view
from rdmm.spatial.placement import require_same_plane
from rdmm.spatial.transform import Affine, Identity
from rdmm.stages.affine_metric import image_metric, shape_metric, whitening
from rdmm.stages.affine_model import Model, Start, expand_parameters, in_frame, matrix_rates, parameter_count, rotates, world_matrix
from rdmm.stages.base import Result
from rdmm.types import ConfigError, DivergenceError, Tensor

Init = Literal["auto", "header", "com", "axes"]

MIN_OVERLAP = 0.2
"""Smallest fraction of the fixed image's voxels that the moving image must cover: with less, the similarity says little. Not measured."""

FIRST_STEP = 0.02
"""Largest change of a parameter in the first trial step, in domain units, radians or log-scales. Not measured."""

MIN_GRADIENT = 1e-12
"""Smaller gradients are not scaled up to FIRST_STEP."""


class Objective(Protocol):
    """The similarity (a scalar) as a function of the affine map, a homogeneous matrix (d+1, d+1)."""

    @property
    def ndim(self) -> int: ...

    @property
    def length(self) -> float:
        """What a translation parameter of 1 means, in the unit of the matrix."""
        ...

    def __call__(self, matrix: Tensor) -> Tensor: ...

    def metric(self, matrix: Tensor, rates: np.ndarray) -> np.ndarray:
        """How much the parameters change the shape, (k, k), at a matrix with the derivatives ``rates`` (k, d, d+1) by them."""
        ...


@dataclass(frozen=True, eq=False)
class ImageObjective:
    """Images: the matrix maps world millimeters, fixed -> moving."""

    similarity: Similarity
    pair: Pair[Image]

    @property
    def ndim(self) -> int:
        return self.pair.fixed.grid.ndim

    @property
    def length(self) -> float:
        return self.pair.fixed.grid.length

    def moved(self, matrix: Tensor) -> Image:
        """The moving image on the fixed grid, with a mask that is 0 outside its field of view."""
        moving, grid = self.pair.moving, self.pair.fixed.grid
        if self._frames is None:
            return with_field_of_view(self.pair).moved_by(in_frame(matrix, grid))
        from rdmm.kernels.pointwise.affine_sampling import sample_affinely

        to_index, to_world = self._frames
        data, mask = sample_affinely(moving.data, moving.mask, to_index @ matrix.double() @ to_world, grid.shape)
        return replace(moving, data=data, grid=grid, mask=mask)

    @cached_property
    def _frames(self) -> tuple[Tensor, Tensor] | None:
        """World millimeters after the search's map -> voxel indices of the moving image; those of the fixed image -> world millimeters.
        None where the whole map is not affine, or there are no kernels."""
        moving, fixed, initial = self.pair.moving, self.pair.fixed, self.pair.initial
        if not (has_kernels(moving.data) and isinstance(initial, Identity | Affine)):
            return None
        require_same_plane(moving.grid.placement, fixed.grid.placement)
        before = np.eye(self.ndim + 1) if isinstance(initial, Identity) else initial.in_world(fixed.grid)
        return torch.as_tensor(np.linalg.inv(moving.grid.affine) @ before), torch.as_tensor(np.asarray(fixed.grid.affine))

    def __call__(self, matrix: Tensor) -> Tensor:
        return self._compared(self.moved(matrix))

    def per_overlap(self, matrix: Tensor) -> float:
        """The dissimilarity divided by the overlap, to compare maps that are far apart: a small part agrees with something by chance.

        The search itself goes without, as the overlap would pull the images over each other.
        """
        moved = self.moved(matrix)
        return float(self._compared(moved)) / _coverage(moved)

    def _compared(self, moved: Image) -> Tensor:
        if _coverage(moved) < MIN_OVERLAP:
            raise DivergenceError(f"the images overlap in less than {MIN_OVERLAP:.0%} of the fixed image")
        return compare(self.similarity, moved, self.pair.fixed).sum()

    def metric(self, matrix: Tensor, rates: np.ndarray) -> np.ndarray:
        return image_metric(self.moved(matrix), matrix.numpy(), rates)


def _coverage(moved: Image) -> float:
    """The fraction of the fixed image's voxels that the moved image covers."""
    return 1.0 if moved.mask is None else float(ops.total(moved.mask, 0)) / moved.mask.numel()


@dataclass(frozen=True, eq=False)
class ShapeObjective:
    """Shapes: the matrix maps domain units, moving -> fixed."""

    similarity: Similarity
    fixed: Measure
    moving: Measure
    length: float = 1.0

    @property
    def ndim(self) -> int:
        return self.fixed.ndim

    def __call__(self, matrix: Tensor) -> Tensor:
        return self.similarity(self.moving.moved_by(Affine(matrix)), self.fixed).sum()

    def metric(self, matrix: Tensor, rates: np.ndarray) -> np.ndarray:
        return shape_metric(self.moving.atoms().points[0], rates)


@dataclass(frozen=True, eq=False)
class Candidate:
    """An affine map that the search found, and its similarity (smaller is better)."""

    model: Model
    start: Start
    parameters: Tensor
    length: float
    similarity: float

    def matrix(self) -> Tensor:
        """(d+1, d+1) homogeneous matrix."""
        return world_matrix(self.parameters, self.start, self.length)


def check_search(models: Sequence[Model], init: str, enough: bool, needs: str) -> None:
    """Raise ConfigError for an unknown ``init`` or model, for models that are not from small to large, for a start that rotates more
    than the models, or, with the text ``needs``, if not ``enough``."""
    if init not in get_args(Init):
        raise ConfigError(f"affine.init must be one of {', '.join(get_args(Init))}, not {init!r}")
    if not models or not enough:
        raise ConfigError(f"affine: at least one model, {needs} needed")
    counts = [parameter_count(model, 3) for model in models]
    if counts != sorted(set(counts)):
        raise ConfigError(f"affine.models go from small to large, each once: {', '.join(get_args(Model))}; not {', '.join(models)}")
    if init == "axes" and not rotates(models):
        raise ConfigError("affine.init=axes starts from a rotation, but affine.models holds translation only; choose auto, header or com")


def fit(objective: Objective, start: Start, p: Tensor, model: Model, iterations: int, tolerance: float) -> Candidate:
    """Fit a model by L-BFGS in the objective's metric, beginning with the parameters p of the same or of a smaller model.

    Raises:
        DivergenceError: the similarity is not finite, or the images hardly overlap, at p itself.
    """

    p = expand_parameters(p, model, objective.ndim).double()

    def matrix(p: Tensor) -> Tensor:
        return world_matrix(p, start, objective.length)

    at_p = matrix(p)
    to_parameters = whitening(objective.metric(at_p, matrix_rates(len(p), start, at_p.numpy(), objective.length)))

    def value_and_gradient(q: Tensor) -> tuple[float, Tensor]:
        q = q.detach().requires_grad_()
        f = objective(matrix(p + to_parameters @ q))
        (gradient,) = torch.autograd.grad(f, q)
        return float(f.detach()), gradient

    def first_step(direction: Tensor) -> float:
        return FIRST_STEP / float((to_parameters @ direction).abs().max().clamp_min(MIN_GRADIENT))

    q, f = minimize(value_and_gradient, torch.zeros_like(p), iterations=iterations, first_step=first_step, tolerance=tolerance)
    return Candidate(model, start, p + to_parameters @ q, objective.length, f)


def fit_models(
    objective: Objective, start: Start, p: Tensor, models: Sequence[Model], iterations: int, tolerance: float
) -> Iterator[Candidate]:
    """Fit model after model, each from the parameters of the last one; models with fewer parameters than p are left out."""
    for model in models:
        if parameter_count(model, objective.ndim) < p.numel():
            continue
        candidate = fit(objective, start, p, model, iterations, tolerance)
        p = candidate.parameters
        yield candidate


def history_row(candidate: Candidate, level: int = 0) -> dict[str, float]:
    """One row of a stage's history."""
    f = candidate.similarity
    return {"level": float(level), "parameters": float(candidate.parameters.numel()), "total": f, "similarity": f}


def affine_energy(similarity: float) -> dict[str, float]:
    """The terms of the objective for an affine map, which has neither velocity nor weights."""
    return {"total": similarity, "similarity": similarity, "velocity": 0.0, "weights": 0.0}


def affine_result(transform: Affine, similarity: float, history: History, begin: float) -> Result:
    """The result of an affine stage that began at ``begin`` (time.perf_counter)."""
    seconds = {"affine": time.perf_counter() - begin}
    return Result(transform, transform.inverse(), affine_energy(similarity), None, history, seconds)
