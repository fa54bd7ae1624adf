"""GIFTI surfaces (.surf.gii): points and triangles in RAS+, with columns of data of the points."""

from __future__ import annotations

import base64
import logging
import math
import re
import zlib
from copy import deepcopy

import nibabel as nib
import numpy as np

from rdmm.io.meshes.body import to_indices
from rdmm.io.meshes.mesh import PolyData, as_rows, make_polydata
from rdmm.runtime.resources import require_memory
from rdmm.types import InputError

log = logging.getLogger(__name__)

POINTS, TRIANGLES = "NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE"

CENTER = ("VolGeomC_R", "VolGeomC_A", "VolGeomC_S")
"""FreeSurfer's names for the center of its volume, from which its own coordinates are counted."""


def parse_gifti(data: bytes) -> PolyData:
    """The contents of a GIFTI surface.

    Raises:
        InputError: not such a file, damaged, or without exactly one set of points.
    """
    _require_stated_sizes(data)
    try:
        image = nib.GiftiImage.from_bytes(data)
    except Exception as error:
        raise InputError(f"not a GIFTI file, or damaged ({error})") from error
    points = image.get_arrays_from_intent(POINTS)
    triangles = image.get_arrays_from_intent(TRIANGLES)
    if len(points) != 1 or len(triangles) > 1:
        raise InputError(f"{len(points)} sets of points and {len(triangles)} of triangles; give a surface (.surf.gii), with one of each")
    if points[0].data.ndim != 2 or points[0].data.shape[1] != 3:
        raise InputError(f"points of shape {points[0].data.shape}; (n, 3) is expected")
    _warn_of_freesurfer(points[0])
    columns = {}
    for k, array in enumerate(a for a in image.darrays if a not in (*points, *triangles)):
        if array.data.ndim == 1 and len(array.data) == len(points[0].data):
            columns[array.meta.get("Name") or f"data{k + 1}"] = array.data
    cells = [as_rows("POLYGONS", to_indices(a.data.astype(np.float64)).reshape(-1, 3)) for a in triangles]
    return make_polydata(points[0].data.astype(np.float64), cells, point_data=columns, native=image)


def _require_stated_sizes(data: bytes) -> None:
    """Raise InputError if an array is compressed and holds more than its sizes state, which could fill the memory."""
    for head, block in re.findall(rb"<DataArray\b([^>]*)>.*?<Data>([^<]*)</Data>", data, re.DOTALL):
        if b"GZipBase64Binary" in head:
            stated = 8 * math.prod(int(n) for n in re.findall(rb'Dim\d="(\d{1,18})"', head))
            require_memory(stated, f"an array of {stated} bytes", "reduce its number of vertices")
            try:
                inflated = zlib.decompressobj().decompress(base64.b64decode(block), stated + 1)
            except (ValueError, zlib.error) as error:
                raise InputError(f"damaged ({error})") from error
            if len(inflated) > stated:
                raise InputError("an array holds more than the sizes that it states")


def _warn_of_freesurfer(points: nib.gifti.GiftiDataArray) -> None:
    """FreeSurfer counts coordinates from the center of its volume unless told otherwise."""
    space = nib.nifti1.xform_codes.niistring[points.coordsys.dataspace] if points.coordsys else ""
    try:
        center = [float(points.meta.get(name, 0)) for name in CENTER]
    except ValueError:
        return
    if any(center) and space != "NIFTI_XFORM_SCANNER_ANAT":
        log.warning(
            "a surface of FreeSurfer: its points may be counted from the center %s of the volume, and are read as scanner RAS; if so,"
            " convert it first: mris_convert --to-scanner",
            center,
        )


def render_gifti(data: PolyData) -> tuple[bytes, list[str]]:
    """A surface in RAS+, and the names of what it cannot hold. Of a .gii file, all but the points stays.

    Raises:
        InputError: there are no surfaces.
    """
    if isinstance(data.native, nib.GiftiImage):
        image = deepcopy(data.native)
        array = image.get_arrays_from_intent(POINTS)[0]
        array.data = data.points.astype(np.float32)
        array.datatype = nib.nifti1.data_type_codes.code["NIFTI_TYPE_FLOAT32"]
        if array.coordsys is not None:  # the way to a third space, such as Talairach, began at the old place
            array.coordsys.xform, array.coordsys.xformspace = np.eye(4), array.coordsys.dataspace
        return image.to_bytes(), []
    rows, _ = data.part("POLYGONS")
    if not rows:
        raise InputError("a .gii file holds surfaces, and there are none; write .vtk, .vtp or .csv")
    triangles = np.concatenate([np.stack([np.broadcast_to(r[0], len(r) - 2), r[1:-1], r[2:]], 1) for r in rows])
    space = nib.gifti.GiftiCoordSystem("NIFTI_XFORM_SCANNER_ANAT", "NIFTI_XFORM_SCANNER_ANAT", np.eye(4))
    image = nib.GiftiImage()
    image.add_gifti_data_array(nib.gifti.GiftiDataArray(data.points.astype(np.float32), intent=POINTS, coordsys=space))
    image.add_gifti_data_array(nib.gifti.GiftiDataArray(triangles.astype(np.int32), intent=TRIANGLES))
    lost = [*data.cell_data, *(["lines"] if data.part("LINES")[0] else [])]
    for name, values in data.point_data.items():
        if values.ndim > 1:
            lost.append(name)
        else:
            one = nib.gifti.GiftiDataArray(values.astype(np.float32), intent="NIFTI_INTENT_SHAPE", meta=nib.gifti.GiftiMetaData(Name=name))
            image.add_gifti_data_array(one)
    return image.to_bytes(), lost
