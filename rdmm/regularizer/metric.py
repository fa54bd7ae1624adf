"""The metric of LDDMM and RDMM: from momentum to velocity, and the source term of RDMM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from rdmm.kernels.available import has_kernels
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import smooth
from rdmm.spatial.grid import Grid
from rdmm.spatial.high_order.differences import jacobian
from rdmm.types import Tensor


@dataclass(frozen=True)
class Metric:
    """v = K m, or K(w) m with w_i = G_sigma * h_i if there are pre-weights."""

    smoother: MultiGaussian
    weight_sigma: float
    grid: Grid

    def weights(self, h: Tensor) -> Tensor:
        """w_i = G_sigma * h_i, model (6)."""
        return smooth(h, self.weight_sigma, self.grid)

    def velocity(self, m: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """v = K(w) m, model (7), and m . nu_i (b, n, *s) of each nu_i = K_{sigma_i} * (w_i m); K m and None without weights."""
        if w is None:
            return self.smoother(m, self.grid), None
        if has_kernels(m):
            from rdmm.kernels.pointwise import regional

            return regional.velocity(m, w, partial(self.smoother.each, grid=self.grid))
        nu = self.smoother.parts(m, w, self.grid)
        return (w.unsqueeze(2) * nu).sum(1), (m.unsqueeze(1) * nu).sum(2)

    def source(self, powers: Tensor, h: Tensor) -> Tensor:
        """The source term of RDMM (3.10), model (12): sum_i q_i grad h_i, with q_i = G_sigma * (m . nu_i) half of dE / dh_i."""
        q = smooth(powers, self.weight_sigma, self.grid)
        if has_kernels(q):
            from rdmm.kernels import epdiff

            return epdiff.source(q, h, self.grid.spacing)
        return torch.stack([(q * dh).sum(1) for dh in jacobian(h, self.grid)], 1)
