"""Data sets of training: no test image is trained on, every name is read one way, and files of the wrong kind are named."""

import json

import nibabel as nib
import numpy as np
import pytest
from test_faults_input import make_picture, save_nifti

from rdmm import ConfigError, InputError
from rdmm.data.training.pairs import ImagePairs, SyntheticPairs
from rdmm.data.training.sources import FolderSource
from rdmm.data.training.tables import PairSource, TableSource


def data_of(source, **more):
    return ImagePairs(source, **{"shape": (16, 16, 16), "shares": (0.6, 0.2, 0.2), **more})


@pytest.fixture
def folder(tmp_path):
    for k in range(6):
        save_nifti(tmp_path / f"s{k}.nii.gz", make_picture(k))
    return tmp_path


# ---- the same image twice


def copied(source, path):
    path.write_bytes(source.read_bytes())


def stored_otherwise(source, path):
    """The same voxels, with another header, type and compression."""
    image = nib.load(source)
    other = nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine)
    other.header["descrip"] = b"exported anew"
    nib.save(other, str(path).removesuffix(".gz"))


def turned(source, path):
    """The same voxels, with the first axis stored from right to left."""
    image = nib.load(source)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine @ flip), path)


def linked(source, path):
    path.symlink_to(source)


@pytest.mark.fault(111)
@pytest.mark.parametrize("again", [copied, stored_otherwise, turned, linked])
def test_one_image_under_two_subjects_is_refused(folder, again):
    """Fault 111, however it is stored the second time."""
    again(folder / "s2.nii.gz", folder / "t2.nii.gz")
    source = FolderSource(str(folder), "{subject}.nii*") if again is stored_otherwise else FolderSource(str(folder))
    if again is stored_otherwise:
        (folder / "list.csv").write_text("image,subject\n" + "".join(f"{p.name},{p.name[:2]}\n" for p in sorted(folder.glob("*.nii*"))))
        source = TableSource(str(folder / "list.csv"))
    for use in (lambda d: d.pair(0), lambda d: d.describe(), lambda d: next(iter(d.held_out("test").values()))()):
        with pytest.raises(ConfigError, match=r"t2\.nii.* \(subject 't2'\) holds the same voxels as .*s2\.nii\.gz \(subject 's2'\)"):
            use(data_of(source, shares=(0.34, 0.33, 0.33)))


@pytest.mark.fault(76, 111)
@pytest.mark.parametrize("columns", ["image,subject,split", "fixed,moving,split"])
def test_one_image_in_two_splits_is_refused(folder, columns):
    """Fault 111, in a list of images and in a list of pairs."""
    copied(folder / "s0.nii.gz", folder / "copy.nii.gz")
    rows = {
        "image,subject,split": ["s0.nii.gz,a,train", "s1.nii.gz,b,train", "copy.nii.gz,c,test", "s2.nii.gz,d,test"],
        "fixed,moving,split": ["s0.nii.gz,s1.nii.gz,train", "copy.nii.gz,s2.nii.gz,test"],
    }[columns]
    (folder / "list.csv").write_text("\n".join([columns, *rows]) + "\n")
    kind, more = (TableSource, {}) if columns.startswith("image") else (PairSource, {"sampling": "listed"})
    with pytest.raises(ConfigError, match="an image must not be in both training and test data"):
        data_of(kind(str(folder / "list.csv")), **more).pair(0)


def test_images_of_one_subject_may_be_equal(folder):
    (folder / "list.csv").write_text("image,subject,time\ns0.nii.gz,a,1\ns1.nii.gz,a,2\ns2.nii.gz,b,1\ns3.nii.gz,c,1\n")
    assert "subjects (" in data_of(TableSource(str(folder / "list.csv")), shares=(1, 0, 0)).describe()


# ---- 2D and 3D


@pytest.mark.fault(17, 53)
def test_a_flat_image_among_volumes_is_named_or_left_out(folder):
    save_nifti(folder / "s3.nii.gz", make_picture(3)[:, :, 8])
    with pytest.raises(InputError, match=r"s3\.nii\.gz: is 2D \(.*\), but shape has 3 axes.*data\.skip_bad=true"):
        data_of(FolderSource(str(folder))).describe()
    data = data_of(FolderSource(str(folder)), skip_bad=True, shares=(1, 0, 0))
    assert "train: 5 images of 5 subjects (s0, s1, s2, s4, s5)" in data.describe()
    for number in range(10):
        assert data.pair(number).pair.fixed.grid.shape == (16, 16, 16)
    flat = data_of(FolderSource(str(folder)), shape=(16, 16))
    with pytest.raises(InputError, match=r"s0\.nii\.gz: is 3D .*, but shape has 2 axes"):
        flat.describe()


def test_the_axes_of_shape_are_those_of_the_images(folder):
    with pytest.raises(ConfigError, match=r"shape has 2 axes but the images are 3D .*; give 3 sizes"):
        data_of(FolderSource(str(folder)), shape=(16, 16)).describe()


# ---- Learn2Reg


def learn2reg(folder, **lists):
    for k in range(1, 9):
        save_nifti(folder / f"A_000{k}_0000.nii.gz", make_picture(k))

    def name(k):
        return f"./A_000{k}_0000.nii.gz"

    content = {k: [name(n) for n in lists.get(k, [])] for k in ("training", "test")}
    for key in ("registration_val", "registration_test"):
        content[key] = [{"fixed": name(a), "moving": name(b)} for a, b in lists.get(key, [])]
    (folder / "A_dataset.json").write_text(json.dumps(content))
    return TableSource(str(folder / "A_dataset.json"))


@pytest.mark.fault(76, 111)
def test_pairs_of_a_learn2reg_validation_are_not_trained_on(tmp_path):
    """Fault 111: registration_val and registration_test name images of the list "training", too."""
    source = learn2reg(
        tmp_path, training=[1, 2, 3, 4, 5, 6], test=[7, 8], registration_val=[(3, 4), (4, 3)], registration_test=[(7, 8), (8, 6)]
    )
    splits = {i.subject: i.split for i in source.items()}
    assert splits == {
        "0001": "train",
        "0002": "train",
        "0003": "validation",
        "0004": "validation",
        "0005": "train",
        "0006": "test",
        "0007": "test",
        "0008": "test",
    }
    data = data_of(source)
    assert len(data.held_out("validation")) == 2
    trained = {data.name(k) for k in range(50)}
    assert not [t for t in trained if any(f"000{n}" in t for n in (3, 4, 6, 7, 8))]


@pytest.mark.fault(76, 111)
def test_a_learn2reg_case_in_two_lists_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"A_0003_0000.*registration_val\[0\].*registration_test\[0\]"):
        learn2reg(tmp_path, training=[1, 2, 3, 4], registration_val=[(3, 4)], registration_test=[(3, 2)]).items()
    with pytest.raises(ConfigError, match=r"registration_val.*which leaves no image to train on"):
        learn2reg(tmp_path, training=[3, 4], registration_val=[(3, 4)]).items()


# ---- names


@pytest.mark.fault(111)
@pytest.mark.parametrize(
    ("name", "pattern", "readings"),
    [
        ("sub_01_ses_1.nii.gz", "{subject}_{time}.nii.gz", ("subject='sub', time='01_ses_1'", "subject='sub_01_ses', time='1'")),
        ("a-b-c.nii.gz", "{subject}-{id}.nii.gz", ("subject='a', id='b-c'", "subject='a-b', id='c'")),
        ("s1/t_1_left.nii.gz", "{subject}/{time}_{id}.nii.gz", ("time='t', id='1_left'", "time='t_1', id='left'")),
        ("abc.nii.gz", "{subject}{time}.nii.gz", ("subject='a', time='bc'", "subject='ab', time='c'")),
        ("s_1/s_1_2.nii.gz", "{subject}/{id}_{time}.nii.gz", ("id='s'", "id='s_1'")),
    ],
)
def test_names_that_can_be_read_two_ways_are_refused(tmp_path, name, pattern, readings):
    """Fault 111: a wrong subject would put one person into training and test."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(ConfigError) as caught:
        FolderSource(str(tmp_path), pattern).items()
    assert all(r in str(caught.value) for r in (*readings, name, "data/source=table")), caught.value


@pytest.mark.parametrize(
    ("name", "pattern", "subject"),
    [
        ("sub_01_ses_1.nii.gz", "sub_{subject}_ses_{time}.nii.gz", "01"),
        ("9001104_00m.nii.gz", "{subject}_{time}.nii.gz", "9001104"),
        ("9001104/00m_left/image.nii.gz", "{subject}/{time}_{id}/image.nii.gz", "9001104"),
        ("s_1/s_1_t.nii.gz", "{subject}/{subject}_{time}.nii.gz", "s_1"),
        ("a_b_c.nii.gz", "{subject}.nii.gz", "a_b_c"),
    ],
)
def test_names_that_can_be_read_one_way_are_read(tmp_path, name, pattern, subject):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert [i.subject for i in FolderSource(str(tmp_path), pattern).items()] == [subject]


def test_a_training_says_what_it_found(folder):
    text = data_of(FolderSource(str(folder)), shares=(0.34, 0.33, 0.33)).describe()
    assert text.count("2 images of 2 subjects (") == 3 and text.endswith("2 pairs for validation, 2 pairs for tests")
    assert SyntheticPairs((16, 16), limit=3).describe() == "random shapes; 3 pairs for validation, 3 pairs for tests"
