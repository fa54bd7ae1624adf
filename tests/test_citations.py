"""Equations are cited by number: every citation leads to docs/model.md, and every file that a text names exists."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdmm.config.compose import share

ROOT = share()
MODEL = ROOT / "docs" / "model.md"
CODE = ("rdmm", "networks", "train", "eval")

PAPERS = ("RDMM", "Feydy 2017")
NUMBER = r"\(\d+(?:\.\d+)?\)"
CITATION = re.compile(rf"\b(model|{'|'.join(PAPERS)})\s+({NUMBER}(?:(?:,| and| to)\s+{NUMBER})*)")
EQUATION = re.compile(r'^<a id="eq-(\d+)"></a>\*\*\((\d+)\)\*\* (.*)$', re.M)
NAMED_FILE = re.compile(r"(?<![\w/.{}<>*-])((?:\.{1,2}/)*[\w-]+(?:/[\w-]+)*\.(?:md|py))\b")
WRITTEN = {"table.md", "front.md", "runs/mine/table.md", "mine.py"}
"""Files that programs write, or that a text takes as an example."""
MADE_BY_EXTENDING = "extending.md"  # it tells which files to make; tests/test_extending.py makes them


def texts() -> Iterator[tuple[Path, str]]:
    """Every Python file and page of the packages, the documentation and the benchmarks."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in (*CODE, "docs", "benchmarks", "conf"):
        pages += [p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".py", ".md", ".yaml")]
    for path in pages:
        yield path, path.read_text()


def equations(text: str) -> dict[int, str]:
    """Number -> what stands on the equation's line."""
    found = EQUATION.findall(text)
    assert [anchor for anchor, _, _ in found] == [number for _, number, _ in found]
    assert len({number for _, number, _ in found}) == len(found), "an equation's number stands twice"
    return {int(number): line for _, number, line in found}


def citations(text: str) -> list[tuple[str, str]]:
    """(source, number) of each citation, e.g. ("RDMM", "3.10"); "model (4), (5)" makes two."""
    return [(source, number) for source, numbers in CITATION.findall(text) for number in re.findall(r"\d+(?:\.\d+)?", numbers)]


def unresolved(text: str, model: str) -> list[str]:
    """The citations of ``text`` that no equation of ``model`` answers."""
    known = equations(model)
    answered = {("model", str(n)) for n in known}
    for line in known.values():
        answered |= {c for c in citations(line) if c[0] in PAPERS}
    return [f"{source} ({number})" for source, number in citations(text) if (source, number) not in answered]


def missing_files(path: Path, text: str) -> list[str]:
    """The .md and .py files that ``text`` names and that are nowhere: beside it, in the checkout, or (a bare name) in any folder of it."""
    without_links = re.sub(r"https?://\S+", "", text)
    out = []
    for name in NAMED_FILE.findall(without_links):
        places = [path.parent / name, ROOT / name]
        bare = "/" not in name and name.endswith(".py")
        if not any(p.exists() for p in places) and not (bare and any(next((ROOT / f).rglob(name), None) for f in (*CODE, "tests"))):
            out.append(name)
    return [name for name in out if name not in WRITTEN]


def test_a_wrong_citation_is_found():
    model = '<a id="eq-1"></a>**(1)** Velocity. Paper: RDMM (2.3). Code: `rdmm.x`.\n'
    assert unresolved("as in model (1), RDMM\n    (2.3)", model) == []
    assert unresolved("as in model (1), (2) and (7), RDMM (2.4), Feydy 2017 (10)", model) == [
        "model (2)",
        "model (7)",
        "RDMM (2.4)",
        "Feydy 2017 (10)",
    ]
    assert missing_files(MODEL, "see README.md, rdmm.md, docs/model.md, ops.py") == []
    assert missing_files(MODEL, "see PLAN.md (section 3), docs/gone.md, nowhere.py") == ["PLAN.md", "docs/gone.md", "nowhere.py"]


def test_citations_lead_to_an_equation():
    model = MODEL.read_text()
    known = equations(model)
    for path, text in texts():
        if path == MODEL:
            assert [number for source, number in citations(text) if source == "model" and int(number) not in known] == []
        else:
            assert unresolved(text, model) == [], path


def test_named_files_exist():
    for path, text in texts():
        if path.name != MADE_BY_EXTENDING:
            assert missing_files(path, text) == [], path


def test_every_equation_names_the_code_that_runs_it():
    """``Code: `module.name``` after an equation can be imported; an equation without code says so."""
    for number, line in equations(MODEL.read_text()).items():
        assert "Code: " in line or "No code" in line, number
        for dotted in re.findall(r"`((?:rdmm|networks|train|eval)\.[\w.]+)`", line):
            thing: object = importlib.import_module(dotted.split(".")[0])
            for i, part in enumerate(dotted.split(".")[1:], 2):
                try:
                    thing = importlib.import_module(".".join(dotted.split(".")[:i]))
                except ModuleNotFoundError:
                    assert hasattr(thing, part), f"({number}): {dotted}"
                    thing = getattr(thing, part)


@pytest.mark.parametrize("number", ["3.10"])
def test_an_equation_of_the_paper_is_found_by_its_number(number):
    """Who looks for RDMM (3.10) finds the page, the function, and its compiled twin."""
    found = {str(path.relative_to(ROOT)) for path, text in texts() if ("RDMM", number) in citations(text)}
    assert {"docs/model.md", "rdmm/dynamics/epdiff.py", "rdmm/kernels/epdiff.py"} <= found
