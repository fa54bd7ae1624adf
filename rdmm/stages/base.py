"""What a stage is, what it finds, and how stages compose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from rdmm.dynamics.base import Dynamics, InitialConditions
from rdmm.optim.lbfgs import History
from rdmm.optim.problem import Similarity
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Identity, Transform


@dataclass(frozen=True, eq=False)
class Refined:
    """The map of the last deformable stage's initial conditions on a finer shooting grid.

    Attributes:
        total_map: fixed frame -> moving, in the fixed frame's domain units, what came before the last stage included.
        similarity: of the whole images by this map, as in ``Result.similarities``.
    """

    total_map: Transform
    similarity: float


@dataclass(frozen=True, eq=False)
class Result:
    """What a stage found.

    Attributes:
        transform: fixed -> (pre-aligned) moving, in the fixed frame's domain units.
        inverse: its inverse, from the same geodesic.
        energy: terms of the objective at the end.
        ic: initial conditions of a deformable stage.
        history: one row per iteration.
        seconds: per stage, by name.
        before: the map, fixed frame -> moving, that the last deformable stage went on from.
        dynamics: by which the last deformable stage shoots ``ic``.
        remarks: doubts that the stages have about the result, for the verdict.
        has_stalled: whether the search of the last deformable stage made no iteration.
        similarities: the similarity of the last stage that has one, of the whole shapes before and after all stages; smaller is better.
        refined: the last deformable stage shot again on a finer grid, if that was asked for.
    """

    transform: Transform
    inverse: Transform
    energy: dict[str, float]
    ic: InitialConditions | None = None
    history: History = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    before: Transform = field(default_factory=Identity)
    dynamics: Dynamics | None = None
    remarks: Sequence[str] = ()
    has_stalled: bool = False
    similarities: tuple[float, float] | None = None
    refined: Refined | None = None

    def __repr__(self) -> str:
        energy = ", ".join(f"{k} {v:.4g}" for k, v in self.energy.items())
        seconds = ", ".join(f"{k} {v:.3g}" for k, v in self.seconds.items())
        return f"Result({self.transform!r}; energy: {energy}; seconds: {seconds})"


def require_usable(part: Any, pair: Pair) -> None:
    """Let every part of a stage look at the pair before anything is computed.

    A part is an object in a field, a list or a mapping of a dataclass. Those that cannot use every pair have a method ``check(pair)``.

    Raises:
        RdmmError: a part cannot use the pair, such as shapes where images are wanted, or regions that were not given.
    """
    if hasattr(type(part), "check"):
        part.check(pair)
    if is_dataclass(part):
        parts: Iterable[Any] = (getattr(part, f.name) for f in fields(part))
    elif isinstance(part, Mapping):
        parts = part.values()
    else:
        parts = part if isinstance(part, list | tuple) else ()
    for inner in parts:
        require_usable(inner, pair)


class Stage(Protocol):
    """(pair) -> Result; composes with ``pair.initial`` and leaves it out of its own map."""

    def __call__(self, pair: Pair) -> Result: ...


@dataclass(frozen=True)
class Skip:
    """No change."""

    def __call__(self, pair: Pair) -> Result:
        return Result(Identity(), Identity(), {})


@dataclass(frozen=True)
class Chain:
    """Stage after stage, each seeing the pair through the maps before it."""

    stages: Sequence[Stage]

    def __call__(self, pair: Pair) -> Result:
        transform: Transform = Identity()
        inverse: Transform = Identity()
        total = Result(transform, inverse, {})
        for stage in self.stages:
            result = stage(pair.with_initial(pair.total_map(transform)))
            transform = pair.moving.composed(transform, result.transform)
            inverse = pair.moving.composed(result.inverse, inverse)
            seconds = dict(total.seconds)
            for name, value in result.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
            history = total.history + result.history
            last = result if result.ic is not None else total
            energy, remarks = result.energy or total.energy, [*total.remarks, *result.remarks]
            total = Result(transform, inverse, energy, last.ic, history, seconds, last.before, last.dynamics, remarks, last.has_stalled)
        return total


def last_similarity(stage: Stage) -> Similarity | None:
    """The similarity of the last stage that has one."""
    if isinstance(stage, Chain):
        return next((found for s in reversed(stage.stages) if (found := last_similarity(s)) is not None), None)
    return getattr(stage, "similarity", None)
