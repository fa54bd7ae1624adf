"""Affine maps by their parameters, and where a search for them starts."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
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
    turns = d * (d - 1) // 2
    counts = {"translation": d, "rigid": d + turns, "similarity": d + turns + 1, "affine": d + d * d}
    if model not in counts:
        raise ConfigError(f"affine model must be one of {', '.join(get_args(Model))}, not {model!r}")
    return counts[model]


def skew(r: Tensor, d: int) -> Tensor:
    """Skew matrix of d(d-1)/2 rotation parameters, radians."""
    out = r.new_zeros(d, d)
    for value, (i, j) in zip(r, itertools.combinations(range(d), 2), strict=True):
        unit = r.new_zeros(d, d)
        unit[i, j], unit[j, i] = -1.0, 1.0
        out = out + value * unit
    return out


@dataclass(frozen=True, eq=False)
class Start:
    """y = centre_m + R0 (x - centre_f), world millimetres: what the parameters are relative to."""

    fixed_centre: np.ndarray
    moving_centre: np.ndarray
    rotation: np.ndarray
    name: str = "header"


def world_matrix(p: Tensor, start: Start, length: float) -> Tensor:
    """Homogeneous matrix (d+1, d+1) between world millimetres for parameters p:

        y = centre_m + length * t + exp(skew(r)) exp(S) R0 (x - centre_f),

    translation t in domain units of ``length`` millimetres, rotation r in radians, S symmetric: one log-scale
    (similarity) or a full symmetric matrix (affine). All of order 1, so that one step length suits them all.
    """
    d = start.fixed_centre.size
    turns = d * (d - 1) // 2
    linear = torch.eye(d).to(p)
    rest = p[d + turns :]
    if p.numel() > d:
        linear = torch.linalg.matrix_exp(skew(p[d : d + turns], d))
    if rest.numel() == 1:
        linear = linear * torch.exp(rest)
    elif rest.numel():
        stretch = p.new_zeros(d, d)
        for value, (i, j) in zip(rest, itertools.combinations_with_replacement(range(d), 2), strict=True):
            unit = p.new_zeros(d, d)
            unit[i, j] = unit[j, i] = 1.0
            stretch = stretch + value * unit
        linear = linear @ torch.linalg.matrix_exp(stretch)
    linear = linear @ torch.as_tensor(start.rotation).to(p)
    fixed, moving = (torch.as_tensor(c).to(p) for c in (start.fixed_centre, start.moving_centre))
    shift = moving + length * p[:d] - linear @ fixed
    last = p.new_zeros(1, d + 1)
    last[0, d] = 1.0
    return torch.cat([torch.cat([linear, shift[:, None]], 1), last])


def turned_by(matrix: Tensor) -> float:
    """Degrees by which the rotation nearest to a homogeneous matrix turns."""
    linear = matrix[:-1, :-1].detach().double().cpu()
    left, _, right = torch.linalg.svd(linear)
    return math.degrees(math.acos(max(-1.0, min(1.0, (float((left @ right).trace()) - (len(linear) - 2)) / 2))))


def in_frame(matrix: Tensor, grid: Grid) -> Affine:
    """A world matrix as a transform in the frame of ``grid``."""
    frame = torch.as_tensor(grid.frame, dtype=matrix.dtype, device=matrix.device)
    return Affine(torch.linalg.inv(frame) @ matrix @ frame)


def widened(p: Tensor, model: Model, d: int) -> Tensor:
    """The same map with the parameters of a larger model."""
    count, turns = parameter_count(model, d), d * (d - 1) // 2
    out = p.new_zeros(count)
    out[: min(p.numel(), d + turns)] = p[: d + turns]
    rest = p[d + turns :]
    if rest.numel() == 1 and model == "affine":
        for k, (i, j) in enumerate(itertools.combinations_with_replacement(range(d), 2)):
            out[d + turns + k] = rest[0] if i == j else 0.0
    elif rest.numel():
        out[d + turns :] = rest
    return out


CentreAndCovariance = tuple[np.ndarray, np.ndarray]


def moments_of(image: Image) -> CentreAndCovariance:
    """Centre of mass (d,) and covariance (d, d) in world millimetres; mass is intensity above the minimum, in the mask."""
    x = image.grid.to_world(image.grid.identity(image.data.double()))[0].flatten(1)
    mass = image.data[:1].double().mean(1)
    mass = (mass - mass.min()).flatten()
    if image.mask is not None:
        mass = mass * image.mask[0, 0].flatten()
    return _centre_and_covariance(x, mass / ops.total(mass, 0).clamp_min(1e-12))


def moments_of_points(measure: Measure) -> CentreAndCovariance:
    """Centre of mass (d,) and covariance (d, d) of a measure's first item, in the unit of its points."""
    atoms = measure.atoms()
    assert atoms.weights is not None
    x, mass = atoms.points[0].detach().double(), atoms.weights[0].detach().double()
    return _centre_and_covariance(x, mass / ops.total(mass, 0))


def _centre_and_covariance(x: Tensor, mass: Tensor) -> CentreAndCovariance:
    """Of points x (d, n) with masses (n,) that sum to 1."""
    centre = ops.total(x * mass)
    offset = x - centre[:, None]
    covariance = torch.stack([ops.total(offset * (mass * along)) for along in offset])
    return centre.cpu().numpy(), covariance.cpu().numpy()


def starts(fixed: CentreAndCovariance, moving: CentreAndCovariance, middle: np.ndarray, kind: str) -> list[Start]:
    """Where to begin: ``header`` (the files' own geometry, turned about ``middle``), ``com`` (centres of mass), ``axes`` (principal
    axes, in every proper orientation), or ``auto``: all of them."""
    d = len(middle)
    (cf, sf), (cm, sm) = fixed, moving
    out = []
    if kind in ("header", "auto"):
        out.append(Start(middle, middle, np.eye(d), "header"))
    if kind in ("com", "auto"):
        out.append(Start(cf, cm, np.eye(d), "com"))
    if kind in ("axes", "auto"):
        axes_f, axes_m = np.linalg.eigh(sf)[1], np.linalg.eigh(sm)[1]
        for signs in itertools.product((1, -1), repeat=d):
            rotation = axes_m @ np.diag(signs) @ axes_f.T
            if np.linalg.det(rotation) > 0:
                out.append(Start(cf, cm, rotation, "axes"))
    return out
