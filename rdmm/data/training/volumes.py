"""Random volumes as training data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.volumes import Volumes
from rdmm.data.training.pairs import HELD_OUT_STREAMS, TRAINING_STREAM, Part
from rdmm.data.training.splits import seeded_generator
from rdmm.spatial.grid import Grid


@dataclass(frozen=True)
class VolumePairs:
    """Pairs of Volumes; an unlimited number, which the same seed and number give again. Held-out pairs have anatomies of their own.

    Args:
        volumes: what is drawn.
        seed: random seed.
        limit: number of held-out pairs per part.
    """

    volumes: Volumes = field(default_factory=Volumes)
    seed: int = 0
    limit: int = 10

    @property
    def grid(self) -> Grid:
        return self.volumes.grid

    def name(self, number: int) -> str:
        return f"random volume {number}"

    def pair(self, number: int) -> Inputs:
        return self.volumes.pair(seeded_generator(self.seed, TRAINING_STREAM, number))

    def _held_out(self, part: Part, number: int) -> Inputs:
        return self.volumes.pair(seeded_generator(self.seed, HELD_OUT_STREAMS[part], number), new=True)

    def held_out(self, part: Part) -> dict[str, Callable[[], Inputs]]:
        return {f"volume{i:02d}": partial(self._held_out, part, i) for i in range(self.limit)}

    def describe(self) -> str:
        kinds = ", ".join(self.volumes.kinds)
        return f"random volumes of {self.volumes.anatomies} anatomies ({kinds}); {self.limit} new ones each for validation and tests"
