"""Transforms that are not read say what they are and how to convert them; those that are read say whose they are."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import scipy.io

from rdmm import io
from rdmm.io.transforms import READERS, recognise
from rdmm.types import InputError
from rdmm.workflows.inspect import info

ROW = "1 0 0 0 0 1 0 0 0 0 1 0\n"

UNREADABLE = {
    "warp.m3z": (gzip.compress(b"\x3f\x80\0\0" + bytes(300)), "a morph of FreeSurfer: not read; .*mri_warp_convert --inm3z .*warp.m3z"),
    "register.dat": (b"subj\n1.0\n1.0\n0.15\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\nround\n", "register.dat of FreeSurfer.*tkregister2"),
    "x.x5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an X5 file of nitransforms.*to_filename"),
    "mc.par": (b"0 0 0 1 2 -3e-1\n" * 5, "motion parameters.*mcflirt -mats"),
    "mc.1D": (f"# 3dvolreg matrices\n{ROW * 3}".encode(), "matrices, one of each volume: not read; write the row of one"),
    "many.par": (b"0.1 0.2 0.3 1.5 2.5 -3e-1\n" * 500, "motion parameters"),
    "d.npy": (b"\x93NUMPY\x01\x00" + bytes(100), "an array that does not say.*Learn2Reg"),
    "m.txt": (ROW.encode(), "without its last row.*--from fsl|ras"),
    "bspline.tfm": (
        b"#Insight Transform File V1.0\n#Transform 0\nTransform: BSplineTransform_double_3_3\nParameters: 0 0\nFixedParameters: 0\n",
        "BSplineTransform_double_3_3 cannot be read.*displacement field",
    ),
    "grid.xfm": (b"MNI Transform File\n\nTransform_Type = Grid_Transform;\nDisplacement_Volume = x.mnc;\n", "Grid_Transform.*displacement"),
    "junk.mat": (b"hello world\n", "not a transform of a known tool"),
}


@pytest.mark.fault(92)
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_read_says_what_it_is(tmp_path, name):
    content, message = UNREADABLE[name]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (io.read_transform, info):
        with pytest.raises(InputError, match=message) as caught:
            read(str(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.fault(92)
def test_matlab_files_of_spm(tmp_path):
    scipy.io.savemat(tmp_path / "a_sn.mat", {"Affine": np.eye(4), "Tr": np.zeros((2, 2, 2, 3))})
    for read in (io.read_transform, info):
        with pytest.raises(InputError, match=r"SPM's parameters .*y_NAME\.nii"):
            read(str(tmp_path / "a_sn.mat"))


def test_matrices_of_greedy_and_afni_are_told_by_their_content(tmp_path):
    """greedy and c3d write a bare matrix, whatever its name; so does FLIRT, with another meaning."""
    matrix = np.eye(4) + np.array([[0, 0.1, 0, 3], [0] * 4, [0] * 4, [0] * 4])
    for name in ("g.mat", "g.txt"):
        np.savetxt(tmp_path / name, matrix)
        assert recognise(tmp_path / name) == ["fsl", "ras"]
        facts = info(str(tmp_path / name))
        assert facts["forms"] == ["fsl", "ras"] and "--from fsl|ras" in facts["kind"]
        assert np.allclose(READERS["ras"].read(tmp_path / name, None).matrix, matrix)
        with pytest.raises(InputError, match="greedy, c3d"):
            io.read_transform(str(tmp_path / name))
    (tmp_path / "one.aff12.1D").write_text(ROW)
    assert info(str(tmp_path / "one.aff12.1D"))["form"] == "afni"
