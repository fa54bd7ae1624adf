"""NIfTI images, checked before they are used.

The gzip stream is read to its end (CRC and length), and sizes are checked before memory is allocated. Faults
that other readers ignore (NaN, truncation, missing geometry) are errors, or warnings in the log.
"""

from __future__ import annotations

import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from rdmm.io.files import gzip_bytes, require_file, write_atomically
from rdmm.spatial.grid import Grid
from rdmm.types import InputError

log = logging.getLogger(__name__)


_MAGIC = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PK\x03\x04": "a zip archive",
    b"NRRD": "an NRRD file",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
}


MAX_GZIP_RATIO = 1100
"""Bytes that one byte of a gzip file can hold, at most. Deflate cannot compress by more than 1032."""


def _describe_content(data: bytes) -> str:
    """The kind of file that the first bytes suggest, in words."""
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if data[128:132] == b"DICM":
        return "a DICOM file (convert it first, e.g. with dcm2niix)"
    head = data[:512]
    if head and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "text"
    return "unknown binary data"


def _inflate(path: Path, data: bytes, limit: int | None = None) -> bytes:
    """Decompress a gzip stream to its end (with CRC and length checked) or to ``limit`` bytes."""
    out, rest = [], data
    try:
        while rest:
            stream = zlib.decompressobj(wbits=31)
            out.append(stream.decompress(rest, limit or 0))
            if limit is not None and sum(map(len, out)) >= limit:
                break
            if not stream.eof:
                raise InputError(f"{path}: truncated: the gzip stream ends after {sum(map(len, out))} bytes of data; copy the file again")
            rest = stream.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise InputError(f"{path}: corrupted: the gzip CRC or stream is wrong ({error}); copy the file again") from error
    return b"".join(out)


def _parse_header(path: Path, data: bytes) -> nib.Nifti1Header:
    size = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    two = 540 in size
    if not (348 in size or two) or len(data) < (540 if two else 348):
        raise InputError(f"{path}: not a NIfTI file but {_describe_content(data)}")
    magic = data[4:8] if two else data[344:348]
    if magic[:3] not in (b"n+1", b"n+2"):
        what = "an Analyze or NIfTI pair (.hdr/.img); convert it to .nii.gz" if magic[:3] in (b"ni1", b"\0\0\0") else f"magic {magic!r}"
        raise InputError(f"{path}: not a single-file NIfTI: {what}")
    header_class = nib.Nifti2Header if two else nib.Nifti1Header
    try:
        return header_class(data[: 540 if two else 348], check=False)
    except Exception as error:
        raise InputError(f"{path}: the NIfTI header cannot be read: {error}") from error


def _parse_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, ...]:
    dim = [int(x) for x in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise InputError(f"{path}: the header's dimensions {dim} are not those of an image; write the file again")
    return tuple(dim[1 : dim[0] + 1])


def _parse_dtype(path: Path, header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except Exception as error:
        raise InputError(f"{path}: unknown data type code {int(header['datatype'])}") from error
    if dtype.names is not None:
        raise InputError(f"{path}: RGB or structured voxels; convert to scalar intensities, or pass the channels as an rdmm.Image")
    if dtype.kind == "c":
        raise InputError(f"{path}: complex voxels; take the magnitude first")
    if dtype.kind not in "uif" or dtype.itemsize == 0:
        raise InputError(f"{path}: voxels of type {dtype} cannot be read; convert them to integers or floats")
    return dtype


@dataclass(frozen=True)
class Raw:
    """Scaled voxels as stored, their affine (4, 4), and the header."""

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header


Source = str | os.PathLike[str] | nib.spatialimages.SpatialImage
"""A path, or a nibabel image."""


def read_stored(source: Source) -> tuple[Path, bytes]:
    """Read a file, or encode a nibabel image; return a name for messages, and the bytes."""
    if isinstance(source, nib.spatialimages.SpatialImage):
        name = Path(source.get_filename() or "<nibabel image>")
        image = source if isinstance(source, nib.Nifti1Image) else nib.Nifti1Image.from_image(source)
        return name, image.to_bytes()
    path = require_file(source)
    return path, path.read_bytes()


def peek_shape(source: Source) -> tuple[int, ...]:
    """The shape that a file's header states, without reading its voxels."""
    if isinstance(source, nib.spatialimages.SpatialImage):
        return tuple(source.shape)
    path = require_file(source)
    with open(path, "rb") as f:
        head = f.read(1 << 16)
    return _parse_shape(path, _parse_header(path, _inflate(path, head, 600) if head[:2] == b"\x1f\x8b" else head))


def read_raw(path: Path, stored: bytes, *, strict: bool) -> Raw:
    """Decode a NIfTI file; ``path`` is only named in messages.

    Raises:
        InputError: the file is damaged, not NIfTI, or (with ``strict``) has no s-form and no q-form.
    """
    zipped = stored[:2] == b"\x1f\x8b"
    header = _parse_header(path, _inflate(path, stored, 600) if zipped else stored)
    shape, dtype = _parse_shape(path, header), _parse_dtype(path, header)
    offset = int(header["vox_offset"]) if np.isfinite(header["vox_offset"]) else -1
    if offset < 348:
        raise InputError(f"{path}: the header's voxel offset is {offset}; a single-file NIfTI has at least 348")
    expected = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    capacity = len(stored) * MAX_GZIP_RATIO if zipped else len(stored)
    if expected > capacity:
        raise InputError(
            f"{path}: truncated: the header promises {expected} bytes ({'x'.join(map(str, shape))}), the file can hold {capacity};"
            " copy the file again"
        )
    data = _inflate(path, stored) if zipped else stored
    if len(data) < expected:
        raise InputError(f"{path}: truncated: {expected} bytes expected, {len(data)} found; copy the file again")
    array = np.frombuffer(data, dtype, count=(expected - offset) // dtype.itemsize, offset=offset).reshape(shape, order="F")
    return Raw(_apply_scaling(path, array, header), _choose_affine(path, header, strict=strict), header)


def _apply_scaling(path: Path, array: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        log.warning("%s: scl_slope is %g: treated as 1", path, slope)
        slope, inter = 1.0, 0.0
    if not np.isfinite(inter):
        log.warning("%s: scl_inter is %g: treated as 0", path, inter)
        inter = 0.0
    if (slope, inter) == (1.0, 0.0):
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # read_image handles Inf and NaN
        return array * slope + inter


def _choose_affine(path: Path, header: nib.Nifti1Header, *, strict: bool) -> np.ndarray:
    """The s-form, else the q-form, else the voxel sizes on the diagonal; warns if the forms disagree or are missing."""
    zooms = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    sform = header.get_sform() if header["sform_code"] > 0 else None
    qform = None
    if header["qform_code"] > 0:
        try:
            qform = header.get_qform()
        except Exception as error:
            log.warning("%s: the q-form cannot be read (%s)", path, error)
    if sform is not None and qform is not None and _differ(sform, qform):
        log.warning("%s: s-form and q-form disagree; the s-form is used", path)
    for affine in (sform, qform):
        if affine is not None:
            return np.asarray(affine, dtype=np.float64)
    if strict:
        raise InputError(
            f"{path}: no s-form and no q-form: the place of the image in the world is unknown; write one of them, or leave out --strict"
        )
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        log.warning("%s: no s-form, no q-form, voxel sizes %s: taken as 1 mm along the axes", path, zooms.tolist())
        zooms = np.where(np.isfinite(zooms) & (zooms > 0), zooms, 1.0)
    else:
        log.warning("%s: no s-form and no q-form: axes taken as R, A, S with origin 0", path)
    return np.diag([*zooms, 1.0])


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two affines differ by more than rounding: 1 % of a voxel in the axes, or one voxel in the origin. Not measured."""
    scale = np.abs(a[:3, :3]).max()
    return bool(np.abs(a[:3, :3] - b[:3, :3]).max() > 1e-2 * scale or np.abs(a[:3, 3] - b[:3, 3]).max() > scale)


def in_plane_affine(affine: np.ndarray) -> np.ndarray:
    """(3, 3) affine of a single slice: its part in the first two world axes, or, if the slice is steep to these, its voxel sizes."""
    flat = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    size = np.linalg.norm(affine[:3, :2], axis=0)
    if abs(np.linalg.det(flat[:2, :2])) < 0.5 * size.prod():
        return np.diag([*size, 1.0])
    return flat


def make_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """The grid of a file; errors name the file."""
    try:
        return Grid(shape, affine)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def encode_nifti(array: np.ndarray, affine: np.ndarray, *, intent: int = 0) -> bytes:
    """The bytes of a NIfTI-1 file. The RAS+ (4, 4) ``affine`` is its s-form and, without shear, its q-form."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_intent(intent)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image.to_bytes()


def affine_in_3d(grid: Grid) -> np.ndarray:
    """(4, 4) affine of a grid. A 2D grid lies in the plane z = 0; its voxels are as thick as their mean edge."""
    if grid.ndim == 3:
        return np.asarray(grid.affine)
    out = np.eye(4)
    out[np.ix_([0, 1, 3], [0, 1, 3])] = np.asarray(grid.affine)
    out[2, 2] = sum(grid.voxel) / 2
    return out


def axis_codes(grid: Grid) -> str:
    """Directions of the axes of a 3D grid: three of L R P A I S, e.g. "RAS"; "2D" for a grid in the plane."""
    return "".join(nib.aff2axcodes(np.asarray(grid.affine))) if grid.ndim == 3 else "2D"


def write_nifti(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically, compressed if its name ends in .gz."""
    write_atomically(path, gzip_bytes(data) if os.fspath(path).endswith(".gz") else data)
