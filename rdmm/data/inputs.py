"""Read and check the inputs of a registration: the pair, and labels, landmarks and regions for its evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from rdmm import io
from rdmm.data.given import INPUT_NAMES, files_of, read_also, values_of
from rdmm.data.landmarks import Landmarks, read_points
from rdmm.data.parts import LABEL_WEIGHT, Contrast, Labels, in_parts, read_contrasts, read_label_map
from rdmm.data.truth import Truth
from rdmm.io.formats.choice import peek_shape
from rdmm.io.images import NanPolicy
from rdmm.io.in_memory import require_image_source, require_path, require_shape_source
from rdmm.io.maps import Maps, describe_maps, expand_maps, read_maps
from rdmm.io.nifti import Source
from rdmm.io.vectors import require_itk_grid
from rdmm.runtime.resources import require_memory
from rdmm.runtime.warnings import with_warnings
from rdmm.spatial.grid import Grid, require_one_dimension
from rdmm.spatial.image import Image
from rdmm.spatial.measure import Measure, frame_of
from rdmm.spatial.pair import Correspondence, Pair, format_boxes, overlap_fraction
from rdmm.spatial.placement import require_same_plane
from rdmm.spatial.transform import Transform, compose_all, flat, framed
from rdmm.types import ConfigError, InputError, Tensor, option

log = logging.getLogger(__name__)

# Peak memory of the default settings, without that of the libraries, measured on brains at 1 mm and 2 mm (benchmarks/README.md):
# volumes of the images' size, and fields on the shooting grid, which has at most about a million voxels (set by the smoother).
BYTES_PER_VOXEL = 250
BYTES_PER_SHOOTING_VOXEL = 1000


IMAGE_INPUTS = (
    "fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "fixed_exclude", "moving_exclude",
    "regions", "fixed_regions",
)  # fmt: skip
"""Inputs that are images."""


def check_memory(sources: Sequence[Source | Image]) -> int:
    """Estimated peak memory in bytes, from the images' headers alone.

    Raises:
        ResourceError: it exceeds the free memory.
    """
    need, shape = estimate_memory(sources)
    require_memory(need, f"an image of {'x'.join(map(str, shape))} voxels", "downsample the images, or crop them to the region of interest")
    return need


def estimate_memory(sources: Sequence[Source | Image]) -> tuple[int, tuple[int, ...]]:
    """Estimated peak memory of a registration in bytes, from the images' headers alone; and the shape of the largest image."""
    shapes = [s.grid.shape if isinstance(s, Image) else peek_shape(s)[:3] for s in sources]
    voxels = [int(np.prod(s, dtype=object)) for s in shapes]
    need = BYTES_PER_VOXEL * sum(voxels) // 2 + BYTES_PER_SHOOTING_VOXEL * min(voxels[0], 10**6)
    return need, tuple(shapes[int(np.argmax(voxels))])


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a registration of images, read and checked.

    Args:
        pair: the images; also the regions of the moving image, if the regularizer is pre-defined.
        fixed_labels, moving_labels: label maps for Dice.
        landmarks: corresponding points, to measure the registration error.
        fixed_regions: the same regions (label > 0) in the fixed image: the map is evaluated inside and outside them.
        labels: labels to compute Dice of; None: all.
        files: paths of the files that were read, by input name.
        stored: grids of the fixed and the moving file, with the voxel order of the files.
        reading: reading options that differ from the defaults (READING_OPTIONS).
        warnings: warnings logged while reading.
        in_memory: names of the inputs that were no files.
        contrasts: further images of the subjects.
        maps: fixed and moving as label maps, each None if it is none.
        by_labels: whether they are registered by their labels.
        truth: the true map, where it is known.
    """

    pair: Pair
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    landmarks: Landmarks | None = None
    fixed_regions: Image | None = None
    labels: Sequence[int] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    stored: tuple[Grid, Grid] | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    in_memory: Sequence[str] = ()
    contrasts: Sequence[Contrast] = ()
    maps: tuple[Image | None, Image | None] = (None, None)
    by_labels: bool = False
    truth: Truth | None = None

    def recognized(self, labels: Labels) -> Inputs:
        """The inputs, registered by their labels if they are label maps that are not to be images.

        The same labels measure the result, if no others are given.
        """
        fixed, moving = self.maps
        if labels.as_images or self.by_labels or (fixed is None and moving is None):
            return self
        if fixed is None or moving is None:
            names = ("moving", "fixed") if fixed is None else ("fixed", "moving")
            log.warning("%s looks like a label map, and %s does not: both are registered as images", *names)
            return self
        log.info(
            "fixed and moving are label maps: they are registered by their labels; to register the numbers as intensities, set "
            "labels_as_images=true or choose a similarity"
        )
        given = (self.fixed_labels, self.moving_labels)
        own = (fixed, moving) if given == (None, None) else given
        return replace(self, by_labels=True, fixed_labels=own[0], moving_labels=own[1])

    def prepare(self, normalize: Callable[[Image, str], Image], device: torch.device, guide_weight: float = 0.0) -> Pair[Image]:
        """The pair to register, on ``device``: intensities normalized, labels as codes, landmarks in domain units of the fixed grid.

        Args:
            guide_weight: weight of the labels; 0: they only measure.

        Raises:
            ConfigError: labels are to guide, but there are none.
            OutputError: the fixed grid is sheared; NIfTI warps cannot store such a grid.
        """
        require_itk_grid(self.pair.fixed.grid, self.files.get("fixed", "fixed"))
        guides = self._guides() if self.by_labels or guide_weight else None
        weight = guide_weight or LABEL_WEIGHT
        fixed, moving = (
            x.inpainted().to(device)  # so that no stage sees what is masked out
            for x in in_parts(
                self.pair,
                lambda image, name: normalize(image, self.files.get(name, name)),
                self.contrasts,
                guides,
                weight=weight,
                alone=self.by_labels,
            )
        )
        regions = None if self.pair.regions is None else self.pair.regions.to(device)
        marks = None
        if self.landmarks is not None:
            grid, dtype = self.pair.fixed.grid, self.pair.fixed.data.dtype
            points = (grid.from_world(torch.as_tensor(x.T[None])) for x in (self.landmarks.fixed, self.landmarks.moving))
            marks = Correspondence(*(x.to(dtype).to(device) for x in points))
        return Pair(fixed, moving, self.pair.initial, regions, marks)

    def _guides(self) -> tuple[Image, Image]:
        fixed, moving = self.maps if self.by_labels else (self.fixed_labels, self.moving_labels)
        if fixed is None or moving is None:
            wanted = " and ".join(option(name, "") for name in ("fixed_labels", "moving_labels"))
            raise ConfigError(f"labels can guide only where both images have some: give {wanted}")
        return fixed, moving


@with_warnings
def read_inputs(
    fixed: Source | Image,
    moving: Source | Image,
    *,
    also: Any = None,
    fixed_labels: Source | Image | None = None,
    moving_labels: Source | Image | None = None,
    fixed_mask: Source | Image | None = None,
    moving_mask: Source | Image | None = None,
    fixed_exclude: Source | Image | None = None,
    moving_exclude: Source | Image | None = None,
    landmarks: str | os.PathLike[str] | Sequence[Any] | None = None,
    fixed_keypoints: str | os.PathLike[str] | None = None,
    moving_keypoints: str | os.PathLike[str] | None = None,
    regions: Source | Image | None = None,
    fixed_regions: Source | Image | None = None,
    labels: Sequence[int] | None = None,
    initial: Maps | None = None,
    nan: NanPolicy = "error",
    volume: int | None = None,
    strict: bool = False,
    require_overlap: bool = True,
) -> Inputs:
    """Read and check the inputs of a registration of images. ``rdmm.data.given`` describes each input.

    Raises:
        InputError: a file cannot be used, or two files do not fit together.
        ResourceError: the images are too large for the free memory.
    """
    given = {name: value for name, value in locals().items() if name in INPUT_NAMES}
    for name in IMAGE_INPUTS:
        if given[name] is not None or name in ("fixed", "moving"):
            require_image_source(given[name], name)
    for name in ("landmarks", "fixed_keypoints", "moving_keypoints"):
        if name != "landmarks" or not isinstance(landmarks, list | tuple):
            require_path(given[name], name)
    check_memory([fixed, moving])
    target, source = (
        io.read_image(x, name=name, nan=nan, volume=volume, strict=strict, has_options=True)
        for name, x in (("fixed", fixed), ("moving", moving))
    )
    names = (_name(fixed, "fixed"), _name(moving, "moving"))
    require_one_dimension({f"{name} {x.grid.shape}": x.grid.ndim for name, x in zip(names, (target, source), strict=True)})
    require_same_plane(target.grid.placement, source.grid.placement, "fixed and moving")
    if target.data.shape[1] != source.data.shape[1]:
        raise InputError(f"fixed has {target.data.shape[1]} channels but moving has {source.data.shape[1]}; give images of equal channels")
    fixed_map, moving_map, fixed_region_map, region_map = (
        _read_label_map(given.get(name), image, name, strict=strict)
        for name, image in (("fixed_labels", target), ("moving_labels", source), ("fixed_regions", target), ("regions", source))
    )
    maps = [read_label_map(x, given, strict=strict) for x, given in ((target, fixed), (source, moving))] if volume is None else [None, None]
    target, source = (_with_masks(x, given, role, strict=strict) for x, role in ((target, "fixed"), (source, "moving")))
    stored = (target.grid, source.grid)
    target, source = target.canonical(), source.canonical()
    start = _read_start(values_of(initial), names[0], target.grid)
    pair = Pair(target, source, start, region_map)
    if require_overlap:
        _check_overlap(pair)
    further = read_also(also)
    keypoints = [k for k in (fixed_keypoints, moving_keypoints) if k is not None]
    points = read_points(landmarks, keypoints, stored)
    reading = {"nan": nan, "volume": volume, "strict": strict}
    files = _file_paths({**given, "also": further, "initial": expand_maps(values_of(initial))})
    return Inputs(
        pair,
        fixed_map,
        moving_map,
        points,
        fixed_region_map,
        labels,
        files=files,
        stored=stored,
        reading={k: v for k, v in reading.items() if v not in ("error", None, False)},
        in_memory=[name for name in INPUT_NAMES if values_of(given[name]) and name not in files and name != "also"],
        contrasts=read_contrasts(further, pair, nan, strict=strict),
        maps=(maps[0], maps[1]),
    )


def _with_masks(image: Image, given: Mapping[str, Any], role: str, *, strict: bool) -> Image:
    """The fixed or moving image with the mask of what counts, and without what is excluded."""
    for name, excludes in ((f"{role}_mask", False), (f"{role}_exclude", True)):
        if given[name] is not None:
            image = io.read_mask(given[name], image, name=name, strict=strict, excludes=excludes)
    if image.mask is not None and not bool(image.mask.any()):
        raise InputError(f"{role}: no voxel is left: {option(f'{role}_exclude', '')} covers all of {option(f'{role}_mask', '')}")
    return image


def _file_paths(given: Mapping[str, Any]) -> dict[str, str]:
    """The paths of those inputs that were given as files or folders, in the order of INPUT_NAMES."""
    return {name: path for name, path in files_of({k: given[k] for k in INPUT_NAMES}).items() if os.path.exists(path)}


def _read_start(names: Sequence[Any], fixed: str, grid: Grid) -> Transform:
    """The transforms to start from, composed, in the frame of the image ``fixed``; a point goes through the first one first."""
    transform = read_maps(names, "initial")
    require_one_dimension({fixed: grid.ndim, describe_maps(names): transform.ndim})
    return compose_all(framed(m, grid) for m in flat(transform))  # one by one: affine maps stay affine


def _name(source: Source | Image, role: str) -> str:
    """An image's name in messages."""
    return f"{role} {os.fspath(source)}" if isinstance(source, str | os.PathLike) else role


SMALL_OVERLAP = 0.25
"""Below this fraction of the fixed image in the field of view of the moving one, a registration is likely to fail. Not measured."""


def _check_overlap(pair: Pair[Image]) -> None:
    fraction = overlap_fraction(pair)
    if 0 < fraction < SMALL_OVERLAP:
        log.warning(
            "only %.2g %% of the fixed image is in the field of view of the moving image: %s; if their headers are wrong, align centers "
            "of mass first with %s",
            100 * fraction,
            format_boxes([pair.fixed.grid, pair.moving.grid]),
            option("init", "com"),
        )
    if fraction == 0:
        raise InputError(
            f"the images do not overlap in world space: {format_boxes([pair.fixed.grid, pair.moving.grid])}; "
            f"if their headers are wrong, align their centers of mass first with {option('init', 'com')}"
        )


def _read_label_map(source: Source | Image | None, like: Image, name: str, *, strict: bool) -> Image | None:
    """A label map on the grid of its image ``like``, or on its own if it is in memory; axes in R, A, S order. ``name`` is for messages."""
    if source is None:
        return None
    labels = io.read_labels(source, None if isinstance(source, Image) else like, name=name, strict=strict)
    if labels.grid.ndim != like.grid.ndim:
        raise InputError(f"{name} is {labels.grid.ndim}D {labels.grid.shape} but its image is {like.grid.ndim}D {like.grid.shape}")
    return labels.canonical()


@dataclass(frozen=True, eq=False)
class ShapeInputs:
    """The inputs of a registration of shapes, read and checked.

    Args:
        pair: the shapes, in domain units of ``frame``.
        frame: a grid around both shapes.
        landmarks: fixed and moving points (n, d), world millimeters.
        files: paths of the files that were read, by input name.
        reading: always empty, as there are no options for reading shapes.
        warnings: warnings logged while reading.
    """

    pair: Pair[Measure]
    frame: Grid
    landmarks: tuple[np.ndarray, np.ndarray] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def prepare(self, normalize: Callable[[Image, str], Image], device: torch.device) -> Pair[Measure]:
        """The pair to register, on ``device``, with landmarks in domain units. ``normalize`` is not used: shapes have no intensities."""
        marks = None
        if self.landmarks is not None:
            marks = Correspondence(*(self.to_domain(x).to(device) for x in self.landmarks))
        return Pair(self.pair.fixed.to(device), self.pair.moving.to(device), landmarks=marks)

    def to_domain(self, points: np.ndarray) -> Tensor:
        """Convert points (n, d) from world millimeters to domain units, (1, d, n) float32."""
        return self.frame.from_world(torch.as_tensor(points.T[None].copy())).float()


@with_warnings
def read_shapes(
    fixed: str | Measure,
    moving: str | Measure,
    landmarks: str | os.PathLike[str] | Sequence[Any] | None = None,
    features: str | None = None,
) -> ShapeInputs:
    """Read two shapes. If both are planar (all z equal), they become 2D.

    Args:
        fixed, moving: paths of .vtk or .ply files, or measures in world millimeters.
        landmarks: path of a CSV, or two arrays, as for images.
        features: name of the files' point data that become the measures' features.

    Raises:
        InputError: a file cannot be used or lacks the features, or the shapes differ in dimension or kind.
    """
    for name, given in (("fixed", fixed), ("moving", moving)):
        require_shape_source(given, name)
    if not isinstance(landmarks, list | tuple):
        require_path(landmarks, "landmarks")
    shapes = [x if isinstance(x, Measure) else io.read_mesh(x, features) for x in (fixed, moving)]
    is_planar = all(np.ptp(shape.points[:, 2]) == 0 for shape in shapes if isinstance(shape, io.Mesh))
    measures = [_to_measure(shape, 2 if is_planar else 3) if isinstance(shape, io.Mesh) else shape for shape in shapes]
    for name, measure in zip(("fixed", "moving"), measures, strict=True):
        if len(measure.points) != 1:
            raise InputError(f"{name} is a batch of {len(measure.points)} measures; one is expected: points of shape (1, d, n)")
    if 1 in (measures[0].ndim, measures[1].ndim):
        raise InputError("shapes to register are 2D or 3D, not numbers (d = 1); similarities compare numbers")
    if measures[0].ndim != measures[1].ndim:
        raise InputError(f"fixed is {measures[0].ndim}D but moving is {measures[1].ndim}D; give two shapes of the same dimension")
    kinds = [None if m.cells is None else m.cells.shape[1] for m in measures]
    if kinds[0] != kinds[1]:
        names = {None: "points", 2: "curves", 3: "surfaces"}
        raise InputError(f"fixed holds {names[kinds[0]]} but moving holds {names[kinds[1]]}; give two shapes of the same kind")
    frame = frame_of(measures)
    target, source = (replace(m, points=frame.from_world(m.points)) for m in measures)
    pair = Pair(target, source)
    marks = None if landmarks is None else io.read_landmarks(landmarks, frame.ndim, [frame, frame])[:2]
    sources = {"fixed": fixed, "moving": moving, "landmarks": landmarks}
    return ShapeInputs(pair, frame, marks, {k: os.fspath(v) for k, v in sources.items() if isinstance(v, str | os.PathLike)})


def _to_measure(mesh: io.Mesh, d: int) -> Measure:
    """A measure of the first d coordinates of a mesh, world millimeters."""
    points = torch.as_tensor(mesh.points[:, :d].T[None].copy(), dtype=torch.float32)
    weights = None if mesh.weights is None else torch.as_tensor(mesh.weights[None].copy(), dtype=torch.float32)
    features = None if mesh.features is None else torch.as_tensor(mesh.features.T[None].copy(), dtype=torch.float32)
    return Measure(points, weights, cells=None if mesh.cells is None else torch.as_tensor(mesh.cells), features=features)
