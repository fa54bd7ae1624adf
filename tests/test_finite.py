"""The law of finite numbers: NaN and Inf do not come in, and do not go out into a file."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import ConfigError, Grid, OutputError, RdmmError, io
from rdmm.cli.transport import parse_weights
from rdmm.dynamics import RDMM, Integrator
from rdmm.io.tables import Table
from rdmm.io.transforms import FORMATS, write_transform
from rdmm.io.vectors import Space
from rdmm.regularizer.smoother import MultiGaussian
from rdmm.similarity.ncc import NCC
from rdmm.spatial.transform import Affine, Dense, Placed
from rdmm.transport.barycenter import barycenter

GRID = oblique((8, 7, 6), (1.0, 1.5, 2.0), angle=0.0)
BAD = [math.nan, math.inf, -math.inf]


def broken(shape, value: float) -> torch.Tensor:
    x = torch.zeros(shape, dtype=torch.float64)
    x.view(-1)[3] = value
    return x


def point_list(points: np.ndarray) -> io.PointList:
    rows = [dict.fromkeys("xyz", "0")] * len(points)
    return io.PointList(points, Table(list("xyz"), rows, list(range(2, 2 + len(rows)))))


WRITERS = {
    "image": lambda p, v: io.write_image(p / "x.nii.gz", broken((1, 1, *GRID.shape), v), GRID),
    "labels": lambda p, v: io.write_image(p / "x.nii", broken((1, 1, *GRID.shape), v), GRID, integer=True),
    "warp": lambda p, v: io.write_warp(p / "x.nii.gz", broken((1, 3, *GRID.shape), v), GRID),
    "points": lambda p, v: io.write_points(p / "x.csv", point_list(broken((4, 3), v).numpy())),
    "mesh": lambda p, v: io.write_mesh(p / "x.vtk", broken((4, 3), v).numpy(), None),
}
ENDINGS = {"itk": ["x.nii.gz", "x.mat", "x.txt", "x.tfm", "x.h5"], "fsl": ["x.nii.gz", "x.mat"], "afni": ["x.nii.gz", "x.aff12.1D"]}
ENDINGS["learn2reg"] = ["x.npz", "disp_x.nii.gz"]


@pytest.mark.fault(89)
@pytest.mark.parametrize("value", [*BAD, 1e300])
@pytest.mark.parametrize("kind", WRITERS)
def test_no_writer_writes_what_is_not_finite(kind: str, value: float, tmp_path: Path) -> None:
    if value == 1e300 and kind == "points":
        return  # text holds it
    with np.errstate(invalid="ignore"), pytest.raises(OutputError, match=r"NaN or Inf|exceed"):
        WRITERS[kind](tmp_path, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(89)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(("form", "name"), [(f, n) for f, names in ENDINGS.items() for n in names])
def test_no_transform_is_written_that_is_not_finite(form: str, name: str, value: float, tmp_path: Path) -> None:
    assert set(ENDINGS) <= set(FORMATS)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3] = value
    warp = Placed(Dense(broken((1, 3, *GRID.shape), value), GRID), GRID)
    transform = Affine(matrix) if name.endswith((".mat", ".txt", ".tfm", ".1D")) else warp
    with pytest.raises(RdmmError, match="NaN or Inf"):
        write_transform(str(tmp_path / name), transform, form, Space(GRID, GRID))
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(61, 89)
@pytest.mark.parametrize("text", ["inf,1", "1,inf", "nan,1", "-inf,1", "1e400,1", "-1,2", "0,0", "1,x"])
def test_weights_of_a_barycenter_are_finite(text: str) -> None:
    with pytest.raises(ConfigError, match="weights"):
        parse_weights(text, 2)


@pytest.mark.fault(61, 89)
@pytest.mark.parametrize("value", [*BAD, 1e400, -1.0, 0.0])
def test_a_barycenter_of_numbers_that_are_not_finite_is_an_error(value: float) -> None:
    grid = Grid.unit((8, 8))
    a = torch.rand(2, 8, 8) + 0.1
    good = {"weights": [0.5, 0.5], "blur": 0.1, "tolerance": 1e-3, "iterations": 5}
    for name in good:
        wrong = [value, 0.0] if name == "weights" else value
        if name != "iterations":
            with pytest.raises(ConfigError, match=name):
                barycenter(a, spacing=grid.spacing, **good | {name: wrong})
    a[0, 3, 3] = value
    if value != 0:
        with pytest.raises(RdmmError, match=r"densit(y|ies)"):
            barycenter(a, spacing=grid.spacing, **good)


SETTINGS = [
    "dynamics.integrator.Integrator", "optim.multiscale.LBFGS", "optim.initializers.Transported", "regularizer.penalty.WeightPenalty",
    "regularizer.smoother.MultiGaussian", "similarity.shapes.kernel.KernelDistance", "similarity.lncc.MultiKernelLNCC",
    "similarity.sinkhorn_images.GridSinkhorn", "similarity.shapes.sinkhorn.SinkhornDivergence", "stages.affine.AffineOpt",
    "stages.affine.PointAffine", "data.synthetic.contrasts.Contrasts", "data.training.augment.Augment", "data.intensity.Normalize",
    "data.synthetic.volumes.Volumes", "optim.initializers.Regions", "optim.problem.Problem", "similarity.sum.Sum", "dynamics.rdmm.RDMM",
]  # fmt: skip
NEEDED = {
    "MultiGaussian": {"sigmas": [0.1, 0.2], "weights": [0.5, 0.5]},
    "Regions": {"weights": {1: [1.0, 0.0]}, "background": [0.5, 0.5]},
    "Sum": {"terms": {"a": NCC()}, "weights": {"a": 0.5}},
}
NEEDED["RDMM"] = {"smoother": MultiGaussian(**NEEDED["MultiGaussian"]), "integrator": Integrator()}
NEEDED["Problem"] = {"dynamics": RDMM(**NEEDED["RDMM"]), "similarity": NCC()}


def replaced(value: Any, number: float) -> Any:
    """``value`` with ``number`` for its first number; None if it has none."""
    if isinstance(value, float):
        return number
    if isinstance(value, Mapping):
        parts = {k: replaced(v, number) for k, v in value.items()}
        return parts if parts and None not in parts.values() else None
    if isinstance(value, list | tuple) and value and isinstance(value[0], float):
        return [number, *value[1:]]
    return None


@pytest.mark.fault(68, 89)
@pytest.mark.parametrize("number", BAD)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_finite(name: str, number: float) -> None:
    module, _, kind = name.rpartition(".")
    good = getattr(importlib.import_module(f"rdmm.{module}"), kind)(**NEEDED.get(kind, {}))
    tried = 0
    for field in dataclasses.fields(good):
        wrong = replaced(getattr(good, field.name), number)
        if wrong is not None:
            tried += 1
            with pytest.raises(ConfigError):
                dataclasses.replace(good, **{field.name: wrong})
    assert tried
