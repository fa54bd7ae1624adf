"""NIfTI images, checked before they are used.

The header alone says how large an image is and where it lies. Sizes and memory are checked before voxels are read, and a gzip
stream is read to its end (CRC and length). Faults that other readers ignore (NaN, truncation, missing geometry) are errors, or
warnings in the log.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from rdmm.io.files import require_ending, require_file, write_atomically
from rdmm.io.formats.header import Header, Raw, Storage, Time, placement_of
from rdmm.io.streams import check_content, gzip_bytes, read_content, read_head, require_promised_size
from rdmm.runtime.resources import require_memory
from rdmm.spatial.grid import Grid
from rdmm.spatial.placement import Placement, Unit
from rdmm.types import InputError, option

log = logging.getLogger(__name__)

ENDINGS = (".nii", ".nii.gz")
"""Endings of the names of images, in any case."""

UNITS: dict[int, Unit] = {1: "meter", 2: "mm", 3: "micron"}
"""NIfTI's codes of the unit of lengths; lengths of an unknown unit are millimeters."""

VECTOR_INTENT, DISPLACEMENT_INTENT = 1007, 1006
"""NIfTI's intents of a vector at each voxel (ITK, ANTs), and a displacement at each voxel (AFNI)."""

TENSOR_INTENT = 1005
"""NIfTI's intent of a symmetric matrix at each voxel, by its lower triangle."""

FIFTH_AXIS_INTENTS = (VECTOR_INTENT, DISPLACEMENT_INTENT)
"""Intents of vectors along the fifth axis of the file."""

WORK_BYTES = 8
"""Bytes that a voxel takes beside those of the file while it is read: one float64, or two float32."""

_MAGIC = {
    b"\x89PNG": "a PNG picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"GIF8": "a GIF picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PK\x03\x04": "a zip archive",
    b"NRRD": "an NRRD file (name it .nrrd)",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
}

Source = str | os.PathLike[str] | nib.spatialimages.SpatialImage
"""A path, or a nibabel image."""


def is_image_name(name: str | os.PathLike[str]) -> bool:
    """Whether a name ends as those of images, .nii or .nii.gz in any case."""
    return os.fspath(name).lower().endswith(ENDINGS)


def _describe_content(data: bytes) -> str:
    """The kind of file that the first bytes suggest, in words."""
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if data[128:132] == b"DICM":
        return "a DICOM file (give the folder of its series instead)"
    head = data[:512]
    if head and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "text"
    return "unknown binary data"


def _parse_header(path: Path, data: bytes) -> nib.Nifti1Header:
    size = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    two = 540 in size
    if not (348 in size or two) or len(data) < (540 if two else 348):
        raise InputError(f"{path}: not a NIfTI file but {_describe_content(data)}; convert it to .nii.gz")
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
        return np.dtype(header.get_data_dtype())
    except Exception as error:
        raise InputError(f"{path}: unknown data type code {int(header['datatype'])}") from error


COLORS = (("R", "G", "B"), ("R", "G", "B", "A"))
"""Names of the parts of colored voxels."""


def require_scalars(path: Path, dtype: np.dtype, *, colors: bool = False) -> None:
    if colors and dtype.names in COLORS:
        return
    if dtype.names is not None:
        raise InputError(f"{path}: RGB or structured voxels; convert to scalar intensities, or pass the channels as an rdmm.Image")
    if dtype.kind == "c":
        raise InputError(f"{path}: complex voxels; take the magnitude first")
    if dtype.kind not in "buif" or dtype.itemsize == 0:
        raise InputError(f"{path}: voxels of type {dtype} cannot be read; convert them to integers or floats")


def peek(source: Source) -> tuple[tuple[int, ...], Any]:
    """The shape that a header states, and its fields (None for a nibabel image). Nothing else is read, checked or warned of."""
    if isinstance(source, nib.spatialimages.SpatialImage):
        return tuple(int(n) for n in source.shape), None
    path = require_file(source)
    fields = _parse_header(path, read_head(path, 540))
    return _parse_shape(path, fields), fields


def read_header(source: Source, *, strict: bool = False) -> Header:
    """Read what a file says of its image, without reading voxels.

    Raises:
        InputError: the file is missing or not NIfTI, or (with ``strict``) has no s-form and no q-form.
    """
    if isinstance(source, nib.spatialimages.SpatialImage):
        return header_in_memory(source, strict=strict)
    path = require_file(source)
    fields = _parse_header(path, read_head(path, 540))
    shape = _parse_shape(path, fields)
    return Header(path, shape, _parse_placement(path, fields, shape, strict=strict), int(fields["intent_code"]), fields)


def _extent(header: Header) -> tuple[int, int]:
    """First byte and number of bytes of the voxels in the file's content; checks that the file can hold them."""
    offset = float(header.fields["vox_offset"])
    if not (math.isfinite(offset) and offset >= 348 and offset.is_integer()):
        raise InputError(f"{header.path}: the header's voxel offset is {offset:g}; a single-file NIfTI has a whole number of at least 348")
    count = math.prod(header.shape) * _parse_dtype(header.path, header.fields).itemsize
    require_promised_size(header.path, int(offset) + count, "x".join(map(str, header.shape)))
    return int(offset), count


def check_voxels(header: Header) -> None:
    """Check that the file of a header can hold its voxels, and that a gzip stream is whole. Raises InputError."""
    check_content(header.path, *_extent(header))


def read_raw(source: Source, *, strict: bool, colors: bool = False) -> Raw:
    """Read all voxels of an image.

    Args:
        source: a path, or a nibabel image.
        strict: refuse a file without s-form and q-form.
        colors: also read colored voxels.

    Raises:
        InputError: the file is damaged, not NIfTI, or its voxels are not real numbers.
        ResourceError: the voxels do not fit into the free memory.
    """
    header = read_header(source, strict=strict)
    if isinstance(source, nib.spatialimages.SpatialImage):
        array = array_in_memory(header, source)
        return Raw(header, array, _storage(header, array.dtype))
    dtype = _parse_dtype(header.path, header.fields)
    require_scalars(header.path, dtype, colors=colors)
    start, count = _extent(header)
    require_memory_of(header, dtype)
    data = read_content(header.path, start, count).view(dtype).reshape(header.shape, order="F")
    if dtype.names is not None:
        if math.prod(header.shape[3:]) > 1:
            raise InputError(f"{header.path}: {header.shape[3]} volumes of colors; write one of them to a file of its own")
        shape = (*header.shape[:3], *(1,) * (3 - len(header.shape[:3])), 1, len(dtype.names))
        return Raw(header, np.stack([data[c] for c in dtype.names], -1).reshape(shape), replace(_storage(header, dtype), is_color=True))
    scaled = _apply_scaling(header.path, data, header.fields)
    return Raw(header, scaled, _storage(header, dtype if scaled is data else np.dtype(np.float32)))


def _storage(header: Header, dtype: np.dtype) -> Storage:
    fields = header.fields
    if fields is None:
        return Storage(dtype)
    step, start = float(fields["pixdim"][4]), float(fields["toffset"])
    time = Time(step if math.isfinite(step) and step > 0 else 1.0, start if math.isfinite(start) else 0.0, int(fields["xyzt_units"]) & 56)
    return Storage(dtype.newbyteorder("="), header.intent, time)


def require_memory_of(header: Header, dtype: np.dtype) -> None:
    need = math.prod(header.shape) * (dtype.itemsize + WORK_BYTES)
    require_memory(need, f"{header.path}: an image of {'x'.join(map(str, header.shape))} voxels")


def header_in_memory(image: nib.spatialimages.SpatialImage, *, strict: bool) -> Header:
    """The header of a nibabel image of any class: its shape and affine count, not how they would be stored."""
    path, fields, affine = Path(image.get_filename() or "<nibabel image>"), image.header, image.affine
    shape = tuple(int(n) for n in image.shape)
    if not isinstance(fields, nib.Nifti1Header):
        if affine is None:
            raise InputError(f"{path}: the image has no affine; give one to nibabel")
        return Header(path, shape, Placement(shape[:3], affine))
    if affine is None or np.allclose(affine, fields.get_best_affine(), equal_nan=True):
        placement = _parse_placement(path, fields, shape, strict=strict)
    else:
        placement = Placement(shape[:3], affine, _parse_unit(fields), _parse_code(path, fields, "sform"))
    return Header(path, shape, placement, int(fields["intent_code"]), fields)


def array_in_memory(header: Header, image: nib.spatialimages.SpatialImage) -> np.ndarray:
    dtype = np.dtype(image.get_data_dtype()) if nib.is_proxy(image.dataobj) else np.asanyarray(image.dataobj).dtype
    require_scalars(header.path, dtype)
    if nib.is_proxy(image.dataobj):
        require_memory_of(header, dtype)
    try:
        return np.asanyarray(image.dataobj)
    except Exception as error:
        raise InputError(f"{header.path}: its voxels cannot be read ({type(error).__name__}: {error}); copy the file again") from error


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
    whole = array.dtype.kind in "iu" and slope.is_integer() and inter.is_integer()
    if whole and all(abs(int(x) * int(slope)) + abs(int(inter)) < 2**63 for x in (array.min(), array.max(), 1)):
        return array.astype(np.int64) * int(slope) + int(inter)  # labels stay exact
    with np.errstate(over="ignore", invalid="ignore"):  # read_image handles Inf and NaN
        scaled = array * slope
        scaled += inter
    return scaled


def _parse_unit(header: nib.Nifti1Header) -> Unit:
    return UNITS.get(int(header["xyzt_units"]) & 7, "mm")


def _parse_placement(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], *, strict: bool) -> Placement:
    """The s-form, else the q-form, else the voxel sizes on the diagonal; warns if the forms disagree, are singular or missing."""
    unit, space = _parse_unit(header), shape[:3]
    sform = Placement(space, header.get_sform(), unit, _parse_code(path, header, "sform")) if header["sform_code"] > 0 else None
    qform = None if (affine := _parse_qform(path, header)) is None else Placement(space, affine, unit, _parse_code(path, header, "qform"))
    if sform is not None and qform is not None:
        if qform.is_usable() and not sform.is_usable():
            log.warning("%s: the s-form is singular or not finite; the q-form is used", path)
            return qform
        if _differ(np.asarray(sform.affine), np.asarray(qform.affine)):
            log.warning("%s: s-form and q-form disagree; the s-form is used", path)
    if found := sform or qform:
        return found
    if strict:
        raise InputError(
            f"{path}: no s-form and no q-form: the place of the image in the world is unknown; write one of them, or leave out "
            f"{option('strict')}"
        )
    sizes, good = _voxel_sizes(header)
    if good:
        log.warning("%s: no s-form and no q-form: axes taken as R, A, S with origin 0", path)
    else:
        log.warning("%s: no s-form, no q-form, voxel sizes %s: taken as 1 along the axes", path, header["pixdim"][1:4].tolist())
    return Placement(space, np.diag([*sizes, 1.0]), unit)


def _parse_code(path: Path, header: nib.Nifti1Header, form: str) -> int:
    """What the s-form or q-form says of the world, 1 to 5; 1 if it has no such code."""
    code = int(header[f"{form}_code"])
    if code > 0 and code not in nib.nifti1.xform_codes:
        log.warning("%s: %s_code %d has no meaning in NIfTI: taken as 1 (scanner)", path, form, code)
    return code if code > 0 and code in nib.nifti1.xform_codes else 1


def _voxel_sizes(header: nib.Nifti1Header) -> tuple[np.ndarray, bool]:
    """Absolute voxel sizes (3,), with 1 for those that are 0 or not finite; and whether all were good."""
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    good = np.isfinite(sizes) & (sizes > 0)
    return np.where(good, sizes, 1.0), bool(good.all())


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is not used
def _parse_qform(path: Path, header: nib.Nifti1Header) -> np.ndarray | None:
    """The q-form (4, 4), read as nifti1.h and its library do: handedness 0 is 1, sizes are absolute, a long quaternion is shortened."""
    if header["qform_code"] <= 0:
        return None
    header = header.copy()
    sizes, good = _voxel_sizes(header)
    if not good and header["sform_code"] <= 0:
        log.warning("%s: voxel sizes %s in the q-form: those that are 0 or not finite are taken as 1", path, header["pixdim"][1:4].tolist())
    header["pixdim"][:4] = [-1 if header["pixdim"][0] < 0 else 1, *sizes]
    quaternion = np.array([float(header[f"quatern_{k}"]) for k in "bcd"])
    length = np.linalg.norm(quaternion)
    for k, value in zip("bcd", quaternion / max(length, 1.0), strict=True):
        header[f"quatern_{k}"] = value
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except Exception as error:
        log.warning("%s: the q-form cannot be read (%s)", path, error)
        return None


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two affines differ by more than rounding: 1 % of a voxel in the axes, or one voxel in the origin. Not measured."""
    scale = np.abs(a[:3, :3]).max()
    return bool(np.abs(a[:3, :3] - b[:3, :3]).max() > 1e-2 * scale or np.abs(a[:3, 3] - b[:3, 3]).max() > scale)


def encode_nifti(array: np.ndarray, grid: Grid, *, intent: int = 0, fifth: bool | None = None, time: Time | None = None) -> bytes:
    """The bytes of a NIfTI-1 file of voxels (*s), or of volumes or vectors (*s, d) on a grid.

    Shape, affine, unit and code are those of the file of the grid; the affine is the s-form and, without shear, the q-form. Vectors are
    stored as (X, Y, Z, d); ``fifth``, the default for the intents 1006 and 1007, as (X, Y, Z, 1, d).
    """
    placement = placement_of(grid)
    vectors = array.shape[grid.ndim :]
    space = placement.shape if not vectors else (*placement.shape, *(1,) * (3 - len(placement.shape)))
    shape = (*space, *((1,) if (intent in FIFTH_AXIS_INTENTS if fifth is None else fifth) else ()), *vectors)
    affine = placement.storable_affine()
    image = nib.Nifti1Image(array.reshape(shape), affine, dtype=array.dtype)
    image.header.set_intent(intent, (3.0,) if intent == TENSOR_INTENT else ())
    image.header.set_xyzt_units(placement.unit)
    if time is not None:
        image.header["xyzt_units"] = int(image.header["xyzt_units"]) + time.unit
        image.header["pixdim"][4], image.header["toffset"] = time.step, time.start
    image.set_sform(affine, placement.code)
    image.set_qform(affine, placement.code)
    return image.to_bytes()


def encode_stored(array: np.ndarray, grid: Grid, storage: Storage, *, is_vector: bool) -> bytes:
    """The bytes of a NIfTI-1 file of voxels (*s), volumes (*s, n), or vectors or colors (*s, n), which are stored as ``storage`` says."""
    if storage.is_color:
        names = [(c, "u1") for c in "RGBA"[: array.shape[-1]]]
        return encode_nifti(np.ascontiguousarray(array).view(names)[..., 0], grid)
    if is_vector:
        return encode_nifti(array, grid, intent=storage.intent, fifth=True)
    return encode_nifti(array, grid, time=storage.time if array.ndim > grid.ndim else None)


def write_nifti(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically, compressed if its name ends in .gz, in any case.

    Raises:
        ConfigError: the name does not end in .nii or .nii.gz.
        OutputError: the file cannot be written.
    """
    path = require_ending(path, ENDINGS, "an image")
    write_atomically(path, data, gzip_bytes if path.name.lower().endswith(".gz") else bytes)
