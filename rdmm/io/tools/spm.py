"""SPM's deformation fields (y_*.nii)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdmm.io.tools.start import Start
from rdmm.io.vectors import Space, from_vectors, read_field
from rdmm.spatial.transform import Transform


@dataclass(frozen=True)
class SPM:
    """Deformation fields, intent name "Mapping": at each voxel of the fixed grid its point in the moving image, RAS millimeters."""

    endings = ()
    needs_images = False

    def recognises(self, start: Start) -> bool:
        return start.in_itk_layout and start.intent_name == "Mapping"

    def read(self, path: Path, space: Space) -> Transform:
        field = read_field(path)
        return from_vectors(field.values - field.positions(), field.grid)
