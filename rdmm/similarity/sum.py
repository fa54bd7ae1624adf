"""Several similarities in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rdmm.types import ConfigError, Tensor, nearest, require_finite_fields


@dataclass(frozen=True)
class Sum:
    """sum_i weight_i * term_i(moved, target); (b,). ``similarity=[lncc,sinkhorn]`` is an example.

    Args:
        terms: similarities by name.
        weights: weight of each term, by the same names; 1 for a term without one.

    Raises:
        ConfigError: no terms, a weight of an unknown term, or one that is not positive.
    """

    terms: Mapping[str, Callable[[Any, Any], Tensor]]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if not self.terms:
            raise ConfigError("similarity: a sum needs at least one term, e.g. similarity=[lncc,sinkhorn]")
        for name, weight in self.weights.items():
            if name not in self.terms:
                raise ConfigError(f"similarity.weights: there is no term {name!r}{nearest(name, self.terms)}")
            if not isinstance(weight, int | float) or not weight > 0:
                raise ConfigError(f"similarity.weights.{name} must be > 0, not {weight!r}")

    def __call__(self, moved: Any, target: Any) -> Tensor:
        values = [self.weights.get(name, 1.0) * term(moved, target) for name, term in self.terms.items()]
        return sum(values[1:], values[0])
