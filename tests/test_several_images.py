"""Several images of a subject (``--also``), labels that guide, and label maps as images."""

import json
from dataclasses import replace

import click
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import blobs

import rdmm
from rdmm import ConfigError, Grid, Image, InputError, io
from rdmm.cli import main
from rdmm.cli.images import with_weights
from rdmm.data.given import Also, read_also
from rdmm.data.pair_list import read_pairs
from rdmm.spatial.ops import resize
from rdmm.spatial.transform import Affine, Identity
from rdmm.workflows.batch import Batch
from rdmm.workflows.job import Job

GRID = Grid((24, 20), np.diag([2.0, 2.0, 1.0]))
FAST = ["affine=none", "optimizer.scales=[1]", "optimizer.iterations=[8]"]


def labels_of(seed):
    """A label map of four labels, one of which is large."""
    x = resize(torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)), GRID.shape)
    return Image(torch.bucketize(x, torch.tensor([-0.5, 0.2, 0.8])) * 7, GRID)


def moved(image, mode="linear"):
    """The image, moved by 3 mm along x."""
    shift = np.eye(3)
    shift[0, 2] = 3.0
    return image.moved_by(Affine.from_world(shift, GRID), mode=mode)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two contrasts and a label map of two subjects; the second contrast on a finer grid."""
    folder = tmp_path_factory.mktemp("several")
    fine = Grid((46, 40), np.diag([1.0, 1.0, 1.0]))
    for name, seed in (("1", 3), ("2", 5)):
        image = Image(blobs(GRID, seed).float(), GRID)
        for role, x in (("f", image), ("m", moved(image))):
            grid = GRID if name == "1" else fine
            io.write_image(folder / f"{role}{name}.nii.gz", x.moved_by(Identity(), grid).data, grid)
    for role, x in (("fl", labels_of(0)), ("ml", moved(labels_of(0), "nearest"))):
        io.write_image(folder / f"{role}.nii.gz", x.data, GRID, integer=True)
    (folder / "pairs.csv").write_text("id,fixed,moving,fixed_2,moving_2,weight_2,age\np,f1.nii.gz,m1.nii.gz,f2.nii.gz,m2.nii.gz,0.5,7\n")
    return folder


def run(*words):
    with pytest.raises(SystemExit) as done:
        main([str(w) for w in words])
    return done.value.code


def test_the_weight_of_a_further_image_can_be_left_out():
    assert with_weights(["a", "--also", "b", "c", "x=1", "--also", "d", "e", "0.5"]) == [
        "a",
        "--also",
        "b",
        "c",
        "1",
        "x=1",
        "--also",
        "d",
        "e",
        "0.5",
    ]
    assert with_weights(["--", "--also"]) == ["--", "--also"]
    with pytest.raises(click.UsageError, match=r"--also takes two images.* got b.nii optimizer=fast"):
        with_weights(["a", "--also", "b.nii", "optimizer=fast"])


@pytest.mark.parametrize("words", ["--also", "--also b", "--also b -o", "--also b c 0", "--also b c -1", "--also b c nan"])
@pytest.mark.fault(118)
def test_a_further_image_that_cannot_be_read_from_the_words(words, capsys):
    assert run("register", "f", "m", "-o", "o/", *words.split()) == 2
    assert "--also" in capsys.readouterr().err


@pytest.mark.parametrize("value", [5, "a.nii.gz", [("a",)], [("a", "b", "c", "d")], [("a", "b", -1)], [("a", "b", True)], [("a", "b")] * 9])
@pytest.mark.fault(118)
def test_the_argument_also(value):
    with pytest.raises(ConfigError, match="also"):
        read_also(value)
    assert read_also(("a", "b")) == [Also("a", "b")] and read_also([("a", "b"), ("c", "d", 2)])[1].weight == 2


def test_from_the_command_line_to_the_files(study, tmp_path):
    """The second image takes part, is written, recorded, and read again by the report; its grid is another one."""
    out = tmp_path / "out"
    words = ["register", study / "f1.nii.gz", study / "m1.nii.gz", "-o", f"{out}/", *FAST, "similarity=ssd", "similarity_weight=100"]
    assert run(*words, "--also", study / "f2.nii.gz", study / "m2.nii.gz", "0.5", "--quiet") == 0
    record = json.loads((out / "run.json").read_text())
    assert f"--also {study / 'f2.nii.gz'} {study / 'm2.nii.gz'} 0.5" in record["command"]
    assert record["inputs"]["moving_2"]["weight"] == 0.5 and set(record["inputs"]) == {"fixed", "moving", "fixed_2", "moving_2"}
    assert nib.load(out / "Warped_2.nii.gz").shape == GRID.shape
    assert run("report", out, "--overwrite", "--quiet") == 0
    python = rdmm.register(
        study / "f1.nii.gz",
        study / "m1.nii.gz",
        also=[(study / "f2.nii.gz", nib.load(study / "m2.nii.gz"), 0.5)],
        overrides=FAST,
        similarity="ssd",
        similarity_weight=100,
    )
    assert np.array_equal(python.further_warped[0].numpy(), np.asarray(nib.load(out / "Warped_2.nii.gz").dataobj))
    assert record["history"][-1]["similarity"] == pytest.approx(python.result.history[-1]["similarity"], rel=1e-6)


def test_the_weight_matters_and_equal_images_change_nothing(study):
    def value(**more):
        done = rdmm.register(study / "f1.nii.gz", study / "m1.nii.gz", overrides=FAST, similarity="ssd", similarity_weight=100, **more)
        return done.result.similarities[0]

    alone = value()
    second = rdmm.register(study / "f2.nii.gz", study / "m2.nii.gz", overrides=FAST, similarity="ssd", transform=None).result.similarities[
        0
    ]
    same = (study / "f1.nii.gz", study / "m1.nii.gz")
    assert value(also=same) == pytest.approx(alone, rel=1e-6)
    few, many = (value(also=[(study / "f2.nii.gz", study / "m2.nii.gz", w)]) for w in (1e-4, 1e4))
    assert few == pytest.approx(alone, rel=1e-3)
    assert abs(many - alone) > abs(few - alone) and many == pytest.approx(second, rel=0.5)


def test_lists_have_columns_for_further_images(study, tmp_path):
    row = read_pairs(study / "pairs.csv")[0]
    assert row.also == [Also(str(study / "f2.nii.gz"), str(study / "m2.nii.gz"), 0.5)] and row.notes == {"age": "7"}
    job = Batch(str(study / "pairs.csv"), str(tmp_path / "out"), Job("", "", "", transform="rigid")).jobs()["p"]
    job.run(job.read(), job.settings())
    assert job.find_finished_run(job.settings()) is not None
    further = [Also(row.also[0].fixed, row.also[0].moving, 0.4)]
    for other in (replace(job, inputs={"also": further}), *(replace(job, transform=kind) for kind in (None, "affine", "svf"))):
        assert other.find_finished_run(other.settings()) is None  # finished with another weight, or another transform


@pytest.mark.parametrize(
    ("cells", "said"),
    [("f2.nii.gz,,", "both"), (",,0.5", "both"), ("f2.nii.gz,m2.nii.gz,x", "weight_2"), ("f2.nii.gz,m2.nii.gz,-1", "> 0")],
)
@pytest.mark.fault(118)
def test_lists_with_a_half_further_image(study, tmp_path, cells, said):
    path = tmp_path / "p.csv"
    path.write_text(f"fixed,moving,fixed_2,moving_2,weight_2\nf,m,{cells}\n")
    with pytest.raises(ConfigError, match=said):
        read_pairs(path)


@pytest.mark.fault(118)
def test_a_further_image_elsewhere(study, tmp_path):
    io.write_image(tmp_path / "far.nii.gz", blobs(GRID, 1).float(), Grid(GRID.shape, np.array([[2.0, 0, 900], [0, 2, 0], [0, 0, 1]])))
    with pytest.raises(InputError, match=r"far.nii.gz does not overlap the moving image"):
        rdmm.register(study / "f1.nii.gz", study / "m1.nii.gz", also=(study / "f2.nii.gz", tmp_path / "far.nii.gz"))
    with pytest.raises(InputError, match="missing"):
        rdmm.register(study / "f1.nii.gz", study / "m1.nii.gz", also=(study / "f2.nii.gz", tmp_path / "missing.nii.gz"))


def test_labels_guide(study):
    """Where the images say nothing of the labels, the labels move them; they are marked as no independent measure."""
    files = {
        "fixed": study / "f1.nii.gz",
        "moving": study / "f1.nii.gz",
        "fixed_labels": study / "fl.nii.gz",
        "moving_labels": study / "ml.nii.gz",
    }
    measured = rdmm.register(**files, overrides=FAST)
    guided = rdmm.register(**files, overrides=FAST, guide_labels=True)
    assert guided.metrics["dice"] > measured.metrics["dice"] + 0.1
    assert "dice_is_of" in guided.metrics and "dice_is_of" not in measured.metrics
    assert guided.config["guide_weight"] == 2 and measured.config["guide_weight"] == 0
    with pytest.raises(ConfigError, match="guide_weight=0 contradicts guide_labels=True"):
        rdmm.register(**files, guide_labels=True, guide_weight=0)
    with pytest.raises(ConfigError, match="give fixed_labels and moving_labels"):
        rdmm.register(files["fixed"], files["moving"], guide_labels=True)


def test_label_maps_are_registered_by_their_labels(study, tmp_path):
    done = rdmm.register(study / "fl.nii.gz", study / "ml.nii.gz", overrides=[FAST[1], FAST[2]])
    assert done.inputs.by_labels and done.metrics["dice"] > max(0.9, done.metrics["dice_before"]) and "dice_is_of" in done.metrics
    names = {w.name for w in done.save(f"{tmp_path}/")}
    assert "WarpedLabels.nii.gz" not in names
    for name in ("Warped.nii.gz", "InverseWarped.nii.gz"):
        image = nib.load(tmp_path / name)
        assert image.get_data_dtype().kind in "iu" and set(np.unique(image.dataobj)) <= {0, 7, 14, 21}
    assert run("report", tmp_path, "--overwrite", "--quiet") == 0
    for more in ({"similarity": "lncc"}, {"labels_as_images": True}):
        assert not rdmm.register(study / "fl.nii.gz", study / "ml.nii.gz", overrides=FAST, **more).inputs.by_labels


def test_large_labels_stay_exact_and_one_label_map_is_said(study, tmp_path):
    big = Image(labels_of(0).data * (2**40 + 1), GRID)
    done = rdmm.register(big, Image(moved(big, "nearest").data, GRID), overrides=FAST)
    assert set(done.warped.data.unique().tolist()) <= set(big.data.unique().tolist())
    both = rdmm.register(study / "fl.nii.gz", study / "m1.nii.gz", overrides=FAST)
    assert not both.inputs.by_labels and any("looks like a label map" in w for w in both.provenance.warnings)
    other = Image(torch.where(big.data == 0, 0, big.data + 1), GRID)
    with pytest.raises(InputError, match="no label in common"):
        rdmm.register(big, other, overrides=FAST)
