"""Fixtures: every law is tried in 2D and in anisotropic 3D."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # tests run beside each other: threads that wait must not hold a core

import numpy as np
import pytest
import torch

from rdmm import Grid, Image, io
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.kernels.available import set_threads

DATA = Path(os.environ.get("RDMM_DATA", Path(__file__).parents[1] / "../shared/data"))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config) -> None:
    """Two processes, a file of tests in one of them, where pytest-xdist is there and -n does not say otherwise."""
    worker = hasattr(config, "workerinput")
    if config.pluginmanager.hasplugin("xdist") and not worker and config.option.numprocesses is None and not config.option.usepdb:
        config.option.numprocesses, config.option.dist, config.option.loadscopereorder = 2, "loadfile", False


def pytest_collection_modifyitems(items) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _one_thread():
    set_threads(1)
    torch.manual_seed(0)
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:  # a command's log goes to the standard error of its own test
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def data() -> Path:
    """The real data, or a skip that says so."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}: set RDMM_DATA")
    return DATA


@pytest.fixture
def refused(monkeypatch, capsys):
    """The exit code of train.py or eval.py for settings that it refuses before Hydra starts, and what it says; in this process."""

    def run(program, *keys: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [program.__module__, *keys])
        monkeypatch.setattr("hydra.main", lambda **_: pytest.fail("Hydra was started"))
        with pytest.raises(SystemExit) as ended:
            program()
        return ended.value.code, capsys.readouterr().err

    return run


def oblique(shape: tuple[int, ...], voxel: tuple[float, ...], angle: float = 0.35, flip: bool = False) -> Grid:
    """A rotated grid with the given voxel sizes; ``flip``: with a negative determinant."""
    d = len(shape)
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(d + 1)
    affine[:2, :2] = [[c, -s], [s, c]]
    affine[:d, :d] = affine[:d, :d] @ np.diag(voxel)
    if flip:
        affine[:d, 0] *= -1
    affine[:d, d] = np.arange(1, d + 1) * 7.0
    return Grid(shape, affine)


GRIDS = {"2d": Grid.unit((40, 36)), "3d": oblique((24, 20, 14), (1.0, 1.0, 1.8))}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with two small images, f.nii.gz and m.nii.gz."""
    folder = tmp_path_factory.mktemp("images")
    pair, _, _ = shapes_pair(1, (24, 24))
    for name, image in (("f", pair.fixed), ("m", pair.moving)):
        io.write_image(folder / f"{name}.nii.gz", image.data, image.grid)
    return folder


@pytest.fixture(params=GRIDS)
def grid(request) -> Grid:
    return GRIDS[request.param]


def zeros(grid: Grid) -> Image:
    return Image(torch.zeros(1, 1, *grid.shape, dtype=torch.float64), grid)


def center(grid: Grid) -> torch.Tensor:
    return torch.tensor(grid.extent, dtype=torch.float64).view(1, -1, *(1,) * grid.ndim) / 2


def bump(grid: Grid, sigma: float, shift: float = 0.0) -> torch.Tensor:
    """exp(-|x - c|^2 / 2 sigma^2), (1, 1, *s) float64."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    return torch.exp(-((x - center(grid) - shift) ** 2).sum(1, keepdim=True) / (2 * sigma**2))


def swirl(grid: Grid, size: float) -> torch.Tensor:
    """A smooth momentum that turns and squeezes, (1, d, *s) float64, away from the walls."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64)) - center(grid)
    envelope = bump(grid, 0.11)
    parts = [torch.sin(7 * x[:, (i + 1) % grid.ndim] + i).unsqueeze(1) * envelope + 0.5 * envelope for i in range(grid.ndim)]
    return size * torch.cat(parts, 1)


def preweights(grid: Grid, n: int = 4) -> torch.Tensor:
    """h (1, n, *s): small Gaussians on one side, wide ones on the other, with a smooth transition."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64)) - center(grid)
    side = torch.sigmoid((x[:, :1] + 0.3 * x[:, 1:2]) / 0.06)
    a = torch.tensor([0.2, 0.5, 0.3, 0.0][:n], dtype=torch.float64).view(1, n, *(1,) * grid.ndim)
    b = torch.tensor([0.0, 0.1, 0.2, 0.7][:n], dtype=torch.float64).view(1, n, *(1,) * grid.ndim)
    return (side * a + (1 - side) * b).sqrt()


def blobs(grid: Grid, seed: int = 0, count: int = 12) -> torch.Tensor:
    """A random smooth image with structure everywhere, (1, 1, *s) float64 in about [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    out = torch.zeros(1, 1, *grid.shape, dtype=torch.float64)
    for _ in range(count):
        c = torch.rand(1, grid.ndim, *(1,) * grid.ndim, generator=generator, dtype=torch.float64) * 0.7 + 0.15
        sigma = 0.05 + 0.06 * float(torch.rand(1, generator=generator))
        out += torch.exp(-((x - c * 2 * center(grid)) ** 2).sum(1, keepdim=True) / (2 * sigma**2))
    return out / out.max()


def targets(node):
    """All values of ``_target_`` in nested settings."""
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    for x in node if isinstance(node, list) else []:
        yield from targets(x)
