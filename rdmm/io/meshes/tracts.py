"""Streamlines of TrackVis (.trk) and MRtrix (.tck) in RAS+ millimeters: lines with data of points and lines."""

from __future__ import annotations

import logging
import warnings
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence, TckFile, Tractogram, TrkFile

from rdmm.io.meshes.mesh import Cells, PolyData, make_polydata
from rdmm.types import ConfigError, InputError

log = logging.getLogger(__name__)

FILES: dict[str, Any] = {".trk": TrkFile, ".tck": TckFile}


def parse_tracts(data: bytes, ending: str) -> PolyData:
    """The contents of a .trk or .tck file; each streamline is a cell of LINES. The header is kept for ``render_tracts``.

    Raises:
        InputError: not such a file, or damaged.
    """
    try:
        with warnings.catch_warnings(record=True) as said:
            file = FILES[ending].load(BytesIO(data), lazy_load=False)
    except Exception as error:
        raise InputError(f"not a {ending} file, or damaged ({' '.join(str(error).split())})") from error
    for warning in said:
        log.warning("a %s file: %s", ending, warning.message)
    tractogram = file.tractogram
    lengths = [len(s) for s in tractogram.streamlines]
    points = np.concatenate([np.empty((0, 3)), *tractogram.streamlines]).astype(np.float64)
    return make_polydata(
        points,
        [Cells("LINES", np.cumsum([0, *lengths]), np.arange(len(points)))],
        point_data={str(name): _flat(np.concatenate(list(values))) for name, values in tractogram.data_per_point.items() if len(values)},
        cell_data={str(name): _flat(np.asarray(values)) for name, values in tractogram.data_per_streamline.items()},
        native=(ending, dict(file.header)),
        shortest=1,
    )


def _flat(column: np.ndarray) -> np.ndarray:
    return column[:, 0] if column.ndim > 1 and column.shape[1] == 1 else column


def render_tracts(data: PolyData, ending: str) -> tuple[bytes, list[str]]:
    """A .trk or .tck file, and the names of what it cannot hold.

    Raises:
        InputError: there are no lines.
        ConfigError: a .trk of something else than a .trk, whose header tells the grid of an image.
    """
    rows, of_lines = data.part("LINES")
    if not rows:
        raise InputError(f"a {ending} file holds streamlines, and there are no lines; write .vtk, .vtp or .csv")
    origin, header = data.native if isinstance(data.native, tuple) else ("", {})
    if origin != ending:
        header = {}
    if ending == ".trk" and not header:
        raise ConfigError("a .trk file tells the grid of an image, which only another .trk knows; write .tck or .vtk")
    tractogram = Tractogram([data.points[row] for row in rows], affine_to_rasmm=np.eye(4))
    lost = [*data.point_data, *data.cell_data]
    if ending == ".trk":
        lost = []
        for name, values in data.point_data.items():
            tractogram.data_per_point[name] = ArraySequence(values.reshape(len(values), -1)[row] for row in rows)
        for name, values in of_lines.items():
            tractogram.data_per_streamline[name] = values.reshape(len(values), -1)
    buffer = BytesIO()
    try:
        FILES[ending](tractogram, header=header).save(buffer)
    except (ValueError, nib.streamlines.tractogram_file.DataError, nib.streamlines.tractogram_file.HeaderError) as error:
        raise InputError(f"a {ending} file cannot hold these data ({error}); write .vtk or .vtp") from error
    return buffer.getvalue(), lost
