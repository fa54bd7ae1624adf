"""The metric of the affine search: changes of the moved image, and a search that needs few evaluations in it."""

import itertools

import numpy as np
import pytest
import torch
from conftest import blobs

from rdmm import Grid, Image, Pair
from rdmm.similarity import NCC, SSD
from rdmm.stages import affine_search
from rdmm.stages.affine_metric import image_metric, whitening
from rdmm.stages.affine_model import Start, matrix_rates, parameter_count, world_matrix
from rdmm.stages.affine_search import ImageObjective, fit


def scene(d, similarity, seed=3):
    """An image registered to itself on an oblique, anisotropic grid; and parameters of an affine map that is not the identity."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0]
    affine = np.eye(d + 1)
    affine[:d, :d], affine[:d, d] = turn * np.array([2.0, 1.5, 3.0])[:d], 40
    grid = Grid((33, 38, 29)[:d], affine)
    image = Image(blobs(grid, seed), grid)
    center = grid.corners().mean(0)
    return ImageObjective(similarity, Pair(image, image)), Start(center, center, np.eye(d))


def rates(p, start, length):
    return matrix_rates(len(p), start, world_matrix(p, start, length).numpy(), length)


@pytest.mark.parametrize(("d", "model"), [*itertools.product((2, 3), ("translation", "rigid", "similarity", "affine"))])
def test_rates_are_derivatives_of_the_matrix(d, model):
    """Exactly where the parameters are 0, and nearly for a small rotation, from a start that turns the image."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    start = Start(np.array([30.0, -10, 5])[:d], np.array([3.0, 20, -8])[:d], turn)
    for size, tolerance in ((0.0, 1e-12), (0.05, 0.1)):
        p = size * torch.randn(parameter_count(model, d), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        exact = torch.autograd.functional.jacobian(lambda q: world_matrix(q, start, 90.0), p)[:-1].movedim(-1, 0).numpy()
        assert np.abs(rates(p, start, 90.0) - exact).max() <= tolerance * np.abs(exact).max()


@pytest.mark.parametrize("d", [2, 3])
def test_the_metric_is_that_of_finite_differences(d):
    objective, start = scene(d, SSD())
    n = d + d * d
    p = 0.05 * torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def moved(p):
        return objective.moved(world_matrix(p, start, objective.length))

    found = image_metric(moved(p), world_matrix(p, start, objective.length).numpy(), rates(p, start, objective.length))
    steps = 1e-3 * torch.eye(n, dtype=torch.float64)
    weight = moved(p).mask.sqrt()
    changes = torch.stack([((moved(p + s).data - moved(p - s).data) * weight).flatten() for s in steps])
    exact = (changes @ changes.T).numpy()
    exact *= n / np.trace(exact)
    assert np.trace(found) == pytest.approx(n)
    assert np.abs(found - exact).max() < 0.25 * np.abs(exact).max()


def test_the_hessian_of_the_squared_difference_is_close_to_the_identity_in_the_metric():
    """At the optimum; without it, directions differ by two orders of magnitude."""
    objective, start = scene(2, SSD())
    p = torch.zeros(6, dtype=torch.float64)
    to_p = whitening(objective.metric(world_matrix(p, start, objective.length), rates(p, start, objective.length)))
    e = 2e-2

    def hessian(basis):
        f = {}
        for i in range(6):
            for j in range(6):
                ends = [p + e * (a * basis[:, i] + b * basis[:, j]) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
                values = [float(objective(world_matrix(x, start, objective.length))) for x in ends]
                f[i, j] = values[0] - values[1] - values[2] + values[3]
        return np.array([[f[i, j] for j in range(6)] for i in range(6)])

    plain, white = (np.linalg.cond(hessian(b)) for b in (torch.eye(6, dtype=torch.float64), 0.2 * to_p))
    assert plain > 20 and white < 5


@pytest.mark.parametrize("d", [2, 3])
def test_a_search_in_the_metric_takes_few_evaluations(d, monkeypatch):
    objective, start = scene(d, NCC())
    evaluations = []
    monkeypatch.setattr(ImageObjective, "__call__", lambda self, m, f=ImageObjective.__call__: evaluations.append(m) or f(self, m))
    p = 0.03 * torch.randn(d + d * d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)

    def search():
        evaluations.clear()
        found = fit(objective, start, p, "affine", 60, 1e-8)
        return float(found.similarity), float((found.matrix() - torch.eye(d + 1)).abs().max()), len(evaluations)

    f, error, count = search()
    assert f < 1e-6 and error < 1e-2
    monkeypatch.setattr(affine_search, "whitening", lambda metric: torch.eye(len(metric), dtype=torch.float64))
    assert count < 0.75 * search()[2]


def test_an_image_without_structure_has_a_metric_too():
    grid = Grid((9, 8), np.eye(3))
    flat = Image(torch.ones(1, 2, 9, 8), grid)
    assert torch.isfinite(whitening(image_metric(flat, np.eye(3), np.random.default_rng(0).random((4, 2, 3))))).all()
