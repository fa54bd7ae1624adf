"""Registration as a whole: properties that hold for every method."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import blobs, oblique

import rdmm
from rdmm import LDDMM, RDMM, SVF, AffineOpt, Chain, Deform, Grid, Image, InitialConditions, Integrator, MultiGaussian, Pair, Problem, io
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.optim.initializers import Regions, Zero
from rdmm.optim.multiscale import LBFGS
from rdmm.regularizer.penalty import WeightPenalty
from rdmm.runtime.warnings import collect_warnings
from rdmm.similarity import NCC, SSD
from rdmm.spatial import ops
from rdmm.spatial.transform import Affine, Dense, displacement
from rdmm.stages.base import Skip

SMOOTHER = MultiGaussian([0.06, 0.12], [0.6, 0.4])
DYNAMICS = {"SVF": SVF(SMOOTHER), "LDDMM": LDDMM(SMOOTHER), "RDMM": RDMM(SMOOTHER)}


def known_warp(grid: Grid) -> torch.Tensor:
    """A smooth displacement of about 4 % of the domain, and zero at the walls."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64)) / torch.tensor(grid.extent).view(1, -1, *(1,) * grid.ndim)
    wall = (4 * x * (1 - x)).prod(1, keepdim=True)
    return torch.cat([0.04 * torch.sin(3 * x[:, i : i + 1] + i) * wall for i in range(grid.ndim)], 1)


def warped_pair(grid: Grid, dtype=torch.float32) -> tuple[Pair, torch.Tensor]:
    """A pair in which the fixed image is the moving one, warped by a known displacement."""
    moving, u = blobs(grid, 3, 30), known_warp(grid)
    fixed = ops.sample(moving, grid.identity(u) + u, grid)
    return Pair(Image(fixed.to(dtype), grid), Image(moving.to(dtype), grid)), u


def deform(name: str, weight: float = 300.0, iterations: int = 40) -> Deform:
    return Deform(Problem(DYNAMICS[name], SSD(), similarity_weight=weight), LBFGS((0.5, 1.0), (iterations, iterations), tolerance=1e-6))


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("shape", [(32, 28), (18, 16, 14)])
def test_a_known_warp_is_recovered(name, shape):
    grid = Grid.unit(shape) if len(shape) == 2 else oblique(shape, (1, 1, 1.3))
    pair, u = warped_pair(grid)
    result = deform(name)(pair)
    found = displacement(result.transform, grid, pair.fixed.data)
    textured = (ops.jacobian(pair.fixed.data, grid)[0] ** 2 + ops.jacobian(pair.fixed.data, grid)[1] ** 2).sqrt() > 0.5
    error = (found - u).square().sum(1, keepdim=True).sqrt()
    before = u.square().sum(1, keepdim=True).sqrt()
    assert float(error[textured].mean()) < 0.4 * float(before[textured].mean())
    moved, fixed = pair.moved_by(result.transform).data, pair.fixed.data
    assert float((moved - fixed).square().mean()) < 0.03 * float((pair.moving.data - fixed).square().mean())
    assert float(ops.jacobian_determinant(found, grid).min()) > 0


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.fault(63)
def test_identical_images_give_the_identity(name):
    grid = Grid.unit((32, 30))
    image = Image(blobs(grid).float(), grid)
    result = Chain([AffineOpt(), deform(name)])(Pair(image, image))
    u = displacement(result.transform, grid, image.data)
    assert float(u.abs().max()) < 1e-4
    assert abs(result.energy["total"]) < 1e-6


@pytest.mark.parametrize("similarity", ["lncc", "ncc", "ssd", "mklncc"])
@pytest.mark.fault(63)
def test_identical_files_give_the_identity(similarity):
    grid = Grid((24, 22, 18), np.diag([2.0, 2, 2, 1]))
    image = Image(blobs(grid).float(), grid)
    result = rdmm.register(fixed=image, moving=image, similarity=similarity)
    u = displacement(result.result.transform, grid, image.data)
    assert float(u.abs().max()) < 1e-4
    assert abs(result.energy["total"]) < 1e-6


@pytest.mark.parametrize("name", DYNAMICS)
def test_permuting_and_flipping_axes_commutes_with_registration(name):
    grid = Grid.unit((32, 32))
    pair, _ = warped_pair(grid, torch.float64)

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(2, 3).flip(2)

    other = Pair(Image(turned(pair.fixed.data), grid), Image(turned(pair.moving.data), grid))
    a, b = (displacement(deform(name, iterations=5)(p).transform, grid, pair.fixed.data) for p in (pair, other))
    expected = turned(a).flip(1)  # components change places with the axes, and the flipped one its sign
    expected[:, 0] *= -1
    assert float((b - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("d", [2, 3])
def test_affine_recovers_35_mm_and_30_degrees(d):
    shape = (40, 44, 36)[:d]
    grid = Grid(shape, np.diag([4.0] * d + [1]))
    image = Image(blobs(grid, 7, 10).float(), grid)
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    truth = np.eye(d + 1)
    truth[:2, :2] = [[c, -s], [s, c]]
    truth[:d, d] = 35.0 / np.sqrt(d) * np.array([1, -1, 1])[:d]
    middle = np.eye(d + 1)
    middle[:d, d] = grid.corners().mean(0)
    truth = middle @ truth @ np.linalg.inv(middle)
    moving = Grid(shape, truth @ np.asarray(grid.affine))
    result = AffineOpt()(Pair(image, Image(image.data, moving)))
    assert isinstance(result.transform, Affine)
    found = result.transform.in_world(grid)
    corners = np.concatenate([grid.corners(), np.ones((2, 1))], 1)
    assert np.abs(found @ corners.T - truth @ corners.T).max() < 1.0  # mm, a quarter of a voxel
    assert torch.allclose(result.inverse(result.transform(grid.identity(image.data))), grid.identity(image.data), atol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_affine_tells_of_turns(d):
    """A warning reports an image that is rotated against its header, or that is ambiguous; other images give none."""
    grid = Grid((40, 44, 30)[:d], np.diag([4.0] * d + [1]))
    image = Image(blobs(grid, 7, 10).float(), grid)
    with collect_warnings() as quiet:
        AffineOpt()(Pair(image, image))
    turned = Image(image.data.flip(2, 3), grid)
    with collect_warnings() as told:
        found = AffineOpt()(Pair(image, turned)).transform
    y = found(grid.identity(image.data))
    assert torch.allclose(y, grid.identity(image.data).flip(2, 3), atol=grid.spacing[0] / 4)
    symmetric = Image((image.data + turned.data) / 2, grid)
    with collect_warnings() as ambiguous:
        AffineOpt()(Pair(symmetric, symmetric))
    assert quiet == []
    assert len(told) == 1 and "was rotated by 180 degrees against the files' geometry" in told[0] and 'init="header"' in told[0]
    assert len(ambiguous) == 1 and "rotated by another 180 degrees the images agree about as well" in ambiguous[0]


def test_affine_models_are_what_they_say():
    grid = Grid((24, 26, 22), np.diag([2.0, 2, 2, 1]))
    pair, _ = warped_pair(grid)
    for models, check in (
        (["translation"], lambda a: np.allclose(a, np.eye(3), atol=1e-6)),
        (["rigid"], lambda a: np.allclose(a @ a.T, np.eye(3), atol=1e-6)),
        (["similarity"], lambda a: np.allclose(a @ a.T, np.eye(3) * (a @ a.T)[0, 0], atol=1e-6)),
    ):
        transform = AffineOpt(models=models, voxels=(24,), init="header")(pair).transform
        assert isinstance(transform, Affine)
        assert check(transform.in_world(grid)[:3, :3])


def test_chain_composes_and_passes_the_map_on():
    grid = Grid.unit((40, 40))
    pair, _ = warped_pair(grid)
    first, second = deform("SVF", iterations=8), deform("SVF", iterations=8)
    chain = Chain([Skip(), first, second])(pair)
    one = first(pair)
    two = second(pair.with_initial(one.transform))
    x = grid.identity(pair.fixed.data)
    assert torch.allclose(chain.transform(x), one.transform(two.transform(x)), atol=1e-5)
    assert float((chain.transform(chain.inverse(x)) - x)[..., 4:-4, 4:-4].abs().max()) < 0.5 / 40
    errors = [float((pair.moved_by(t).data - pair.fixed.data).square().mean()) for t in (one.transform, chain.transform)]
    assert errors[1] <= errors[0]


def test_optimized_weights_stay_on_the_sphere_and_differ_by_region():
    pair, _, _ = shapes_pair(1, (40, 40))
    smoother = MultiGaussian([0.04, 0.08, 0.16], [0.2, 0.3, 0.5])
    problem = Problem(RDMM(smoother, Integrator(steps=5), 0.04), SSD(), WeightPenalty(1.0, 0.05), 30.0)
    result = Deform(problem, LBFGS((0.5, 1.0), (20, 10), tolerance=0.0), Zero())(pair)
    assert result.ic is not None
    h = result.ic.weights
    assert h is not None
    assert torch.allclose(h.square().sum(1), torch.ones(1), atol=1e-5)
    assert float(h.min()) >= 0
    assert float(h.std((2, 3)).max()) > 1e-4
    assert result.energy["weights"] > 0


def test_predefined_weights_stay_as_they_are():
    pair, _, _ = shapes_pair(1, (64, 64))
    smoother = MultiGaussian([0.06, 0.2], [0.5, 0.5])
    start = Regions({1: [1.0, 0.0]}, [0.0, 1.0], smoothing=0.04)
    problem = Problem(RDMM(smoother, Integrator(steps=5), 0.04), SSD(), similarity_weight=30.0)
    result = Deform(problem, LBFGS((1.0,), (5,), shooting=1.0, weights=False), start)(pair)
    assert result.ic is not None
    assert torch.allclose(result.ic.weights, start(pair).weights)
    squares = start(pair).weights.square()
    assert float(squares[:, 0].max()) > 0.95
    assert float(squares[:, 0].min()) < 1e-3


def test_regions_go_through_the_initial_map():
    grid = Grid((32, 32), np.eye(3))
    labels = torch.zeros(1, 1, 32, 32)
    labels[..., 4:12, 4:12] = 1
    pair = Pair(Image(labels, grid), Image(labels, grid), regions=Image(labels, grid))
    shift = torch.eye(3)
    shift[0, 2] = -10 / grid.length  # a fixed point x sees the moving point x - 10 voxels
    h = Regions({1: [1.0, 0.0]}, [0.0, 1.0], smoothing=0.0)(pair.with_initial(Affine(shift))).weights
    assert float(h[0, 0, 18, 8]) == 1
    assert float(h[0, 0, 8, 8]) == 0
    with pytest.raises(rdmm.ConfigError, match="pass regions="):
        Regions({1: [1.0, 0.0]}, [0.0, 1.0])(Pair(pair.fixed, pair.moving))


def test_regions_reach_the_search_where_the_fields_of_view_differ():
    pair, _, _ = shapes_pair(1, (48, 48))
    assert pair.regions is not None
    shifted = np.eye(3)
    shifted[0, 2] = 4.0
    moving = Grid((48, 48), shifted)
    problem = Problem(RDMM(MultiGaussian([0.06, 0.2], [0.5, 0.5]), Integrator(steps=4)), SSD())
    stage = Deform(problem, LBFGS((1.0,), (2,), weights=False), Regions({1: [1.0, 0.0]}, [0.0, 1.0]))
    result = stage(Pair(pair.fixed, Image(pair.moving.data, moving), regions=Image(pair.regions.data, moving)))
    assert result.ic is not None
    assert float(result.ic.weights[:, 0].max()) > 0.9


@pytest.mark.fault(64)
def test_same_seed_same_result_to_the_bit(tmp_path):
    pair, _, _ = shapes_pair(2, (48, 48))
    sums = []
    for name in ("a", "b"):
        rdmm.register(fixed=pair.fixed, moving=pair.moving, optimizer__iterations=[6, 4, 3]).save(f"{tmp_path}/{name}/")
        sums.append(
            [io.sha256(tmp_path / name / f) for f in ("1Warp.nii.gz", "1InverseWarp.nii.gz", "Warped.nii.gz", "0GenericAffine.mat")]
        )
    assert sums[0] == sums[1]


def test_save_writes_what_the_contract_says(tmp_path):
    pair, fixed_labels, moving_labels = shapes_pair(2, (48, 48))
    files = {"f": pair.fixed.data, "m": pair.moving.data, "fl": fixed_labels, "ml": moving_labels}
    for name, data in files.items():
        io.write_image(tmp_path / f"{name}.nii.gz", data, pair.fixed.grid, integer=len(name) == 2)
    p = {k: tmp_path / f"{k}.nii.gz" for k in files}
    result = rdmm.register(
        fixed=p["f"],
        moving=p["m"],
        fixed_labels=p["fl"],
        moving_labels=p["ml"],
        dynamics="rdmm",
        similarity="ssd",
        similarity_weight=30,
        optimizer__iterations=[10, 6, 3],
    )
    written = {w.name for w in result.save(f"{tmp_path}/out/")}
    assert written == {
        "0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz", "Warped.nii.gz", "InverseWarped.nii.gz", "WarpedLabels.nii.gz",
        "Sigma0.nii.gz", "Sigma1.nii.gz", "initial_conditions.safetensors", "run.json", "report.html",
    }  # fmt: skip
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["status"] == "done"
    assert run["metrics"]["dice"] > run["metrics"]["dice_before"]
    assert len(run["inputs"]["fixed"]["sha256"]) == 64
    assert run["config"]["dynamics"]["_target_"] == "rdmm.dynamics.RDMM"
    assert run["history"]
    sigma = nib.load(tmp_path / "out/Sigma0.nii.gz").get_fdata()
    assert 0.03 * pair.fixed.grid.length < sigma.min() <= sigma.max() < 0.12 * pair.fixed.grid.length
    warped = io.read_image(tmp_path / "out/Warped.nii.gz").data
    names = [str(tmp_path / "out/1Warp.nii.gz"), str(tmp_path / "out/0GenericAffine.mat")]
    from rdmm.spatial.transform import framed

    again = Image(pair.moving.data, pair.moving.grid).moved_by(framed(io.read_transforms(names), pair.fixed.grid), pair.fixed.grid)
    assert float((again.data - warped).abs().max()) < 2e-3


def test_initial_transform_is_taken_in(tmp_path):
    grid = Grid((40, 40), np.diag([2.0, 2, 1]))
    image = Image(blobs(grid, 7).float(), grid)
    matrix = np.eye(3)
    matrix[0, 2] = 9.0
    moving = Image(image.data, Grid((40, 40), matrix @ np.asarray(grid.affine)))
    io.write_affine(tmp_path / "a.mat", matrix)
    result = rdmm.register(fixed=image, moving=moving, initial=str(tmp_path / "a.mat"), affine="none", optimizer="none")
    assert torch.allclose(result.warped.data, image.data, atol=1e-4)
    result.save(tmp_path / "out_")
    written = io.read_transform(str(tmp_path / "out_0GenericAffine.mat"))
    assert np.allclose(written.matrix.numpy(), matrix, atol=1e-5)


@pytest.mark.parametrize("kind", ["warp", "affine"])
def test_inverse_goes_back_through_the_initial_transform(tmp_path, kind):
    grid = Grid((40, 40), np.diag([2.0, 2, 1]))
    pair, u = warped_pair(grid)
    path = tmp_path / ("w.nii.gz" if kind == "warp" else "a.mat")
    if kind == "warp":
        io.write_warp(path, u, grid)
    else:
        io.write_affine(path, np.array([[1.0, 0.02, 3], [0, 1, -2], [0, 0, 1]]))
    result = rdmm.register(fixed=pair.fixed, moving=pair.moving, initial=str(path), affine="none", optimizer__iterations=[5, 5, 5])
    x = grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64)))[..., 8:-8, 8:-8]
    assert float((result.transform(x) - x).abs().max()) > 1
    assert float((result.inverse(result.transform(x)) - x).abs().max()) < 1.0  # mm, half a voxel


def test_multi_channel_images():
    grid = Grid.unit((40, 40))
    pair, _ = warped_pair(grid)
    both = [Image(torch.cat([x.data, 1 - x.data], 1), grid) for x in (pair.fixed, pair.moving)]
    for similarity in (SSD(), NCC()):
        result = Deform(Problem(DYNAMICS["SVF"], similarity, similarity_weight=100.0), LBFGS((1.0,), (10,)))(Pair(*both))
        assert result.history[-1]["similarity"] < 0.5 * 100 * float(similarity(both[1], both[0]))


@pytest.mark.fault(55)
def test_divergence_never_reaches_the_output():
    """With a huge similarity weight every full step diverges: the line search shortens the step, and the result is finite."""
    grid = Grid.unit((32, 32))
    pair, _ = warped_pair(grid)
    for dynamics in DYNAMICS.values():
        result = Deform(Problem(dynamics, SSD(), similarity_weight=1e12), LBFGS((1.0,), (5,)))(pair)
        assert torch.isfinite(displacement(result.transform, grid, pair.fixed.data)).all()


@pytest.mark.fault(59)
def test_half_precision_contexts_do_not_change_the_result():
    grid = Grid.unit((32, 32))
    pair, _ = warped_pair(grid)
    plain = displacement(deform("SVF", iterations=5)(pair).transform, grid, pair.fixed.data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = displacement(deform("SVF", iterations=5)(pair).transform, grid, pair.fixed.data)
    assert float((plain - cast).abs().max()) < 1e-3


def test_initial_conditions_start_a_search():
    grid = Grid.unit((40, 40))
    pair, _ = warped_pair(grid)
    result = deform("LDDMM", iterations=15)(pair)

    class Given:
        def __call__(self, pair: Pair) -> InitialConditions:
            assert result.ic is not None
            return result.ic

    again = Deform(deform("LDDMM").problem, LBFGS((1.0,), (1,)), Given())(pair)
    assert again.energy["total"] <= result.energy["total"] * 1.02
    assert isinstance(again.transform, Dense)


@pytest.mark.fault(60)
def test_mixed_types_are_moved_or_named():
    grid = Grid((24, 24), np.eye(3))
    image = blobs(grid)
    result = rdmm.register(fixed=Image(image, grid), moving=Image(image.float(), grid))
    assert result.warped.data.dtype == torch.float32
    with pytest.raises(rdmm.ConfigError, match=r"float64 on cpu but moving is torch.float32 on cpu"):
        Pair(Image(image, grid), Image(image.float(), grid))
    with pytest.raises(rdmm.ConfigError, match="meta"):
        Pair(Image(image, grid), Image(image.to("meta"), grid))
