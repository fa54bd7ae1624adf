"""Measures and their divergences: closed forms, symmetry, gradients, and the same results by every way of summing."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from rdmm import ConfigError, Grid, Image, InitialConditions, InputError, Integrator, Measure, MultiGaussian, PointLDDMM
from rdmm.kernels import pairwise as pairs
from rdmm.similarity import EnergyDistance, GridSinkhorn, HausdorffDivergence, KernelDistance, SinkhornDivergence, SoftMinDivergence
from rdmm.spatial.measure import frame_of, surface, voxels
from rdmm.spatial.transform import Affine

EXACT = {"tolerance": 1e-10, "iterations": 3000}
ALL = {
    "sinkhorn": SinkhornDivergence(0.2, **EXACT),
    "unbalanced": SinkhornDivergence(0.2, 0.5, **EXACT),
    "sum": SinkhornDivergence(0.2, cost="sum", alpha=0.3, **EXACT),
    "sum, unoriented": SinkhornDivergence(0.2, cost="sum", alpha=0.3, k=2, **EXACT),
    "product": SinkhornDivergence(0.2, 0.6, cost="product", alpha=0.4, **EXACT),
    "product, unoriented": SinkhornDivergence(0.2, cost="product", alpha=0.4, k=2, **EXACT),
    "gaussian": KernelDistance("gaussian", [0.1, 0.4]),
    "laplacian": KernelDistance("laplacian", [0.3]),
    "current": KernelDistance("gaussian", [0.3], "current"),
    "varifold": KernelDistance("gaussian", [0.3], "varifold"),
    "energy": EnergyDistance(),
    "softmin": SoftMinDivergence(0.2),
    "hausdorff": HausdorffDivergence(0.2, 40),
}


def cloud(n, d=3, seed=0, mass=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, u = (torch.randn(1, d, n, generator=generator, dtype=dtype) for _ in range(2))
    weights = torch.rand(1, n, generator=generator, dtype=dtype) + 0.2
    return Measure(0.5 + 0.2 * x, mass * weights / weights.sum(), u / u.norm(dim=1, keepdim=True))


def dirac(x, mass=1.0):
    return Measure(torch.tensor([x], dtype=torch.float64).T[None], torch.tensor([[mass]], dtype=torch.float64))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", ALL)
def test_zero_only_where_equal_and_symmetric(name, d):
    a, b = cloud(12, d), cloud(9, d, seed=1)
    value = float(ALL[name](a, b))
    assert value > 1e-4
    assert float(ALL[name](b, a)) == pytest.approx(value, rel=1e-5)
    assert abs(float(ALL[name](a, a))) < 1e-9


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name, d):
    a, b = cloud(8, d), cloud(7, d, seed=1)
    generator = torch.Generator().manual_seed(3)
    for part in ("points", "weights"):
        for first in (True, False):
            base = getattr(a if first else b, part)
            direction = torch.randn(base.shape, generator=generator, dtype=torch.float64)
            if part == "weights":
                direction = direction * base

            def value(x, part=part, first=first):
                parts = {k: getattr(a if first else b, k) for k in ("points", "weights", "normals")} | {part: x}
                moved = Measure(**parts)
                return ALL[name](moved, b) if first else ALL[name](a, moved)

            x = base.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(value(x).sum(), x)
            e = 1e-5
            numeric = float((value(base + e * direction) - value(base - e * direction)) / (2 * e))
            assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-8), (part, first)


def test_gradients_of_a_surface_pass_to_its_vertices():
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0.1], [0, 1, 0.2], [0.9, 1, 0.5]], dtype=torch.float64).T[None]
    cells, target = torch.tensor([[0, 1, 2], [1, 3, 2]]), cloud(6)
    for name in ("sum", "product", "current"):
        x = vertices.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ALL[name](Measure(x, cells=cells), target).sum(), x)
        direction, e = torch.randn_like(vertices), 1e-5
        values = [float(ALL[name](Measure(vertices + s * direction, cells=cells), target)) for s in (e, -e)]
        assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * e), rel=1e-4)


def test_two_diracs():
    a, b = dirac([0.1, 0.2, 0.3], 1.5), dirac([0.4, 0.1, 0.5], 0.8)
    square = 0.3**2 + 0.1**2 + 0.2**2
    eps, rho = 0.2**2, 0.5**2

    def w(m, n, c):
        return rho * (m + n) + eps * m * n - (2 * rho + eps) * (m * n) ** ((eps + rho) / (eps + 2 * rho)) * math.exp(-c / (eps + 2 * rho))

    expected = w(1.5, 0.8, square / 2) - 0.5 * (w(1.5, 1.5, 0) + w(0.8, 0.8, 0)) + 0.5 * eps * 0.7**2
    assert float(ALL["unbalanced"](a, b)) == pytest.approx(expected, rel=1e-8)
    assert float(ALL["sinkhorn"](a, b)) == pytest.approx(square / 2)
    assert float(SoftMinDivergence(0.2)(a, b)) == pytest.approx(square / 2)
    assert float(HausdorffDivergence(0.2)(a, b)) == pytest.approx(square / 2)
    k = math.exp(-square / (2 * 0.3**2))
    assert float(KernelDistance("gaussian", [0.3])(a, b)) == pytest.approx(0.5 * (1.5**2 + 0.8**2) - 1.2 * k)
    assert float(EnergyDistance()(dirac([0, 0, 0]), dirac([0.3, 0.4, 0]))) == pytest.approx(0.5)


def test_a_translation_costs_half_its_square():
    a = cloud(50)
    v = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    b = Measure(a.points + v.view(1, 3, 1), a.weights)
    assert float(ALL["sinkhorn"](a, b)) == pytest.approx(float(v @ v) / 2, rel=1e-6)


def test_small_problems_are_an_assignment():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 3, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    cost = 0.5 * torch.cdist(x[0].T, y[0].T) ** 2
    expected = float(cost[linear_sum_assignment(cost.numpy())].mean())
    found = SinkhornDivergence(0.01, tolerance=1e-3, iterations=5000)(Measure(x), Measure(y))
    assert float(found) == pytest.approx(expected, rel=1e-2)


def test_one_dimension_is_sorting():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(40, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (Measure(torch.stack([z, torch.zeros_like(z)])[None]) for z in (x, y))
    expected = float(((x.sort().values - y.sort().values) ** 2).mean() / 2)
    assert float(SinkhornDivergence(0.005, tolerance=1e-3, iterations=5000)(a, b)) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("reach", [None, 0.4])
def test_grids_and_points_agree(reach):
    grid = Grid((10, 8), np.diag([1.0, 1.2, 1]))
    a, b = (torch.rand(1, 1, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) ** 4 for k in (1, 2))
    a, b = 1.2 * a / a.sum(), b / b.sum()
    x = grid.identity(a).flatten(2)
    on_grid = GridSinkhorn(0.15, reach, **EXACT)(Image(a, grid), Image(b, grid))
    as_points = SinkhornDivergence(0.15, reach, **EXACT)(Measure(x, a.flatten(2)[:, 0]), Measure(x, b.flatten(2)[:, 0]))
    assert float(as_points) == pytest.approx(float(on_grid), rel=1e-6)


@pytest.mark.parametrize("name", ["sinkhorn", "unbalanced", "sum", "product", "gaussian", "energy", "hausdorff"])
def test_float32_is_close_to_float64(name):
    a, b = cloud(300), cloud(200, seed=1)
    results = []
    for dtype in (torch.float32, torch.float64):
        x = a.points.to(dtype).requires_grad_()
        m, t = Measure(x, a.weights.to(dtype), a.normals.to(dtype)), Measure(*(p.to(dtype) for p in (b.points, b.weights, b.normals)))
        similarity = ALL[name] if dtype == torch.float64 or not isinstance(ALL[name], SinkhornDivergence) else _coarse(ALL[name])
        value = similarity(m, t)
        results.append((float(value.detach()), torch.autograd.grad(value.sum(), x)[0].double()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    assert float((results[0][1] - results[1][1]).norm() / results[1][1].norm()) < 5e-3


def _coarse(s):
    return SinkhornDivergence(s.blur, s.reach, cost=s.cost, alpha=s.alpha, k=s.k, tolerance=1e-4)


def test_blocks_are_the_whole(monkeypatch):
    a, b = cloud(60), cloud(50, seed=1)
    results = []
    for block in (2**22, 100):
        monkeypatch.setattr(pairs, "BLOCK_PAIRS", block)
        x = a.points.clone().requires_grad_()
        values = [ALL[n](Measure(x, a.weights, a.normals), b).sum() for n in ("product", "varifold", "hausdorff")]
        results.append([*(float(v.detach()) for v in values), torch.autograd.grad(sum(values), x)[0]])
    assert results[0][:3] == pytest.approx(results[1][:3], rel=1e-9)
    assert torch.allclose(results[0][3], results[1][3], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_keops_is_the_same(monkeypatch):
    pytest.importorskip("pykeops", reason="KeOps is an extra: pip install 'rdmm[points]'")
    a, b = cloud(60), cloud(50, seed=1)
    results = []
    for many in (2**60, 0):
        monkeypatch.setattr(pairs, "MIN_KEOPS_PAIRS", many)
        x = a.points.clone().requires_grad_()
        values = [ALL[n](Measure(x, a.weights, a.normals), b).sum() for n in ("product", "current")]
        results.append([*(float(v.detach()) for v in values), torch.autograd.grad(sum(values), x)[0]])
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-8)
    assert torch.allclose(results[0][2], results[1][2], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reach", [None, 0.3])
def test_many_points_converge_in_tiles(reach):
    """The plan of potentials found by compiled tiles, its marginals summed densely in float64."""
    a, b = cloud(3000, dtype=torch.float32), cloud(2500, seed=1, dtype=torch.float32)
    b = Measure(b.points * 0.8 + 0.3, b.weights)
    found = SinkhornDivergence(0.03, reach, tolerance=0.02).potentials(a, b)
    x, y = (m.points[0].T.double() for m in (a, b))
    f, g, wa, wb = (u[0].double() for u in (found.f, found.g, a.weights, b.weights))
    plan = torch.exp((f[:, None] + g - 0.5 * torch.cdist(x, y) ** 2) / 0.03**2) * wa[:, None] * wb
    for marginal, u, w in ((plan.sum(1), f, wa), (plan.sum(0), g, wb)):
        wanted = w if reach is None else w * torch.exp(-u / reach**2)
        assert float((marginal - wanted).abs().sum() / wanted.sum()) < 0.03


def test_hausdorff_is_below_sinkhorn():
    for seed in range(4):
        a, b = cloud(15, seed=seed), cloud(12, seed=seed + 10)
        assert 0 < float(HausdorffDivergence(0.2, 40)(a, b)) <= float(ALL["sinkhorn"](a, b)) * (1 + 1e-6)


def test_orientation():
    a, b = cloud(10), cloud(8, seed=1)
    turned = Measure(b.points, b.weights, -b.normals)
    for name, same in (("sum", False), ("sum, unoriented", True), ("product", False), ("product, unoriented", True), ("varifold", True)):
        values = [float(ALL[name](a, x)) for x in (b, turned)]
        assert (values[0] == pytest.approx(values[1], rel=1e-6)) == same, name


def test_cells():
    square = Measure(torch.tensor([[[0.0, 2, 2, 0], [0, 0, 1, 1]]]), cells=torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])).atoms()
    assert square.weights.tolist() == [[2, 1, 2, 1]]
    assert square.normals[0].T.tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1]]
    vertices = torch.tensor([[[0.0, 2, 0], [0, 0, 1], [0, 0, 0]]])
    triangle = Measure(vertices, cells=torch.tensor([[0, 1, 2]])).atoms()
    assert triangle.weights.tolist() == [[1.0]]
    assert triangle.normals[0, :, 0].tolist() == [0, 0, 1]


def test_push_forward_moves_vertices_and_areas():
    m = Measure(torch.tensor([[[0.0, 2, 0], [0, 0, 1], [0, 0, 0]]]), cells=torch.tensor([[0, 1, 2]]))
    moved = m.moved_by(Affine(torch.diag(torch.tensor([3.0, 1, 1, 1]))))
    assert moved.atoms().weights.tolist() == [[3.0]]
    first, then = Affine(torch.diag(torch.tensor([2.0, 1, 1, 1]))), Affine(torch.eye(4) + torch.eye(4).roll(1, 1).tril(0))
    both = m.moved_by(m.composed(first, then)).points
    assert torch.allclose(both, m.moved_by(first).moved_by(then).points)


@pytest.mark.parametrize("flip", [1, -1])
def test_the_surface_of_a_label(flip):
    """Faces of a box: area, and the divergence theorem, volume = sum x . n area / 3, in any orientation of the axes."""
    labels = torch.zeros(1, 1, 12, 11, 10)
    labels[..., 3:8, 2:9, 4:7] = 2
    affine = np.diag([1.5 * flip, 1.0, 2.0, 1.0])
    affine[:3, 3] = [5, -3, 2]
    m = surface(labels, Grid((12, 11, 10), affine), 2)
    sides = np.array([5 * 1.5, 7 * 1.0, 3 * 2.0])
    assert float(m.weights.sum()) == pytest.approx(2 * (sides[0] * sides[1] + sides[1] * sides[2] + sides[0] * sides[2]))
    volume = float(((m.points * m.normals).sum(1) * m.weights).sum()) / 3
    assert volume == pytest.approx(sides.prod())
    assert float(voxels(labels, Grid((12, 11, 10), affine)).points.mean()) == pytest.approx(float(m.points.mean(2).mean()), rel=0.2)


def test_frame():
    grid = frame_of([cloud(20), cloud(20, seed=3)])
    x = grid.from_world(cloud(20, seed=3).points)
    assert float(x.min()) > 0.05
    assert float(x.max()) < 0.95


def test_faults():
    a = cloud(5)
    for parts, message in (
        ((torch.zeros(1, 4, 3),), "d = 2 or 3"),
        ((torch.full((1, 3, 2), math.nan),), "finite"),
        ((torch.zeros(1, 3, 2), -torch.ones(1, 2)), ">= 0"),
        ((torch.zeros(1, 3, 2), torch.zeros(1, 2)), "not all 0"),
        ((torch.zeros(1, 3, 2), torch.ones(1, 3)), "weights are"),
        ((torch.zeros(1, 3, 2), None, None, torch.tensor([[0, 2]])), "vertices"),
    ):
        with pytest.raises(InputError, match=message):
            Measure(*parts)
    with pytest.raises(InputError, match="one dimension"):
        SinkhornDivergence()(a, cloud(5, 2))
    with pytest.raises(InputError, match="directions"):
        SinkhornDivergence(cost="sum")(Measure(a.points), a)
    with pytest.raises(InputError, match="compares shapes"):
        SinkhornDivergence()(Image(torch.rand(1, 1, 4, 4), Grid.unit((4, 4))), a)
    with pytest.raises(InputError, match="label 3"):
        surface(torch.zeros(1, 1, 4, 4), Grid.unit((4, 4)), 3)
    with pytest.raises(InputError, match="one point"):
        frame_of([dirac([0.0, 0, 0])])
    for make, message in (
        (lambda: SinkhornDivergence(0), "blur"),
        (lambda: SinkhornDivergence(cost="normals"), "cost"),
        (lambda: KernelDistance("gauss"), "kernel"),
        (lambda: KernelDistance(sigmas=[]), "sigmas"),
        (lambda: SoftMinDivergence(-1), "blur"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["rotation", "shear", "flow"])
def test_normals_of_bare_points_turn_with_the_map(d, kind):
    """Like those of small cells at the same points; their lengths stay."""
    points, normals = (torch.rand(1, d, 40, dtype=torch.float64), torch.randn(1, d, 40, dtype=torch.float64))
    normals = 0.5 * torch.nn.functional.normalize(normals, dim=1)
    matrix = torch.eye(d + 1, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]] if kind == "rotation" else [[1.0, 0.7], [0.0, 1.5]], dtype=torch.float64)
    transform = Affine(matrix)
    inverse = torch.linalg.inv(matrix[:d, :d]).expand(40, d, d)
    if kind == "flow":
        ic = InitialConditions(0.1 * torch.randn(1, d, 5, dtype=torch.float64), None, torch.rand(1, d, 5, dtype=torch.float64))
        transform = PointLDDMM(MultiGaussian([0.2], [1.0]), Integrator(steps=10)).shoot(ic, Measure(points))
        jacobians = torch.func.jacrev(lambda x: transform(x.T[None])[0].T)(points[0].T)
        inverse = torch.linalg.inv(torch.stack([jacobians[i, :, i] for i in range(40)]))
    expected = torch.nn.functional.normalize(torch.einsum("nij,bin->bjn", inverse, normals), dim=1)
    moved = Measure(points, normals=normals).moved_by(transform)
    assert torch.allclose(moved.points, transform(points), atol=1e-12)
    assert torch.allclose(moved.normals, 0.5 * expected, atol=1e-4)
    assert Measure(points).moved_by(transform).normals is None


def test_gradients_see_normals_turn():
    points, normals = torch.rand(1, 2, 9, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1).expand(1, 2, 9)
    shear = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    moved = Measure(points, normals=normals).moved_by(Affine(torch.eye(3, dtype=torch.float64) + shear))
    (slope,) = torch.autograd.grad(moved.normals[0, 1, 0], shear)  # cof(1 + A) n has the second component -A_01
    assert slope[0, 1] == pytest.approx(-1, abs=1e-9)
