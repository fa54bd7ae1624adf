"""Random label maps of four kinds, made once and kept."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from rdmm.data.synthetic.random_maps import smooth_noise
from rdmm.io.files import write_atomically
from rdmm.spatial.grid import Grid
from rdmm.types import ConfigError, Tensor
from rdmm.version import __version__

log = logging.getLogger(__name__)


def random_regions(rng: np.random.Generator, grid: Grid, regions: int, detail: float) -> Tensor:
    """(1, 1, *s): at each voxel the number of the largest of several random fields, half of them three times smoother, in a body."""
    half = regions // 2
    fields = [smooth_noise(rng, half, grid, detail), smooth_noise(rng, regions - half, grid, 3 * detail)]
    region = torch.cat(fields, 1).argmax(1, keepdim=True) + 1
    radii = rng.uniform(0.65, 0.9, grid.ndim)
    return (region * (_squared_radius(grid, radii) + 0.15 * smooth_noise(rng, 1, grid, 2 * detail) < 1)).float()


def _squared_radius(grid: Grid, radii: np.ndarray, center: np.ndarray | float = 0.0) -> Tensor:
    """(1, 1, *s): |x / radii|^2 about ``center``, where the grid is [-1, 1] along each axis."""
    like = (1, -1, *(1,) * grid.ndim)
    x = (grid.identity(torch.zeros(1)) / torch.tensor(grid.extent).view(like) - 0.5) * 2
    shift = torch.from_numpy(np.broadcast_to(center, grid.ndim).copy()).float().view(like)
    return ((x - shift) / torch.from_numpy(radii).float().view(like)).square().sum(1, keepdim=True)


def _regions(rng: np.random.Generator, grid: Grid, regions: int) -> Tensor:
    return random_regions(rng, grid, regions, 0.04)


def _mixture(rng: np.random.Generator, grid: Grid, regions: int) -> Tensor:
    """The largest of random fields, each with a smoothness of its own; they fill the whole image."""
    sigmas = np.exp(rng.uniform(np.log(0.02), np.log(0.2), regions))
    return torch.cat([smooth_noise(rng, 1, grid, float(s)) for s in sigmas], 1).argmax(1, keepdim=True).float()


def _organs(rng: np.random.Generator, grid: Grid, regions: int) -> Tensor:
    """Organs with wavy surfaces in a body, each over the ones before."""
    surface = smooth_noise(rng, 1, grid, 0.06)
    out = (_squared_radius(grid, rng.uniform(0.75, 0.95, grid.ndim)) + 0.08 * surface < 1).float()
    for label in range(2, regions + 1):
        center, radii = rng.uniform(-0.6, 0.6, grid.ndim), rng.uniform(0.08, 0.45, grid.ndim)
        organ = _squared_radius(grid, radii, center) + rng.uniform(0.05, 0.3) * surface < 1
        out = torch.where(organ & (out > 0), float(label), out)
        surface = surface.flip(2 + label % grid.ndim)  # another surface, for nothing
    return out


def _bands(rng: np.random.Generator, grid: Grid, regions: int) -> Tensor:
    """Bands around a folded surface, as a cortex is one around white matter, with nuclei inside."""
    folds = rng.uniform(0.1, 0.25) * smooth_noise(rng, 1, grid, float(rng.uniform(0.03, 0.06)))
    depth = _squared_radius(grid, rng.uniform(0.7, 0.9, grid.ndim)).sqrt()
    inner = 0.75 + folds
    edges = [inner - 0.12, inner, inner.clamp_min(0.9) + 0.03, torch.full_like(depth, 1.05)]  # white matter, cortex, fluid, skull
    bands = sum((depth < edge).float() for edge in edges)
    nuclei = smooth_noise(rng, max(regions - 4, 1), grid, 0.08).argmax(1, keepdim=True) + 5
    return torch.where(depth < 0.4 + 0.5 * folds, nuclei.float(), torch.as_tensor(bands))


KINDS: Mapping[str, Callable[[np.random.Generator, Grid, int], Tensor]] = {
    "regions": _regions,
    "mixture": _mixture,
    "organs": _organs,
    "bands": _bands,
}


@dataclass(frozen=True)
class Anatomies:
    """Label maps by number; number k is of kind k modulo the number of kinds. The same number gives the same map.

    Args:
        shape: voxels along each axis.
        kinds: of KINDS.
        regions: number of labels, about; 0 is the background.
        folder: where they are kept for other processes and later runs; null: each process makes and keeps its own.
    """

    shape: Sequence[int]
    kinds: Sequence[str] = tuple(KINDS)
    regions: int = 16
    folder: str | None = None

    def __post_init__(self) -> None:
        unknown = [k for k in self.kinds if k not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(f"volumes.kinds must be some of {', '.join(KINDS)}, not {list(self.kinds)}")
        if not 5 <= self.regions <= 100:
            raise ConfigError(f"volumes.regions must be 5 to 100, not {self.regions}")
        object.__setattr__(self, "kinds", tuple(self.kinds))
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def grid(self) -> Grid:
        """Voxels of 1 mm."""
        return Grid(tuple(self.shape), np.eye(len(self.shape) + 1))

    def make(self, rng: np.random.Generator, kind: str) -> Tensor:
        """A new label map (1, 1, *s), uint8."""
        return KINDS[kind](rng, self.grid, self.regions).to(torch.uint8)

    def __call__(self, number: int) -> Tensor:
        """Label map ``number`` (1, 1, *s), uint8; do not write to it."""
        return _kept(self, number)

    def read_or_make(self, number: int) -> Tensor:
        """The label map from the folder, or made and written there."""
        kind = self.kinds[number % len(self.kinds)]
        path = None if self.folder is None else self._path(kind, number)
        if path is not None and path.exists():
            try:
                found = torch.from_numpy(np.load(path, allow_pickle=False))
                if found.shape[2:] == self.shape and found.dtype == torch.uint8:
                    return found
            except (OSError, ValueError, EOFError):
                pass
            log.warning("%s: damaged; it is made anew", path)
        labels = self.make(np.random.default_rng([1, number]), kind)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.save(content, labels.numpy())
            write_atomically(path, content.getvalue())
        return labels

    def _path(self, kind: str, number: int) -> Path:
        """Its name tells everything that decides what is in it."""
        facts = f"{__version__} {self.shape} {kind} {self.regions} {number}"
        return Path(str(self.folder)) / f"{hashlib.sha256(facts.encode()).hexdigest()}.npy"


@lru_cache(maxsize=256)
def _kept(anatomies: Anatomies, number: int) -> Tensor:
    return anatomies.read_or_make(number)
