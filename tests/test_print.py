"""Figures for print: names, units, stars where a test says so, common limits of color, no empty panel."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from eval import figures
from eval.figures import Print
from rdmm import ConfigError, Grid, Image
from rdmm.report.figures import encoded, images_by_method
from rdmm.report.slices import ImageResult


def result(grid, size, sigma=None):
    u = torch.zeros(1, 2, *grid.shape)
    u[:, 0] = size * torch.sin(6 * grid.identity(u)[:, 1])
    warped = Image(torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    return ImageResult(warped, u, None if sigma is None else (sigma * torch.rand(1, 1, *grid.shape),) * 2)


def test_methods_share_limits_of_color_and_no_panel_is_empty():
    grid = Grid.unit((16, 14))
    images = [Image(torch.full((1, 1, 16, 14), x), grid) for x in (0.2, 0.9)]
    figure = images_by_method(*images, {"SVF": result(grid, 0.01), "RDMM": result(grid, 0.05, 3.0)})
    panels = [a for part in figure.subfigs for a in part.axes if a.get_title()]
    assert all(a.images for a in panels) and len(panels) == 3 * 3 + 2
    limits = {}
    for a in panels:
        kind = a.get_title().split(": ")[-1].replace("moving - fixed", "warped - fixed").partition(",")[0]
        limits.setdefault("gray" if kind in ("moving", "fixed", "warped") else kind, set()).add(a.images[0].get_clim())
    assert {len(found) for found in limits.values()} == {1}, limits
    low, high = next(iter(limits["log det J"]))
    assert low == -high


def test_names_and_units_that_readers_know():
    style = Print(names={"rdmm": "RDMM, regions"})
    assert [style.name(m) for m in ("svf", "rdmm", "ot_reach", "lddmm")] == ["SVF", "RDMM, regions", "OT reach", "LDDMM"]
    assert [figures.with_unit(t) for t in ("Dice", "TRE mm", "TRE liver mm")] == ["Dice", "TRE (mm)", "TRE liver (mm)"]
    assert [figures.significance(p) for p in (0.2, 0.04, 0.002, 1e-4)] == ["", "*", "**", "***"]


def test_formats_and_resolution(tmp_path, monkeypatch):
    rows = [
        {"data": "d", "case": f"c{i}", "method": m, "status": "done", "dice": 0.8 + 0.01 * i + add}
        for m, add in (("svf", 0.0), ("rdmm", 0.05), ("same", 0.0))
        for i in range(8)
    ]
    seen = []
    monkeypatch.setattr(Print, "save", lambda self, figure, stem: seen.append((figure, stem)))
    figures.boxes(rows, tmp_path, "svf")
    (figure, stem), *_ = seen
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts == ["**"] and stem.name == "boxes_d"
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["SVF", "RDMM", "same"]
    sizes = [Pillow.open(io.BytesIO(encoded(figure, "png", dpi))).width for dpi in (30, 60)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)
    assert len(np.unique([c.get_offsets()[:, 1] for c in figure.axes[0].collections])) >= 8


@pytest.mark.fault(142)
@pytest.mark.parametrize(("keys", "message"), [({"formats": ["tiff"]}, "png, pdf"), ({"formats": "png"}, "a list"), ({"dpi": 1}, "dpi")])
def test_faults_of_styles(keys, message):
    with pytest.raises(ConfigError, match=message):
        Print(**keys)
