"""The metric of LDDMM and RDMM: from momentum to velocity, and the source term of RDMM."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdmm.regularizer.smoother import MultiGaussian
from rdmm.regularizer.weights import smooth
from rdmm.spatial import ops
from rdmm.spatial.grid import Grid
from rdmm.types import Tensor


@dataclass(frozen=True)
class Metric:
    """v = K m, or K(w) m with w_i = G_sigma * h_i if there are pre-weights."""

    smoother: MultiGaussian
    weight_sigma: float
    grid: Grid

    def weights(self, h: Tensor | None) -> Tensor | None:
        return None if h is None else smooth(h, self.weight_sigma, self.grid)

    def velocity(self, m: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """v (b, d, *s), model (7), and nu_i = K_{sigma_i} * (w_i m), (b, n, d, *s), or None without pre-weights."""
        w = self.weights(h)
        if w is None:
            return self.smoother(m, self.grid), None
        nu = self.smoother.parts(m, w, self.grid)
        return (w.unsqueeze(2) * nu).sum(1), nu

    def source(self, m: Tensor, nu: Tensor, h: Tensor) -> Tensor:
        """The source term of RDMM (3.10), model (12): sum_i q_i grad h_i, with q_i = G_sigma * (m . nu_i) half of dE / dh_i."""
        q = smooth((m.unsqueeze(1) * nu).sum(2), self.weight_sigma, self.grid)
        return torch.stack([(q * dh).sum(1) for dh in ops.jacobian(h, self.grid)], 1)
