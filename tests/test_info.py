"""rdmm info and rdmm report say in words what a file is."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from rdmm import io
from rdmm.cli import main
from rdmm.workflows.inspect import info


def rotation(degrees, axis=2):
    """A rotation of 3D about an axis, (4, 4)."""
    out, (c, s) = np.eye(4), (np.cos(np.radians(degrees)), np.sin(np.radians(degrees)))
    a, b = [k for k in range(3) if k != axis]
    out[a, a], out[a, b], out[b, a], out[b, b] = c, -s, s, c
    return out


def moved(x, y, z):
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(4), "identity"),
        (moved(1, -2.5, 3), "translation: moves the world's origin by (1, -2.5, 3) mm"),
        (moved(4, 0, 0) @ rotation(30) @ rotation(20, 0), "rigid: turns by 35.93 degrees, moves the world's origin by (4, 0, 0) mm"),
        (rotation(-170), "rigid: turns by 170 degrees"),
        (rotation(12, 1) @ np.diag([1.25, 1.25, 1.25, 1]), "similarity: scales by 1.25, turns by 12 degrees"),
        (rotation(12, 1) @ np.diag([3, 2, 0.5, 1]), "affine: stretches by 3, 2, 0.5, turns by 12 degrees"),
        (np.diag([1.0, 1, -1, 1]), "affine: stretches by 1, 1, 1, mirrors, turns by 0 degrees"),
        (np.eye(3), "identity"),
        (rotation(40)[:3, :3], "rigid: turns by 40 degrees"),
    ],
)
def test_an_affine_in_words(tmp_path, matrix, words):
    io.write_affine(tmp_path / "a.mat", matrix)
    facts = info(str(tmp_path / "a.mat"))
    assert facts["in_words"].startswith(words) and facts["kind"].startswith("affine") and facts["form"] == "itk"
    assert facts["determinant"] == pytest.approx(np.linalg.det(matrix))
    assert np.allclose(facts["translation_mm"], matrix[:-1, -1]) and np.allclose(facts["matrix"], matrix, atol=1e-6)


def test_images_label_maps_and_volumes(tmp_path):
    x = np.indices((12, 13, 14)).sum(0)
    labels = ((x > 12).astype(np.int16) * 7 + (x > 24) * 20).astype(np.int16)
    ramp = np.random.default_rng(0).normal(size=(12, 13, 14, 3)).astype(np.float32)
    ramp[0, 0, 0, 1] = np.nan
    for name, array in (("labels", labels), ("run", ramp)):
        image = nib.Nifti1Image(array, np.diag([-2.0, 2, 3, 1]))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / f"{name}.nii.gz")
    facts = info(str(tmp_path / "labels.nii.gz"))
    assert (facts["kind"], facts["content"], facts["axes"], facts["type"]) == ("image", "label map of 2 labels: 7, 27", "LAS", "int16")
    facts = info(str(tmp_path / "run.nii.gz"))
    assert (facts["content"], facts["volumes"], facts["not_finite"], facts["unit"]) == ("intensities", 3, 1, "mm")
    text = CliRunner().invoke(main, ["info", str(tmp_path / "run.nii.gz")]).stdout
    assert "\nshape: 12 x 13 x 14\nvoxel_mm: 2, 2, 3\naxes: LAS\n" in text


def test_meshes_and_lists(tmp_path):
    (tmp_path / "m.obj").write_text("# SPACE=LPS\nv 1 2 3\nv 4 5 6\nv 7 8 10\nv 0 0 0\nf 1 2 3 4\nl 1 2 3\n")
    facts = info(str(tmp_path / "m.obj"))
    assert (facts["kind"], facts["vertices"], facts["cells"]) == ("shape of lines and polygons", 4, 2)
    assert facts["frame"].startswith("LPS") and facts["lowest"] == [-7, -8, 0]
    (tmp_path / "p.csv").write_text("X;Y;Z;name\n1;2;3;a\n4;5;6;b\n")
    assert info(str(tmp_path / "p.csv"))["kind"] == "list of points" and info(str(tmp_path / "p.csv"))["highest"] == [4, 5, 6]
    (tmp_path / "t.csv").write_text("fixed,moving,age\nf,m,3\n")
    assert (info(str(tmp_path / "t.csv"))["kind"], info(str(tmp_path / "t.csv"))["columns"]) == ("table", "fixed, moving, age")


def itk_transforms(sitk):
    """One of each linear class of SimpleITK, with what it is in words."""
    point, move = (10.0, -20.0, 5.0), (1.0, 2.0, -3.0)
    return {
        "euler": (sitk.Euler3DTransform(point, 0.1, -0.2, 0.3, move), "rigid"),
        "versor": (sitk.VersorRigid3DTransform((0, 0, 1), 0.25, move, point), "rigid: turns by 14.32 degrees"),
        "similarity": (sitk.Similarity3DTransform(1.2, (1, 0, 0), 0.1, move, point), "similarity: scales by 1.2, turns by 5.73 degrees"),
        "translation": (sitk.TranslationTransform(3, move), "translation: moves the world's origin by (-1, -2, -3) mm"),
        "euler2": (sitk.Euler2DTransform((3.0, 4.0), 0.5, (1.0, 2.0)), "rigid: turns by 28.65 degrees"),
        "affine": (sitk.AffineTransform([2, 0, 0, 0, 1, 0, 0, 0, 1], move, point), "affine: stretches by 2, 1, 1"),
    }


@pytest.mark.parametrize("ending", ["tfm", "txt", "h5"])
def test_every_linear_transform_of_itk_in_words(tmp_path, ending):
    sitk = pytest.importorskip("SimpleITK")
    for name, (transform, words) in itk_transforms(sitk).items():
        path = str(tmp_path / f"{name}.{ending}")
        sitk.WriteTransform(transform, path)
        facts = info(path)
        assert facts["form"] == "itk" and facts["in_words"].startswith(words), facts["in_words"]
    both = [transform for _, (transform, _) in itk_transforms(sitk).items() if transform.GetDimension() == 3][:2]
    sitk.WriteTransform(sitk.CompositeTransform(both), str(tmp_path / f"both.{ending}"))
    facts = info(str(tmp_path / f"both.{ending}"))
    assert facts["kind"].startswith("chain") and all(part.startswith("affine (rigid: turns by") for part in facts["parts"])
