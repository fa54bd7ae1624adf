"""The debiased Sinkhorn divergence of two images, as densities on one grid (model (37))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rdmm.similarity.statistics import overlap
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.ops import expand_like, total
from rdmm.transport.on_grids import potentials
from rdmm.transport.sinkhorn import Potentials, divergence
from rdmm.types import ConfigError, DivergenceError, InputError, Tensor, require_finite_fields, require_length

NEGATIVE_FRACTION = 1e-3
"""Negative intensities up to this fraction of the highest one count as 0: the low-pass of the pyramid makes such values. Not measured."""


@dataclass(frozen=True)
class GridSinkhorn:
    """S(a, b) = W(a, b) - W(a, a) / 2 - W(b, b) / 2 + eps / 2 (|a| - |b|)^2, mean over channels; (b,), in squared domain units.

    W is entropic transport with the cost |x - y|^2 / 2 (half the cost of the 2017 paper, model (34)): the divergence of a and
    its translation by v is |v|^2 / 2. It also compares structures that do not overlap. Gradients are the dual potentials (envelope
    theorem), so no iteration is differentiated, and memory is a few volumes.

    Args:
        blur: sqrt(eps), in domain units; smaller details are not matched. Not much smaller than a voxel.
        reach: sqrt(rho), in domain units; mass that would move much further is destroyed and created instead. None: balanced.
        p: exponent of the cost; only 2 is possible.
        normalise: for unbalanced transport only. True: divide both images by the mean of their masses, which keeps their ratio;
            False: intensities are the masses of voxels. Balanced transport always scales each image to mass 1.
        tolerance: marginal error (L1, as a fraction of the mass) at which the iteration stops.
        iterations: largest number of iterations on each level.
    """

    blur: float = 0.03
    reach: float | None = None
    p: int = 2
    normalise: bool = False
    tolerance: float = 0.01
    iterations: int = 100

    def __post_init__(self) -> None:
        require_finite_fields(self)
        require_length("similarity.blur", self.blur)
        if self.reach is not None:
            require_length("similarity.reach", self.reach)
        if self.p != 2:
            raise ConfigError(f"similarity.p must be 2: on grids only the cost |x - y|^2 / 2 is separable; got {self.p}")
        if not self.tolerance > 0 or self.iterations < 1:
            raise ConfigError(f"similarity: tolerance must be > 0 and iterations >= 1, not {self.tolerance}, {self.iterations}")

    def __call__(self, moved: Image, target: Image) -> Tensor:
        """(b,) divergences.

        Raises:
            InputError: an image is negative, constant, or (the target) empty.
            DivergenceError: the moved image is empty or not finite.
        """
        a, b = self._densities(moved, target)
        with torch.autocast(a.device.type, enabled=False):
            values = _Divergence.apply(a.flatten(0, 1), b.flatten(0, 1), target.grid, self)
        return values.view(a.shape[:2]).mean(1)

    def potentials(self, moved: Image, target: Image) -> Potentials:
        """The dual potentials of the pair, (b * c, *s), and the marginal error of the solution."""
        with torch.no_grad():
            a, b = self._densities(moved, target)
            return self._solve(a.flatten(0, 1), b.flatten(0, 1), target.grid)

    def _solve(self, a: Tensor, b: Tensor, grid: Grid) -> Potentials:
        return potentials(a, b, grid.spacing, self.blur, self.reach, self.tolerance, self.iterations)

    def _densities(self, moved: Image, target: Image) -> tuple[Tensor, Tensor]:
        """Masses per voxel, (b, c, *s) each."""
        weight = overlap(moved, target)
        a, b = (x.data if weight is None else x.data * weight for x in (moved, target))
        a, b = torch.broadcast_tensors(a, b)
        masses = [_masses(x, name) for x, name in ((a, "moved"), (b, "target"))]
        a, b = (x.clamp_min(0) if bool((x < 0).any()) else x for x in (a, b))
        if self.reach is not None:
            masses = [0.5 * (masses[0] + masses[1])] * 2 if self.normalise else [torch.ones_like(m) for m in masses]
        return a / expand_like(masses[0], a), b / expand_like(masses[1], b)


def _masses(x: Tensor, name: str) -> Tensor:
    """(b, c, 1...) sums of densities."""
    values = x.detach().flatten(0, 1)
    if not bool(torch.isfinite(values.sum())):
        raise DivergenceError(f"transport: the {name} image is not finite")
    if name == "moved" and not bool(values.flatten(1).any(1).all()):
        raise DivergenceError(
            "transport: the moved image is empty (0 everywhere) in a channel, or under the masks: there is no mass to move"
        )
    require_density(values, f"the {name} image")
    if bool((values.flatten(1).amin(1) == values.flatten(1).amax(1)).any()):
        raise InputError(f"transport: the {name} image is constant: no contrast (std=0), nothing to match")
    return total(x, 2).view(*x.shape[:2], *(1,) * (x.ndim - 2))


def require_density(x: Tensor, name: str) -> None:
    """Raise InputError if one of x (k, *s) has negative values (beyond rounding) or is 0 everywhere."""
    low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
    if bool((low < -NEGATIVE_FRACTION * high).any()):
        raise InputError(f"transport needs densities >= 0, but {name} goes down to {float(low.min()):g}; shift or clamp it first")
    if bool((high == 0).any()):
        raise InputError(f"transport: {name} is empty (0 everywhere) in a channel, or under the masks: there is no mass to move")


class _Divergence(torch.autograd.Function):
    """The divergence of densities (k, *s): value and gradient from the dual potentials."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, grid: Grid, solver: GridSinkhorn) -> Tensor:
        found = solver._solve(a.detach(), b.detach(), grid)
        value, *slopes = divergence(a.detach(), b.detach(), found, solver.blur**2, None if solver.reach is None else solver.reach**2)
        ctx.save_for_backward(*(s if wanted else None for s, wanted in zip(slopes, ctx.needs_input_grad[:2], strict=True)))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        slopes = (None if s is None else s * grad.view(-1, *(1,) * (s.ndim - 1)) for s in ctx.saved_tensors)
        return *slopes, None, None  # type: ignore[return-value]
