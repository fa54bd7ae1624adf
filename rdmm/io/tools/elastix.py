"""elastix: TransformParameters.txt with linear transforms, and chains of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmm.io.files import require_file
from rdmm.io.tools.itk.maps import decode_linear
from rdmm.io.tools.start import Start
from rdmm.io.vectors import Space
from rdmm.spatial.transform import Transform, compose_all
from rdmm.types import InputError

CLASSES = {
    ("TranslationTransform", 2): "TranslationTransform",
    ("TranslationTransform", 3): "TranslationTransform",
    ("EulerTransform", 2): "Euler2DTransform",
    ("EulerTransform", 3): "Euler3DTransform",
    ("SimilarityTransform", 2): "Similarity2DTransform",
    ("SimilarityTransform", 3): "Similarity3DTransform",
    ("AffineTransform", 2): "AffineTransform",
    ("AffineTransform", 3): "AffineTransform",
}
"""ITK's class for a transform of elastix and its dimension. The parameters are the same."""

LINE = re.compile(r"\(\s*(\w+)((?:\s+(?:\"[^\"]*\"|[^\s()\"]+))*)\s*\)")
Fields = dict[str, list[str]]


@dataclass(frozen=True)
class Elastix:
    """Linear transforms of elastix (TransformParameters.0.txt), fixed -> moving, LPS millimeters, with the chain that a file names."""

    endings = ()
    needs_images = False

    def recognises(self, start: Start) -> bool:
        return re.search(r"^\s*\(Transform\s+\"", start.text, re.MULTILINE) is not None

    def read(self, path: Path, space: Space) -> Transform:
        return _read_chain(path, ())


def _read_chain(path: Path, seen: Sequence[Path]) -> Transform:
    """The transform of a file, after those that it names as its start."""
    if require_file(path).resolve() in seen:
        raise InputError(f"{path}: names itself as its initial transform, by {len(seen)} files; correct InitialTransformParametersFileName")
    fields = _read_fields(path)
    own = _read_own(path, fields)
    name = next((fields[k][0] for k in ("InitialTransformParametersFileName", "InitialTransformParameterFileName") if fields.get(k)), "")
    if name in ("", "NoInitialTransform"):
        return own
    how = fields.get("HowToCombineTransforms", ["Compose"])
    if how != ["Compose"]:
        raise InputError(f"{path}: HowToCombineTransforms {' '.join(how)} cannot be read, only Compose")
    places = [path.parent / name, path.parent / Path(name).name, Path(name)]  # a file names another as elastix saw it
    first = next((place for place in places if os.path.isfile(place)), places[0])
    return compose_all([_read_chain(first, [*seen, path.resolve()]), own])


def _read_fields(path: Path) -> Fields:
    """The values of each ``(Name value ...)`` line. Raises InputError for any other line, and for a name that comes twice."""
    fields: Fields = {}
    try:
        lines = require_file(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a parameter file of elastix ({error})") from error
    for number, line in enumerate(lines, 1):
        text = line.partition("//")[0].strip()
        found = LINE.fullmatch(text)
        if text and (found is None or found[1] in fields):
            raise InputError(f"{path}: line {number}: {text[:40]!r} is not (Name value ...), or its name comes twice")
        if found is not None:
            fields[found[1]] = [a or b for a, b in re.findall(r"\"([^\"]*)\"|([^\s\"]+)", found[2])]
    return fields


def _read_own(path: Path, fields: Fields) -> Transform:
    """The map of one file, without those that it names."""
    try:
        kind, d = fields["Transform"][0], int(fields["FixedImageDimension"][0])
        same = int(fields["MovingImageDimension"][0]) == d
        if (kind, d) not in CLASSES or not same or fields.get("UseDirectionCosines", ["true"]) != ["true"]:
            raise InputError(
                f"{path}: {kind} of elastix in {d}D cannot be read; linear ones with UseDirectionCosines can:"
                " write a displacement field with transformix -def all, and take its deformationField.nii.gz"
            )
        numbers = np.array(fields["TransformParameters"], dtype=np.float64)
        if numbers.size != int(fields["NumberOfParameters"][0]):
            raise ValueError(f"NumberOfParameters is {fields['NumberOfParameters'][0]}, but there are {numbers.size}")
        no_center = ["0"] * d if kind == "TranslationTransform" else []
        center = np.array(fields.get("CenterOfRotationPoint", no_center), dtype=np.float64)
        if center.size != d:
            raise ValueError(f"CenterOfRotationPoint has {center.size} numbers, not {d}")
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: not a transform of elastix ({type(error).__name__}: {error})") from error
    return decode_linear(path, CLASSES[kind, d], numbers, center, zyx=fields.get("ComputeZYX", ["false"]) == ["true"])
