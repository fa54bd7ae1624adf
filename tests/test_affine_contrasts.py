"""The affine stage finds the same map in every contrast, and turns an image against its header only where that is clearly better."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import blobs

from rdmm import AffineOpt, Grid, Image, Pair
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.similarity import NCC, CorrelationRatio
from rdmm.spatial.transform import Affine
from rdmm.stages.affine_model import rotation_degrees
from rdmm.stages.affine_search import Candidate, ImageObjective

CURVES = {
    "equal": lambda x: x,
    "inverted": lambda x: 1 - x,
    "pd": lambda x: x.sqrt(),
    "t2": lambda x: torch.sin(math.pi * x**0.8),
    "bump": lambda x: torch.exp(-(((x - 0.4) / 0.3) ** 2)),
}


def anatomy(grid, turn_degrees=0.0):
    """A scene of blobs in [0, 1], rotated about the center of the grid and shifted by a voxel."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    center = (x.flatten(2)[..., 0] + x.flatten(2)[..., -1]) / 2
    angle = math.radians(turn_degrees)
    matrix = torch.eye(grid.ndim + 1, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix[:-1, -1] = center[0] - matrix[:-1, :-1] @ center[0] + grid.spacing[0]
    scene = Image(blobs(grid, 7, 10).double(), grid).moved_by(Affine(matrix)).data
    return (scene / scene.max()).clamp(0, 1).float()


def found(fixed, moving, grid, **options):
    return AffineOpt(**options)(Pair(Image(fixed, grid), Image(moving, grid)))


@pytest.mark.parametrize(("d", "name"), [*((2, name) for name in CURVES), (3, "t2")])
def test_every_contrast_gives_the_same_map(d, name):
    grid = Grid((26, 24, 22)[:d], np.diag([*(4.0, 4.0, 5.0)[:d], 1]))
    fixed, moving = anatomy(grid), anatomy(grid, 12)
    x = grid.identity(fixed)
    best = found(fixed, moving, grid, similarity=NCC(), models=["translation", "rigid"], init="header").transform(x)
    result = found(fixed, CURVES[name](moving), grid, models=["translation", "rigid"])
    assert not result.remarks
    error = grid.length * (result.transform(x) - best).norm(dim=1).mean() / 4.0
    assert error < (0.05 if name in ("equal", "inverted") else 0.5)  # voxels


@pytest.mark.parametrize("name", ["equal", "inverted"])
def test_an_image_that_is_turned_against_its_header_is_turned_back(name):
    grid = Grid((40, 44), np.diag([4.0, 4.0, 1]))
    result = found(anatomy(grid), CURVES[name](anatomy(grid)).flip(2, 3), grid, models=["translation", "rigid"])
    assert rotation_degrees(result.transform.matrix) == pytest.approx(180, abs=3)
    assert len(result.remarks) == 1 and "was rotated by 180 degrees against the files' geometry" in result.remarks[0]


def test_a_rotation_that_one_measure_does_not_confirm_is_kept_out_and_said():
    grid = Grid((40, 44), np.diag([4.0, 4.0, 1]))
    result = found(anatomy(grid), CURVES["t2"](anatomy(grid)).flip(2, 3), grid, models=["translation", "rigid"])
    assert rotation_degrees(result.transform.matrix) < 45
    assert len(result.remarks) == 1 and re.match(r"rotated by another (179|180|181) degrees", result.remarks[0])


@pytest.mark.parametrize("seed", [2, 4])
def test_a_small_scene_is_not_turned(seed):
    """Two ellipses in rings look alike when turned by 180 degrees: the files' geometry decides."""
    result = AffineOpt()(shapes_pair(seed, (32, 32))[0])
    assert rotation_degrees(result.transform.matrix) < 45


def test_linear_relations_are_seen():
    grid = Grid((40, 44), np.eye(3))
    a = anatomy(grid)
    noisy = a + 0.02 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    for name, linear in {"equal": True, "inverted": True, "t2": False, "bump": False}.items():
        assert CorrelationRatio().is_linear(Image(CURVES[name](a), grid), Image(noisy, grid)) == linear


def test_a_small_part_that_agrees_by_chance_does_not_win(monkeypatch):
    """The moving image is the fixed one with noise. A quarter of it agrees better with another part of the fixed image."""
    grid = Grid((40, 32), np.eye(3))
    fixed = anatomy(grid)
    noise = torch.randn(fixed.shape, generator=torch.Generator().manual_seed(0))
    moving = torch.cat([(fixed + 0.1 * noise)[:, :, :30], (fixed + 0.07 * noise)[:, :, :10]], 2)
    stage, level = AffineOpt(), ImageObjective(CorrelationRatio(), Pair(Image(fixed, grid), Image(moving, grid)))
    start = next(iter(stage._candidates(level))).start
    near, far = (Candidate("translation", start, torch.tensor([x, 0.0]), 1.0, 0.0) for x in (0.0, 30.0))
    near, far = (replace(c, similarity=float(level(c.matrix()))) for c in (near, far))
    assert far.similarity < near.similarity / 1.5
    monkeypatch.setattr(AffineOpt, "_candidates", lambda self, level: [far, near])
    assert stage._best_start(level, level)[0] is near
