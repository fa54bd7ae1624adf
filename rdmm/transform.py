"""Transforms: maps from points to points. The public names of ``rdmm.spatial.transform``."""

from rdmm.spatial.transform import (
    Affine,
    Composed,
    Dense,
    Framed,
    Identity,
    Placed,
    Transform,
    composed,
    displacement,
    flat,
    framed,
    invert,
    split,
)

__all__ = [
    "Affine",
    "Composed",
    "Dense",
    "Framed",
    "Identity",
    "Placed",
    "Transform",
    "composed",
    "displacement",
    "flat",
    "framed",
    "invert",
    "split",
]
