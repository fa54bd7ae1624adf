"""Further terms of the deformation's loss, of anyone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from rdmm.data.inputs import Inputs
from rdmm.types import ConfigError, Tensor
from train.losses import Objective, Outcome, log_term


class LossTerm(Protocol):
    """A scalar that is added to the loss of a batch, and logged as ``terms/NAME``.

    ``outcome.transform`` is the total map, fixed -> moving; ``outcome.ic`` are the initial conditions of each step.
    """

    def __call__(self, batch: Inputs, outcome: Outcome) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class WithTerms:
    """An objective, and further terms by name."""

    objective: Objective
    terms: Mapping[str, LossTerm]

    @property
    def trained(self) -> nn.Module:
        return self.objective.trained

    def __call__(self, batch: Inputs, epoch: int, seed: int, both: bool) -> Outcome:
        outcome = self.objective(batch, epoch, seed, both)
        loss, terms = outcome.loss, dict(outcome.terms)
        for name, term in self.terms.items():
            value = term(batch, outcome)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ConfigError(f"loss.terms.{name} must give a tensor of one number, not {getattr(value, 'shape', value)!s}")
            loss = loss + log_term(terms, f"terms/{name}", value.reshape(()))
        return dataclasses.replace(outcome, loss=loss, terms={**terms, "loss": float(loss.detach())})
