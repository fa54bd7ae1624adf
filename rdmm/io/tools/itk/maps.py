"""The transforms of ITK's classes, by their parameters: linear maps, displacement fields, and composites of them.

All of ITK's files (text, .mat, .h5) store a transform as the name of a class, parameters and fixed parameters, in LPS millimeters.
elastix takes the classes from ITK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rdmm.io.formats.header import make_grid
from rdmm.io.vectors import affine_map, from_vectors, ras_to_lps
from rdmm.spatial.grid import require_one_dimension
from rdmm.spatial.transform import Affine, Identity, Transform, compose_all
from rdmm.types import InputError

COMPOSITE = "CompositeTransform"
Blocks = Mapping[str, np.ndarray]

CLASSES: dict[str, tuple[str, ...]] = {
    "IdentityTransform": (),
    "TranslationTransform": ("translation",),
    "AffineTransform": ("matrix", "translation"),
    "MatrixOffsetTransformBase": ("matrix", "translation"),
    "CenteredAffineTransform": ("matrix", "center", "translation"),
    "Euler2DTransform": ("angle", "translation"),
    "Rigid2DTransform": ("angle", "translation"),
    "CenteredRigid2DTransform": ("angle", "center", "translation"),
    "Similarity2DTransform": ("scale", "angle", "translation"),
    "CenteredSimilarity2DTransform": ("scale", "angle", "center", "translation"),
    "Euler3DTransform": ("angles", "translation"),
    "CenteredEuler3DTransform": ("angles", "center", "translation"),
    "Rigid3DTransform": ("matrix", "translation"),
    "VersorTransform": ("versor",),
    "VersorRigid3DTransform": ("versor", "translation"),
    "QuaternionRigidTransform": ("quaternion", "translation"),
    "Similarity3DTransform": ("versor", "translation", "scale"),
    "ScaleTransform": ("scales",),
    "ScaleLogarithmicTransform": ("log_scales",),
    "ScaleVersor3DTransform": ("versor", "translation", "added_scales"),
    "ScaleSkewVersor3DTransform": ("versor", "translation", "added_scales", "skew"),
    "ComposeScaleSkewVersor3DTransform": ("versor", "translation", "scales", "shear"),
}
"""The parameters of ITK's linear transforms, in their order."""


@dataclass(frozen=True)
class Entry:
    """One transform of a file: the name of ITK's class with its dimensions, e.g. AffineTransform_double_3_3, and its numbers."""

    kind: str
    parameters: np.ndarray
    fixed: np.ndarray

    @property
    def name(self) -> str:
        return self.kind.partition("_")[0]

    @property
    def ndim(self) -> int:
        """2 or 3; 0 if the kind states neither, or two different dimensions."""
        dimensions = self.kind.split("_")[2:]
        return int(dimensions[0]) if dimensions in (["2", "2"], ["3", "3"]) else 0


def decode(path: Path, entries: Sequence[Entry]) -> Transform:
    """The map of world millimeters (RAS+) of all transforms of a file. ITK's composite applies its last entry to a point first.

    Raises:
        InputError: several transforms without a composite, one that cannot be read, a singular matrix, or numbers that are not finite.
    """
    composite = bool(entries) and entries[0].name == COMPOSITE
    parts = entries[1:] if composite else entries
    if not composite and len(parts) != 1:
        raise InputError(
            f"{path}: holds {len(parts)} transforms, and no CompositeTransform that says to compose them; write one file for each"
        )
    maps = [_decode_one(path, entry) for entry in parts]
    require_one_dimension(
        {f"{path}: {e.kind} (transform {k + 1})": e.ndim for k, e in enumerate(parts)}
        | ({f"{path}: {entries[0].kind}": entries[0].ndim} if composite else {})
    )
    whole = compose_all(reversed(maps))
    return Affine(torch.eye(max(entries[0].ndim, 2) + 1, dtype=torch.float64)) if isinstance(whole, Identity) else whole


def _decode_one(path: Path, entry: Entry) -> Transform:
    if not (np.isfinite(entry.parameters).all() and np.isfinite(entry.fixed).all()):
        raise InputError(f"{path}: {entry.kind} holds NaN or Inf; write it again with the tool that made it")
    if entry.name == "DisplacementFieldTransform":
        return _decode_field(path, entry)
    if entry.name not in CLASSES or not entry.ndim:
        raise InputError(
            f"{path}: transforms of type {entry.kind} cannot be read; linear ones and displacement fields can:"
            " write a displacement field with the tool that made it"
        )
    d, zyx = entry.ndim, entry.fixed.size == 4 and entry.fixed[3] != 0
    if entry.fixed.size not in (0, d, 4 if "Euler3D" in entry.name else d):
        raise InputError(f"{path}: {entry.kind} holds {entry.fixed.size} fixed parameters; {d} are expected")
    return decode_linear(path, entry.name, entry.parameters, entry.fixed[:d] if entry.fixed.size else np.zeros(d), zyx=bool(zyx))


def _decode_field(path: Path, entry: Entry) -> Transform:
    d = entry.ndim
    if d and entry.fixed.size == d * d + 3 * d:
        shape, origin, voxel, axes = np.split(entry.fixed, [d, 2 * d, 3 * d])
        size = tuple(int(n) for n in shape)
        if min(size) > 0 and (shape == size).all() and entry.parameters.size == d * int(np.prod(size, dtype=object)):
            affine = np.eye(d + 1)
            affine[:d, :d], affine[:d, d] = axes.reshape(d, d) * voxel, origin
            grid = make_grid(path, size, ras_to_lps(d) @ affine)
            return from_vectors(entry.parameters.reshape(-1, d).reshape(*size, d, order="F") @ ras_to_lps(d)[:d, :d], grid)
    raise InputError(f"{path}: {entry.kind}: the grid in its fixed parameters does not fit its {entry.parameters.size} parameters")


def decode_linear(path: Path, name: str, parameters: np.ndarray, center: np.ndarray, *, zyx: bool = False) -> Affine:
    """The map of world millimeters (RAS+) of a linear transform, y = A (x - center) + center + translation in LPS.

    Args:
        name: a key of CLASSES.
        parameters: its numbers.
        center: (d,), unless it is among the parameters.
        zyx: the order of Euler's angles in 3D: A = Rz Ry Rx instead of Rz Rx Ry.

    Raises:
        InputError: the numbers are not those of this class, or the matrix is singular.
    """
    d = center.size
    sizes = {"angle": 1, "scale": 1, "quaternion": 4, "matrix": d * d, "skew": 6}
    layout = CLASSES[name]
    counts = [sizes.get(block, d) for block in layout]
    d_of_class = 2 if "2D" in name else 3 if {"angles", "versor", "quaternion"} & set(layout) else d
    if d != d_of_class or parameters.size != sum(counts):
        raise InputError(f"{path}: {name} in {d}D with {parameters.size} parameters; {sum(counts)} in {d_of_class}D are expected")
    blocks = dict(zip(layout, np.split(parameters.astype(np.float64), np.cumsum(counts)[:-1]), strict=bool(layout)))
    for block, squared in (("versor", 1.0), ("quaternion", 1.0)):
        excess = float(np.sum(blocks[block] ** 2)) - squared if block in blocks else 0.0
        if excess > 1e-3 or (block == "quaternion" and excess < -1e-3):
            raise InputError(f"{path}: the {block} {blocks[block].tolist()} of {name} is no rotation: its norm is not that of one")
    center = blocks.get("center", center)
    m = np.eye(d + 1)
    m[:d, :d] = _linear_part(blocks, d, zyx=zyx)
    m[:d, d] = blocks.get("translation", np.zeros(d)) + center - m[:d, :d] @ center
    return affine_map(path, ras_to_lps(d) @ m @ ras_to_lps(d))


def _linear_part(blocks: Blocks, d: int, *, zyx: bool) -> np.ndarray:
    """A (d, d) = turn * scales * shear + what ITK's classes with "added" scales add to it."""
    turn = next((make(blocks[k]) for k, make in _TURNS.items() if k in blocks), np.eye(d))
    if "angles" in blocks:
        x, y, z = (_turn_about(axis, angle) for axis, angle in enumerate(blocks["angles"]))
        turn = z @ y @ x if zyx else z @ x @ y
    scales = blocks.get("scale", 1.0) * blocks.get("scales", np.exp(blocks.get("log_scales", np.zeros(d))))
    shear, added = np.eye(d), np.zeros((d, d))
    if "shear" in blocks:
        shear[np.triu_indices(3, 1)] = blocks["shear"]
    if "added_scales" in blocks:
        added += np.diag(blocks["added_scales"] - 1)
    if "skew" in blocks:
        added[~np.eye(3, dtype=bool)] += blocks["skew"]
    return np.asarray(turn @ np.diag(scales * np.ones(d)) @ shear + added)


def _turn_about(axis: int, angle: float) -> np.ndarray:
    """Rotation (3, 3) about an axis."""
    out, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
    out[i, i] = out[j, j] = np.cos(angle)
    out[i, j], out[j, i] = -np.sin(angle), np.sin(angle)
    return out


def _turn_in_plane(angle: np.ndarray) -> np.ndarray:
    return _turn_about(2, float(angle[0]))[:2, :2]


def _turn_of_versor(v: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a unit quaternion, given by its vector part (3,)."""
    return _turn_of_quaternion(np.array([*v, np.sqrt(max(0.0, 1.0 - float(v @ v)))]))


def _turn_of_quaternion(q: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a unit quaternion (x, y, z, w)."""
    x, y, z, w = q / np.linalg.norm(q)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + 2 * w * cross + 2 * cross @ cross)


_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "matrix": lambda m: m.reshape(2 if m.size == 4 else 3, -1),
    "angle": _turn_in_plane,
    "versor": _turn_of_versor,
    "quaternion": _turn_of_quaternion,
}
