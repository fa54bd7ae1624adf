"""Figures of shapes: the plan, colors that follow a place, no panel without a shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from rdmm import Measure
from rdmm.report.shape_figures import ShapeResult, place_colors, shapes_by_method
from rdmm.similarity import SinkhornDivergence
from rdmm.spatial.measure import frame_of
from rdmm.spatial.transform import Affine, Identity


def curve(n=12, radius=0.3):
    t = torch.arange(n, dtype=torch.float64) * (2 * np.pi / n)
    cells = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n], 1)
    return Measure(torch.stack([radius * t.cos(), 0.6 * radius * t.sin()])[None] + 0.5, cells=cells)


@pytest.mark.parametrize("similarity", [SinkhornDivergence(0.05, 0.4), SinkhornDivergence(0.05, cost="product", alpha=1.0, k=4)])
def test_goals_are_the_means_under_the_plan(similarity):
    """Against the plan itself, computed densely from the potentials."""
    a, b = curve(), curve(9, 0.4)
    found, (x, y) = similarity.potentials(a, b), (m.atoms() for m in (a, b))
    cost = 0.5 * torch.cdist(x.points[0].T, y.points[0].T) ** 2
    if similarity.cost == "product":
        cost = cost * (2 - (x.normals[0].T @ y.normals[0]) ** 4)
    masses = y.weights[0] if similarity.reach else y.weights[0] / y.weights.sum()
    plan = torch.exp((found.f[0][:, None] + found.g[0] - cost) / 0.05**2) * masses
    expected = (plan @ y.points[0].T) / plan.sum(1, keepdim=True)
    assert torch.allclose(similarity.goals(a, b)[0].T, expected, atol=1e-9)


def test_a_place_has_one_color_before_and_after():
    assert place_colors(curve(5)).tolist() == [0, 0.25, 0.5, 0.75, 1]
    cloud = Measure(torch.tensor([[[0.0, 4.0, 2.0], [0.0, 0.1, 0.0]]]))
    assert place_colors(cloud).tolist() == [0, 1, 0.5]
    moving = curve()
    turn = Affine(torch.tensor([[0.0, -1, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))
    warped = moving.moved_by(turn)
    figure = shapes_by_method(
        moving, moving, {"turned": ShapeResult(warped, Identity(), moving.atoms().points)}, frame_of([moving, warped])
    )
    lines = [[c for c in a.collections if isinstance(c, LineCollection)] for a in figure.axes]
    colored = [next(c for c in group if c.get_array() is not None) for group in lines]
    assert np.array_equal(*(c.get_array() for c in colored))
    assert not np.allclose(*(np.asarray(c.get_segments()) for c in colored))
    assert [len(group) for group in lines] == [2, 3]  # fixed and moving; the plan, fixed and warped
    assert [a.get_title() for a in figure.axes] == ["moving", "turned"]


@pytest.mark.parametrize("count", [1, 6])
def test_every_panel_has_a_shape(count):
    moving = curve()
    results = {f"m{k}": ShapeResult(moving, Identity()) for k in range(count)}
    figure = shapes_by_method(moving, moving, results, frame_of([moving]))
    titled = [a for a in figure.axes if a.get_title()]
    assert len(titled) == count + 1 and all(a.collections for a in titled)
