"""Maps from points to points (the public names of ``rdmm.spatial.transform``)."""

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
