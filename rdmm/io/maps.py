"""Transforms as Python gives them, and the -t arguments of the command line."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdmm.io.transforms import expand, read_transforms
from rdmm.io.vectors import affine_map
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.inverse import inverse
from rdmm.spatial.transform import Transform, compose_all
from rdmm.types import InputError, Tensor

Maps = Any
"""One transform, or a list of them, of which a point goes through the first one first. Each is the path of a file, a matrix (d+1, d+1) of
world millimeters (RAS+), a ``Transform`` of world millimeters, fixed -> moving, a transform of SimpleITK or ANTs, or a ``Registration``,
which stands for its transform."""


def read_maps(given: Maps, name: str = "transforms") -> Transform:
    """The map of world millimeters, fixed -> moving, that ``given`` stands for; ``name`` is its argument, for messages.

    Raises:
        InputError: a file cannot be used, two are of different dimensions, or a value is no transform.
    """
    each = list_maps(given)
    if all(isinstance(one, str | os.PathLike) for one in each):
        return read_transforms([os.fspath(one) for one in each])
    transforms = [_read_map(one, name) for one in each]
    require_one_dimension({describe_maps(one): t.ndim for one, t in zip(each, transforms, strict=True)})
    return compose_all(transforms)


def read_inverse_maps(given: Maps, name: str = "transforms") -> Transform:
    """The inverse, moving -> fixed, of the map that ``given`` stands for: of each part as ``[PART,1]`` and ``Registration.inverse`` say.

    Raises:
        InputError: as for ``read_maps``.
        DivergenceError: a warp folds, so that it has no inverse.
    """
    each = list_maps(given)
    transforms = [_read_inverse(one, name) for one in each]
    require_one_dimension({describe_maps(one): t.ndim for one, t in zip(each, transforms, strict=True)})
    return compose_all(reversed(transforms))


def _read_inverse(given: Any, name: str) -> Transform:
    if isinstance(given, str | os.PathLike):
        return read_transforms([f"[{os.fspath(given)},1]"])
    known = getattr(given, "inverse", None)  # of a Registration
    return known if isinstance(known, Transform) else inverse(_read_map(given, name), describe_maps(given))


def describe_maps(given: Maps) -> str:
    """How messages call a transform, or a list of them."""
    return " ".join(os.fspath(one) if isinstance(one, str | os.PathLike) else f"a {type(one).__name__}" for one in list_maps(given))


def grids_of_maps(given: Maps) -> tuple[Grid, Grid] | tuple[None, None]:
    """The fixed and the moving grid of a ``Registration``; None for any other transform."""
    return getattr(given, "stored", None) or (None, None)


def expand_maps(given: Maps) -> list[Any]:
    """What was given, as a list, in which whole runs are replaced by their files (``expand``). Raises InputError."""
    each = [expand(os.fspath(one)) if isinstance(one, str | os.PathLike) else [one] for one in list_maps(given)]
    return [part for parts in each for part in parts]


def list_maps(given: Maps) -> Sequence[Any]:
    """What was given, as a list."""
    return given if isinstance(given, list | tuple) else [given]


def _read_map(given: Any, name: str) -> Transform:
    if isinstance(given, str | os.PathLike):
        return read_transforms([os.fspath(given)])
    if isinstance(given, np.ndarray | Tensor):
        matrix = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
        if matrix.shape not in ((3, 3), (4, 4)) or matrix.dtype.kind not in "iuf":
            raise InputError(
                f"{name}: an array of shape {matrix.shape}; give a matrix (3, 3) or (4, 4) of world millimeters, or the file of a transform"
            )
        return affine_map(Path(name), matrix)
    if (library := type(given).__module__.partition(".")[0]) in ("SimpleITK", "ants") and type(given).__name__.endswith("Transform"):
        return _through_file(given, library)
    inner = given if isinstance(given, Transform) else getattr(given, "transform", None)  # of a Registration
    if isinstance(inner, Transform):
        return inner
    raise InputError(
        f"{name}: a {type(given).__name__}; give the file of a transform, a matrix, an rdmm Transform or a Registration, or a list of them"
    )


def _through_file(given: Any, library: str) -> Transform:
    """A transform of SimpleITK or ANTs in memory, by the file that its library writes."""
    with tempfile.TemporaryDirectory() as folder:
        if library == "SimpleITK":
            path = os.path.join(folder, "transform.tfm" if given.IsLinear() else "transform.h5")
            given.WriteTransform(path)
        else:
            path = os.path.join(folder, "transform.mat")
            importlib.import_module("ants").write_transform(given, path)
        return read_transforms([path])
