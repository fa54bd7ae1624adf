"""Affine maps as functions of their parameters, and the starts of the search for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch

from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure
from rdmm.spatial.transform import Affine
from rdmm.types import ConfigError, Tensor

Model = Literal["translation", "rigid", "similarity", "affine"]


def parameter_count(model: Model, d: int) -> int:
    """Length of the parameter vector of a model in d dimensions."""
    rotations = d * (d - 1) // 2
    counts = {"translation": d, "rigid": d + rotations, "similarity": d + rotations + 1, "affine": d + d * d}
    if model not in counts:
        raise ConfigError(f"affine model must be one of {', '.join(get_args(Model))}, not {model!r}")
    return counts[model]


@lru_cache
def _units(d: int, sign: int) -> np.ndarray:
    """The unit skew matrices (sign -1) or symmetric ones (sign 1), each flat: (d(d-1)/2 or d(d+1)/2, d^2)."""
    pairs = itertools.combinations(range(d), 2) if sign < 0 else itertools.combinations_with_replacement(range(d), 2)
    out = []
    for i, j in pairs:
        unit = np.zeros((d, d))
        unit[j, i], unit[i, j] = 1.0, sign
        out.append(unit.flatten())
    return np.stack(out)


def skew(r: Tensor, d: int) -> Tensor:
    """Skew matrix of d(d-1)/2 rotation parameters, radians."""
    return (r @ torch.as_tensor(_units(d, -1)).to(r)).view(d, d)


def symmetric(s: Tensor, d: int) -> Tensor:
    """Symmetric matrix of d(d+1)/2 parameters."""
    return (s @ torch.as_tensor(_units(d, 1)).to(s)).view(d, d)


@dataclass(frozen=True, eq=False)
class Start:
    """The map that all parameters 0 stand for: y = target_center + R0 (x - domain_center), in world millimeters (shapes: domain units)."""

    domain_center: np.ndarray
    target_center: np.ndarray
    rotation: np.ndarray
    name: str = "header"


def world_matrix(p: Tensor, start: Start, length: float) -> Tensor:
    """Homogeneous matrix (d+1, d+1) between world millimeters for parameters p:

        y = target_center + length * t + exp(skew(r)) exp(S) R0 (x - domain_center),

    translation t in domain units of ``length`` millimeters, rotation r in radians, S symmetric: one log-scale
    (similarity) or a full symmetric matrix (affine). All are of order 1, so that one step length suits them all.
    """
    d = start.domain_center.size
    rotations = d * (d - 1) // 2
    linear = torch.eye(d).to(p)
    rest = p[d + rotations :]
    if p.numel() > d:
        linear = torch.linalg.matrix_exp(skew(p[d : d + rotations], d))
    if rest.numel() == 1:
        linear = linear * torch.exp(rest)
    elif rest.numel():
        linear = linear @ torch.linalg.matrix_exp(symmetric(rest, d))
    linear = linear @ torch.as_tensor(start.rotation).to(p)
    domain, target = (torch.as_tensor(c).to(p) for c in (start.domain_center, start.target_center))
    shift = target + length * p[:d] - linear @ domain
    return torch.cat([torch.cat([linear, shift[:, None]], 1), torch.eye(d + 1).to(p)[d:]])


def matrix_rates(count: int, start: Start, matrix: np.ndarray, length: float) -> np.ndarray:
    """(count, d, d+1) derivatives of ``world_matrix`` by its parameters at a matrix (d+1, d+1), exact where they are 0.

    Elsewhere they are those of turning and stretching the matrix further, which is the same where rotations and stretches are small.
    """
    d = start.domain_center.size
    linear = [np.eye(d)[None]] if count == d + len(_units(d, -1)) + 1 else [_units(d, 1).reshape(-1, d, d)]
    generators = np.concatenate([_units(d, -1).reshape(-1, d, d), *linear])[: count - d]
    out = np.zeros((count, d, d + 1))
    out[:d, :, d] = length * np.eye(d)
    out[d:, :, :d] = generators @ matrix[:d, :d]
    out[d:, :, d] = -out[d:, :, :d] @ start.domain_center
    return out


def rotation_degrees(matrix: Tensor) -> float:
    """Angle, in degrees, of the rotation nearest to a homogeneous matrix (d+1, d+1)."""
    linear = matrix[:-1, :-1].detach().double().cpu()
    left, _, right = torch.linalg.svd(linear)
    return math.degrees(math.acos(max(-1.0, min(1.0, (float((left @ right).trace()) - (len(linear) - 2)) / 2))))


def scale_factor(matrix: Tensor) -> float:
    """By which a homogeneous matrix (d+1, d+1) changes lengths, on the average: the d-th root of its determinant."""
    linear = matrix[:-1, :-1].detach().double().cpu()
    return abs(float(torch.linalg.det(linear))) ** (1 / len(linear))


def in_frame(matrix: Tensor, grid: Grid) -> Affine:
    """A world matrix as a transform in the frame of ``grid``."""
    frame = torch.as_tensor(grid.frame, dtype=matrix.dtype, device=matrix.device)
    return Affine(torch.linalg.inv(frame) @ matrix @ frame)


def expand_parameters(p: Tensor, model: Model, d: int) -> Tensor:
    """Parameters of the same map in a larger model."""
    count, rotations = parameter_count(model, d), d * (d - 1) // 2
    out = p.new_zeros(count)
    out[: min(p.numel(), d + rotations)] = p[: d + rotations]
    rest = p[d + rotations :]
    if rest.numel() == 1 and model == "affine":
        for k, (i, j) in enumerate(itertools.combinations_with_replacement(range(d), 2)):
            out[d + rotations + k] = rest[0] if i == j else 0.0
    elif rest.numel():
        out[d + rotations :] = rest
    return out


def rotates(models: Sequence[Model]) -> bool:
    """Whether a sequence of models, from small to large, holds one that rotates."""
    return models[-1] != "translation"


CenterAndCovariance = tuple[np.ndarray, np.ndarray]


def image_center_and_covariance(image: Image) -> CenterAndCovariance:
    """Center of mass (d,) and covariance (d, d) in world millimeters; mass is Image.mass."""
    x = image.grid.to_world(image.grid.identity(image.data.double()))[0].flatten(1)
    mass = image.mass().flatten()
    return _weighted_center_and_covariance(x, mass / ops.total(mass, 0).clamp_min(1e-12))


def shape_center_and_covariance(measure: Measure) -> CenterAndCovariance:
    """Center of mass (d,) and covariance (d, d) of a measure's first item, in the unit of its points."""
    atoms = measure.atoms()
    assert atoms.weights is not None
    x, mass = atoms.points[0].detach().double(), atoms.weights[0].detach().double()
    return _weighted_center_and_covariance(x, mass / ops.total(mass, 0))


def _weighted_center_and_covariance(x: Tensor, mass: Tensor) -> CenterAndCovariance:
    """Those of points x (d, n) with masses (n,) that sum to 1."""
    center = ops.total(x * mass)
    offset = x - center[:, None]
    covariance = torch.stack([ops.total(offset * (mass * along)) for along in offset])
    return center.cpu().numpy(), covariance.cpu().numpy()


def starts(domain: CenterAndCovariance, target: CenterAndCovariance, middle: np.ndarray, kind: str, models: Sequence[Model]) -> list[Start]:
    """Starts of the search.

    Args:
        domain, target: of the shape that the map takes points from, and of the one that it takes them to.
        middle: center of the rotations for ``header``.
        kind: ``header`` (the files' own geometry), ``com`` (centers of mass), ``axes`` (principal axes, in every orientation without
            a reflection), or ``auto``: all of them.
        models: the models that will be fitted; if none of them rotates, no start does.
    """
    d = len(middle)
    (domain_center, domain_covariance), (target_center, target_covariance) = domain, target
    out = []
    if kind in ("header", "auto"):
        out.append(Start(middle, middle, np.eye(d), "header"))
    if kind in ("com", "auto"):
        out.append(Start(domain_center, target_center, np.eye(d), "com"))
    if kind in ("axes", "auto") and rotates(models):
        domain_axes, target_axes = np.linalg.eigh(domain_covariance)[1], np.linalg.eigh(target_covariance)[1]
        for signs in itertools.product((1, -1), repeat=d):
            rotation = target_axes @ np.diag(signs) @ domain_axes.T
            if np.linalg.det(rotation) > 0:
                out.append(Start(domain_center, target_center, rotation, "axes"))
    return out
