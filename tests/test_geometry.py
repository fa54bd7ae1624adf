"""Where a file says that its voxels lie: singular affines, units, the q-form, single slices."""

import numpy as np
import pytest

from rdmm import Grid, InputError, io

TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
PARALLEL = np.array([[1.0, 2, 0], [2, 4.0000001, 0], [0, 0, 1]])

UNUSABLE = {
    "zero": 0 * TURN,
    "a zero column": TURN * [1, 0, 1],
    "a zero row": TURN * np.array([[1], [1], [0]]),
    "parallel axes": PARALLEL,
    "parallel axes of tiny voxels": 1e-7 * PARALLEL,
    "NaN": TURN * [1, np.nan, 1],
    "Inf": TURN + np.diag([0, np.inf, 0]),
    "1e38": 1e38 * TURN,
    "1e-38": 1e-38 * TURN,
}


def affine_of(linear, origin=0.0):
    matrix = np.eye(len(linear) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, origin
    return matrix


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_affines_are_no_grids(name):
    with pytest.raises(InputError, match="affine"):
        Grid((5, 6, 7), affine_of(UNUSABLE[name]))
    if name != "a zero row":
        with pytest.raises(InputError, match="affine"):
            Grid((5, 6), affine_of(UNUSABLE[name][:2, :2]))


@pytest.mark.fault(27)
@pytest.mark.parametrize("origin", [np.nan, np.inf, 1e38])
def test_origins_that_are_nowhere(origin):
    with pytest.raises(InputError, match="affine"):
        Grid((5, 6, 7), affine_of(TURN, origin))
    perspective = affine_of(TURN)
    perspective[3, 0] = 0.5
    with pytest.raises(InputError, match="last row"):
        Grid((5, 6, 7), perspective)


@pytest.mark.fault(27)
@pytest.mark.parametrize("scale", [[1, 1, 1], [1e-6, 1e-6, 1e-6], [1e4, 1e4, 1e4], [1e-4, 1, 1e3]])
def test_small_and_large_voxels_are_grids(scale):
    assert Grid((5, 6, 7), affine_of(TURN @ np.diag(scale))).voxel == pytest.approx(scale)


@pytest.mark.fault(27)
@pytest.mark.parametrize("scale", [5e-4, 1e-5, 1, 1e4])
def test_affines_of_any_scale_are_read(tmp_path, scale):
    io.write_affine(tmp_path / "a.mat", affine_of(scale * TURN))
    assert np.allclose(io.read_transform(str(tmp_path / "a.mat")).matrix, affine_of(scale * TURN), rtol=1e-6)


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", ["zero", "parallel axes of tiny voxels", "1e-38"])
def test_singular_affines_are_refused(tmp_path, name):
    io.write_affine(tmp_path / "a.mat", affine_of(UNUSABLE[name]))
    with pytest.raises(InputError, match="singular"):
        io.read_transform(str(tmp_path / "a.mat"))
