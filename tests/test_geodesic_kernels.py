"""Compiled parts of RDMM's equation: they do what their twins in torch do, gradients too."""

import pytest
import torch
from conftest import oblique

from rdmm import Grid, MultiGaussian
from rdmm.regularizer import metric
from rdmm.regularizer.metric import Metric

SMOOTHER = MultiGaussian([0.08, 0.2], [0.4, 0.6], boundary="slip", compressibility=0.25)
GRIDS = [Grid.unit((23, 31)), oblique((11, 9, 8), (1, 1, 1.8))]


@pytest.mark.parametrize("grid", GRIDS, ids=["2d", "3d"])
@pytest.mark.parametrize("shared", [False, True])
def test_velocity_powers_and_source_are_those_of_torch(monkeypatch, grid, shared):
    """For a batch of momenta with pre-weights of their own, and with the same for all."""
    generator = torch.Generator().manual_seed(3)
    m = torch.randn(2, grid.ndim, *grid.shape, generator=generator, dtype=torch.float64)
    h = torch.rand(1 if shared else 2, 2, *grid.shape, generator=generator, dtype=torch.float64)
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(metric, "has_kernels", lambda _, compiled=compiled: compiled)
        leaves = [x.clone().requires_grad_() for x in (m, h)]
        k = Metric(SMOOTHER, 0.1, grid)
        v, powers = k.velocity(leaves[0], k.weights(leaves[1]))
        outputs = [v, powers, k.source(powers, leaves[1])]
        value = sum((x * torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view_as(x)).sum() for x in outputs)
        results.append([*outputs, *torch.autograd.grad(value, leaves)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert float((a - b).detach().abs().max()) < 1e-12 * float(b.detach().abs().max())
