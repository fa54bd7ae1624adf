"""Transforms of every tool, and lists of -t arguments. Only this module chooses a reader or writer by a file's name or header."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from rdmm.io.files import require_file
from rdmm.io.nifti import VECTOR_INTENT, read_header
from rdmm.io.tools.afni import AFNI
from rdmm.io.tools.fsl import COEFFICIENT_INTENTS, FIELD_INTENT, FSL
from rdmm.io.tools.itk import read_affine, read_warp, write_affine, write_affine_text, write_warp
from rdmm.io.tools.itk_h5 import read_h5, write_h5
from rdmm.io.tools.learn2reg import Learn2Reg
from rdmm.io.vectors import IMAGES, Space, affine_matrix, choose_grid
from rdmm.spatial.transform import Affine, Transform, compose_all, displacement, framed
from rdmm.types import ConfigError, InputError, nearest


class TransformFormat(Protocol):
    """One tool's files of transforms. Transforms map world millimeters (RAS+), fixed -> moving."""

    def read(self, path: Path, space: Space) -> Transform: ...

    def write(self, path: Path, transform: Transform, space: Space) -> None: ...


@dataclass(frozen=True)
class ITK:
    """ITK and ANTs: warps .nii.gz, affines .mat, .txt, .tfm, and a whole chain in one .h5."""

    def read(self, path: Path, space: Space) -> Transform:
        if path.suffix == ".h5":
            return read_h5(path)
        return read_warp(path) if path.name.endswith(IMAGES) else read_affine(path)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        if path.suffix == ".h5":
            return write_h5(path, transform, space.fixed)
        if path.suffix in (".mat", ".txt", ".tfm"):
            matrix = affine_matrix(transform, path)
            return write_affine(path, matrix) if path.suffix == ".mat" else write_affine_text(path, matrix)
        grid = choose_grid(transform, space)
        write_warp(path, displacement(framed(transform, grid), grid, torch.zeros(1, dtype=torch.float64)), grid)


FORMATS: dict[str, TransformFormat] = {"itk": ITK(), "fsl": FSL(), "afni": AFNI(), "learn2reg": Learn2Reg()}

ITK_SUFFIXES = (*IMAGES, ".mat", ".txt", ".tfm", ".h5")
SUFFIXES = (*ITK_SUFFIXES, ".npz", ".1D")


def choose_format(name: str, given: str | None) -> TransformFormat:
    """The format of the name ``given``; if None, the one that the file's name and, if it exists, its header indicate.

    Raises:
        ConfigError: there is no such format, or the file does not indicate one.
    """
    if given is not None:
        if given not in FORMATS:
            raise ConfigError(f"there is no format {given!r}{nearest(given, FORMATS)}; there are {', '.join(FORMATS)}")
        return FORMATS[given]
    path = Path(name)
    if path.name.endswith(".1D"):
        return FORMATS["afni"]
    if path.suffix == ".npz" or path.name.startswith("disp_"):
        return FORMATS["learn2reg"]
    if path.suffix == ".mat" and os.path.isfile(path) and _is_text(path):
        return FORMATS["fsl"]
    if path.name.endswith(IMAGES) and os.path.isfile(path):
        header = read_header(path)
        intent, shape = header.intent, header.shape
        if intent in (FIELD_INTENT, *COEFFICIENT_INTENTS):
            return FORMATS["fsl"]
        if intent != VECTOR_INTENT and len(shape) > 3 and shape[-1] in (2, 3):
            raise ConfigError(f"{name}: its header does not tell which tool's vectors these are: pass --from {'|'.join(FORMATS)}")
    return FORMATS["itk"]


def _is_text(path: Path) -> bool:
    data = path.read_bytes()[:4096]
    return b"\0" not in data


def read_transform_as(name: str, form: str | None, space: Space) -> Transform:
    """Read the transform of any tool as a map of world millimeters, fixed -> moving.

    Args:
        name: a file.
        form: a key of FORMATS; None: as ``choose_format`` decides.
        space: the images' grids; FSL, Learn2Reg and oblique AFNI affines need them.

    Raises:
        InputError: the file cannot be used.
        ConfigError: the format or a grid is missing.
    """
    require_file(name)
    return choose_format(name, form).read(Path(name), space)


def write_transform(name: str | os.PathLike[str], transform: Transform, form: str | None, space: Space) -> None:
    """Write a map of world millimeters, fixed -> moving, for a tool; arguments and errors as for ``read_transform_as``."""
    text = os.fspath(name)
    if not text.endswith(SUFFIXES):
        raise ConfigError(f"{text}: a transform's name ends in one of {', '.join(SUFFIXES)}")
    absent = str(Path("/nowhere", Path(text).name))  # a file that will be replaced must not determine the format
    with np.errstate(over="ignore", invalid="ignore"):  # the writers refuse what is not finite
        choose_format(absent, form).write(Path(text), transform, space)


def read_transform(name: str) -> Transform:
    """Read one -t argument: a warp, an affine, or ``[AFFINE,1]`` for an affine's inverse; a map of world millimeters.

    Raises:
        InputError: the file cannot be used, or is not one of ITK's.
    """
    if name.startswith("[") and name.endswith("]"):
        return _read_bracketed(name)
    if not name.endswith(ITK_SUFFIXES):
        require_file(name)
        raise InputError(f"{name}: a transform is a warp (.nii, .nii.gz), an ITK affine (.mat, .txt, .tfm) or composite (.h5)")
    return FORMATS["itk"].read(Path(name), Space())


def _read_bracketed(name: str) -> Transform:
    """``[FILE,0]``: the transform; ``[FILE,1]``: its inverse, of an affine only."""
    path, _, flag = name[1:-1].rpartition(",")
    if flag.strip() not in ("0", "1"):
        raise InputError(f"{name}: write [FILE,1] for the inverse of an affine")
    transform = read_transform(path.strip())
    if flag.strip() == "0":
        return transform
    if not isinstance(transform, Affine):
        raise InputError(f"{path}: only an affine is inverted by [FILE,1]; write a warp's inverse with rdmm invert")
    return transform.inverse()


def read_transforms(names: list[str]) -> Transform:
    """Read a list of -t arguments as one map.

    A point goes through the first transform first. Seen from the moving image, the last one is therefore applied first.
    """
    return compose_all(read_transform(n) for n in names)
