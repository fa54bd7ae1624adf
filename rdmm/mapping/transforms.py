"""Transforms themselves: convert, compose and invert them."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch

from rdmm import metrics
from rdmm.io.exchange import Given, name_of, read_given_grid
from rdmm.io.files import check_output
from rdmm.io.maps import Maps, describe_maps, read_maps
from rdmm.io.transforms import choose_writer, read_transform_as, write_transform
from rdmm.io.vectors import Space, affine_matrix, choose_grid
from rdmm.spatial.grid import Grid, is_invertible, require_one_dimension
from rdmm.spatial.pair import format_boxes
from rdmm.spatial.transform import Affine, Dense, Placed, Transform, composed, flat, framed
from rdmm.spatial.transform import invert as invert_displacement
from rdmm.types import DivergenceError, Tensor

log = logging.getLogger(__name__)


def warn_outside(transform: Transform, x: Tensor, what: str) -> None:
    """Warn of points x (1, d, *t), world millimeters, that reach a warp of a file outside its grid, where it is the identity."""
    for m in flat(transform):
        if isinstance(m, Placed) and isinstance(m.transform, Dense) and m.transform.outside == "identity":
            share = 1 - float(m.grid.contains(m.grid.from_world(x)).double().mean())
            if share > 0:
                log.warning(
                    "%.2g %% of the %s is outside a warp's grid %s: there the warp is the identity, as in ITK",
                    100 * share,
                    what,
                    format_boxes([m.grid]),
                )
        x = m(x)


def invert_in_world(transform: Transform, grid: Grid | None, name: str) -> tuple[Transform, float]:
    """The inverse of a world transform, and its residual in voxels.

    Affine maps are inverted exactly, all else by iteration on ``grid``, which only affine maps do without.

    Raises:
        DivergenceError: the map folds, so that it has no inverse, or the iteration does not converge; ``name`` says which transform.
    """
    if is_affine(transform):
        return Affine(torch.as_tensor(affine_matrix(transform, Path(name)))).inverse(), 0.0
    assert grid is not None
    affine, u = _split_affine(framed(transform, grid), grid, name)
    folded = metrics.non_diffeomorphic_volume(u, grid)["folded_cells_percent"]
    if folded > 0:
        count = round(folded / 100 * math.prod(n - 1 for n in grid.shape))
        raise DivergenceError(
            f"{name}: {count} cells fold ({folded:.3g} %), so the map has no inverse there; rdmm jacobian shows where:"
            " register again with a stronger regularizer"
        )
    w, residual = invert_displacement(u, grid)
    if residual > 0.5:
        raise DivergenceError(f"{name}: cannot be inverted by iteration (residual {residual:.2g} voxels): its gradients are too steep")
    return Placed(composed(affine.inverse(), Dense(w, grid)), grid), residual


def is_affine(transform: Transform) -> bool:
    return all(isinstance(m, Affine) for m in flat(transform))


def _split_affine(transform: Transform, grid: Grid, name: str) -> tuple[Affine, Tensor]:
    """(A, u) such that T = A ∘ (id + u) at the voxels, where A is the least-squares affine fit to T.

    Raises:
        DivergenceError: A is singular: T takes all voxels to a plane, a line or a point; ``name`` says which transform.
    """
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    ends = transform(x)
    points = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)[0]
    matrix = torch.eye(grid.ndim + 1, dtype=x.dtype)
    matrix[:-1] = torch.linalg.lstsq(points.T, ends.flatten(2)[0].T).solution.T
    if not is_invertible(matrix.numpy()):
        raise DivergenceError(f"{name}: the map flattens the whole image, so it has no inverse; rdmm jacobian shows where it folds")
    affine = Affine(matrix)
    return affine, affine.inverse()(ends) - x


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

    Affine parts are inverted exactly, warps by iteration on their own grid (or the fixed image's). The inverse is written on the moving
    image's grid if that image is given.

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
    """``invert``, and the residual of the iteration in voxels."""
    path, space = _place(out, to, overwrite), read_space(fixed, moving)
    read = _read_in(transform, from_, space, fixed, moving)
    grid = space.fixed if is_affine(read) else choose_grid(read, space)
    inverse, residual = invert_in_world(read, grid, describe_maps(transform))
    return _written(path, inverse, to, Space(space.moving or grid, space.fixed)), residual


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
