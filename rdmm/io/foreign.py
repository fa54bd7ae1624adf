"""Transforms as other tools keep them: ITK's composite .h5, FSL, AFNI, Learn2Reg.

Each form is one class: ``read(path, space)`` gives a map of world millimetres (RAS+), fixed -> moving, and ``write(path, map, space)``
takes one. What a form does not say itself (FSL and Learn2Reg count in voxels) comes from the grids of the two images, the ``Space``.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rdmm.grid import Grid
from rdmm.io.files import existing, write_atomically
from rdmm.io.h5 import read_h5, write_h5
from rdmm.io.nifti import _grid, _read_raw, embedded, nifti_bytes, peek_shape, write_nifti
from rdmm.io.warps import from_vectors, lps, read_affine, read_warp, world_vectors, write_affine, write_affine_text, write_warp
from rdmm.transform import Affine, Placed, Transform, displacement, flat, framed
from rdmm.types import ConfigError, InputError, OutputError, nearest

IMAGES = (".nii", ".nii.gz")
FSL_FIELD, FSL_OTHERS = 2006, range(2007, 2018)


@dataclass(frozen=True)
class Space:
    """The grids, as stored, of the fixed and of the moving image; None where it is not known."""

    fixed: Grid | None = None
    moving: Grid | None = None

    def both(self, what: str) -> tuple[Grid, Grid]:
        """Both grids, or ConfigError: ``what`` counts in voxels."""
        if self.fixed is None or self.moving is None:
            missing = "--fixed" if self.fixed is None else "--moving"
            raise ConfigError(f"{what} depends on the grids of both images: pass {missing} IMAGE")
        return self.fixed, self.moving


class Form(Protocol):
    def read(self, path: Path, space: Space) -> Transform: ...

    def write(self, path: Path, transform: Transform, space: Space) -> None: ...


def grid_of(transform: Transform, space: Space) -> Grid:
    """The fixed grid that is given, else that of the first warp which a point goes through.

    Raises:
        ConfigError: there is neither.
    """
    own = [m.grid for m in flat(transform) if isinstance(m, Placed)]
    if space.fixed is None and not own:
        raise ConfigError("an affine has no grid of its own: pass --fixed IMAGE")
    return space.fixed or own[0]


def voxels(grid: Grid) -> np.ndarray:
    """Voxel numbers (*s, d)."""
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid.shape), indexing="ij"), -1)


def _mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(*s, d) points under a homogeneous matrix."""
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def _field(path: Path, grid: Grid | None) -> tuple[np.ndarray, Grid, int]:
    """Vectors (*s, d) of a NIfTI file of four or five axes, its grid (checked against the fixed one), and its intent."""
    raw = _read_raw(path, path.read_bytes(), strict=False)
    array = raw.array.astype(np.float64)
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]
    if array.ndim != 4 or array.shape[3] not in (2, 3) or not np.isfinite(array).all():
        raise InputError(f"{path}: shape {raw.array.shape} is no field of finite vectors; (X, Y, Z, 3) or (X, Y, Z, 1, 3) is wanted")
    if array.shape[2:] == (1, 2) and grid is not None:
        array = array[:, :, 0]
    if grid is not None and array.shape[:-1] != grid.shape:
        raise InputError(f"{path}: a field of {array.shape[:-1]} voxels, but the fixed image has {grid.shape}")
    own = grid if grid is not None else _grid(path, array.shape[:-1], raw.affine)
    return array, own, int(raw.header["intent_code"])


def _solid(grid: Grid, what: str) -> None:
    if grid.ndim != 3:
        raise ConfigError(f"{what} knows 3D images only, not {grid.ndim}D ones")


@dataclass(frozen=True)
class ITK:
    """ITK and ANTs: warps .nii.gz, affines .mat, .txt, .tfm, and all of a chain in one .h5."""

    def read(self, path: Path, space: Space) -> Transform:
        if path.suffix == ".h5":
            return read_h5(path)
        return read_warp(path) if path.name.endswith(IMAGES) else read_affine(path)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        if path.suffix == ".h5":
            return write_h5(path, transform, space.fixed)
        if path.suffix in (".mat", ".txt", ".tfm"):
            matrix = _matrix(transform, path)
            return write_affine(path, matrix) if path.suffix == ".mat" else write_affine_text(path, matrix)
        grid = grid_of(transform, space)
        write_warp(path, displacement(framed(transform, grid), grid, torch.zeros(1, dtype=torch.float64)), grid)


def _matrix(transform: Transform, path: Path) -> np.ndarray:
    """The world matrix of an affine map (of several: of their product)."""
    maps = flat(transform)
    wrong = [m for m in maps if not isinstance(m, Affine)]
    if wrong:
        raise OutputError(f"{path}: an affine file cannot hold a warp; write .nii.gz or .h5")
    matrices = [m.matrix.double().numpy() for m in maps if isinstance(m, Affine)]
    out = np.eye(len(matrices[0]) if matrices else 4)
    for m in matrices:
        out = m @ out
    return out


@dataclass(frozen=True)
class FSL:
    """FLIRT's matrices (moving -> fixed) and FNIRT's fields (fixed -> moving), in millimetres from the first voxel; the first axis is
    turned where the voxels are right-handed in the world."""

    def read(self, path: Path, space: Space) -> Transform:
        fixed, moving = space.both("FSL's transform")
        a, b = _from_fsl(fixed), _from_fsl(moving)
        if not path.name.endswith(IMAGES):
            return Affine(torch.as_tensor(b @ np.linalg.inv(_text_matrix(path, (4, 4))) @ np.linalg.inv(a)))
        values, grid, intent = _field(path, fixed)
        if intent in FSL_OTHERS:
            raise InputError(f"{path}: spline coefficients; make a field of them: fnirtfileutils -i COEF -r REF -o FIELD --withaff")
        x = _mapped(np.linalg.inv(a) @ np.asarray(grid.affine), voxels(grid))
        absolute = values.std() > (values - x).std()  # as FSL tells them apart
        ends = _mapped(b, values if absolute else x + values)
        return from_vectors(ends - _mapped(a, x), grid)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        fixed, moving = space.both("FSL's transform")
        _solid(fixed, "FSL")
        a, b = _from_fsl(fixed), _from_fsl(moving)
        if not path.name.endswith(IMAGES):
            matrix = np.linalg.inv(np.linalg.inv(b) @ _matrix(transform, path) @ a)
            return _write_text(path, matrix)
        ends = _mapped(np.asarray(fixed.affine), voxels(fixed)) + world_vectors(transform, fixed)
        x = _mapped(np.linalg.inv(a) @ np.asarray(fixed.affine), voxels(fixed))
        field = (_mapped(np.linalg.inv(b), ends) - x).astype(np.float32)
        write_nifti(path, nifti_bytes(field, embedded(fixed), intent=FSL_FIELD))


def _from_fsl(grid: Grid) -> np.ndarray:
    """(4, 4) matrix from FSL's millimetres to the world's."""
    _solid(grid, "FSL")
    affine, scale, turn = np.asarray(grid.affine), np.diag([*grid.voxel, 1.0]), np.eye(4)
    if np.linalg.det(affine) > 0:
        turn[0, 0], turn[0, 3] = -1, (grid.shape[0] - 1) * grid.voxel[0]
    return affine @ np.linalg.inv(turn @ scale)


def _text_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        lines = [line for line in existing(path).read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
        numbers = np.array(" ".join(lines).split(), dtype=np.float64).reshape(shape)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {shape[0] * shape[1]} numbers in a text file are wanted ({error})") from error
    whole = np.vstack([numbers, [0, 0, 0, 1]]) if shape[0] == 3 else numbers
    if not np.isfinite(whole).all() or abs(np.linalg.det(whole)) < 1e-9 or not np.allclose(whole[3], [0, 0, 0, 1]):
        raise InputError(f"{path}: the affine is singular, not finite, or no affine")
    return np.asarray(whole)


def _write_text(path: Path, matrix: np.ndarray, banner: str = "") -> None:
    write_atomically(path, (banner + "".join("  ".join(f"{x:.10g}" for x in row) + "\n" for row in matrix)).encode())


@dataclass(frozen=True)
class AFNI:
    """AFNI's .aff12.1D (both images' obliquity set aside, as AFNI does) and warps, DICOM (LPS) millimetres, fixed -> moving."""

    def read(self, path: Path, space: Space) -> Transform:
        if path.name.endswith(IMAGES):
            values, grid, _ = _field(path, space.fixed)
            _straight(grid)
            return from_vectors(values @ lps(3)[:3, :3], grid)
        parameters = _text_matrix(path, (3, 4))
        linear = _linear()()
        linear.structarr["parameters"] = parameters
        return Affine(torch.as_tensor(np.asarray(linear.to_ras(*_images(space)))))

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        if not path.name.endswith(IMAGES):
            linear = _linear().from_ras(_matrix(transform, path), *_images(space))
            rows = np.asarray(linear.structarr["parameters"])[:3]
            return _write_text(path, rows.reshape(1, 12), "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n")
        grid = grid_of(transform, space)
        _straight(grid)
        field = (world_vectors(transform, grid) @ lps(3)[:3, :3])[:, :, :, None]
        write_nifti(path, nifti_bytes(field.astype(np.float32), embedded(grid), intent=1006))


def _linear() -> Any:
    try:
        from nitransforms.io.afni import AFNILinearTransform
    except ImportError as error:
        raise ConfigError("AFNI's affines need the extra: pip install 'rdmm[formats]'") from error
    return AFNILinearTransform


def _images(space: Space) -> tuple[Any, Any]:
    """Both images, moving first, as nitransforms asks for them: of their affines alone."""
    import nibabel as nib

    fixed, moving = space.both("AFNI's affine, where an image is oblique,")
    images = [nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.asarray(g.affine)) for g in (moving, fixed)]
    return images[0], images[1]


def _straight(grid: Grid) -> None:
    """AFNI's warps count along an image's own axes: only a straight grid says what that is in the world."""
    _solid(grid, "AFNI")
    turned = np.abs(np.asarray(grid.affine)[:3, :3] / grid.voxel)
    if np.abs(turned - turned.round()).max() > 2e-4:
        raise InputError("AFNI's warps know no oblique grids; resample to a fixed image with straight axes (3dWarp -deoblique)")


@dataclass(frozen=True)
class Learn2Reg:
    """Submissions to Learn2Reg: (D, H, W, 3) in voxels, from each voxel of the fixed image to the moving one's; .nii.gz or .npz."""

    def read(self, path: Path, space: Space) -> Transform:
        fixed, moving = space.both("Learn2Reg's displacement")
        values = _npz(path, fixed) if path.suffix == ".npz" else _field(path, fixed)[0]
        x = voxels(fixed)
        return from_vectors(_mapped(np.asarray(moving.affine), x + values) - _mapped(np.asarray(fixed.affine), x), fixed)

    def write(self, path: Path, transform: Transform, space: Space) -> None:
        fixed, moving = space.both("Learn2Reg's displacement")
        x = voxels(fixed)
        ends = _mapped(np.asarray(fixed.affine), x) + world_vectors(transform, fixed)
        field = (_mapped(np.linalg.inv(moving.affine), ends) - x).astype(np.float32)
        if path.suffix != ".npz":
            return write_nifti(path, nifti_bytes(field, embedded(fixed)))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, field)
        write_atomically(path, buffer.getvalue())


def _npz(path: Path, grid: Grid) -> np.ndarray:
    try:
        with np.load(existing(path), allow_pickle=False) as content:
            values = np.asarray(content[content.files[0]], dtype=np.float64)
    except Exception as error:
        raise InputError(f"{path}: not an .npz file of numbers ({type(error).__name__}: {error})") from error
    if values.shape == (grid.ndim, *grid.shape):
        values = np.moveaxis(values, 0, -1)
    if values.shape != (*grid.shape, grid.ndim) or not np.isfinite(values).all():
        raise InputError(f"{path}: shape {values.shape}; finite {(*grid.shape, grid.ndim)} is wanted, that of the fixed image")
    return values


FORMS: dict[str, Form] = {"itk": ITK(), "fsl": FSL(), "afni": AFNI(), "learn2reg": Learn2Reg()}


def form_of(name: str, given: str | None) -> Form:
    """The form that is named, or that a file's name (and, where it is there, its header) tells.

    Raises:
        ConfigError: there is no such form, or the file does not tell.
    """
    if given is not None:
        if given not in FORMS:
            raise ConfigError(f"there is no form {given!r}{nearest(given, FORMS)}; there are {', '.join(FORMS)}")
        return FORMS[given]
    path = Path(name)
    if path.name.endswith((".aff12.1D", ".1D")):
        return FORMS["afni"]
    if path.suffix == ".npz" or path.name.startswith("disp_"):
        return FORMS["learn2reg"]
    if path.suffix == ".mat" and path.is_file() and _is_text(path):
        return FORMS["fsl"]
    if path.name.endswith(IMAGES) and path.is_file():
        intent, shape = int(_read_raw(path, path.read_bytes(), strict=False).header["intent_code"]), peek_shape(path)
        if intent in (FSL_FIELD, *FSL_OTHERS):
            return FORMS["fsl"]
        if intent != 1007 and len(shape) > 3 and shape[-1] in (2, 3):
            raise ConfigError(f"{name}: its header does not tell which tool's vectors these are: pass --from {'|'.join(FORMS)}")
    return FORMS["itk"]


def _is_text(path: Path) -> bool:
    data = path.read_bytes()[:4096]
    return b"\0" not in data


def read_foreign(name: str, form: str | None, space: Space) -> Transform:
    """A transform of any tool, as a map of world millimetres, fixed -> moving."""
    existing(name)
    return form_of(name, form).read(Path(name), space)


def write_foreign(name: str | os.PathLike[str], transform: Transform, form: str | None, space: Space) -> None:
    """Write a map of world millimetres, fixed -> moving, as a tool reads it."""
    text = os.fspath(name)
    known = (*IMAGES, ".mat", ".txt", ".tfm", ".h5", ".npz", ".1D")
    if not text.endswith(known):
        raise ConfigError(f"{text}: a transform's name ends in one of {', '.join(known)}")
    unread = str(Path("/nowhere", Path(text).name))  # what a file that is replaced holds does not matter
    form_of(unread, form).write(Path(text), transform, space)
