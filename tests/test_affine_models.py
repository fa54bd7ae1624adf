"""What an affine search may do is what its models say, wherever it starts: in the plane and in space, of images and of shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rdmm import AffineOpt, ConfigError, Grid, Image, Measure, Pair
from rdmm.similarity import SSD, KernelDistance
from rdmm.stages.affine import PointAffine
from rdmm.stages.base import Result

MODELS = ("translation", "rigid", "similarity", "affine")


def turn(d, degrees=40.0):
    """A rotation in every plane of space."""
    out = np.eye(d)
    for i, j in itertools.combinations(range(d), 2):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        one = np.eye(d)
        one[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        out = out @ one
    return out


def linear(result: Result, d: int, grid: Grid | None = None) -> np.ndarray:
    """The matrix (d, d) of a result, in world millimeters where a grid is given."""
    matrix = result.transform.matrix.double().numpy() if grid is None else np.asarray(result.transform.in_world(grid))
    return matrix[:d, :d]


def check(a: np.ndarray, model: str) -> None:
    """The matrix is one of the model."""
    size = {"translation": 1.0, "rigid": 1.0, "similarity": np.trace(a @ a.T) / len(a)}.get(model)
    assert np.linalg.det(a) > 0
    assert size is None or np.abs(a @ a.T - size * np.eye(len(a))).max() < 1e-9
    assert model != "translation" or np.abs(a - np.eye(len(a))).max() < 1e-9


def bar(d, grid, rotation, stretch):
    """A long, rotated and stretched blob."""
    x = (grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64))).numpy()[0].reshape(d, -1).T - 30) @ rotation
    scales = np.array([14.0, 6.0, 4.0][:d]) * stretch
    return Image(torch.as_tensor(np.exp(-((x / scales) ** 2).sum(1) / 2).reshape(1, 1, *grid.shape)).float(), grid)


CASES = [(d, model, init) for d, model, init in itertools.product((2, 3), MODELS[:3], ("auto", "axes", "com")) if d == 2 or init == "axes"]
CASES = [(d, model, "auto" if model == "translation" else init) for d, model, init in CASES if (model, init) != ("translation", "com")]


@pytest.mark.parametrize(("d", "largest", "init"), dict.fromkeys(CASES))
def test_images(d, largest, init):
    grid = Grid((10, 11, 9)[:d], np.diag([*[6.0, 5.5, 6.2][:d], 1.0]))
    pair = Pair(bar(d, grid, np.eye(d), 1.0), bar(d, grid, turn(d), np.array([1.3, 1.0, 0.9])[:d]))
    result = AffineOpt(SSD(), MODELS[: MODELS.index(largest) + 1], voxels=(8,), iterations=2, init=init)(pair)
    check(linear(result, d, grid), largest)
    if largest != "translation" and init != "com":
        assert np.abs(linear(result, d, grid) - np.eye(d)).max() > 0.1


@pytest.mark.parametrize(("d", "largest", "init"), dict.fromkeys(CASES))
def test_shapes(d, largest, init):
    x = np.random.default_rng(0).random((12, d)) * np.array([0.6, 0.2, 0.1])[:d]
    fixed, moving = (Measure(torch.as_tensor(y.T[None].copy()).float()) for y in (x, x @ turn(d) * np.array([1.2, 0.9, 1.1])[:d] + 0.1))
    result = PointAffine(KernelDistance(sigmas=[0.3]), [largest], iterations=2, init=init)(Pair(fixed, moving))
    check(linear(result, d), largest)


@pytest.mark.fault(68)
@pytest.mark.parametrize("stage", [AffineOpt, PointAffine])
def test_models_that_would_not_be_fitted_are_refused(stage):
    for models in itertools.permutations(MODELS, 2):
        if MODELS.index(models[0]) > MODELS.index(models[1]):
            with pytest.raises(ConfigError, match="from small to large"):
                stage(models=models)
    for model in MODELS:
        with pytest.raises(ConfigError, match="each once"):
            stage(models=[model, model])
    with pytest.raises(ConfigError, match="starts from a rotation"):
        stage(models=["translation"], init="axes")
