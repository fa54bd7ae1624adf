"""The geodesic at any time, multi-step chains, and whole maps as one warp."""

import numpy as np
import pytest
import torch

from rdmm import ConfigError, Grid, Image, io, metrics
from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.data.inputs import read_inputs
from rdmm.data.synthetic.scenes import SyntheticShapes, shapes_pair
from rdmm.registration.entry import compose_settings, run
from rdmm.registration.images import Registration
from rdmm.registration.outputs import Output
from rdmm.spatial import ops
from rdmm.spatial.transform import Affine, Identity, displacement
from rdmm.stages.base import Result

QUICK = ["affine=none", "similarity=ssd", "similarity_weight=10", "optimizer.scales=[.5,1]", "optimizer.iterations=[15,8]"]


def register_case(*keys, shape=(56, 48), seed=1):
    return run(SyntheticShapes(1, shape, first=seed).cases()[f"shapes{seed:02d}"](), compose_settings([*QUICK, *keys]))


@pytest.fixture(scope="module")
def rdmm_run():
    return register_case("dynamics=rdmm", "penalty=omt", "output.times=[0,.5,1]", "output.composite=true")


def test_times_write_the_geodesic(rdmm_run, tmp_path):
    written = {p.name for p in rdmm_run.save(f"{tmp_path}/out/")}
    kinds = {"1Warp", "Warped", "LogJacobian", "Velocity", "Momentum", "Sigma", "Weight1", "Weight2", "Weight3"}
    assert {f"t{t}_{k}.nii.gz" for t in ("0", "0.5", "1") for k in kinds} == {n for n in written if n.startswith("t")}
    read = {n: io.read_image(tmp_path / "out" / n).data for n in written if "arped" in n or "Sigma" in n or "Weight" in n or "Log" in n}
    moving = rdmm_run.pair.moving.moved_by(Identity(), rdmm_run.pair.fixed.grid).data
    assert torch.allclose(read["t0_Warped.nii.gz"], moving, atol=1e-5)
    assert torch.allclose(read["t1_Warped.nii.gz"], read["Warped.nii.gz"], atol=1e-4)
    assert float((read["t0.5_Warped.nii.gz"] - read["Warped.nii.gz"]).abs().max()) > 0.1
    assert torch.allclose(read["t0_Sigma.nii.gz"], read["Sigma0.nii.gz"], atol=1e-3)
    assert torch.allclose(read["t1_Sigma.nii.gz"], read["Sigma1.nii.gz"], atol=1e-2)
    assert float(read["t0_LogJacobian.nii.gz"].abs().max()) == 0
    start, end = (io.read_transform(str(tmp_path / "out" / n)) for n in ("t0_1Warp.nii.gz", "t1_1Warp.nii.gz"))
    x = torch.rand(1, 2, 50, dtype=torch.float64) * 30 + 10
    assert torch.allclose(start(x), x)
    whole = io.read_transform(str(tmp_path / "out/1Warp.nii.gz"))
    assert float((end(x) - whole(x)).norm(dim=1).max()) < 1e-3


def test_times_must_increase():
    for times in ([0.5, 0.5], [-0.1], [0.2, 1.2]):
        with pytest.raises(ConfigError, match=r"output\.times"):
            Output(times)


def test_the_energy_of_a_run_is_conserved(rdmm_run):
    assert 0 <= rdmm_run.metrics["energy_drift"] < 0.01


def test_a_momentum_is_that_of_its_velocity(rdmm_run):
    """v = K(w) m at any time, walls too: no mask on the velocity."""
    grid = rdmm_run.result.ic.grid(rdmm_run.pair.fixed)
    smoother = rdmm_run.dynamics.smoother
    for moment in rdmm_run.geodesic((0.0, 0.3, 1.0)):
        v = (moment.weights.unsqueeze(2) * smoother.parts(moment.momentum, moment.weights, grid)).sum(1)
        assert torch.allclose(v, moment.velocity, atol=1e-6)


def test_two_steps_pass_the_map_on():
    short = "optimizer.iterations=[4,3]"
    one, two = register_case(short), register_case(short, "stages=two_step")
    assert two.energy["similarity"] < one.energy["similarity"]
    grid = two.pair.fixed.grid
    last = two.geodesic((1.0,))[0].displacement
    whole = displacement(two.result.transform, grid, two.pair.fixed.data)
    first = displacement(two.result.before, grid, two.pair.fixed.data)
    u = ops.resize(last, grid.shape)
    assert float(u.abs().max()) > 1e-4
    assert float((ops.compose(first, u, grid, grid.identity(u)) - whole).abs().max()) < 0.5 * max(grid.spacing)
    assert metrics.inverse_consistency(two.result.transform, two.result.inverse, grid) < 0.3


def test_affine_and_deformation_as_one_warp(tmp_path):
    result = register_case("affine=opt", "dynamics=rdmm", "output.composite=true")
    names = {p.name for p in result.save(f"{tmp_path}/out/")}
    assert {"0GenericAffine.mat", "CompositeWarp.nii.gz", "InverseCompositeWarp.nii.gz"} <= names
    out = str(tmp_path / "out") + "/"
    both = io.read_transforms([f"{out}1Warp.nii.gz", f"{out}0GenericAffine.mat"])
    # -t as ANTs: the last is applied first to an image, so points go through the first one first
    one, back = io.read_transform(f"{out}CompositeWarp.nii.gz"), io.read_transform(f"{out}InverseCompositeWarp.nii.gz")
    x = torch.rand(1, 2, 40, dtype=torch.float64) * 25 + 12
    assert float((one(x) - both(x)).norm(dim=1).max()) < 0.05
    assert float((back(one(x)) - x).norm(dim=1).mean()) < 0.3


def test_regions_that_are_fixed_follow_the_first_step():
    """In the second step, pre-defined regions are those that the first has moved."""
    keys = ["dynamics=rdmm", "initializer=regions", "stages=two_step"]
    result = register_case(*keys)
    start = result.result.ic.weights[:, 0].square()
    fixed = result.inputs.fixed_regions.resampled(result.pair.fixed.grid.resized(start.shape[1:])).data[:, 0]
    moving = result.pair.regions.resampled(result.pair.regions.grid.resized(start.shape[1:])).data[:, 0]
    near, far = (float(torch.corrcoef(torch.stack([start.flatten(), x.flatten()]))[0, 1]) for x in (fixed, moving))
    assert near > far


def test_a_weight_of_zero_is_free_too_and_a_price_keeps_it_low():
    """Its h^2 starts at 1e-4, so that it can rise; here the narrowest Gaussian has the highest price."""
    pair, _, _ = shapes_pair(0, (40, 40))
    config = compose([*QUICK, "dynamics=rdmm", "smoother.weights=[0.0,0.4,0.6]", "penalty=omt"])
    deform = build(config["stages"], "stages").stages[-1]
    weights = deform(pair).ic.weights
    assert float(weights[:, 0].square().max()) < 1e-3
    assert float(weights[:, 1].std()) > 0
    assert torch.allclose(weights.square().sum(1), torch.ones_like(weights[:, 0]), atol=1e-4)


def test_region_measures(rdmm_run):
    measured = rdmm_run.metrics
    assert measured["region_dice"] > 0.9
    assert {"sd_log_jacobian_inside", "sd_log_jacobian_outside"} <= set(measured)


def test_landmarks_by_region(tmp_path):
    grid = Grid((20, 20), np.eye(3))
    file = tmp_path / "points.csv"
    file.write_text("fixed_x,fixed_y,moving_x,moving_y,region\n5,5,6,5,a\n6,6,7,6,a\n9,9,9,9,b\n")
    image = Image(torch.rand(1, 1, 20, 20), grid)
    inputs = read_inputs(image, image, landmarks=file)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = 1.0 / grid.length
    result = Registration(inputs, Result(Affine(matrix), Affine(matrix).inverse(), {}), {}, {"stages": None})
    assert result.metrics["tre_a_before_mm"] == pytest.approx(1)
    assert result.metrics["tre_a_mm"] == pytest.approx(0, abs=1e-5)
    assert result.metrics["tre_b_mm"] == pytest.approx(1)
