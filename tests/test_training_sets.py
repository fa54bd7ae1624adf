"""Data sets of a training: names that occur in several folders, an atlas, several sets by weight, prepared images on the disk."""

import numpy as np
import pytest
import torch
from test_faults_input import make_picture, save_nifti

from rdmm import ConfigError, InputError, OutputError
from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.data import FolderSource, ImagePairs, Mixture, Normalize, PairSource, SyntheticPairs, TableSource
from rdmm.data.training import library
from train.batches import stream

SHAPE = (16, 16)


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_nifti(path, make_picture(number)[:, :, 8])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five subjects with two visits each."""
    root = tmp_path_factory.mktemp("visits")
    for subject in range(5):
        for visit in range(2):
            picture(root / f"s{subject}" / f"t{visit}.nii.gz", 10 * subject + visit)
    return root


def pairs(source, **more):
    return ImagePairs(source, SHAPE, **{"shares": (0.6, 0.2, 0.2), "augment": None, **more})


def visits(folder):
    return FolderSource(str(folder), "{subject}/{time}.nii.gz")


# ---- names


@pytest.mark.fault(111)
def test_files_of_one_name_in_several_folders_are_several_images(folder, tmp_path):
    """Fault 111: each pair has its own images, and no pair is in two parts."""
    rows = "".join(f"{k},{folder}/s{k}/t0.nii.gz,{folder}/s{k}/t1.nii.gz\n" for k in range(5))
    (tmp_path / "pairs.csv").write_text(f"id,fixed,moving\n{rows}")
    data = pairs(PairSource(str(tmp_path / "pairs.csv")), sampling="listed")
    listed = {part: {(f.image, m.image) for f, m in data.image_pairs(part)} for part in ("train", "validation", "test")}
    assert [len(found) for found in listed.values()] == [3, 1, 1] and len(set.union(*listed.values())) == 5
    assert len({float(data.pair(k).pair.fixed.data.sum()) for k in range(20)}) == 3
    assert sorted(i.name for i in data.parts["test"])[0].endswith("_t0")


@pytest.mark.fault(111)
def test_two_images_never_share_a_name(tmp_path):
    for subject, time in (("a_b", "c"), ("a", "b_c")):
        picture(tmp_path / subject / f"{time}.nii.gz", len(time))
    with pytest.raises(ConfigError, match=r"'a_b_c' occurs twice: .*a/b_c\.nii\.gz.* and .*a_b/c\.nii\.gz"):
        visits(tmp_path).items()


# ---- atlas


def test_with_an_atlas_every_image_is_paired_with_it(folder):
    data = pairs(visits(folder), sampling="atlas", atlas="s3_t1")
    for part in ("train", "validation", "test"):
        found = data.image_pairs(part)
        assert all(f.name == "s3_t1" and m.name != "s3_t1" for f, m in found)
        assert len(found) == (7 - 2 if part == "train" else 2)  # 4 + 1 images of the training part
    assert {i.subject for i in data.parts["train"]} >= {"s3"}
    assert all(i.subject != "s3" for part in ("validation", "test") for i in data.parts[part])
    assert next(iter(data.held_out("test"))).startswith("s3_t1-")
    assert "all are paired with s3_t1" in data.describe()


@pytest.mark.fault(76)
def test_wrong_atlases_say_so(folder, tmp_path):
    """Fault 76: an atlas that is held out would be in training and in tests."""
    with pytest.raises(ConfigError, match=r"data\.atlas=s3_t2: no image has this name \(did you mean 's3_t1'\?\); there are s0_t0, "):
        pairs(visits(folder), sampling="atlas", atlas="s3_t2").describe()
    for wrong in ({"sampling": "atlas"}, {"atlas": "s3_t1"}):
        with pytest.raises(ConfigError, match="go together"):
            pairs(visits(folder), **wrong)
    rows = [f"{folder}/s{k}/t0.nii.gz,s{k},{split},s{k}" for k, split in enumerate(("train", "train", "validation", "test"))]
    (tmp_path / "images.csv").write_text("\n".join(["image,subject,split,name", *rows]))
    table = TableSource(str(tmp_path / "images.csv"), "/")
    with pytest.raises(ConfigError, match=r"its subject is in the split 'test' .*line 5.*choose an image of the split 'train'"):
        pairs(table, sampling="atlas", atlas="s3").describe()
    (tmp_path / "a.nii.gz").write_bytes(b"broken")
    picture(tmp_path / "b.nii.gz", 1)
    with pytest.raises(InputError, match="it is the atlas, which cannot be left out"):
        pairs(FolderSource(str(tmp_path)), sampling="atlas", atlas="a", shares=(1, 0, 0), skip_bad=True).describe()


# ---- several sets


def test_several_sets_are_drawn_by_their_weights(folder):
    images, shapes = pairs(visits(folder), spacing=(2.5, 2.5)), SyntheticPairs(SHAPE, limit=2)
    data = Mixture({"visits": images, "shapes": shapes}, {"visits": 3.0})
    kinds = ["shapes" in data.name(k) for k in range(400)]
    assert sum(kinds) / 400 == pytest.approx(0.25, abs=0.06)
    k = kinds.index(True)
    assert torch.equal(data.pair(k).pair.fixed.data, shapes.pair(k).pair.fixed.data)
    batch = next(stream(data, [[k, kinds.index(False)]], 0))
    assert batch.pair.fixed.data.shape == (2, 1, *SHAPE) and batch.pair.fixed.grid == images.grid == data.grid
    held = [set(d.held_out("validation")) for d in (data, images, shapes)]
    assert held[0] == {f"visits-{n}" for n in held[1]} | {f"shapes-{n}" for n in held[2]}
    assert "visits (75% of the pairs): train: 6 images" in data.describe()


def test_a_mixture_is_put_together_on_the_command_line(folder):
    words = ["data=mixture", "shape=[16,16]", "+data@data.sets.a=folder", f"data.sets.a.source.root={folder}"]
    words += ["data.sets.a.source.images={subject}/{time}.nii.gz", "+data@data.sets.b=shapes", "+data.weights.b=2"]
    data = build(compose(words, "train")["data"], "data")
    assert isinstance(data, Mixture) and list(data.sets) == ["a", "b"] and data.weights == {"b": 2}


@pytest.mark.parametrize(
    ("sets", "weights", "message"),
    [
        ({}, {}, r"data\.sets is empty: add data sets, e\.g\. \+data@data\.sets"),
        ({"a": SyntheticPairs(SHAPE)}, {"aa": 1.0}, r"data\.weights\.aa: there is no such data set \(did you mean 'a'\?\)"),
        ({"a": SyntheticPairs(SHAPE)}, {"a": -1.0}, r"data\.weights\.a must be >= 0"),
        ({"a": SyntheticPairs(SHAPE)}, {"a": 0.0}, r"data\.weights are all 0"),
        (
            {"a": SyntheticPairs(SHAPE), "b": SyntheticPairs((16, 20))},
            {},
            r"b has \(16, 20\) voxels .* choose the spacing",
        ),
    ],
)
def test_wrong_mixtures_say_so(sets, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(sets, weights).describe()


# ---- prepared images on the disk


def test_prepared_images_are_read_once_and_never_stale(folder, tmp_path, monkeypatch):
    """A later run takes them from the folder; a changed file, shape or intensity setting is read anew."""
    for path in folder.glob("s[23]/*.gz"):
        (tmp_path / "data" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path.parent.name / path.name).write_bytes(path.read_bytes())
    reads, prepare = [], library.ImageCache._prepare
    monkeypatch.setattr(
        library.ImageCache, "_prepare", lambda self, item, *files: (reads.append(item.name), prepare(self, item, *files))[1]
    )

    def run(**more):
        """The pairs of a run, and the names of the images that it prepared."""
        reads.clear()
        cached, plain = (
            ImagePairs(visits(tmp_path / "data"), **{"shape": SHAPE, "shares": (1, 0, 0), "augment": None, "cache": c, **more})
            for c in (str(tmp_path / "cache"), None)
        )
        found = [cached.pair(k).pair for k in range(20)]
        prepared = sorted(reads)
        assert all(torch.equal(a.fixed.data, plain.pair(k).pair.fixed.data) for k, a in enumerate(found))
        return prepared

    everything = run()
    assert everything == sorted({*everything}) and len(everything) == 4
    assert run() == []
    changed = tmp_path / "data/s2/t0.nii.gz"
    status = changed.stat()
    picture(changed, 77)
    import os

    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run() == ["s2_t0"]
    assert len(run(shape=(20, 16))) == len(run(intensity=Normalize(1, 99))) == len(run(centre="mass")) == 4
    assert run() == []
    damaged = sorted((tmp_path / "cache").iterdir())
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    assert len(run()) == 4
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".safetensors"]


def test_a_cache_that_cannot_be_made_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"data\.cache=.*file/cache: cannot make this folder: .*file is a file, not a folder"):
        pairs(visits(folder), cache=str(tmp_path / "file/cache")).describe()
    assert np.isfinite(float(pairs(visits(folder)).pair(0).pair.fixed.data.sum()))
