"""NiftyReg's deformation and displacement fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdmm.io.nifti import peek
from rdmm.io.tools.start import Start
from rdmm.io.vectors import Space, from_vectors, read_field
from rdmm.spatial.transform import Transform
from rdmm.types import InputError

DEFORMATION, DISPLACEMENT = 0, 1
OTHERS = {
    2: "control points of a cubic spline",
    3: "a velocity field (as deformation)",
    4: "a velocity field (as displacement)",
    5: "control points of a velocity",
    6: "control points of a linear spline",
}
"""What intent_p1 says of a file of NiftyReg (reg_tools of NiftyReg: DEF_FIELD, DISP_FIELD, CUB_SPLINE_GRID, ...)."""


@dataclass(frozen=True)
class NiftyReg:
    """Fields of NiftyReg, intent name "NREG_TRANS": points or displacements, fixed -> moving, RAS millimeters."""

    endings = ()
    needs_images = False

    def recognises(self, start: Start) -> bool:
        return start.in_itk_layout and start.intent_name == "NREG_TRANS"

    def read(self, path: Path, space: Space) -> Transform:
        kind = float(peek(path)[1]["intent_p1"])
        if kind not in (DEFORMATION, DISPLACEMENT):
            what = OTHERS.get(int(kind) if kind == kind else -1, f"an unknown kind (intent_p1 {kind:g})")
            raise InputError(f"{path}: {what} of NiftyReg; convert it to a field: reg_transform -ref FIXED -def {path.name} OUT.nii.gz")
        field = read_field(path)
        return from_vectors(field.values if kind == DISPLACEMENT else field.values - field.positions(), field.grid)
