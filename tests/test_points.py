"""Geodesics of control points: the Hamiltonian's laws, gradients, inverse; registration of shapes from files to files."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rdmm import (
    LBFGS,
    ConfigError,
    Deform,
    Grid,
    Image,
    InitialConditions,
    InputError,
    Integrator,
    Measure,
    MultiGaussian,
    PointLDDMM,
    Problem,
    io,
)
from rdmm.cli import main
from rdmm.data.inputs import read_shapes
from rdmm.dynamics.points import Hamiltonian, farthest_points
from rdmm.optim.initializers import Controls, Zero
from rdmm.registration.entry import register_shapes
from rdmm.similarity import KernelDistance, SinkhornDivergence
from rdmm.spatial.pair import Correspondence, Pair
from rdmm.spatial.transform import Affine
from rdmm.stages.affine import PointAffine
from rdmm.stages.base import Chain

SMOOTHER = MultiGaussian([0.15, 0.3], [0.4, 0.6])


def conditions(d=3, n=12, seed=0, size=0.15, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q, p = (torch.rand(1, d, n, generator=generator, dtype=dtype) for _ in range(2))
    return InitialConditions(size * (p - 0.5), None, q)


@pytest.fixture(params=[2, 3])
def ic(request):
    return conditions(request.param)


def test_the_rates_are_those_of_the_hamiltonian(ic):
    system = Hamiltonian(SMOOTHER.sigmas, SMOOTHER.weights)
    q, p = ic.points.clone().requires_grad_(), ic.momentum.clone().requires_grad_()
    square = (q.unsqueeze(3) - q.unsqueeze(2)).square().sum(1)
    k = sum(w * torch.exp(-square / (2 * s**2)) for s, w in zip(SMOOTHER.sigmas, SMOOTHER.weights, strict=True))
    energy = 0.5 * torch.einsum("bdi,bij,bdj->", p, k, p)
    by_q, by_p = torch.autograd.grad(energy, (q, p))
    with torch.no_grad():
        velocity, force = system((q, p))
    assert torch.allclose(velocity, by_p, atol=1e-12)
    assert torch.allclose(force, -by_q, atol=1e-12)
    assert float(PointLDDMM(SMOOTHER).energy(ic, None)) == pytest.approx(2 * float(energy.detach()))


def test_energy_and_momenta_are_conserved(ic):
    """H by time, total momentum by translations, angular momentum by rotations."""
    dynamics = PointLDDMM(SMOOTHER, Integrator(steps=20))
    for state in dynamics.geodesic(ic, None, (0.0, 0.3, 1.0))[1:]:
        q, p = state.points, state.momentum
        now = InitialConditions(p, None, q)
        assert float(dynamics.energy(now, None)) == pytest.approx(float(dynamics.energy(ic, None)), rel=1e-6)
        assert torch.allclose(p.sum(2), ic.momentum.sum(2), atol=1e-12)
        turning = [(torch.einsum("bin,bjn->bij", *x) - torch.einsum("bjn,bin->bij", *x)) for x in ((q, p), (ic.points, ic.momentum))]
        assert torch.allclose(*turning, atol=1e-6)


def test_steps_converge_to_fourth_order(ic):
    ic = InitialConditions(4 * ic.momentum, None, ic.points)
    ends = [PointLDDMM(SMOOTHER, Integrator("rk4", steps=n)).geodesic(ic, None, (1.0,))[0].points for n in (8, 16, 64)]
    errors = [float((e - ends[2]).abs().max()) for e in ends[:2]]
    assert errors[0] / errors[1] > 10


def test_own_steps_are_those_of_torchdiffeq(ic):
    methods = (Integrator(), Integrator("dopri5", 1e-8, 1e-8))
    ends = [PointLDDMM(SMOOTHER, integrator).shoot(ic, None)(ic.points + 0.1) for integrator in methods]
    assert torch.allclose(*ends, atol=1e-5)


def test_one_point_moves_by_its_momentum_and_carries_its_neighbors():
    ic = InitialConditions(torch.tensor([[[0.2], [-0.1]]]).double(), None, torch.tensor([[[0.3], [0.5]]]).double())
    flow = PointLDDMM(MultiGaussian([0.1], [1.0])).shoot(ic, None)
    moved = flow(torch.tensor([[[0.3, 0.9], [0.5, 0.5]]]).double())
    assert torch.allclose(moved[..., 0], torch.tensor([[0.5, 0.4]]).double())
    assert float((moved[..., 1] - torch.tensor([[0.9, 0.5]]).double()).abs().max()) < 1e-4


def test_control_points_are_the_sources_own_unless_named(ic):
    source, dynamics = Measure(ic.points), PointLDDMM(SMOOTHER)
    bare = InitialConditions(ic.momentum)
    assert torch.equal(dynamics.shoot(bare, source)(ic.points), dynamics.shoot(ic, source)(ic.points))
    assert torch.equal(dynamics.energy(bare, source), dynamics.energy(ic, source))
    assert torch.equal(dynamics.flow(bare, source)[1](ic.points), dynamics.flow(ic, source)[1](ic.points))
    with pytest.raises(InputError, match="like its control points"):
        dynamics.shoot(bare, Measure(ic.points[:, :, :3]))


def test_the_inverse_brings_back(ic):
    forward, back = PointLDDMM(SMOOTHER, Integrator(steps=20)).flow(ic, None)
    x = torch.rand(1, ic.points.shape[1], 5, 4, dtype=torch.float64)
    assert torch.allclose(back(forward(x)), x, atol=1e-6)
    assert forward(x).shape == x.shape


@pytest.mark.parametrize("method", ["semi_lagrangian", "rk4"])
def test_gradients_are_those_of_finite_differences(ic, method):
    dynamics, target = PointLDDMM(SMOOTHER, Integrator(method, steps=4)), Measure(torch.rand(1, ic.points.shape[1], 9, dtype=torch.float64))
    pair = Pair(target, Measure(ic.points))
    problem = Problem(dynamics, KernelDistance("gaussian", [0.2]))

    def value(p):
        return problem.energy(InitialConditions(p, None, ic.points), pair)[0].total.sum()

    p = ic.momentum.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(p), p)
    direction, e = torch.randn_like(ic.momentum), 1e-5
    numeric = float(value(ic.momentum + e * direction) - value(ic.momentum - e * direction)) / (2 * e)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-5)


def test_compiled_sums_are_the_torch_ones():
    ic = conditions(3, 150, dtype=torch.float64)
    x, g = (torch.rand(1, 3, 200, dtype=torch.float64) for _ in range(2))
    results = []
    for dtype in (torch.float32, torch.float64):
        parts = [t.to(dtype).requires_grad_() for t in (x, ic.points, ic.momentum)]
        system = Hamiltonian(SMOOTHER.sigmas, SMOOTHER.weights)
        v, force = system.velocity(*parts), system.force(*parts[1:])
        slopes = torch.autograd.grad((v * g.to(dtype)).sum(), parts) + torch.autograd.grad(
            (force * g[..., :150].to(dtype)).sum(), parts[1:]
        )
        results.append([t.detach().double() for t in (v, force, *slopes)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))


def circle(n=60, radius=0.2, stretch=1.0, center=(0.5, 0.5)):
    t = torch.arange(n) * (2 * math.pi / n)
    points = torch.stack([center[0] + stretch * radius * t.cos(), center[1] + radius * t.sin()])[None]
    index = torch.arange(n)
    return Measure(points, cells=torch.stack([index, (index + 1) % n], 1))


def test_controls_are_spread():
    x = torch.rand(2, 500)
    chosen = farthest_points(x, 20)
    assert chosen.shape == (2, 20)
    assert float(torch.pdist(chosen.T).min()) > 0.1
    assert farthest_points(x, 900) is x
    ic = Controls(10)(Pair(circle(), circle(40), Affine(torch.diag(torch.tensor([2.0, 1, 1])))))
    assert ic.momentum.shape == (1, 2, 10)
    assert float(ic.points[0, 0].max()) > 1.2


def test_a_curve_is_brought_to_another():
    fixed, moving = circle(stretch=1.5), circle(50)
    problem = Problem(PointLDDMM(MultiGaussian([0.1, 0.2], [0.5, 0.5])), SinkhornDivergence(0.03), similarity_weight=300)
    result = Deform(problem, LBFGS([1.0], [40]), Controls(50))(Pair(fixed, moving))
    warped = moving.moved_by(result.transform)
    similarity = SinkhornDivergence(0.03)
    assert float(similarity(warped, fixed)) < 0.02 * float(similarity(moving, fixed))
    assert torch.allclose(warped.moved_by(result.inverse).points, moving.points, atol=1e-4)


def test_affine_of_shapes():
    generator = torch.Generator().manual_seed(0)
    moving = Measure(torch.rand(1, 3, 120, generator=generator, dtype=torch.float64) * torch.tensor([0.4, 0.2, 0.3]).view(1, 3, 1))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor([[0.95, -0.3, 0.0], [0.3, 0.9, 0.1], [0.05, -0.1, 1.1]])
    matrix[:3, 3] = torch.tensor([0.3, 0.2, -0.1])
    fixed = moving.moved_by(Affine(matrix))
    result = PointAffine(SinkhornDivergence(0.05, tolerance=1e-3), iterations=60, tolerance=1e-6)(Pair(fixed, moving))
    assert float((moving.moved_by(result.transform).points - fixed.points).norm(dim=1).mean()) < 5e-3
    assert torch.allclose(result.inverse(result.transform(moving.points)), moving.points)


def test_a_chain_pushes_forward_through_affine_then_flow():
    fixed, moving = circle(stretch=1.4, center=(0.7, 0.6)), circle(40, center=(0.3, 0.4))
    problem = Problem(PointLDDMM(MultiGaussian([0.1, 0.2], [0.5, 0.5])), SinkhornDivergence(0.03), similarity_weight=300)
    result = Chain([PointAffine(iterations=15), Deform(problem, LBFGS([1.0], [15]), Controls(40))])(Pair(fixed, moving))
    warped = moving.moved_by(result.transform)
    assert float(SinkhornDivergence(0.03)(warped, fixed)) < 1e-4
    assert torch.allclose(result.inverse(warped.points), moving.points, atol=1e-4)


def test_landmarks_drive_points():
    fixed, moving = circle(), circle(50)
    marks = Correspondence(torch.tensor([[[0.75], [0.5]]]), torch.tensor([[[0.7], [0.5]]]))
    for weight in (0.0, 100.0):
        problem = Problem(PointLDDMM(MultiGaussian([0.1], [1.0])), SinkhornDivergence(0.03), similarity_weight=1, landmark_weight=weight)
        result = Deform(problem, LBFGS([1.0], [20]), Controls(50))(Pair(fixed, moving, landmarks=marks))
        error = float((result.transform(marks.moving) - marks.fixed).norm())
        assert (error < 5e-3) == (weight > 0)


def write_circle(path, **settings):
    m = circle(**settings)
    points = np.column_stack([m.points[0].numpy().T * 100, np.zeros(m.points.shape[2])])
    io.write_mesh(path, points, m.cells.numpy())


def test_files_round_trip(tmp_path):
    points, cells = np.random.default_rng(0).random((20, 3)).astype(np.float32), np.array([[0, 1, 2], [3, 4, 5]])
    for k, kept in enumerate((None, cells, cells[:, :2])):
        path = tmp_path / f"{k}.vtk"
        io.write_mesh(path, points, kept, {"weights": np.arange(1.0, 21), "displacement": points})
        mesh = io.read_mesh(path)
        assert np.allclose(mesh.points, points)
        assert (mesh.cells is None) if kept is None else (mesh.cells == kept).all()
        assert (mesh.weights == np.arange(1.0, 21)).all() if kept is None else mesh.weights is None


def test_text_files(tmp_path):
    vtk = tmp_path / "a.vtk"
    vtk.write_text(
        "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 4 float\n0 0 0 1 0 0\n1 1 0 0 1 0\n"
        "POLYGONS 1 5\n4 0 1 2 3\nPOINT_DATA 4\nSCALARS s float\nLOOKUP_TABLE default\n1 2 3 4\n"
    )
    assert io.read_mesh(vtk).cells.tolist() == [[0, 1, 2], [0, 2, 3]]
    vtk.write_text("# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n0 0 0 1 0 0 1 1 0\nLINES 1 4\n3 0 1 2\n")
    assert io.read_mesh(vtk).cells.tolist() == [[0, 1], [1, 2]]
    ply = tmp_path / "a.ply"
    head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
    ply.write_text(head + "property list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    assert io.read_mesh(ply).cells.tolist() == [[0, 1, 2]]


def test_bad_files(tmp_path):
    good = tmp_path / "good.vtk"
    write_circle(good)
    data = good.read_bytes()
    for name, content, message in (
        ("cut.vtk", data[: len(data) // 2], "cut short"),
        ("text.vtk", b"hello", "not a legacy VTK"),
        ("xml.vtk", b'<?xml version="1.0"?>', "not a legacy VTK"),
        ("grid.vtk", data.replace(b"POLYDATA", b"RECTILINEAR_GRID"), "POLYDATA"),
        ("none.vtk", b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 0 float\n", "no points"),
        ("nan.vtk", b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 1 float\nnan 0 0\n", "point 0 is not finite"),
        ("far.vtk", b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 1 float\n0 0 0\nLINES 1 3\n2 0 7\n", "vertices 0"),
        ("cut.ply", b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nend_header\n12", "cut short"),
        ("a.ply", b"plx", "not a PLY"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            io.read_mesh(path)
    with pytest.raises(InputError, match=r"did you mean 'good.vtk'"):
        io.read_mesh(tmp_path / "god.vtk")


def test_register_from_files_to_files(tmp_path):
    write_circle(tmp_path / "a.vtk", stretch=1.6, n=40)
    write_circle(tmp_path / "b.vtk", n=36, center=(0.6, 0.4))
    (tmp_path / "marks.csv").write_text("fixed_x,fixed_y,moving_x,moving_y\n82,50,80,40\n18,50,40,40\n")
    out = tmp_path / "out"
    command = ["register", str(tmp_path / "a.vtk"), str(tmp_path / "b.vtk"), "-o", f"{out}/", "--landmarks", str(tmp_path / "marks.csv")]
    keys = ["optimizer.iterations=[25]", "smoother.sigmas=[0.1,0.2]", "smoother.weights=[.5,.5]"]
    done = CliRunner().invoke(main, [*command, *keys, "--json"], catch_exceptions=False)
    assert done.exit_code in (0, None), done.stderr
    summary = json.loads(done.stdout)
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    measures = summary["metrics"]
    assert measures["distance_after_mm"] < 2 < measures["distance_before_mm"]
    assert measures["tre_mm"] < 3 < measures["tre_before_mm"]
    assert measures["energy_drift"] < 1e-3
    fixed = io.read_mesh(tmp_path / "a.vtk").points
    warped = io.read_mesh(out / "Warped.vtk").points
    assert np.linalg.norm(warped[:, None] - fixed[None], axis=2).min(1).mean() < 2
    # the warps on disk take a fixed point to the moving one, and the vertices of InverseWarped there
    whole = io.read_transforms([str(out / "1Warp.nii.gz"), str(out / "0GenericAffine.mat")])
    mapped = whole(torch.as_tensor(fixed[:, :2].T[None]))[0].numpy().T
    assert np.abs(mapped - io.read_mesh(out / "InverseWarped.vtk").points[:, :2]).max() < 0.2
    back = io.read_transforms([f"[{out / '0GenericAffine.mat'},1]", str(out / "1InverseWarp.nii.gz")])
    moving = io.read_mesh(tmp_path / "b.vtk").points
    assert np.abs(back(torch.as_tensor(moving[:, :2].T[None]))[0].numpy().T - warped[:, :2]).max() < 0.2
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 3 and "--overwrite" in again.stderr
    assert (out / "report.html").stat().st_size > 10_000
    assert len(io.read_mesh(out / "Flow.vtk").cells) == 10 * 36
    info = json.loads(CliRunner().invoke(main, ["info", str(out / "Warped.vtk"), "--json"]).stdout)
    assert (info["kind"], info["vertices"], info["cells"]) == ("shape of segments", 36, 36)


def test_faults(tmp_path):
    write_circle(tmp_path / "a.vtk")
    io.write_mesh(tmp_path / "points.vtk", np.random.default_rng(0).random((9, 3)), None)
    for arguments, code, message in (
        (["a.vtk", "points.vtk"], 3, "the same kind"),
        (["a.vtk", "b.nii.gz"], 3, "b.nii.gz"),
        (["a.vtk", "a.vtk", "--fixed-mask", "m.nii.gz"], 2, "for images"),
        (["a.vtk", "a.vtk", "similarity.blurr=1"], 2, "did you mean 'similarity.blur'"),
        (["a.vtk", "a.vtk", "initializer=zero"], 2, "initializer=controls"),
        (["a.vtk", "a.vtk", "landmark_weight=1"], 2, "--landmarks"),
        (["a.vtk", "a.vtk", "barrier=1"], 2, "barrier must be 0"),
        (["a.vtk", "a.vtk", "affine=opt"], 2, "affine=points"),
        (["a.vtk", "a.vtk", "affine=none", "dynamics=lddmm"], 2, "dynamics=points"),
        (["a.vtk", "a.vtk", "affine=none", "similarity=ssd"], 3, "compares images"),
        (["a.vtk", "a.vtk", "smoother.unit=mm"], 2, "domain units"),
    ):
        paths = [str(tmp_path / a) if a.endswith((".vtk", ".gz")) else a for a in arguments]
        result = CliRunner().invoke(main, ["register", *paths, "-o", f"{tmp_path}/out/"])
        assert (result.exit_code, message in result.stderr) == (code, True), (arguments, result.stderr)
        assert not (tmp_path / "out" / "run.json").exists()
    images = Pair(*(Image(torch.rand(1, 1, 8, 8), Grid.unit((8, 8))) for _ in range(2)))
    with pytest.raises(ConfigError, match="images start"):
        Controls()(images)
    with pytest.raises(ConfigError, match="controls"):
        Zero()(Pair(circle(), circle()))


def test_same_shapes_stay(tmp_path):
    write_circle(tmp_path / "a.vtk", n=30)
    done = register_shapes(fixed=str(tmp_path / "a.vtk"), moving=str(tmp_path / "a.vtk"))
    assert done.metrics["distance_after_mm"] < 0.05


@pytest.mark.data
def test_real_shapes_are_read(data):
    shapes = read_shapes(str(data / "shapes/skulls/sapiens.vtk"), str(data / "shapes/skulls/template.vtk"))
    assert shapes.frame.ndim == 2
    assert shapes.pair.fixed.points.shape == (1, 2, 206)
    surfaces = read_shapes(str(data / "shapes/femur/3_right_femur.vtk"), str(data / "shapes/femur/4_right_femur.vtk"))
    assert surfaces.pair.fixed.cells.shape == (39996, 3)
    vessels = io.read_mesh(data / "shapes/lung_vessels/copd1_source.vtk")
    assert vessels.points.shape == (60000, 3)
    assert vessels.weights.min() > 0
