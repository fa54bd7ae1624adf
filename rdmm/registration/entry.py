"""The entry point for the command line, batches, studies and Python: compose and build the settings once, then register the inputs."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, overload

import torch

from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.config.node import without_origins
from rdmm.config.plugins import allowing
from rdmm.data.given import AFFINE_STARTS
from rdmm.data.inputs import Inputs, ShapeInputs, read_inputs, read_shapes
from rdmm.data.intensity import Normalize
from rdmm.data.parts import Labels
from rdmm.io.exchange import Given
from rdmm.io.images import NanPolicy
from rdmm.io.maps import Maps
from rdmm.kernels.available import set_threads
from rdmm.optim.problem import Similarity
from rdmm.registration.arguments import read_arguments, split_affine, to_overrides
from rdmm.registration.base import FinishedRegistration
from rdmm.registration.images import Registration
from rdmm.registration.outputs import Output
from rdmm.registration.record import Provenance
from rdmm.registration.shapes import ShapeRegistration
from rdmm.registration.typed_options import option_overrides
from rdmm.runtime.interrupt import stop
from rdmm.runtime.memory import memory_errors
from rdmm.runtime.progress import shown_progress
from rdmm.runtime.resources import reset_peak_memory, select_device
from rdmm.runtime.warnings import collect_warnings
from rdmm.similarity.parts import compare
from rdmm.spatial.measure import Measure
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Identity, Transform, on_device
from rdmm.stages.base import Result, Stage, last_similarity, require_usable
from rdmm.stages.refined import shoot_again
from rdmm.types import MAX_SEED, ConfigError, DivergenceError, require_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Settings:
    """A composed configuration, and the objects that it describes.

    Args:
        config: the composed settings as plain data, recorded in run.json.
        stages: registers a pair.
        intensity: normalizes the intensities of images.
        output: which optional files are written.
        labels: what labels do. Records of earlier versions do not say; label maps were images then.
    """

    config: Mapping[str, Any]
    stages: Stage
    intensity: Normalize = field(default_factory=Normalize)
    output: Output = field(default_factory=Output)
    labels: Labels = field(default_factory=lambda: Labels(as_images=True))

    def __repr__(self) -> str:
        kinds = [f"{k}={v['_target_'].rpartition('.')[2]}" for k, v in self.config.items() if isinstance(v, Mapping) and "_target_" in v]
        return f"Settings({', '.join(kinds)})"


def compose_settings(overrides: Sequence[str] = (), name: str = "register") -> Settings:
    """Settings from KEY=VALUE texts. Call this before any data is read, so that wrong settings are reported first.

    Args:
        name: ``register`` for images, ``shapes`` for shapes.

    Raises:
        ConfigError: an unknown key, or a value that cannot be used.
    """
    return build_settings(compose(overrides, name))


def build_settings(config: Mapping[str, Any]) -> Settings:
    """Build the objects of a composed configuration. Raises ConfigError if one of them is of another kind than its key says."""
    parts = {k: build(config[k], k) for k in ("stages", "intensity", "output", "labels") if k in config}
    if not callable(parts.get("stages")):
        raise ConfigError("stages must be settings of a stage, with a _target_; e.g. stages=single")
    if not callable(parts.get("intensity", Normalize())):
        raise ConfigError("intensity must be settings with a _target_, as in conf/register.yaml")
    if not isinstance(parts.get("output", Output()), Output):
        raise ConfigError("output must be settings with a _target_, as in conf/register.yaml")
    if not isinstance(parts.get("labels", Labels()), Labels):
        raise ConfigError("labels must be settings with a _target_, as in conf/register.yaml")
    return Settings(without_origins(config), **parts)


@overload
def run(inputs: Inputs, settings: Settings, *, device: str = "cpu", seed: int = 0, command: str = "") -> Registration: ...


@overload
def run(inputs: ShapeInputs, settings: Settings, *, device: str = "cpu", seed: int = 0, command: str = "") -> ShapeRegistration: ...


def run(
    inputs: Inputs | ShapeInputs, settings: Settings, *, device: str = "cpu", seed: int = 0, command: str = ""
) -> Registration | ShapeRegistration:
    """Register inputs that were read.

    Args:
        device: cpu or cuda.
        command: the command line, for run.json; empty if called from Python.

    Raises:
        RdmmError: inputs cannot be used, or the search fails; its subclasses in rdmm.types say which.
    """
    seed = require_whole("seed", seed, 0, MAX_SEED)
    torch.manual_seed(seed)
    if settings.config.get("weights"):
        inputs = replace(inputs, files={**inputs.files, "weights": str(settings.config["weights"])})
    with collect_warnings() as warnings:
        inputs = inputs.recognized(settings.labels) if isinstance(inputs, Inputs) else inputs
        pair = prepare(inputs, settings, device)
        result = run_stages(settings.stages, pair, refined=settings.output.refined)
    provenance = Provenance(command, seed, device, torch.get_num_threads(), [*inputs.warnings, *warnings])
    finished: type[FinishedRegistration] = Registration if isinstance(inputs, Inputs) else ShapeRegistration
    status = "interrupted" if stop.is_set() else "done"
    return finished(inputs, result, settings.config, provenance, settings.output, status)  # type: ignore[return-value]


def prepare(inputs: Inputs | ShapeInputs, settings: Settings, device: str) -> Pair:
    """The pair to register on ``device``. All that can be refused before anything is computed is refused here.

    Raises:
        RdmmError: inputs and settings do not fit together; its subclasses in rdmm.types say how.
    """
    place = select_device(device)
    if isinstance(inputs, Inputs):
        pair: Pair = inputs.recognized(settings.labels).prepare(settings.intensity, place, settings.labels.guide_weight)
    else:
        pair = inputs.prepare(settings.intensity, place)
    require_usable(settings.stages, pair)
    return pair


def run_stages(stages: Stage, pair: Pair, refined: bool = False) -> Result:
    """Run the stages on ``pair``. The result is moved to the CPU and has the total time in ``seconds["total"]``.

    Args:
        refined: whether the last deformable stage is shot again on a finer grid.
    """
    reset_peak_memory()
    begin = time.perf_counter()
    result = stages(pair)
    similarity = last_similarity(stages)
    result = replace(result, similarities=_similarities(similarity, pair, result.transform))
    result.seconds["total"] = time.perf_counter() - begin
    if refined:
        try:
            result = replace(result, refined=shoot_again(result, similarity, pair))
        except DivergenceError as error:  # the result stands, and says that it is not that of its geodesic
            log.warning("shot again on a finer grid, the flow diverges: there are no refined measures (%s)", error)
    cpu = torch.device("cpu")
    return replace(result, **{k: on_device(getattr(result, k), cpu) for k in ("transform", "inverse", "ic", "before", "refined")})


def _similarities(similarity: Similarity | None, pair: Pair, transform: Transform) -> tuple[float, float] | None:
    """The similarity of the whole shapes as they were placed at first, and as ``transform`` moves them; None if it cannot be computed."""
    if similarity is None:
        return None
    try:
        with torch.no_grad():
            before, after = (float(compare(similarity, pair.moved_by(t), pair.fixed).sum()) for t in (Identity(), transform))
        return before, after
    except DivergenceError:  # masks that do not overlap
        return None


def _compose_arguments(
    name: str, overrides: Any, keys: Mapping[str, Any], *, device: Any, threads: Any, seed: Any, allow: Any, **options: Any
) -> Settings:
    """The settings that the arguments of ``register`` and ``register_shapes`` describe; all of them are checked before data are read."""
    set_threads(threads)
    require_whole("seed", seed, 0, MAX_SEED)
    select_device(device)
    if isinstance(overrides, str) or not isinstance(overrides, Sequence) or not all(isinstance(o, str) for o in overrides):
        raise ConfigError(f'overrides must be a list of texts, e.g. ["dynamics=rdmm"]; got {overrides!r}')
    init, guide_labels = options.get("init"), options.get("guide_labels", False)
    if init is not None and not (isinstance(init, str) and init in AFFINE_STARTS):
        raise ConfigError(f"init must be one of {', '.join(AFFINE_STARTS)}; got {init!r}")
    if not isinstance(guide_labels, bool):
        raise ConfigError(f"guide_labels must be True or False; got {guide_labels!r}")
    if not isinstance(allow, str | Sequence):
        raise ConfigError(f'allow must be the name of a package or a list of names, e.g. ["my_package"]; got {allow!r}')
    typed = [*overrides, *to_overrides(keys)]
    with allowing(allow):
        return compose_settings([*typed, *option_overrides(typed, **options, for_shapes=name == "shapes")], name)


@contextlib.contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Gradients, and tensors that can have them, on the CPU unless told otherwise: also if the caller is inside torch.no_grad,
    torch.inference_mode or torch.device."""
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu") if elsewhere else contextlib.nullcontext():
        yield


@memory_errors()
@_ordinary_tensors()
def register(
    fixed: Given,
    moving: Given,
    *,
    spacing: Sequence[float] | None = None,
    affine: Any = None,
    moving_spacing: Sequence[float] | None = None,
    moving_affine: Any = None,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    init: str | None = None,
    transform: str | None = None,
    also: Sequence[tuple[Any, ...]] | None = None,
    guide_labels: bool = False,
    fixed_labels: Given | None = None,
    moving_labels: Given | None = None,
    fixed_mask: Given | None = None,
    moving_mask: Given | None = None,
    fixed_exclude: Given | None = None,
    moving_exclude: Given | None = None,
    landmarks: str | os.PathLike[str] | Sequence[Any] | None = None,
    fixed_keypoints: str | os.PathLike[str] | None = None,
    moving_keypoints: str | os.PathLike[str] | None = None,
    regions: Given | None = None,
    initial: Maps | None = None,
    nan: NanPolicy = "error",
    volume: int | None = None,
    strict: bool = False,
    verbose: bool | None = None,
    allow: str | Sequence[str] = (),
    **keys: Any,
) -> Registration:
    """Register ``moving`` to ``fixed``.

    Args:
        fixed, moving: each a path, an image of nibabel, SimpleITK, ANTs or MONAI, an ``Image``, or an array of numpy or torch, with the
            axes (x, y) or (x, y, z). Label maps, masks and regions, too; their arrays have the voxels of their image.
        spacing: of arrays: mm along each axis. Without it, and without ``affine``, voxels are 1 mm.
        affine: of arrays: (d+1, d+1), from voxel indices to world millimeters (RAS+). A text or a dictionary is the setting ``affine``.
        moving_spacing, moving_affine: of the moving array, where they differ from those of the fixed one.
        overrides, keys: settings of ``conf/register.yaml``, as "KEY=VALUE" or as keywords: dynamics="rdmm",
            optimizer={"scales": [0.5, 1.0]}, or optimizer__scales=[0.5, 1.0] (``__`` for a dot).
        init: start of the affine search: auto, header, com (centers of mass) or axes.
        transform: translation, rigid, similarity or affine (a matrix alone); svf, lddmm or rdmm (also a deformation, with these dynamics);
            None: set by ``dynamics``.
        also: further images of the two subjects: (fixed, moving) or (fixed, moving, weight), or a list of such. Each pair is compared by
            the similarity, and the values are averaged by the weights (1). Images on other grids than fixed and moving are resampled.
        guide_labels: whether ``fixed_labels`` and ``moving_labels`` take part in the registration; otherwise they only measure it.
        landmarks: a CSV, or two arrays: corresponding fixed and moving points (n, d), world millimeters.
        initial: transform to start from, fixed -> moving: a file, a matrix (d+1, d+1) of world millimeters, a ``Registration``, a
            transform of world millimeters, or a list of these.
        verbose: show the progress on stderr. None: as a bar in notebooks and interactive sessions, not in scripts; True: always, as
            lines where a bar cannot be drawn; False: never. Warnings go to the logger "rdmm" of Python's logging.
        allow: packages outside rdmm whose classes the settings, and a model, may name.
        others: like the options of ``rdmm register``.

    Raises:
        RdmmError: settings or inputs cannot be used; its subclasses in rdmm.types say which.
    """
    setting, matrix = split_affine(affine)
    settings = _compose_arguments(
        "register",
        overrides,
        setting | keys,
        device=device,
        threads=threads,
        seed=seed,
        transform=transform,
        init=init,
        guide_labels=guide_labels,
        allow=allow,
    )
    if nan not in get_args(NanPolicy):
        raise ConfigError(f"nan must be one of {', '.join(get_args(NanPolicy))}; got {nan!r}")
    if volume is not None:
        volume = require_whole("volume", volume, 0, MAX_SEED)
    if not isinstance(strict, bool):
        raise ConfigError(f"strict must be True or False; got {strict!r}")
    given = {
        "fixed": fixed,
        "moving": moving,
        "also": also,
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "fixed_exclude": fixed_exclude,
        "moving_exclude": moving_exclude,
        "landmarks": landmarks,
        "fixed_keypoints": fixed_keypoints,
        "moving_keypoints": moving_keypoints,
        "regions": regions,
        "initial": initial,
    }
    places = {"spacing": spacing, "affine": matrix, "moving_spacing": moving_spacing, "moving_affine": moving_affine}
    with shown_progress(verbose):
        with collect_warnings() as warnings:
            read = read_arguments(given, places)
        inputs = read_inputs(**read, nan=nan, volume=volume, strict=strict, require_overlap=init != "com")
        return run(replace(inputs, warnings=[*warnings, *inputs.warnings]), settings, device=device, seed=seed)


@memory_errors()
@_ordinary_tensors()
def register_shapes(
    fixed: str | Measure,
    moving: str | Measure,
    *,
    overrides: Sequence[str] = (),
    transform: str | None = None,
    landmarks: str | os.PathLike[str] | Sequence[Any] | None = None,
    features: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    verbose: bool | None = None,
    allow: str | Sequence[str] = (),
    **keys: Any,
) -> ShapeRegistration:
    """Register the shape ``moving`` to the shape ``fixed``.

    Args:
        fixed, moving: paths of .vtk or .ply files, or ``Measure`` objects in world millimeters.
        overrides, keys: settings of ``conf/shapes.yaml``, given as for ``rdmm.register``.
        transform: translation, rigid, similarity or affine (a matrix alone), or lddmm (also a deformation, the default).
        landmarks: CSV, or two arrays, as for images. They measure the error; with landmark_weight > 0 they also guide the registration.
        features: name of the files' point data that similarity__cost="features" compares.
        verbose, allow: as for ``rdmm.register``.

    Raises:
        RdmmError: settings or inputs cannot be used; its subclasses in rdmm.types say which.
    """
    settings = _compose_arguments("shapes", overrides, keys, device=device, threads=threads, seed=seed, transform=transform, allow=allow)
    with shown_progress(verbose):
        return run(read_shapes(fixed, moving, landmarks, features), settings, device=device, seed=seed)
