"""Transforms themselves: convert, compose and invert them."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch

from rdmm.io.exchange import Given, name_of, read_given_grid
from rdmm.io.files import check_output
from rdmm.io.maps import Maps, describe_maps, read_inverse_maps, read_maps
from rdmm.io.transforms import choose_writer, is_run, read_transform_as, write_transform
from rdmm.io.vectors import Space, affine_matrix, choose_grid
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.inverse import inverse
from rdmm.spatial.pair import format_boxes
from rdmm.spatial.transform import Affine, Dense, Placed, Transform, flat
from rdmm.types import Tensor

log = logging.getLogger(__name__)


def warn_outside(transform: Transform, x: Tensor, what: str) -> None:
    """Warn of points x (1, d, *t), world millimeters, that reach a warp of a file outside its grid, where it is the identity."""
    for m in flat(transform):
        if isinstance(m, Placed) and isinstance(m.transform, Dense) and m.transform.outside == "identity":
            share = 1 - float(m.grid.contains(m.grid.from_world(x)).double().mean())
            if share > 0:
                log.warning(
                    "%.3g %% of the %s is outside a warp's grid %s: there the warp is the identity, as in ITK",
                    100 * share,
                    what,
                    format_boxes([m.grid]),
                )
        x = m(x)


def invert_in_world(transform: Transform, name: str) -> Transform:
    """The inverse of a world transform: exact for affine maps, point by point for warps.

    Raises:
        DivergenceError: a warp folds, so that it has no inverse; ``name`` says which transform.
    """
    if is_affine(transform):
        return Affine(torch.as_tensor(affine_matrix(transform, Path(name)))).inverse()
    return inverse(transform, name)


def is_affine(transform: Transform) -> bool:
    return all(isinstance(m, Affine) for m in flat(transform))


def sparse_points(grid: Grid, count: int = 10**5) -> Tensor:
    """About ``count`` voxels of a grid, world millimeters (1, d, *s)."""
    step = max(1, int((math.prod(grid.shape) / count) ** (1 / grid.ndim)))
    sparse = grid.strided([min(step, (n + 1) // 2) for n in grid.shape])
    return sparse.to_world(sparse.identity(torch.zeros(1, dtype=torch.float64)))


def read_space(fixed: Given | None, moving: Given | None) -> Space:
    """The grids of the two images as their files store them; None for an image that is not given.

    Raises:
        InputError: an image cannot be used, or one is 2D and the other 3D.
    """
    space = Space(*(None if given is None else read_given_grid(given, name) for name, given in (("fixed", fixed), ("moving", moving))))
    _require_fit("", None, space, fixed, moving)
    return space


def _require_fit(name: str, transform: Transform | None, space: Space, fixed: Given | None, moving: Given | None) -> None:
    """Raise InputError if a transform and the images that are given are not all 2D or all 3D."""
    grids = ((name_of(fixed, "fixed"), space.fixed), (name_of(moving, "moving"), space.moving))
    of_images = {image: grid.ndim for image, grid in grids if grid is not None}
    require_one_dimension({**of_images, name: None if transform is None else transform.ndim})


def convert(
    transform: Maps,
    out: str | os.PathLike[str] | None = None,
    *,
    from_: str | None = None,
    to: str | None = None,
    fixed: Given | None = None,
    moving: Given | None = None,
    overwrite: bool = False,
) -> Transform:
    """Read a transform (fixed -> moving) of one tool, and write it for another.

    Args:
        transform: a file of any tool (docs/formats.md), or any other transform that ``rdmm.apply`` accepts.
        out: the file to write; None: nothing is written.
        from_, to: formats, such as "itk", "fsl" or "ras"; None: as the file's content and the name of ``out`` tell.
        fixed, moving: the images, whose grids some formats need.
        overwrite: replace an existing file.

    Returns:
        the map of world millimeters (RAS+), fixed -> moving.

    Raises:
        InputError: the file or an image cannot be used, or one is 2D and the other 3D.
        ConfigError: there is no such format, or a grid is missing.
        OutputError: the file exists, or cannot hold the transform.
    """
    path, space = _place(out, to, overwrite), read_space(fixed, moving)
    read = _read_in(transform, from_, space, fixed, moving)
    return _written(path, read, to, space)


def compose(
    transforms: Maps,
    out: str | os.PathLike[str] | None = None,
    *,
    to: str | None = None,
    fixed: Given | None = None,
    moving: Given | None = None,
    overwrite: bool = False,
) -> Transform:
    """Compose transforms to one map of world millimeters, and write it if ``out`` is given. A point goes through the first one first.

    Args:
        transforms: a list, as for ``rdmm.apply``.
        others: as for ``rdmm.convert``.
    """
    path, space, transform = _place(out, to, overwrite), read_space(fixed, moving), read_maps(transforms)
    _require_fit(describe_maps(transforms), transform, space, fixed, moving)
    return _written(path, transform, to, space)


def invert(
    transform: Maps,
    out: str | os.PathLike[str] | None = None,
    *,
    from_: str | None = None,
    to: str | None = None,
    fixed: Given | None = None,
    moving: Given | None = None,
    overwrite: bool = False,
) -> Transform:
    """The inverse of a transform, moving -> fixed; it is written if ``out`` is given.

    Affine parts are inverted exactly, warps point by point. The inverse of a warp is written on the moving image's grid if that image is
    given, otherwise on the warp's own.

    Args:
        others: as for ``rdmm.convert``.

    Raises:
        DivergenceError: the transform folds, so that it has no inverse.
    """
    return invert_and_measure(transform, out, from_, to, fixed, moving, overwrite=overwrite)[0]


def invert_and_measure(
    transform: Maps,
    out: str | os.PathLike[str] | None,
    from_: str | None,
    to: str | None,
    fixed: Given | None,
    moving: Given | None,
    *,
    overwrite: bool,
) -> tuple[Transform, float]:
    """``invert``, and how exact the inverse is, in voxels."""
    path, space = _place(out, to, overwrite), read_space(fixed, moving)
    read = _read_in(transform, from_, space, fixed, moving)
    grid = space.fixed if is_affine(read) else choose_grid(read, space)
    back = read_inverse_maps(transform) if from_ is None and is_run(transform) else invert_in_world(read, describe_maps(transform))
    residual = 0.0 if grid is None else _residual(read, back, grid)
    return _written(path, back, to, Space(space.moving or grid, space.fixed)), residual


def _residual(transform: Transform, back: Transform, grid: Grid) -> float:
    """The largest |T^-1(T(x)) - x| at voxels of a grid, in its smallest voxel edge."""
    x = sparse_points(grid)
    return float((back(transform(x)) - x).norm(dim=1).max()) / min(grid.voxel)


def _place(out: str | os.PathLike[str] | None, to: str | None, overwrite: bool) -> Path | None:
    """The file to write, checked before anything is computed; None for none."""
    if out is None:
        return None
    choose_writer(out, to)
    return check_output(out, overwrite=overwrite)


def _read_in(given: Maps, from_: str | None, space: Space, fixed: Given | None, moving: Given | None) -> Transform:
    """A transform that may be of any tool's format, which fits the images."""
    transform = read_transform_as(os.fspath(given), from_, space) if isinstance(given, str | os.PathLike) else read_maps(given)
    _require_fit(describe_maps(given), transform, space, fixed, moving)
    return transform


def _written(path: Path | None, transform: Transform, to: str | None, space: Space) -> Transform:
    if path is not None:
        write_transform(path, transform, to, space)
    return transform
