"""Pictures of a page: what is where, in which color."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import rdmm
from rdmm import Grid, Image
from rdmm.report.images import WIDEST, image_thumbnail
from rdmm.report.sheet import DIVERGING, PANEL, SEQUENTIAL, Panel, Scale, chart, picture, sheet, with_lines
from rdmm.report.slices import deformed_lines, scale_intensity


def pixel(shown, x: float, y: float) -> tuple[int, ...]:
    return shown.getpixel((int(x), int(y)))


@pytest.mark.parametrize("colors", [DIVERGING, SEQUENTIAL])
def test_colors_are_those_of_their_numbers(colors):
    scale = Scale(-2, 2, colors)
    n = len(colors)
    shown = scale(np.array([[-9.0, *np.linspace(-2, 2, n), 9.0]]))[0]
    wanted = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (colors[0], *colors, colors[-1])]
    assert np.abs(shown.astype(int) - wanted).max() <= 8  # 256 colors do not meet each number


def test_rows_go_up_and_voxels_keep_their_shape():
    values = np.array([[0.0, 1.0], [0.5, 0.0]])
    shown = picture(values, Scale(0, 1), aspect=0.5)
    assert shown.size == (PANEL, PANEL // 2)
    assert [pixel(shown, x * PANEL, y * PANEL / 2)[0] for x, y in ((0.2, 0.8), (0.8, 0.8), (0.2, 0.2), (0.8, 0.2))] == [0, 255, 128, 0]
    assert picture(np.zeros((500, 40)), Scale(0, 1)).size == (round(40 * PANEL / 500), PANEL)


def test_lines_are_drawn_where_they_are():
    blank = Pillow.new("RGB", (60, 40), "#000000")
    shown = with_lines(blank, [np.array([[10.0, 5.0], [50.0, 5.0]]), np.array([[np.nan, 1.0], [3.0, 30.0]])], "#ff0000", width=2)
    bright = np.argwhere(np.asarray(shown)[..., 0] > 100)
    assert bright[:, 0].min() >= 4 and bright[:, 0].max() <= 5 and bright[:, 1].min() >= 9 and bright[:, 1].max() <= 50


def test_lines_of_the_identity_are_the_grid():
    grid = Grid.unit((6, 5))
    across, up = deformed_lines(torch.zeros(1, 2, 6, 5), 1, grid)[0], deformed_lines(torch.zeros(1, 2, 6, 5), 1, grid)[-1]
    np.testing.assert_allclose(across, [(k, 0) for k in range(6)], atol=1e-5)
    np.testing.assert_allclose(up, [(5, k) for k in range(5)], atol=1e-5)


def test_a_sheet_holds_all_panels():
    a, b = (Pillow.new("RGB", (PANEL, 30), color) for color in ("#ff0000", "#0000ff"))
    shown = np.asarray(sheet([[Panel("a", a), Panel("b", b, Scale(0, 1))], [Panel("c", a), Panel("d", b)]]))
    assert (shown == (255, 0, 0)).all(-1).sum() == 2 * PANEL * 30 == (shown == (0, 0, 255)).all(-1).sum()


@pytest.mark.parametrize(("values", "logarithmic"), [([3.0, 1e-6, 0.0, 2.0], True), ([], False), ([1.0], True), ([-1.0, 5.0], False)])
def test_a_chart_of_any_numbers(values, logarithmic):
    shown = np.asarray(chart({"a": values}, "iteration", logarithmic=logarithmic))
    drawn = (np.abs(shown.astype(int) - (0x1F, 0x77, 0xB4)).max(-1) < 9).sum()
    assert drawn > 100 or len(values) < 2


def test_figures_of_an_affine_map(images):
    """Its energies have no deformation."""
    done = rdmm.register(str(images / "f.nii.gz"), str(images / "m.nii.gz"), transform="translation")
    for _, figure in done.figures():
        assert Pillow.open(io.BytesIO(base64.b64decode(figure))).width > PANEL


@pytest.mark.parametrize("background", [-1000.0, 0.0, 1e-3, 1e30])
@pytest.mark.parametrize("step", [1500.0, 0.0])
def test_a_few_voxels_above_one_value_are_seen(background, step):
    """Fewer than the percentiles leave out; or none: then there is nothing to see, and no NaN."""
    x = torch.full((1, 1, 40, 40, 40), background)
    x[..., 14:17, 18:21, 18:21] += step * max(1.0, abs(background))
    shown = scale_intensity(Image(x, Grid.unit((40, 40, 40))))
    assert float(shown.min()) == 0
    assert float(shown[15, 19, 19]) == (1 if step else 0)


def test_the_thumbnail_of_a_long_thin_image_is_a_picture():
    image = Image(torch.rand(1, 1, 1600, 4), Grid.unit((1600, 4)))
    shown = Pillow.open(io.BytesIO(base64.b64decode(image_thumbnail(image, image).rpartition(",")[2])))
    assert shown.width <= WIDEST
