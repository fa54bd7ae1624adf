"""The energy distance of curves and surfaces: bounded below, so that a search brings shapes together and not apart."""

from __future__ import annotations

import math

import pytest
import torch

from rdmm import LBFGS, ConfigError, Deform, Measure, MultiGaussian, PointLDDMM, Problem
from rdmm.optim.initializers import Controls
from rdmm.similarity import EnergyDistance, KernelDistance
from rdmm.spatial.pair import Pair
from rdmm.stages.affine import PointAffine

SIMILARITIES = {"energy": EnergyDistance(), "kernel=energy": KernelDistance("energy")}


def curve(n, radius, d=2, turns=1.0, center=0.5):
    """A closed curve; with d = 3 a spring, which is open."""
    t = torch.linspace(0, 2 * math.pi * turns, n + 1, dtype=torch.float64)[: n if d == 2 else n + 1]
    points = torch.stack([radius * t.cos(), 0.7 * radius * t.sin(), *([0.05 * t] if d == 3 else [])]) + center
    k = torch.arange(len(t))
    cells = torch.stack([k, (k + 1) % len(t)], 1)
    return Measure(points[None].float(), cells=cells if d == 2 else cells[:-1])


def surface(n, radius, center=0.5):
    """A sheet of n x n vertices, bent."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    points = radius * torch.stack([x, y, 0.5 * x * y]).flatten(1) + center
    k = torch.arange(n * n).view(n, n)
    corners = [c.flatten() for c in (k[:-1, :-1], k[1:, :-1], k[:-1, 1:], k[1:, 1:])]
    cells = torch.cat([torch.stack([corners[0], corners[1], corners[2]], 1), torch.stack([corners[1], corners[3], corners[2]], 1)])
    return Measure(points[None], cells=cells)


PAIRS = {
    "curves": (curve(30, 0.3), curve(24, 0.12, center=0.6)),
    "springs": (curve(30, 0.3, 3, 1.5), curve(24, 0.12, 3, 1.5, 0.6)),
    "surfaces": (surface(8, 0.3), surface(7, 0.1, center=0.6)),
    "points": (Measure(curve(30, 0.3).points), Measure(curve(9, 0.1).points, torch.full((1, 9), 5.0))),
}


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("kind", PAIRS)
def test_it_is_never_below_zero_and_grows_with_the_distance(kind, name):
    fixed, moving = PAIRS[kind]
    distance = SIMILARITIES[name]
    for size in (1e-2, 0.3, 1.0, 3.0, 100.0):
        scaled = Measure(moving.points * size, moving.weights, cells=moving.cells)
        values = [
            float(distance(Measure(scaled.points + s, scaled.weights, cells=scaled.cells), fixed)) for s in (0.0, 200.0, 400.0, 800.0)
        ]
        assert values[0] >= 0
        assert values == sorted(values)
    assert abs(float(distance(fixed, fixed))) < 1e-6


@pytest.mark.parametrize("kind", PAIRS)
def test_a_search_brings_shapes_together(kind):
    fixed, moving = PAIRS[kind]
    problem = Problem(PointLDDMM(MultiGaussian([0.2], [1.0])), EnergyDistance(), similarity_weight=300)
    flow = Deform(problem, LBFGS([1.0], [6]), Controls(10))(Pair(fixed, moving)).transform
    affine = PointAffine(similarity=EnergyDistance(), iterations=10)(Pair(fixed, moving)).transform
    before = gap(fixed, moving)
    assert gap(fixed, moving.moved_by(flow)) < 0.7 * before
    assert gap(fixed, moving.moved_by(affine)) < 0.75 * before


def gap(fixed, moving):
    """Mean distance of the vertices of each shape to the nearest of the other."""
    square = (fixed.points[0].T[:, None] - moving.points[0].T[None]).square().sum(2)
    return float(square.amin(0).sqrt().mean() + square.amin(1).sqrt().mean())


@pytest.mark.fault(68)
@pytest.mark.parametrize("directions", ["current", "varifold"])
def test_directions_are_refused_as_they_have_no_lower_bound(directions):
    for make in (lambda: EnergyDistance(directions), lambda: KernelDistance("energy", directions=directions)):
        with pytest.raises(ConfigError, match="no lower bound"):
            make()
