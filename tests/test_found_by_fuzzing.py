"""The smallest case of each fault that tests/test_fuzz.py found."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.io import savemat

from networks.model import load
from rdmm import Grid, io
from rdmm.config.trust import require_trusted_yaml
from rdmm.data.pair_list import read_pairs
from rdmm.io.models import Model, read_model, write_model
from rdmm.io.transforms import read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.spatial.transform import Affine
from rdmm.types import ConfigError, InputError, RdmmError


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings(action="error"):
        yield


@pytest.mark.fault(113)
def test_what_does_not_print_is_shown_as_escapes():
    assert str(RdmmError("a\x1b[2Jb\udcff\u2028c\n d é")) == "a\\x1b[2Jb\\udcff c d é"


def write_nifti(path, shape, **fields):
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4))
    for name, (index, value) in fields.items():
        image.header[name][index] = value
    path.write_bytes(image.to_bytes())
    return path


@pytest.mark.fault(112)
@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_quaternions_and_thicknesses_that_are_no_numbers(tmp_path, value):
    path = write_nifti(tmp_path / "q.nii", (4, 5, 6), quatern_b=((), value), qform_code=((), 1))
    assert np.allclose(io.read_image(path).grid.affine, np.eye(4))  # the s-form
    path = write_nifti(tmp_path / "slice.nii", (4, 1, 6), srow_y=(1, value))
    image = io.read_image(path)
    io.write_image(tmp_path / "again.nii", image.data, image.grid)
    assert io.read_image(tmp_path / "again.nii").grid.offset(image.grid) < 1e-6


@pytest.mark.fault(112)
def test_a_code_of_the_s_form_that_nifti_does_not_have(tmp_path, caplog):
    image = io.read_image(write_nifti(tmp_path / "x.nii", (4, 5, 6), sform_code=((), 24838)))
    assert "sform_code 24838 has no meaning" in caplog.text
    io.write_image(tmp_path / "again.nii", image.data, image.grid)
    assert int(nib.load(tmp_path / "again.nii").header["sform_code"]) == 1


@pytest.mark.fault(112)
@pytest.mark.parametrize("name", ["x" * 300, "\0", ".", "a\x1b[2J"])
def test_elastix_names_a_file_that_cannot_be(tmp_path, name):
    fields = {"Transform": '"TranslationTransform"', "NumberOfParameters": 2, "TransformParameters": "0 0", "FixedImageDimension": 2}
    fields |= {"MovingImageDimension": 2, "InitialTransformParametersFileName": f'"{name}"'}
    path = tmp_path / "t.txt"
    path.write_text("".join(f"({k} {v})\n" for k, v in fields.items()))
    with pytest.raises(InputError) as caught:
        io.read_transform(str(path))
    assert str(caught.value).isprintable()


@pytest.mark.fault(112)
@pytest.mark.parametrize("name", ["", " ", "\ud800", "a\0b"])
def test_a_data_set_names_an_image_that_cannot_be(tmp_path, name):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"registration_val": [{"fixed": "a.nii", "moving": name}]}))
    with pytest.raises(ConfigError, match=r"registration_val\[0\]"):
        read_pairs(path)


@pytest.mark.fault(81)
@pytest.mark.parametrize("text", ["a: 1\n<<: *s\n", "? [1]\n: 2\n", "a: 1\n\tb: 2\n", "d: 2020-13-45\n"])
def test_yaml_of_events_that_make_no_data(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not YAML"):
        require_trusted_yaml(tmp_path)


@pytest.mark.fault(89)
def test_vectors_that_float32_cannot_hold(tmp_path):
    grid, fixed = Grid.unit((4, 4)), "4 4 0 0 1 1 1 0 0 1"
    numbers = " ".join(["1e300", *["0"] * 31])
    path = tmp_path / "w.txt"
    path.write_text(
        f"#Insight Transform File V1.0\nTransform: DisplacementFieldTransform_double_2_2\nParameters: {numbers}\nFixedParameters: {fixed}\n"
    )
    with pytest.raises(InputError, match="float32"):
        read_transform_as(str(path), "itk", Space(grid))


@pytest.mark.fault(112)
def test_a_matlab_file_in_the_byte_order_of_a_vax(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"AffineTransform_double_2_2": np.ones((6, 1)), "fixed": np.zeros((2, 1))}, format="4")
    data = bytearray(path.read_bytes())
    data[:4] = (2000).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="not a MATLAB-4 file"):
        io.read_transform(str(path))


@pytest.mark.fault(112)
@pytest.mark.parametrize("tool", ["fsl", "afni"])
def test_the_case_of_an_ending_does_not_matter(tmp_path, tool):
    grid = Grid.unit((4, 5, 6))
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4))
    path = tmp_path / "W.NII"
    path.write_bytes(image.to_bytes())
    transform = read_transform_as(str(path), tool, Space(grid, grid))
    assert torch.equal(transform(torch.ones(1, 3, 1)), torch.ones(1, 3, 1))


@pytest.mark.fault(103)
@pytest.mark.parametrize("source", [None, 5, b"x.nii", [], {}, np.zeros((4, 4))])
def test_what_is_no_name_of_a_file(source):
    for read in (io.read_image, io.read_labels, io.read_grid, io.read_mesh, io.read_landmarks):
        with pytest.raises(InputError, match=type(source).__name__.removesuffix("Type")):
            read(source)


@pytest.mark.fault(84)
def test_settings_of_a_model_that_want_more_memory_than_there_is(tmp_path):
    model = read_model(Path(__file__).parent / "stored/model.safetensors")
    settings = copy.deepcopy(dict(model.settings))
    settings["predictor"]["backbone"]["features"] = [2, 10**10]
    write_model(tmp_path / "m.safetensors", Model(model.tensors, settings))
    with pytest.raises(InputError, match="another architecture"):
        load(str(tmp_path / "m.safetensors"))


@pytest.mark.fault(90)
@pytest.mark.parametrize("object_1", [(1, 0, 0, 0), (0, 0), (1, 2**64 - 16), (1, 2**40), (0, 8)], ids=str)
def test_a_heap_of_texts_that_leads_back_to_itself(tmp_path, object_1):
    """The HDF5 library, version 2.0.0 too, reads the first four without end, or out of the file."""
    path = tmp_path / "c.h5"
    write_transform(path, Affine(torch.eye(3, dtype=torch.float64)), "itk", Space())
    assert isinstance(io.read_transform(str(path)), Affine)
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL") + 16
    for k, value in enumerate(object_1):
        data[at + 8 * k : at + 8 * k + 8] = value.to_bytes(8, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="texts at byte"):
        io.read_transform(str(path))
