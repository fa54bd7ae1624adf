"""Scenes in which one organ deforms, and the others move nearly rigidly: the true strain is known at every voxel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.random_maps import random_affine, smooth_noise
from rdmm.data.truth import Truth
from rdmm.dynamics.svf import exponential
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Dense, Identity, composed, displacement
from rdmm.types import ConfigError, Tensor, require_finite_fields

BODY, ORGAN = 0.44, 0.13
"""Radius of the body, in the middle of the picture, and of the room that each organ has for itself, in units of the picture."""

ORGANS = 4
"""Number of organs. Their labels are 1 and above; 1 deforms."""

LEAST_SIZE = 48
"""Fewest voxels along an axis: organs are then 9 to 12 voxels wide."""


def strain(u: Tensor, grid: Grid) -> Tensor:
    """Strain of the map id + u: |log(F^T F) / 2|, the norm of its logarithmic (Hencky) strain; (b, 1, *s). It is 0 for rigid maps.

    Args:
        u: displacement (b, d, *s) in domain units.
    """
    f = torch.stack(ops.map_jacobian(u, grid), -1).movedim(1, -2)  # f[..., i, j] = d_j phi_i
    stretches = torch.linalg.eigvalsh(f.mT @ f).clamp_min(1e-6)
    return (stretches.log() / 2).square().sum(-1).sqrt().unsqueeze(1)


def _ball(x: Tensor, center: np.ndarray, radius: float, width: float) -> Tensor:
    """1 inside a ball and 0 outside, with a border of about ``width``, (1, 1, *s); x (1, d, *s) in units of the picture."""
    r = (x - torch.from_numpy(center).to(x).view(1, -1, *(1,) * (x.ndim - 2))).square().sum(1, keepdim=True).sqrt()
    return torch.sigmoid((radius - r) / (width / 4))


def _centers(rng: np.random.Generator, d: int) -> np.ndarray:
    """Centers (ORGANS, d) of organs that lie in the body, apart from each other."""
    while True:
        x = 0.5 + rng.uniform(-1, 1, (ORGANS, d)) * (BODY - ORGAN)
        gaps = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(x, 2)]
        if min(gaps) > 2 * ORGAN and float(np.linalg.norm(x - 0.5, axis=1).max()) < BODY - ORGAN:
            return x


def strain_scene(seed: int, shape: Sequence[int] = (96, 96), size: float = 0.02, noise: float = 0.03) -> Inputs:
    """A textured body with organs. The body turns and shifts rigidly; the organ 1 deforms in addition. What it moves fades around it.

    Args:
        seed: the same seed gives the same scene.
        shape: voxels along each axis, of 1 mm.
        size: root mean square of the organ's velocity along each axis, in domain units.
        noise: standard deviation of the noise, drawn apart for each image; intensities are about 0 to 1.

    Returns:
        the pair (its regions: the organ that deforms, in both images), the labels of the organs, and the true map with the regions
        ``organ`` and ``rest``, which is the body without the organ.
    """
    rng = np.random.default_rng(seed)
    grid = Grid(tuple(shape), np.eye(len(shape) + 1))
    fine = grid.resized([2 * n - 1 for n in shape])
    x = fine.identity(torch.zeros(1)) / torch.tensor(grid.extent).view(1, -1, *(1,) * grid.ndim)
    centers = _centers(rng, grid.ndim)
    body = _ball(x, np.full(grid.ndim, 0.5), BODY, 0.03)
    organs = [_ball(x, c, ORGAN * r, 0.02) for c, r in zip(centers, rng.uniform(0.7, 0.95, ORGANS), strict=True)]
    levels = rng.permutation(np.linspace(0.15, 0.45, ORGANS))
    texture = 0.08 * smooth_noise(rng, 1, fine, 0.015) + 0.08 * smooth_noise(rng, 1, fine, 0.03)
    image = body * (0.4 + texture + sum(float(a) * o for a, o in zip(levels, organs, strict=True)))
    labels = sum((float(k) * (o > 0.5) for k, o in enumerate(organs, 1)), torch.zeros_like(body))
    local = size * _ball(x, centers[0], 0.8 * ORGAN, 0.08) * smooth_noise(rng, grid.ndim, fine, 0.045)
    truth = composed(random_affine(rng, fine, 0.06, 0.0, 0.015), Dense(exponential(local, fine, 16), fine))

    def seen(data: Tensor, mode: ops.Mode = "linear") -> tuple[Image, Image]:
        """In the fixed and in the moving image."""
        whole = Image(data, fine)
        return whole.moved_by(truth, grid, mode=mode), whole.moved_by(Identity(), grid, mode=mode)

    fixed, moving = (_with_noise(i, noise, rng) for i in seen(image))
    fixed_labels, moving_labels = seen(labels, "nearest")
    organ, regions = (_mask(i) for i in seen(organs[0]))
    measured = {"organ": organ.data, "rest": _mask(seen(body)[0]).data * (1 - organ.data)}
    pair = Pair(fixed, moving, regions=regions)
    u = displacement(truth, grid, image)
    return Inputs(pair, fixed_labels, moving_labels, fixed_regions=organ, truth=Truth(u, measured))


def _with_noise(image: Image, noise: float, rng: np.random.Generator) -> Image:
    return replace(image, data=image.data + noise * torch.from_numpy(rng.standard_normal(image.data.shape, dtype=np.float32)))


def _mask(image: Image) -> Image:
    return replace(image, data=(image.data > 0.5).float())


@dataclass(frozen=True)
class StrainScenes:
    """Scenes of ``strain_scene`` for evaluation.

    Args:
        count: number of scenes.
        first: seed of the first scene; each further scene has the next seed.
    """

    count: int = 20
    shape: Sequence[int] = (96, 96)
    first: int = 0
    size: float = 0.02
    noise: float = 0.03

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if self.count < 1 or min(self.shape) < LEAST_SIZE or len(self.shape) not in (2, 3) or min(self.size, self.noise) < 0:
            given = f"{self.count}, {list(self.shape)}, {self.size}, {self.noise}"
            wanted = f"count >= 1, a shape of 2 or 3 sizes of at least {LEAST_SIZE}, size and noise >= 0"
            raise ConfigError(f"strain: needs {wanted}; got {given}")

    def cases(self) -> dict[str, Callable[[], Inputs]]:
        seeds = range(self.first, self.first + self.count)
        return {f"strain{seed:02d}": partial(strain_scene, seed, self.shape, self.size, self.noise) for seed in seeds}
