"""``--transform``: what each kind of transform fits and writes, and the settings that contradict it."""

import json
import os
from typing import get_args

import numpy as np
import pytest
from conftest import blobs

import rdmm
from rdmm import ConfigError, Grid, io
from rdmm.cli import main
from rdmm.data.given import LINEAR_MODELS
from rdmm.registration.entry import compose_settings
from rdmm.registration.typed_options import transform_overrides
from rdmm.stages.affine_model import Model
from rdmm.workflows.job import Job

LINEAR_FILES = {"0GenericAffine.mat", "Warped.nii.gz", "InverseWarped.nii.gz", "run.json", "report.html"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An image, and the same image moved by an affine map near a rigid one (in its header, so that the map is exact)."""
    folder = tmp_path_factory.mktemp("transform")
    grid = Grid((24, 20), np.diag([2.0, 2.0, 1.0]))
    angle = np.deg2rad(8)
    turn = np.array([[np.cos(angle), -np.sin(angle), 4.0], [np.sin(angle), np.cos(angle), -3.0], [0, 0, 1]])
    stretch = np.diag([1.04, 0.98, 1.0])
    for name, g in (("f", grid), ("m", Grid(grid.shape, turn @ stretch @ np.asarray(grid.affine)))):
        io.write_image(folder / f"{name}.nii.gz", blobs(grid, 3).float(), g)
    return folder, turn


def run(*words):
    with pytest.raises(SystemExit) as done:
        main([str(w) for w in words])
    return done.value.code


def test_the_models_are_named_once():
    assert get_args(Model) == LINEAR_MODELS


@pytest.mark.parametrize("model", LINEAR_MODELS)
def test_a_linear_transform_is_of_its_model(study, model):
    folder, turn = study
    done = rdmm.register(fixed=folder / "f.nii.gz", moving=folder / "m.nii.gz", transform=model)
    assert done.result.dynamics is None and not done.is_deformed and "deform" not in done.result.seconds
    assert done.config["affine"]["models"] == list(LINEAR_MODELS[: LINEAR_MODELS.index(model) + 1])
    linear = done.affine[:2, :2]
    square = linear @ linear.T
    if model == "translation":
        assert np.allclose(linear, np.eye(2), atol=1e-12)
    if model == "rigid":
        assert np.allclose(square, np.eye(2), atol=1e-6)
        assert np.allclose(linear, turn[:2, :2], atol=0.03)
    if model == "similarity":
        assert np.allclose(square, square[0, 0] * np.eye(2), atol=1e-6) and abs(square[0, 0] - 1) > 1e-9
    if model == "affine":
        assert np.allclose(linear, turn[:2, :2] @ np.diag([1.04, 0.98]), atol=0.005)


def test_a_rigid_run_writes_the_matrix_alone(study, tmp_path):
    """No warp, nor one of an earlier run in the same folder; the page can be made again."""
    folder, turn = study
    for name in ("1Warp.nii.gz", "1InverseWarp.nii.gz", "initial_conditions.safetensors"):
        (tmp_path / name).write_bytes(b"of an earlier run")
    words = ("register", folder / "f.nii.gz", folder / "m.nii.gz", "-o", f"{tmp_path}/", "--transform", "rigid", "--overwrite", "--quiet")
    assert run(*words) == 0
    assert set(os.listdir(tmp_path)) == LINEAR_FILES
    linear = io.read_transform(str(tmp_path / "0GenericAffine.mat")).matrix.numpy()[:2, :2]
    assert np.allclose(linear, turn[:2, :2], atol=0.03)
    assert "--transform rigid" in json.loads((tmp_path / "run.json").read_text())["command"]
    assert run("report", tmp_path, "--overwrite", "--quiet") == 0


def test_without_an_optimizer_the_files_are_those_of_a_linear_transform(study, tmp_path):
    folder, _ = study
    pair = {"fixed": folder / "f.nii.gz", "moving": folder / "m.nii.gz"}
    rdmm.register(**pair, optimizer="none").save(f"{tmp_path}/affine/", report=False)
    assert set(os.listdir(tmp_path / "affine")) == LINEAR_FILES - {"report.html"}
    rdmm.register(**pair, affine="none", optimizer="none").save(f"{tmp_path}/nothing/", report=False)
    assert set(os.listdir(tmp_path / "nothing")) == LINEAR_FILES - {"report.html"}  # every run has a transform
    assert np.array_equal(io.read_transform(str(tmp_path / "nothing/0GenericAffine.mat")).matrix.numpy(), np.eye(3))
    grid = Grid((8, 8), np.diag([8.0, 8, 1]))
    io.write_warp(tmp_path / "w.nii.gz", 0.01 * blobs(grid, 1).repeat(1, 2, 1, 1), grid)
    rdmm.register(**pair, initial=str(tmp_path / "w.nii.gz"), transform="rigid").save(f"{tmp_path}/warp/", report=False)
    assert {"1Warp.nii.gz", "1InverseWarp.nii.gz"} <= set(os.listdir(tmp_path / "warp"))  # the start was a warp


@pytest.mark.parametrize("name", ["svf", "lddmm", "rdmm"])
def test_a_deformation_sets_the_dynamics(name):
    def config(*overrides):
        return compose_settings(overrides).config

    assert config(*transform_overrides(name, [])) == config(f"dynamics={name}")
    assert transform_overrides(name, [f"dynamics={name}", "affine=none"]) == [f"dynamics={name}"]


@pytest.mark.parametrize(
    ("transform", "override"),
    [
        ("rigid", "dynamics=rdmm"),
        ("rigid", "affine=none"),
        ("rigid", "affine=net"),
        ("translation", "affine.models=[rigid]"),
        ("affine", "optimizer.iterations=[3]"),
        ("similarity", "smoother=fine"),
        ("rigid", "similarity_weight=1"),
        ("rigid", "stages=two_step"),
        ("rigid", "weights='a.safetensors'"),
        ("rdmm", "dynamics=svf"),
        ("svf", "stages=affine"),
        ("svf", "optimizer=none"),
    ],
)
@pytest.mark.fault(114)
def test_settings_that_contradict_the_transform(transform, override):
    with pytest.raises(ConfigError) as error:
        transform_overrides(transform, ["similarity=nmi", override])
    assert override in str(error.value) and f'transform="{transform}"' in str(error.value) and "leave out" in str(error.value)


@pytest.mark.fault(114)
def test_no_such_transform():
    for wrong in ("rigd", 5, "", ["rigid"]):
        with pytest.raises(ConfigError, match=r"transform must be one of translation, rigid.*got"):
            transform_overrides(wrong, [])
    assert transform_overrides(None, ["dynamics=rdmm"]) == []


@pytest.mark.fault(114)
def test_shapes(data, tmp_path):
    skulls = data / "shapes/skulls"
    pair = {"fixed": str(skulls / "sapiens.vtk"), "moving": str(skulls / "erectus.vtk")}
    done = rdmm.register_shapes(**pair, transform="rigid", affine__iterations=5)
    done.save(f"{tmp_path}/", report=False)
    assert set(os.listdir(tmp_path)) == {"0GenericAffine.mat", "Warped.vtk", "InverseWarped.vtk", "run.json"}
    linear = io.read_transform(str(tmp_path / "0GenericAffine.mat")).matrix.numpy()[:2, :2]
    assert np.allclose(linear @ linear.T, np.eye(2), atol=1e-5)
    with pytest.raises(ConfigError, match='transform="rdmm" is for images'):
        Job(pair["fixed"], pair["moving"], "out/", transform="rdmm").settings()


@pytest.mark.parametrize(
    ("setting", "meant"), [("affine=rigid", "rigid"), ("affine=Translation", "translation"), ("dynamics=none", "affine")]
)
@pytest.mark.fault(114)
def test_a_kind_of_transform_as_an_option(setting, meant):
    """What one would type leads to the option that does it."""
    with pytest.raises(ConfigError, match=f'use transform="{meant}"'):
        compose_settings([setting])
