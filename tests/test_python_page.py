"""The code of docs/python.md runs as printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import rdmm
from rdmm.config.compose import share


def test_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("SimpleITK")
    x = torch.linspace(-1, 1, 20)
    for name, shift in (("fixed", 0.0), ("moving", 0.2)):
        blob = torch.exp(-4 * ((x[:, None] - shift) ** 2 + x[None] ** 2))
        rdmm.Image.from_array(blob, spacing=(1, 1)).save(tmp_path / f"{name}.nii.gz")
        rdmm.Image.from_array((blob > 0.5).long(), spacing=(1, 1)).save(tmp_path / f"{name}_labels.nii.gz")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```", (share() / "docs" / "python.md").read_text(), re.M | re.S)
    (tmp_path / "page.py").write_text("\n".join(code))
    names = runpy.run_path("page.py")
    assert names["labels"].shape == names["warped"].shape == (20, 20)
    assert names["numbers"]["dice"] > 0.8 and (tmp_path / "whole.h5").exists() and names["moved"].shape == (1, 2)
