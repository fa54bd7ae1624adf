"""Registration by transport, with landmarks, and from where transport leads; studies of shapes."""

import math

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import rdmm
from rdmm import LBFGS, LDDMM, ConfigError, Deform, Grid, Image, Measure, MultiGaussian, PointLDDMM, Problem
from rdmm.data.studies.meshes import trace_outline
from rdmm.optim.initializers import Controls, Transported
from rdmm.similarity import SSD, GridSinkhorn, SinkhornDivergence, Sum
from rdmm.spatial.pair import Correspondence, Pair

SMOOTHER = MultiGaussian([0.08, 0.2], [0.5, 0.5])


def ball(grid, center, radius=0.1):
    x = grid.identity(torch.zeros(1))
    c = torch.tensor(center).view(1, -1, *(1,) * grid.ndim)
    return torch.sigmoid((radius - (x - c).square().sum(1, keepdim=True).sqrt()) / 0.01)


@pytest.mark.parametrize("shape", [(40, 40), (22, 24, 20)])
def test_transport_finds_what_does_not_overlap(shape):
    """SSD stays where it is: its gradient is 0 beside the other ball. Transport goes there, and the sum of both as well."""
    grid, d = Grid.unit(shape), len(shape)
    fixed, moving = Image(ball(grid, [0.65] * d), grid), Image(ball(grid, [0.35] * d), grid)
    similarities = {
        "ssd": SSD(),
        "sinkhorn": GridSinkhorn(0.05),
        "sum": Sum({"ssd": SSD(), "sinkhorn": GridSinkhorn(0.05)}, {"sinkhorn": 100.0}),
    }
    overlap = {}
    for name, similarity in similarities.items():
        problem = Problem(LDDMM(SMOOTHER), similarity, similarity_weight=1.0 if name == "sum" else 100.0)
        result = Deform(problem, LBFGS([1.0], [15]))(Pair(fixed, moving))
        warped = moving.moved_by(result.transform).data
        overlap[name] = float((warped * fixed.data).sum() / fixed.data.square().sum())
    assert overlap["ssd"] < 0.1
    assert overlap["sinkhorn"] > 0.7
    assert overlap["sum"] > 0.7


def test_landmarks_drive_images():
    grid = Grid.unit((40, 40))
    fixed, moving = Image(ball(grid, [0.5, 0.5], 0.2), grid), Image(ball(grid, [0.5, 0.5], 0.2), grid)
    marks = Correspondence(torch.tensor([[[0.3], [0.5]]]), torch.tensor([[[0.35], [0.55]]]))
    errors = []
    for weight in (0.0, 100.0):
        problem = Problem(LDDMM(SMOOTHER), SSD(), landmark_weight=weight)
        result = Deform(problem, LBFGS([1.0], [20]))(Pair(fixed, moving, landmarks=marks))
        errors.append(float((result.transform(marks.fixed) - marks.moving).norm()))
    assert errors[1] < 0.005 < 0.05 < errors[0]
    with pytest.raises(ConfigError, match="landmarks=CSV"):
        Deform(Problem(LDDMM(SMOOTHER), SSD(), landmark_weight=1), LBFGS([1.0], [2]))(Pair(fixed, moving))


@pytest.mark.slow
def test_transport_first_by_keys(tmp_path):
    grid = Grid((40, 40), np.diag([2.0, 2.0, 1.0]))
    fixed, moving = (Image(ball(Grid.unit((40, 40)), c, 0.12), grid) for c in ([0.62, 0.6], [0.35, 0.4]))
    (tmp_path / "marks.csv").write_text("fixed_x,fixed_y,moving_x,moving_y\n48.4,46.8,27.3,31.2\n")
    done = rdmm.register(
        fixed=fixed,
        moving=moving,
        overrides=["affine=none", "stages=transport_first", "similarity=[ssd,sinkhorn]", "similarity.weights.sinkhorn=10"],
        landmarks=str(tmp_path / "marks.csv"),
        landmark_weight=0.1,
        dynamics="lddmm",
        similarity_weight=1.0,
    )
    assert float((done.warped.data - fixed.data).abs().mean()) < 0.01
    assert done.metrics["tre_mm"] < 2
    assert done.metrics["folds_percent"] == 0
    assert done.energy["landmarks"] >= 0


def circle(n=80, stretch=1.0, center=(0.5, 0.5)):
    t = torch.arange(n) * (2 * math.pi / n)
    points = torch.stack([center[0] + 0.2 * stretch * t.cos(), center[1] + 0.2 * t.sin()])[None]
    return Measure(points, cells=torch.stack([torch.arange(n), (torch.arange(n) + 1) % n], 1))


@pytest.mark.parametrize("reach", [None, 0.5])
def test_displacement_is_the_gradient_over_the_weight(reach):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 2, n, generator=generator, dtype=torch.float64) for n in (15, 12))
    a, b = Measure(x.requires_grad_(), torch.full((1, 15), 1 / 15).double()), Measure(y, torch.full((1, 12), 1 / 12).double())
    similarity = SinkhornDivergence(0.2, reach, tolerance=1e-9, iterations=1000)
    (gradient,) = torch.autograd.grad(similarity(a, b).sum(), x)
    v = similarity.displacement(x.detach(), Measure(x.detach(), a.weights), b)
    cosine = torch.nn.functional.cosine_similarity(v.flatten(), -gradient.flatten(), dim=0)
    assert float(cosine) > (1 - 1e-9 if reach is None else 0.95)
    if reach is None:
        assert torch.allclose(v, -15 * gradient, atol=1e-8)
    with pytest.raises(ConfigError, match="points"):
        SinkhornDivergence(cost="sum").displacement(x, a, b)


def test_a_start_where_transport_leads():
    fixed, moving = circle(stretch=1.6, center=(0.6, 0.5)), circle(60)
    similarity = SinkhornDivergence(0.03)
    dynamics = PointLDDMM(MultiGaussian([0.05, 0.1, 0.2], [0.3, 0.3, 0.4]))
    ic = Transported(similarity, 60)(Pair(fixed, moving))
    before, started = (float(similarity(m, fixed)) for m in (moving, moving.moved_by(dynamics.shoot(ic, moving))))
    assert started < 0.1 * before
    result = Deform(Problem(dynamics, similarity, similarity_weight=300), LBFGS([1.0], [15]), Transported(similarity, 60))(
        Pair(fixed, moving)
    )
    assert float(similarity(moving.moved_by(result.transform), fixed)) < started
    assert Controls(60)(Pair(fixed, moving)).momentum.abs().max() == 0


def deep(picture: Pillow.Image) -> Pillow.Image:
    """In 16 bits."""
    return Pillow.fromarray(np.asarray(picture).astype(np.uint16) * 257)


def test_outlines_of_a_picture(tmp_path):
    y, x = np.mgrid[:100, :100]
    ring = ((x - 60) ** 2 + (y - 40) ** 2 < 30**2) & ~((x - 60) ** 2 + (y - 40) ** 2 < 10**2)
    matplotlib.image.imsave(tmp_path / "ring.png", np.where(ring, 0.0, 1.0), cmap="gray", vmin=0, vmax=1)
    atoms = trace_outline(str(tmp_path / "ring.png"), 200).atoms()
    assert float(atoms.weights.sum()) == pytest.approx(2 * math.pi * 0.4, rel=0.08)
    assert torch.allclose(atoms.points.mean(2), torch.tensor([[60, 59]]) / 99, atol=0.01)
    gray = Pillow.fromarray(np.where(ring, 0, 255).astype(np.uint8))
    pictures = {
        "l": gray,
        "rgb": gray.convert("RGB"),
        "palette": gray.quantize(2),
        "one": gray.convert("1"),
        "l2": gray,
        "deep": deep(gray),
    }
    for name, picture in pictures.items():  # whatever the PNG counts in
        picture.save(tmp_path / f"{name}.png", **({"bits": 2} if name == "l2" else {}))
        assert torch.equal(trace_outline(str(tmp_path / f"{name}.png"), 200).points, trace_outline(str(tmp_path / "ring.png"), 200).points)
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(rdmm.InputError, match="not a picture"):
        trace_outline(str(tmp_path / "text.png"), 10)
    matplotlib.image.imsave(tmp_path / "white.png", np.ones((9, 9)), cmap="gray", vmin=0, vmax=1)
    with pytest.raises(rdmm.InputError, match="no dark area"):
        trace_outline(str(tmp_path / "white.png"), 10)
