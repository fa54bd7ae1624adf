"""Barycenters of densities and label maps, and labels carried by a plan."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rdmm import ConfigError, Grid, io
from rdmm.cli import main
from rdmm.similarity import GridSinkhorn
from rdmm.spatial.image import Image
from rdmm.transport.barycenter import barycenter, transfer_along_plan


def gaussian(grid, mean, sigma):
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    return torch.exp(-sum((x[:, i] - mean[i]) ** 2 / (2 * sigma[i] ** 2) for i in range(grid.ndim)))


def moments(b, grid):
    x = grid.identity(b)[0].flatten(1)
    mean = (x * b.flatten()).sum(1)
    return mean, ((x - mean[:, None]) ** 2 * b.flatten()).sum(1).sqrt()


@pytest.mark.parametrize("weight", [0.5, 0.25, 0.0])
@pytest.mark.parametrize("shape", [(64, 50), (32, 36, 30)])
def test_of_gaussians_is_the_gaussian_between(shape, weight):
    """Means and standard deviations are averaged; debiased, there is no blur at all."""
    grid, d = Grid.unit(shape), len(shape)
    means, sigmas = torch.tensor([[0.35] * 3, [0.6] * 3])[:, :d], torch.tensor([[0.06, 0.07, 0.08], [0.09, 0.07, 0.06]])[:, :d]
    a = torch.cat([gaussian(grid, m, s) for m, s in zip(means, sigmas, strict=True)])
    b = barycenter(a, [1 - weight, weight], grid.spacing, 0.03, 1e-4, 1000)
    share = torch.tensor([[1 - weight], [weight]])
    mean, sigma = moments(b, grid)
    assert float(b.sum()) == pytest.approx(1)
    assert torch.allclose(mean, (share * means).sum(0).double(), atol=2e-3)
    assert torch.allclose(sigma, (share * sigmas).sum(0).double(), atol=2e-3)


def test_the_barycenter_is_lowest():
    """Of sum_k w_k S(a_k, b): a change of b in any direction raises it."""
    grid = Grid.unit((16, 16))
    generator = torch.Generator().manual_seed(0)
    a = torch.cat(
        [gaussian(grid, [0.3, 0.4], [0.08, 0.1]) + gaussian(grid, [0.7, 0.6], [0.1, 0.06]), gaussian(grid, [0.6, 0.4], [0.12, 0.08])]
    )
    b = barycenter(a, [0.6, 0.4], grid.spacing, 0.12, 1e-7, 3000)
    similarity = GridSinkhorn(0.12, tolerance=1e-9, iterations=2000)

    def value(b):
        return sum(
            w * float(similarity(Image(b[None, None], grid), Image(x[None, None], grid))) for w, x in zip((0.6, 0.4), a, strict=True)
        )

    lowest = value(b)
    for _ in range(5):
        other = b * (1 + 0.1 * torch.rand(b.shape, generator=generator, dtype=b.dtype))
        assert value(other / other.sum()) > lowest - 1e-9


def test_labels_are_carried_along():
    grid = Grid.unit((40, 40))
    x = grid.identity(torch.zeros(1))
    shift = torch.tensor([0.3, 0.2]).view(1, 2, 1, 1)
    a, b = (((x - 0.3 - s).square().sum(1) < 0.15**2).float() for s in (0, shift))
    labels = torch.stack([(x[0, 0] < 0.3), (x[0, 0] >= 0.3)]).float()
    found = GridSinkhorn(0.03, tolerance=1e-3).potentials(Image(a[None], grid), Image(b[None], grid))
    shares = torch.stack(list(transfer_along_plan(labels, a[0] / a.sum(), found.f[0], grid.spacing, 0.03)))
    inside = b[0] > 0
    assert torch.allclose(shares.sum(0)[inside], torch.ones(int(inside.sum())), atol=1e-4)
    expected = (x[0, 0] < 0.6)[inside]
    assert float(((shares[0] > 0.5)[inside] == expected).float().mean()) > 0.95


def ball(grid, center, radius):
    x = grid.to_world(grid.identity(torch.zeros(1)))
    return ((x - torch.tensor(center).view(1, -1, *(1,) * grid.ndim)).square().sum(1, keepdim=True) < radius**2).float()


def test_commands(tmp_path):
    grid = Grid((30, 30, 24), np.diag([1.0, 1.0, 1.5, 1.0]))
    for k, x in enumerate((8.0, 20.0)):
        labels = ball(grid, [x, 15.0, 16.0], 7.0) + ball(grid, [x, 15.0, 16.0], 4.0)
        io.write_image(tmp_path / f"{k}.nii.gz", labels, grid, integer=True)
        io.write_image(tmp_path / f"mask{k}.nii.gz", (labels > 0).float(), grid, integer=True)
    files = [str(tmp_path / f"{k}.nii.gz") for k in range(2)]
    mean = str(tmp_path / "mean.nii.gz")
    done = CliRunner().invoke(main, ["barycenter", *files, "-o", mean, "--labels", "--blur", ".03"], catch_exceptions=False)
    assert done.exit_code in (0, None)
    expected = ball(grid, [14.0, 15.0, 16.0], 7.0) + ball(grid, [14.0, 15.0, 16.0], 4.0)
    found = io.read_labels(mean).data
    assert float((found > 0).logical_and(expected > 0).sum() * 2 / ((found > 0).sum() + (expected > 0).sum())) > 0.93
    assert float((found == 2).logical_and(expected == 2).sum() * 2 / ((found == 2).sum() + (expected == 2).sum())) > 0.85

    carried_file = str(tmp_path / "carried.nii.gz")
    masks = [str(tmp_path / f"mask{k}.nii.gz") for k in (1, 0)]
    done = CliRunner().invoke(main, ["transfer", *masks, files[0], "-o", carried_file, "--blur", ".03", "--json"], catch_exceptions=False)
    assert done.exit_code in (0, None)
    moved, wanted = io.read_labels(carried_file).data, io.read_labels(files[1]).data
    assert float((moved == wanted)[wanted > 0].float().mean()) > 0.9

    for arguments, code, message in (
        (["barycenter", *files, "-o", mean], 3, "--overwrite"),
        (["barycenter", *files, "-o", f"{mean}x.nii.gz", "--weights", "1"], 2, "one weight per image"),
        (["barycenter", *files, "-o", f"{mean}x.nii.gz", "--weights", "a,b"], 2, "numbers separated by commas"),
        (["barycenter", files[0], masks[0], "-o", f"{mean}x.nii.gz", "--labels"], 3, "label 2 is missing from image 2"),
        (["barycenter", str(tmp_path / "2.nii.gz"), "-o", f"{mean}x.nii.gz"], 3, "no such file"),
    ):
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), (arguments, result.stderr)


def test_wrong_weights():
    with pytest.raises(ConfigError, match="weights"):
        barycenter(torch.ones(2, 8, 8), [1.0], (0.1, 0.1), 0.1, 1e-3, 10)
    with pytest.raises(ConfigError, match="blur"):
        barycenter(torch.ones(2, 8, 8), [1.0, 1.0], (0.1, 0.1), 0.0, 1e-3, 10)
    with pytest.raises(ConfigError, match="weights"):
        barycenter(torch.ones(2, 8, 8), [0.0, 0.0], (0.1, 0.1), 0.1, 1e-3, 10)
