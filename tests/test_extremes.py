"""Siblings of known faults: numbers at the edge of their types, names in capitals, parts that do not fit, places outside."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

import eval.main
import rdmm
import train.main
from rdmm import ConfigError, Grid, Image, InputError, io
from rdmm.cli import main
from rdmm.config import compose
from rdmm.io import read_grid
from rdmm.io.tools.itk import write_affine, write_warp
from rdmm.io.tools.itk.maps import Entry, decode
from rdmm.similarity import GridSinkhorn, HausdorffDivergence, KernelDistance, SinkhornDivergence, SoftMinDivergence
from rdmm.spatial.measure import Measure
from rdmm.spatial.transform import flat
from rdmm.types import OutputError
from rdmm.workflows.batch import Batch

SHAPE = (8, 7, 6)
GRID = Grid(SHAPE, np.eye(4))


def run(*arguments: object) -> int:
    """The exit code of a command, in this process."""
    with pytest.raises(SystemExit) as ended:
        main.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image f.nii, labels l.nii, the same 1 m away in far.nii, half beside in half.nii, a.mat and w.nii."""
    monkeypatch.chdir(tmp_path)
    x = np.indices(SHAPE) - np.array([4, 3, 3]).reshape(3, 1, 1, 1)
    values = np.exp(-(x**2).sum(0) / 6).astype(np.float32)
    for name, shift in (("f.nii", 0), ("far.nii", 1000), ("half.nii", 4)):
        affine = np.eye(4)
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(values, affine), name)
    nib.save(nib.Nifti1Image((values > 0.5).astype(np.uint8), np.eye(4)), "l.nii")
    matrix = np.eye(4)
    matrix[0, 3] = 5.0
    write_affine("a.mat", matrix)
    write_warp("w.nii", 0.02 * torch.sin(5 * GRID.identity(torch.zeros(1, dtype=torch.float64))), GRID)
    return tmp_path


@pytest.mark.parametrize("value", ["9007199254740993", "-9223372036854775808", "9223372036854775807", "4294967297"])
@pytest.mark.fault(88)
def test_label_outside_stays_exact(here: Path, value: str) -> None:
    assert run("apply", "l.nii", "-t", "a.mat", "-r", "f.nii", "-o", "o.nii", "--labels", "--default-value", value) == 0
    assert int(value) in np.asarray(nib.load("o.nii").dataobj)


@pytest.mark.parametrize(
    ("value", "more"), [("9223372036854775808", ["--labels"]), ("1e300", ["--labels"]), ("1e39", []), ("-1e308", []), ("nan", [])]
)
@pytest.mark.fault(68, 88, 89)
def test_value_outside_that_no_file_holds(here: Path, value: str, more: list[str]) -> None:
    assert run("apply", "l.nii", "-t", "a.mat", "-r", "f.nii", "-o", "o.nii", *more, "--default-value", value) == 2
    assert not Path("o.nii").exists()


@pytest.mark.fault(88)
def test_scaled_labels_stay_exact(here: Path) -> None:
    labels = np.zeros(SHAPE, np.int64)
    labels[2:5] = 2**53 + 1
    data = bytearray(nib.Nifti1Image(labels, np.eye(4), dtype=np.int64).to_bytes())
    data[112:120] = np.array([1, 2], "<f4").tobytes()  # slope and intercept
    Path("s.nii").write_bytes(bytes(data))
    assert set(io.read_labels("s.nii").data.unique().tolist()) == {2, 2**53 + 3}


@pytest.mark.fault(89)
def test_infinity_is_not_written_even_where_nan_may_be(tmp_path: Path) -> None:
    data = torch.zeros(1, 1, *SHAPE, dtype=torch.float64)
    data[0, 0, 1, 1, 1] = torch.nan
    io.write_image(tmp_path / "nan.nii", data, GRID, missing=True)
    assert np.isnan(nib.load(tmp_path / "nan.nii").get_fdata()).sum() == 1
    for value in (torch.inf, 1e39):
        data[0, 0, 2, 2, 2] = value
        with pytest.raises(OutputError, match="not finite"):
            io.write_image(tmp_path / "inf.nii", data, GRID, missing=True)
    assert not (tmp_path / "inf.nii").exists()


@pytest.mark.parametrize("value", ["1e-300", "1e300", "1e-10", "1e10"])
@pytest.mark.fault(68)
def test_lengths_whose_squares_are_no_numbers(value: str) -> None:
    length = float(value)
    for kind in (GridSinkhorn, SinkhornDivergence, SoftMinDivergence, HausdorffDivergence):
        with pytest.raises(ConfigError, match=r"similarity\.blur"):
            kind(blur=length)
    for transport in (GridSinkhorn, SinkhornDivergence):
        with pytest.raises(ConfigError, match=r"similarity\.reach"):
            transport(reach=length)
    with pytest.raises(ConfigError, match=r"similarity\.sigmas"):
        KernelDistance(sigmas=[0.1, length])


@pytest.mark.parametrize("key", ["intensity.window=[0,1e39]", "similarity_weight=-1e39", f"barrier=1{'0' * 40}"])
@pytest.mark.fault(68)
def test_settings_that_float32_cannot_hold(key: str) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        compose([key])


@pytest.mark.parametrize("option", ["--blur", "--reach"])
@pytest.mark.fault(68)
def test_lengths_of_options(here: Path, option: str) -> None:
    for value in ("1e-300", "1e300"):
        assert run("transfer", "f.nii", "f.nii", "l.nii", "-o", "o.nii", option, value) == 2


@pytest.mark.fault(61)
def test_empty_weights_are_not_ignored(here: Path) -> None:
    assert run("barycenter", "f.nii", "f.nii", "-o", "o.nii", "--weights", "") == 2


@pytest.mark.fault(33, 105)
def test_transport_does_not_smear_edges(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (("barycenter", "f.nii", "far.nii"), ("transfer", "f.nii", "far.nii", "far.nii"), ("barycenter", "l.nii", "far.nii")):
        assert run(*arguments, "-o", "o.nii") == 3
        assert "far.nii" in capfd.readouterr().err
    assert run("barycenter", "f.nii", "half.nii", "--weights", "0,1", "-o", "o.nii") == 0
    assert "% of it lies outside" in capfd.readouterr().err
    assert np.asarray(nib.load("o.nii").dataobj)[:3].max() < 1e-6  # half.nii begins at the fourth voxel
    assert run("barycenter", "f.nii", "f.nii", "-o", "equal.nii") == 0
    assert "outside" not in capfd.readouterr().err


@pytest.mark.parametrize("ending", [".NII", ".NII.GZ", ".Nii.gz"])
@pytest.mark.parametrize("form", ["fsl", "afni"])
@pytest.mark.fault(102)
def test_endings_of_warps_in_capitals(here: Path, form: str, ending: str) -> None:
    images = ["--fixed", "f.nii", "--moving", "f.nii"]
    assert run("convert", "w.nii", f"o{ending}", "--to", form, *images) == 0
    assert run("convert", f"o{ending}", "back.h5", "--from", form, *images) == 0
    there, back = (io.read_transform(name) for name in ("w.nii", "back.h5"))
    x = torch.tensor([[3.0, 4.0], [2.0, 3.0], [2.0, 2.5]], dtype=torch.float64)[None]
    assert torch.allclose(there(x), back(x), atol=1e-4)


@pytest.mark.fault(89)
def test_affines_that_overflow_or_vanish_are_not_written(here: Path) -> None:
    write_affine("big.mat", np.diag([1e6, 1, 1, 1.0]))
    for name in ("big.mat", "[big.mat,1]"):
        assert run("compose", *["-t", name] * 60, "-o", "o.mat") == 3
    assert not Path("o.mat").exists()


@pytest.mark.fault(89)
def test_displacements_beyond_all_lengths(here: Path) -> None:
    for value in (1e10, 1e38, 1e300):
        vectors = np.zeros((*SHAPE, 1, 3))
        vectors[1, 1, 1] = value
        image = nib.Nifti1Image(vectors, np.eye(4))
        image.header.set_intent(1007)
        nib.save(image, "huge.nii")
        with pytest.raises(InputError, match=r"huge\.nii: its displacements reach"):
            io.read_transform("huge.nii")


@pytest.mark.fault(42)
def test_coordinates_beyond_all_lengths(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("x,y,z\n1,2,3\n1,2e10,3\n")
    with pytest.raises(InputError, match=r"row 3: y is 2e10, more than 1e\+09 mm"):
        io.read_points(path, 3)
    markups = {"markups": [{"coordinateSystem": "RAS", "controlPoints": [{"position": "123"}]}]}
    (tmp_path / "p.mrk.json").write_text(json.dumps(markups))
    with pytest.raises(InputError, match="three numbers"):
        io.read_points(tmp_path / "p.mrk.json", 3)


@pytest.mark.fault(107)
def test_composite_of_another_dimension_than_its_parts(here: Path) -> None:
    plane = Entry("AffineTransform_double_2_2", np.array([1.0, 0, 0, 1, 1, 2]), np.zeros(2))
    with pytest.raises(InputError, match=r"2D but .*3D"):
        decode(Path("c.h5"), [Entry("CompositeTransform_double_3_3", np.zeros(0), np.zeros(0)), plane])
    whole = decode(Path("c.h5"), [Entry("CompositeTransform_double_2_2", np.zeros(0), np.zeros(0)), plane])
    assert [m.ndim for m in flat(whole)] == [2]


@pytest.mark.fault(92)
def test_field_whose_size_is_no_whole_number(here: Path) -> None:
    fixed = np.array([4.5, 4, 4, 0, 0, 0, 1, 1, 1, *np.eye(3).ravel()])
    with h5py.File("c.h5", "w") as file:
        group = file.create_group("TransformGroup/0")
        group["TransformType"] = np.array([b"DisplacementFieldTransform_double_3_3"])
        group["TransformParameters"], group["TransformFixedParameters"] = np.zeros(192), fixed
    with pytest.raises(InputError, match="does not fit"):
        io.read_transform("c.h5")


@pytest.mark.fault(8)
def test_offset_between_two_bytes(here: Path) -> None:
    data = bytearray(Path("f.nii").read_bytes())
    data[108:112] = np.array(351.5, "<f4").tobytes()
    Path("o.nii").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"offset is 351\.5"):
        io.read_image("o.nii")


@pytest.mark.parametrize("field", [252, 254])
@pytest.mark.fault(26)
def test_forms_of_an_undefined_code(here: Path, field: int) -> None:
    data = bytearray(Path("f.nii").read_bytes())
    data[field : field + 2] = np.array(99, "<i2").tobytes()
    Path("o.nii").write_bytes(bytes(data))
    grid = read_grid("o.nii")
    io.write_image("copy.nii", torch.zeros(1, 1, *SHAPE), grid)
    assert read_grid("copy.nii") == grid == read_grid("f.nii")


@pytest.mark.fault(75)
def test_batch_without_a_folder() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Batch("pairs.csv", "")


@pytest.mark.fault(95)
def test_evaluation_of_an_affine_says_something(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "-t", "a.mat", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"determinant": 1.0}


@pytest.mark.fault(103)
def test_shapes_of_grids() -> None:
    for shape in (None, 5, "ab", (1, 4), (0, 4), (2.5, 4), (-3, 4)):
        with pytest.raises(InputError):
            Grid.unit(shape)  # type: ignore[arg-type]


@pytest.mark.fault(60, 103)
def test_parts_of_measures() -> None:
    x, cells = torch.rand(1, 3, 6), torch.tensor([[0, 1, 2]])
    for parts in (
        {"weights": torch.ones(1, 6).double()},
        {"weights": torch.ones(3, 6)},
        {"normals": torch.ones(1, 3, 6).double()},
        {"cells": cells.float()},
        {"cells": cells.bool()},
        {"cells": cells.tolist()},
    ):
        with pytest.raises(InputError, match="a measure's"):
            Measure(x, **parts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch of 2"):
        rdmm.register_shapes(fixed=Measure(x.expand(2, -1, -1)), moving=Measure(x))


@pytest.mark.fault(103)
def test_default_device_of_the_caller_and_a_missing_prefix(here: Path) -> None:
    keys = {"dynamics": "svf", "affine": "none", "optimizer__scales": [1.0], "optimizer__iterations": [1]}
    x = GRID.identity(torch.zeros(1)) - 0.4
    images = [Image(torch.exp(-((x - s) ** 2).sum(1, keepdim=True) / 0.05), GRID) for s in (0, 0.05)]
    usual = rdmm.register(fixed=images[0], moving=images[1], **keys)
    with torch.device("meta"):
        done = rdmm.register(fixed=images[0], moving=images[1], **keys)
    assert torch.equal(done.deformation, usual.deformation)
    for out in (None, 5):
        with pytest.raises(OutputError, match="prefix"):
            done.save(out)  # type: ignore[arg-type]


@pytest.mark.parametrize("typed", ["experiment=nope", "study.methods=[]", "study._target_=os.system", "study.lmit=3", "barrier=nan"])
@pytest.mark.parametrize("program", [eval.main.main, train.main.main])
@pytest.mark.fault(67, 68, 69)
def test_settings_of_programs(program: Callable[[], None], typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["program", typed])
    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 2
