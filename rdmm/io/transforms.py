"""Transforms of any tool: which form a file has, and the list of -t arguments. The only dispatcher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from rdmm.io.afni import AFNI
from rdmm.io.files import existing
from rdmm.io.fsl import COEFFICIENT_INTENTS, FIELD_INTENT, FSL
from rdmm.io.itk import ITK, read_affine, read_warp
from rdmm.io.learn2reg import Learn2Reg
from rdmm.io.nifti import peek_shape, read_raw
from rdmm.io.vectors import IMAGES, Space
from rdmm.spatial.transform import Affine, Composed, Identity, Transform
from rdmm.types import ConfigError, InputError, nearest


class TransformFormat(Protocol):
    def read(self, path: Path, space: Space) -> Transform: ...

    def write(self, path: Path, transform: Transform, space: Space) -> None: ...


FORMATS: dict[str, TransformFormat] = {"itk": ITK(), "fsl": FSL(), "afni": AFNI(), "learn2reg": Learn2Reg()}


def format_of(name: str, given: str | None) -> TransformFormat:
    """The form that is named, or that a file's name (and, where it is there, its header) tells.

    Raises:
        ConfigError: there is no such form, or the file does not tell.
    """
    if given is not None:
        if given not in FORMATS:
            raise ConfigError(f"there is no form {given!r}{nearest(given, FORMATS)}; there are {', '.join(FORMATS)}")
        return FORMATS[given]
    path = Path(name)
    if path.name.endswith((".aff12.1D", ".1D")):
        return FORMATS["afni"]
    if path.suffix == ".npz" or path.name.startswith("disp_"):
        return FORMATS["learn2reg"]
    if path.suffix == ".mat" and path.is_file() and _is_text(path):
        return FORMATS["fsl"]
    if path.name.endswith(IMAGES) and path.is_file():
        intent, shape = int(read_raw(path, path.read_bytes(), strict=False).header["intent_code"]), peek_shape(path)
        if intent in (FIELD_INTENT, *COEFFICIENT_INTENTS):
            return FORMATS["fsl"]
        if intent != 1007 and len(shape) > 3 and shape[-1] in (2, 3):
            raise ConfigError(f"{name}: its header does not tell which tool's vectors these are: pass --from {'|'.join(FORMATS)}")
    return FORMATS["itk"]


def _is_text(path: Path) -> bool:
    data = path.read_bytes()[:4096]
    return b"\0" not in data


def read_transform_as(name: str, form: str | None, space: Space) -> Transform:
    """A transform of any tool, as a map of world millimetres, fixed -> moving."""
    existing(name)
    return format_of(name, form).read(Path(name), space)


def write_transform(name: str | os.PathLike[str], transform: Transform, form: str | None, space: Space) -> None:
    """Write a map of world millimetres, fixed -> moving, as a tool reads it."""
    text = os.fspath(name)
    known = (*IMAGES, ".mat", ".txt", ".tfm", ".h5", ".npz", ".1D")
    if not text.endswith(known):
        raise ConfigError(f"{text}: a transform's name ends in one of {', '.join(known)}")
    unread = str(Path("/nowhere", Path(text).name))  # what a file that is replaced holds does not matter
    format_of(unread, form).write(Path(text), transform, space)


def read_transform(name: str) -> Transform:
    """One -t argument: a warp, an affine, or ``[AFFINE,1]`` for an affine's inverse; a map of world millimetres."""
    if name.startswith("[") and name.endswith("]"):
        path, _, flag = name[1:-1].rpartition(",")
        if flag.strip() not in ("0", "1"):
            raise InputError(f"{name}: write [FILE,1] for the inverse of an affine")
        transform = read_transform(path.strip())
        if flag.strip() == "0":
            return transform
        if not isinstance(transform, Affine):
            raise InputError(f"{path}: only an affine is inverted by [FILE,1]; write a warp's inverse with rdmm invert")
        return transform.inverse()
    if name.endswith((".mat", ".txt", ".tfm")):
        return read_affine(name)
    if name.endswith((".nii", ".nii.gz")):
        return read_warp(name)
    if existing(name).suffix == ".h5":
        from rdmm.io.itk_h5 import read_h5

        return read_h5(Path(name))
    raise InputError(f"{name}: a transform is a warp (.nii, .nii.gz), an ITK affine (.mat, .txt, .tfm) or composite (.h5)")


def read_transforms(names: list[str]) -> Transform:
    """A list of -t arguments, points going through the first one first (so the last is applied first to an image)."""
    transforms = [read_transform(n) for n in names]
    out: Transform = Identity()
    for t in transforms:
        out = t if isinstance(out, Identity) else Composed(out, t)
    return out
