"""Learned against optimized: each trained model on the test pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.study import Study, table_rows
from eval.tables import write_tables as write_table
from rdmm.config.build import build
from rdmm.config.compose import quoted
from rdmm.data.training.pairs import TrainingData
from rdmm.runtime.occasionally import Occasionally


@dataclass(frozen=True)
class Table:
    """The settings of ``table``.

    Args:
        limit: number of test pairs; 0 means no table.
        refine: L-BFGS iterations that refine a network's prediction.
        optimized: settings (KEY=VALUE) of the optimization that the networks are compared with.
        data: further data sets by name (rdmm.data.studies.base.Cases).
        pictures: number of pairs of which a figure is made.
    """

    limit: int = 4
    refine: int = 5
    optimized: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 1


@dataclass(frozen=True)
class HeldOut:
    """The test pairs as cases of a study."""

    data: TrainingData

    def cases(self) -> Mapping[str, Any]:
        return self.data.held_out("test")


def build_table(node: Mapping[str, Any]) -> Table:
    """The checked settings of ``table``; its data sets are built too."""
    table: Table = build({**node, "_target_": "train.table.Table"}, "table")
    return table


def compare_on_test_pairs(config: Mapping[str, Any], models: Mapping[str, Path], out: Path) -> Path | None:
    """Write ``table.md`` and ``table.csv``: learned, learned and refined, and optimized. None: there is nothing to compare on.

    Args:
        models: the best model file of each network, by name.
        out: the folder of the tables and figures.
    """
    table = build_table(config["table"])
    data: dict[str, Any] = {"test": HeldOut(build(config["data"], "data")), **table.data}
    if table.limit < 1 or not any(d.cases() for d in data.values()):
        return None
    study = Study(data, _methods(models, table), {}, limit=table.limit, pictures=table.pictures)
    rows: list[dict[str, Any]] = []
    with Occasionally(lambda: write_table(rows, out)) as write:
        for row in table_rows(study, [], config["device"], config["seed"], out):
            rows.append(row)
            write()
    return out / "table.md"


def _methods(models: Mapping[str, Path], table: Table) -> dict[str, list[str]]:
    """The settings of each method, by its name in the table."""
    weights = {name: f"weights={quoted(str(path))}" for name, path in models.items()}
    methods: dict[str, list[str]] = {}
    if "affine" in models:
        similarity_of = weights[list(models)[-1]]  # an affine network alone has no similarity to report: take a deformation's
        alone = [similarity_of, "initializer=zero", "optimizer=none", "stages=single"]
        methods |= {"affine-net": alone, "affine-opt": [*alone, "affine=opt"]}
        predicted, optimized = [], ["affine=opt"]
    else:
        predicted, optimized = ["affine=none"], ["affine=none"]
    for name in models:
        if name == "affine":
            continue
        refine = ["optimizer=refine", f"optimizer.iterations=[{table.refine}]"]
        optimize = ["initializer=zero", "optimizer=lbfgs", "stages=single", *optimized, *table.optimized]
        methods[f"{name}-net"] = [weights[name], *predicted]
        methods[f"{name}-net+{table.refine}"] = [weights[name], *predicted, *refine]
        methods[f"{name}-opt"] = [weights[name], *optimize]
    return methods
