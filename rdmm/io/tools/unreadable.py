"""Files of transforms that are not read: what they are, and what to do with them."""

from __future__ import annotations

import re
from collections.abc import Callable

from rdmm.io.tools.start import HEAD, Start

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def _has_rows(start: Start, numbers: int) -> bool:
    """Whether a text holds several rows of so many numbers each, and nothing else but comments."""
    lines = [line for line in start.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    lines = lines[:-1] if len(start.head) == HEAD else lines  # the last one may be cut
    return len(lines) > 1 and all(re.fullmatch(rf"\s*{NUMBER}(?:[\s,]+{NUMBER}){{{numbers - 1}}}\s*", line) for line in lines)


def _is_named(*endings: str) -> Callable[[Start], bool]:
    return lambda start: start.path.name.lower().endswith(endings)


KINDS: list[tuple[Callable[[Start], bool], str, str]] = [
    (
        _is_named(".m3z", ".m3d"),
        "a morph of FreeSurfer",
        "convert it with mri_warp_convert --inm3z FILE --insrcgeom MOVING --outitk WARP.nii.gz",
    ),
    (
        lambda start: start.head.startswith(b"MATLAB 5"),
        "a MATLAB file, such as SPM's parameters (_sn.mat, _seg8.mat); ITK's are of version 4",
        "write the deformation as y_NAME.nii with SPM's Deformations",
    ),
    (
        lambda start: start.path.name.startswith("u_rc") and start.header is not None,
        "a flow field of DARTEL",
        "write the deformation as y_NAME.nii with SPM's Deformations",
    ),
    (
        _is_named(".x5"),
        "an X5 file of nitransforms",
        "write it for ITK: nitransforms.linear.load(FILE, fmt='X5').to_filename('OUT.tfm', fmt='itk')",
    ),
    (
        lambda start: (
            re.match(r"\S+\s+(?:[\d.]+\s+){3}" + rf"(?:{NUMBER}\s+){{16}}(?:round|tkregister|floor)?\s*$", start.text) is not None
        ),
        "a register.dat of FreeSurfer",
        "convert it with tkregister2 --reg FILE --noedit --ltaout OUT.lta",
    ),
    (
        lambda start: _has_rows(start, 6),
        "motion parameters, six of each volume",
        "give one matrix: mcflirt -mats writes one of each volume",
    ),
    (lambda start: _has_rows(start, 12), "matrices, one of each volume", "write the row of one volume to a file of its own"),
    (_is_named(".npy"), "an array that does not say whose displacements it holds", "save it as Learn2Reg's .npz, or as a warp of ITK"),
    (
        lambda start: start.numbers == 12 and start.path.suffix.lower() != ".1d" and not start.text.startswith("# 3dvolreg"),
        "a matrix without its last row",
        "add the row 0 0 0 1 and name the tool: rdmm convert FILE OUT --from fsl|ras",
    ),
]
"""Whether a file is of a kind, what this is, and what to do. The first that fits is taken."""


def describe_unreadable(start: Start) -> str:
    """What a file is that no reader of transforms reads, and what to do with it, or an empty string."""
    found = next((f"{what}: not read; {cure}" for fits, what, cure in KINDS if fits(start)), "")
    return found.replace("FILE", str(start.path))
