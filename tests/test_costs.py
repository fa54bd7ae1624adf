"""Costs of transport between points: exponents, powers of directions, features, and numbers (d = 1), which transport sorts."""

import numpy as np
import pytest
import torch

from rdmm import ConfigError, InputError, Measure, io, register_shapes
from rdmm.data.inputs import read_shapes
from rdmm.data.studies.meshes import Meshes
from rdmm.similarity import KernelDistance, SinkhornDivergence
from rdmm.spatial.transform import Affine
from rdmm.workflows.job import Job

EXACT = {"tolerance": 1e-10, "iterations": 3000}


def atom(x, u=None, f=None):
    """One atom of mass 1 at x, with a direction and features."""
    as_column = lambda v: None if v is None else torch.tensor([v], dtype=torch.float64).T[None]  # noqa: E731
    return Measure(as_column(x), None, as_column(u), features=as_column(f))


def numbers(n, seed=0, d=1):
    return torch.rand(1, d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reach", [None, 0.6])
def test_p_1_is_the_distance_itself(reach):
    """Two Diracs: C = |x - y|, eps = blur, rho = reach; debiased, and unbalanced by its closed form."""
    a, b, distance = atom([0.1, 0.2]), atom([0.4, 0.6]), 0.5
    found = float(SinkhornDivergence(0.2, reach, p=1, **EXACT)(a, b))
    if reach is None:
        assert found == pytest.approx(distance)
    else:
        eps, rho = 0.2, reach
        w = [2 * rho + eps - (2 * rho + eps) * np.exp(-c / (eps + 2 * rho)) for c in (distance, 0.0)]
        assert found == pytest.approx(w[0] - w[1], rel=1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_transport_of_numbers_sorts_them(p):
    """Balanced: the k-th smallest goes to the k-th smallest; the divergence and its gradient are those of the sorted numbers."""
    x, y = numbers(30), numbers(30, 1)
    moved = x.clone().requires_grad_()
    value = SinkhornDivergence(2e-3, p=p, tolerance=1e-4, iterations=5000)(Measure(moved), Measure(y))
    rank = x[0, 0].argsort().argsort()
    goal = y[0, 0].sort().values[rank]
    assert float(value.detach()) == pytest.approx(float(((x[0, 0] - goal).abs() ** p).mean() / p), abs=2 * 2e-3**p)
    (gradient,) = torch.autograd.grad(value.sum(), moved)
    if p == 2:
        arrived = (x - 30 * gradient)[0, 0]
        assert float((arrived - goal).abs().max()) < 0.02
        assert torch.equal(arrived.argsort(), x[0, 0].argsort())
    else:
        assert float((30 * gradient[0, 0] - (x[0, 0] - goal).sign()).abs().median()) < 0.05


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_powers_of_directions(k, d):
    """Two Diracs by Feydy 2017 (10) and (11), and varifolds with <u, v>^k."""
    u, v = torch.eye(d, dtype=torch.float64)[0].tolist(), [0.6, 0.8, 0.0][:d]
    x, y = [0.1, 0.2, 0.3][:d], [0.4, 0.6, 0.3][:d]
    a, b, square = atom(x, u), atom(y, v), 0.25
    turned = 1 - 0.6**k
    assert float(SinkhornDivergence(0.2, cost="sum", alpha=0.7, k=k)(a, b)) == pytest.approx(square / 2 + 0.7 * turned)
    assert float(SinkhornDivergence(0.2, cost="product", alpha=0.7, k=k)(a, b)) == pytest.approx(square / 2 * (1 + 0.7 * turned))
    assert float(SinkhornDivergence(0.2, p=1, cost="product", alpha=0.7, k=k)(a, b)) == pytest.approx((square * (1 + 0.7 * turned)) ** 0.5)
    if k % 2 == 0:
        kernel = KernelDistance(sigmas=[0.4], directions="varifold", k=k)
        assert float(kernel(a, b)) == pytest.approx(1 - np.exp(-square / 0.32) * 0.6**k)
        back = atom(y, [-c for c in v])
        assert float(kernel(a, back)) == pytest.approx(float(kernel(a, b)))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("size", [1, 5])
def test_features_cost_their_squared_distance(size, p):
    f, g = np.linspace(0, 1, size).tolist(), np.linspace(0.5, 2, size).tolist()
    apart = sum((s - t) ** 2 for s, t in zip(f, g, strict=True))
    a, b = atom([0.1, 0.2, 0.3], f=f), atom([0.4, 0.6, 0.3], f=g)
    found = float(SinkhornDivergence(0.2, cost="features", alpha=0.3, p=p)(a, b))
    assert found == pytest.approx((0.25 + 0.3 * apart) ** (p / 2) / p)


def test_features_decide_where_positions_do_not():
    """Two points on a line exchange their places if their features say so."""
    x, f = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64), torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    moved = x.clone().requires_grad_()
    similarity = SinkhornDivergence(0.05, cost="features", alpha=10.0)
    similarity(Measure(moved, features=f), Measure(x, features=f.flip(2))).sum().backward()
    assert torch.allclose(x - 2 * moved.grad, x.flip(2), atol=1e-3)


COSTS = {
    "p = 1": SinkhornDivergence(0.2, p=1, **EXACT),
    "p = 1, unbalanced": SinkhornDivergence(0.2, 0.5, p=1, **EXACT),
    "p = 1, product": SinkhornDivergence(0.2, p=1, cost="product", alpha=0.4, k=4, **EXACT),
    "k = 4": SinkhornDivergence(0.2, cost="sum", alpha=0.3, k=4, **EXACT),
    "features": SinkhornDivergence(0.2, 0.6, cost="features", alpha=0.5, **EXACT),
    "varifold": KernelDistance("gaussian", [0.3], "varifold", k=4),
}


def cloud(n, seed, d=2):
    x, u, w = (
        torch.randn(1, c, n, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64) for i, c in enumerate((d, d, 1))
    )
    weights = w[:, 0].abs() + 0.2
    return Measure(0.5 + 0.2 * x, weights / weights.sum(), u / u.norm(dim=1, keepdim=True), features=numbers(n, seed, 3))


@pytest.mark.parametrize("name", COSTS)
def test_divergences_by_these_costs(name):
    """0 only where equal, symmetric; gradients are those of finite differences."""
    a, b, similarity = cloud(8, 0), cloud(7, 10), COSTS[name]
    value = float(similarity(a, b))
    assert value > 1e-4 and float(similarity(b, a)) == pytest.approx(value, rel=1e-5) and abs(float(similarity(a, a))) < 1e-9
    x, step = a.points.clone().requires_grad_(), 1e-5 * numbers(8, 5, 2)

    def at(points):
        return similarity(Measure(points, a.weights, a.normals, features=a.features), b).sum()

    (gradient,) = torch.autograd.grad(at(x), x)
    numeric = float(at(a.points + step) - at(a.points - step)) / 2
    assert float((gradient * step).sum()) == pytest.approx(numeric, rel=1e-4)


def test_features_go_along():
    """Cells have the mean of their vertices' features; maps and thinning keep them."""
    curve = Measure(numbers(4, d=2), cells=torch.tensor([[0, 1], [2, 3]]), features=torch.tensor([[[0.0, 2.0, 4.0, 8.0]]]).double())
    assert curve.atoms().features.tolist() == [[[1.0, 6.0]]]
    assert curve.thinned(1).features.tolist() == [[[1.0]]]
    moved = curve.moved_by(Affine(2 * torch.eye(3, dtype=torch.float64)))
    assert torch.equal(moved.features, curve.features)
    assert curve.to_float32().features.dtype == torch.float32


@pytest.mark.fault(140)
def test_features_of_a_file(tmp_path):
    columns = {"pointfea": np.arange(18.0).reshape(6, 3), "radius": np.linspace(1, 2, 6)}
    for name in ("a", "b"):
        io.write_mesh(tmp_path / f"{name}.vtk", np.random.default_rng(0).random((6, 3)), None, columns)
    files = [str(tmp_path / f"{name}.vtk") for name in "ab"]
    assert read_shapes(*files, features="pointfea").pair.fixed.features.shape == (1, 3, 6)
    assert read_shapes(*files, features="radius").pair.moving.features[0].tolist() == [pytest.approx(columns["radius"].tolist())]
    assert Meshes(str(tmp_path), {"c": ["a.vtk", "b.vtk"]}, features="radius").cases()["c"]().pair.fixed.features.shape == (1, 1, 6)
    assert Job(*files, "out", features="radius").read().pair.moving.features.shape == (1, 1, 6)
    with pytest.raises(InputError, match=r"a.vtk: no point data 'radii' \(did you mean 'radius'\?\)"):
        read_shapes(*files, features="radii")


@pytest.mark.fault(140, 141)
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SinkhornDivergence(p=3), ConfigError, "p must be 1 or 2"),
        (lambda: SinkhornDivergence(k=0), ConfigError, "similarity.k must be at least 1"),
        (lambda: SinkhornDivergence(k=2.5), ConfigError, "similarity.k must be"),
        (lambda: KernelDistance(directions="varifold", k=3), ConfigError, "similarity.k must be even"),
        (lambda: KernelDistance(directions="current", k=4), ConfigError, "k=4 has an effect with directions=varifold only"),
        (lambda: SinkhornDivergence(cost="features")(atom([0.0, 1]), atom([0.0, 2])), InputError, "features"),
        (lambda: SinkhornDivergence(cost="features")(atom([0.0], f=[1.0]), atom([0.0], f=[1.0, 2.0])), InputError, "1 and 2 features"),
        (lambda: atom([0.0], f=[np.nan]), InputError, "features must be finite"),
        (lambda: read_shapes(Measure(numbers(3)), Measure(numbers(3))), InputError, "2D or 3D"),
        (lambda: Job("a.nii.gz", "b.nii.gz", "out", features="radius").read(), ConfigError, "names point data of shapes"),
        (lambda: SinkhornDivergence(p=1).displacement(numbers(2), atom([0.0]), atom([1.0])), ConfigError, "p=2"),
    ],
)
def test_faults_of_costs(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_registration_measures_the_distance_of_features():
    """Of nearest points: the same places with other features are not a match."""
    x = numbers(40, d=2)[0].T.float()
    fixed = Measure(x.T[None], features=x[:, :1].T[None])
    moving = Measure(x.T[None].roll(1, 2), features=x[:, :1].T[None].roll(1, 2) + 0.5)
    done = register_shapes(fixed, moving, overrides=["affine=none", "optimizer=none"])
    assert done.metrics["distance_after_mm"] == pytest.approx(0, abs=1e-6)
    assert done.metrics["feature_distance_before"] == pytest.approx(0.5) == pytest.approx(done.metrics["feature_distance_after"])
