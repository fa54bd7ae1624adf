"""NIfTI images, label maps and masks: every field of the header, every type of voxels, and gzip streams of every build."""

from __future__ import annotations

import contextlib
import functools
import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from fuzzing.case import NUMBERS, Case, Rng, chance, count, damage, number, perhaps_damaged, pick
from rdmm import Grid, Image, io
from rdmm.spatial.grid import is_invertible
from rdmm.types import InputError, RdmmError
from rdmm.workflows import inspect

SHAPES = ((5, 4, 6), (5, 4, 6), (6, 5), (6, 5, 1), (1, 5, 6), (5, 1, 6), (5, 4, 6, 2), (5, 4, 6, 1), (5, 4, 6, 1, 3), (3, 4, 5), (6,))
INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
NAMES = ("x.nii.gz", "x.nii", "x.NII.GZ", "x.Nii")


def affine_of(rng: Rng, hostile: float = 0.0) -> np.ndarray:
    """A 4x4 matrix of turned axes with voxels of about a millimeter."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if chance(rng, 0.5) else np.eye(3)
    out = np.eye(4)
    out[:3, :3] = turn * rng.uniform(0.5, 2, 3)
    out[:3, 3] = rng.normal(size=3) * 20
    for k in np.ndindex(3, 4):
        out[k] = pick(rng, NUMBERS) if chance(rng, hostile) else out[k]
    return out


@np.errstate(all="ignore")
def header_of(rng: Rng, shape: tuple[int, ...], dtype: np.dtype, hostile: float, affine: np.ndarray | None = None) -> nib.Nifti1Header:
    """A header, of which some fields hold hostile values in this share of the cases."""
    header = (nib.Nifti2Header if chance(rng, 0.2) else nib.Nifti1Header)(endianness=pick(rng, "<>"))
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    affine = affine_of(rng) if affine is None else affine
    header.set_sform(affine, int(rng.integers(0, 5)))
    header.set_qform(affine, int(rng.integers(0, 5)))
    header["xyzt_units"] = pick(rng, (0, 2, 2, 10, 1, 3, 8, 255))
    header["scl_slope"] = header["scl_inter"] = np.nan
    header["vox_offset"] = 544 if isinstance(header, nib.Nifti2Header) else 352
    header["magic"] = b"n+2" if isinstance(header, nib.Nifti2Header) else b"n+1"
    fields = header.structarr
    names = [n for n in fields.dtype.names if fields[n].dtype.kind in "iuf"]
    names += ["dim", "pixdim", "srow_x", "srow_y", "srow_z", "scl_slope", "scl_inter", "vox_offset", "quatern_b", "datatype"]
    while chance(rng, hostile):
        values = fields[pick(rng, names)].reshape(-1)
        k = int(rng.integers(len(values)))
        if values.dtype.kind == "f":
            values[k] = pick(rng, NUMBERS)
        else:
            small = int(rng.integers(-2, 4)) if chance(rng, 0.7) else int(rng.integers(-(2**62), 2**62))
            values[k] = np.array(small).astype(values.dtype)
    return header


def voxels_of(rng: Rng, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Voxels over the whole range of a type of integers, or floats of which some are hostile."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        ends = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return np.where(rng.random(shape) < pick(rng, (0.0, 0.1, 1.0)), ends, rng.integers(0, 5, shape).astype(dtype)).astype(dtype)
    values = rng.normal(size=shape)
    if chance(rng, 0.3):
        values[tuple(int(rng.integers(n)) for n in shape)] = pick(rng, NUMBERS)
    with np.errstate(all="ignore"):
        return (np.rint(values) if chance(rng, 0.5) else values).astype(dtype)


def file_bytes(rng: Rng, header: nib.Nifti1Header, array: np.ndarray, *, whole: bool = False) -> bytes:
    """A file; in some cases, but never if it is to be ``whole``, bytes are missing or too many."""
    body = array.astype(array.dtype.newbyteorder(header.endianness)).tobytes("F")
    body = body[: max(0, count(rng, len(body), 0.05))] if not whole and chance(rng, 0.1) else body
    return header.binaryblock + b"\0" * 4 + body


def zipped(rng: Rng, data: bytes) -> bytes:
    """A gzip file of the data: in one or several members, with empty ones, with far more behind it, or damaged."""
    kind = int(rng.integers(10))
    if kind == 0:
        cut = int(rng.integers(len(data)))
        return gzip.compress(data[:cut], 1) + gzip.compress(data[cut:], 1)
    if kind == 1:
        return gzip.compress(b"", 1) * pick(rng, (1, 50, 20000)) + gzip.compress(data, 1)
    if kind == 2:
        return gzip.compress(data, 1) + _zeros(pick(rng, (10**4, 10**6, 3 * 10**7)))
    if kind == 3:
        return damage(rng, gzip.compress(data, 1))
    if kind == 4:
        return gzip.compress(data, 1) + rng.bytes(20)
    return gzip.compress(data, 0 if kind == 5 else 1)


@functools.cache
def _zeros(size: int) -> bytes:
    return gzip.compress(bytes(size), 9)


def stored(rng: Rng, name: str, data: bytes) -> bytes:
    """The content of a file of this name, damaged before or after it is compressed in some cases."""
    harmed = perhaps_damaged(rng, data, 0.15)
    wants_gzip = name.lower().endswith(".gz") != chance(rng, 0.03)
    return zipped(rng, harmed) if wants_gzip else harmed


def require_laws(image: Image, folder: Path, *, integer: bool = False) -> None:
    """A result is finite, its geometry can be inverted, and it is the same after it was written and read again."""
    grid = image.grid
    assert bool(torch.isfinite(image.data.double()).all()), "voxels that are not finite"
    assert is_invertible(np.asarray(grid.affine)) and np.isfinite(np.linalg.inv(np.asarray(grid.affine))).all(), "a singular geometry"
    assert grid.length > 0 and np.isfinite(grid.corners()).all(), "a box that is not finite"
    again = folder / "again.nii.gz"
    io.write_image(again, image.data, grid, integer=integer)
    back = io.read_labels(again) if integer else io.read_image(again)
    assert torch.equal(back.data, image.data), "voxels differ after writing and reading"
    rounding = 1e-6 * np.abs(np.asarray(grid.affine)).max() / min(grid.voxel)  # of float32, which NIfTI stores
    assert back.grid.shape == grid.shape and grid.offset(back.grid) < 0.01 + rounding, "the geometry differs after writing and reading"


def draw_image(rng: Rng) -> Case:
    """An image of any type."""
    dtype, shape, name = np.dtype(pick(rng, (*INTEGERS, "f4", "f4", "f8", "c8", "f2"))), pick(rng, SHAPES), pick(rng, NAMES)
    try:
        header = header_of(rng, shape, dtype, 0.5)
    except nib.spatialimages.HeaderDataError:
        dtype = np.dtype("f4")
        header = header_of(rng, shape, dtype, 0.5)
    data = stored(rng, name, file_bytes(rng, header, voxels_of(rng, shape, dtype)))
    nan, volume, strict = pick(rng, ("error", "zero", "mask")), pick(rng, (None, None, None, None, 0, 1)), chance(rng, 0.2)

    def run(folder: Path) -> None:
        path = folder / name
        way = len(data) % 4
        if way == 0:
            inspect.info(str(path))
        if way == 1:
            assert is_invertible(np.asarray(io.read_grid(path).affine))
        if way == 2:
            for image in io.read_stack(path).images(labels=False):
                require_laws(image.to_float32(), folder)  # in which files of images are written
        require_laws(io.read_image(path, nan=nan, volume=volume, strict=strict), folder)

    return Case(run, {name: data}, f"{dtype} {shape} {nan} {volume}")


def draw_sound_image(rng: Rng) -> Case:
    """A sound image of any type, byte order, unit, shape and scaling: the voxels that are read are those that were written."""
    dtype, shape, name = np.dtype(pick(rng, (*INTEGERS, "f4", "f8"))), pick(rng, SOUND_SHAPES), pick(rng, NAMES)
    array, header = voxels_of(rng, shape, dtype), header_of(rng, shape, dtype, 0.0)
    array = np.where(np.abs(array.astype(np.float64)) < 1e30, array, 0).astype(dtype)  # False for NaN
    slope, inter = (float(rng.uniform(0.5, 2)), float(rng.normal())) if chance(rng, 0.5) else (1.0, 0.0)
    header["scl_slope"], header["scl_inter"] = (slope, inter) if (slope, inter) != (1.0, 0.0) else (np.nan, np.nan)
    whole = file_bytes(rng, header, array, whole=True)
    data = gzip.compress(whole, 1) if name.lower().endswith(".gz") else whole

    def run(folder: Path) -> None:
        try:
            image = io.read_image(folder / name)
        except RdmmError as error:
            raise AssertionError(f"a sound image is refused: {error}") from error
        require_laws(image, folder)
        factors = [float(header[k]) if np.isfinite(header[k]) else default for k, default in (("scl_slope", 1.0), ("scl_inter", 0.0))]
        expected = (array.astype(np.float64) * factors[0] + factors[1]).ravel()
        assert np.allclose(image.data.numpy().ravel(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()), "other voxels"
        placed = header.get_best_affine() * np.array([*[UNITS[int(header["xyzt_units"]) & 7]] * 3, 1])[:, None]
        far = np.array([*(n - 1 for n in (*shape, 1)[:3]), 1.0])
        if image.grid.ndim == 3 and header["sform_code"] > 0:
            assert np.allclose(image.grid.voxel_to_world(far[None, :3])[0], (placed @ far)[:3], rtol=1e-4, atol=1e-2), "another place"

    return Case(run, {name: data}, f"{dtype} {shape} {slope}")


SOUND_SHAPES = ((5, 4, 6), (5, 4, 6), (6, 5), (6, 5, 1), (1, 5, 6), (5, 1, 6), (5, 4, 6, 1))
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001, 7: 1.0}
"""Millimeters of NIfTI's units of length; of unknown ones as of millimeters."""


def draw_labels(rng: Rng) -> Case:
    """A label map of integers of any width, or of floats; the labels that are read are those that were written."""
    dtype, shape, name = np.dtype(pick(rng, (*INTEGERS, "f4", "f8"))), pick(rng, SHAPES[:5]), pick(rng, NAMES)
    array = voxels_of(rng, shape, dtype)
    is_sound = chance(rng, 0.6)
    header = header_of(rng, shape, dtype, 0.0 if is_sound else 0.5)
    whole = file_bytes(rng, header, array, whole=is_sound)
    data = stored(rng, name, whole) if not is_sound else gzip.compress(whole, 1) if name.lower().endswith(".gz") else whole

    def run(folder: Path) -> None:
        labels = io.read_labels(folder / name)
        require_laws(labels, folder, integer=True)
        if is_sound:
            expected = np.rint(array).astype(np.int64) if dtype.kind == "f" else array.astype(np.int64)
            assert np.array_equal(labels.data.numpy().ravel(), expected.ravel()), "other labels than those of the file"
            assert dtype != np.uint64 or array.max() < 2**63, "labels above int64 are read"

    return Case(run, {name: data}, f"{dtype} {shape}")


def draw_mask(rng: Rng) -> Case:
    """A mask, on the grid of its image or on another one."""
    dtype, shape, name = np.dtype(pick(rng, ("u1", "f4", "i2"))), pick(rng, SHAPES[:5]), pick(rng, NAMES)
    array = np.clip(voxels_of(rng, shape, dtype), 0, pick(rng, (0, 1, 2, 2, 2)))
    data = stored(rng, name, file_bytes(rng, header_of(rng, shape, dtype, 0.3, np.eye(4) if chance(rng, 0.8) else None), array))
    grid = Grid.unit(shape if len(shape) < 4 and min(shape) > 1 and chance(rng, 0.8) else (7, 6, 5))

    def run(folder: Path) -> None:
        mask = io.read_mask(folder / name, Image(torch.ones(1, 1, *grid.shape), grid)).mask
        assert mask is not None and set(mask.unique().tolist()) <= {0.0, 1.0} and bool(mask.any()), "not a mask of 0 and 1"
        assert mask.shape[2:] == grid.shape

    return Case(run, {name: data}, f"{dtype} {shape}")


def draw_in_memory(rng: Rng) -> Case:
    """What is given in Python: nibabel images of any class, images of rdmm, and what is neither."""
    dtype, shape = np.dtype(pick(rng, (*INTEGERS, "f2", "f4", "f8", "c8", "?", "O", "U3"))), pick(rng, SHAPES)
    array = voxels_of(rng, shape, dtype) if dtype.kind in "iufc" else np.zeros(shape, dtype)
    affine = affine_of(rng, 0.02)
    kind = int(rng.integers(8))

    source: Any = pick(rng, (None, array, array.tolist(), 5, b"x.nii", {"data": array}, object, torch.zeros(shape)))
    as_labels = chance(rng, 0.3)
    if kind < 4 and dtype.kind in "iuf" and dtype != "f2":
        classes = (nib.Nifti1Image, nib.Nifti2Image, nib.spatialimages.SpatialImage, nib.AnalyzeImage)
        with contextlib.suppress(nib.spatialimages.HeaderDataError, ValueError), np.errstate(all="ignore"):  # nibabel refuses it
            source = classes[kind](array, affine if chance(rng, 0.9) else None, **({} if kind == 2 else {"dtype": dtype}))
    elif kind < 7 and dtype.kind in "iufc?" and dtype not in ("u2", "u4", "u8") and len(shape) in (2, 3) and min(shape) > 1:
        grid = Grid(shape, affine_of(rng) if len(shape) == 3 else np.eye(3))
        data = torch.from_numpy(np.ascontiguousarray(array))[None, None]
        harmed = (data.to("meta"), data[0], data.to_sparse(), data.clone().requires_grad_() if dtype.kind == "f" else data)
        with contextlib.suppress(InputError):
            source = Image(pick(rng, (data, data, data, *harmed)), grid)
    is_array = isinstance(source, Image | nib.spatialimages.SpatialImage)

    def run(folder: Path) -> None:
        if as_labels:
            require_laws(io.read_labels(source), folder, integer=True)
        image = io.read_image(source)
        require_laws(image, folder)
        if is_array:
            assert np.array_equal(image.data.numpy().ravel(), array.astype(np.float32).ravel()), "other voxels"

    return Case(run, {}, f"{kind} {dtype} {shape}")


def vectors_file(rng: Rng, shape: tuple[int, ...], hostile: float) -> bytes:
    """A file of small vectors with the intents of all tools."""
    dtype = np.dtype(pick(rng, ("f4", "f4", "f8", "i2")))
    header = header_of(rng, shape, dtype, hostile)
    header["intent_code"] = pick(rng, (1007, 1007, 1007, 1006, 0, 2006, 2008))
    header["intent_name"] = pick(rng, (b"", b"", b"NREG_TRANS", b"Mapping", b"\xff\x1b"))
    header["intent_p1"] = pick(rng, (0, 1, 2, np.nan, 1e38))
    values = rng.normal(size=shape)
    if chance(rng, 0.15):
        values[tuple(int(rng.integers(n)) for n in shape)] = number(rng, 1.0)
    with np.errstate(all="ignore"):
        return file_bytes(rng, header, values.astype(dtype))


GENERATORS = {"image": draw_image, "sound_image": draw_sound_image, "in_memory": draw_in_memory, "labels": draw_labels, "mask": draw_mask}
