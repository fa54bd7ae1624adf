"""A dry run refuses what the run refuses before it computes, and writes nothing; what has no effect is said."""

import json

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

import rdmm
from rdmm import stages
from rdmm.cli import main
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.io import write_image, write_mesh

FAST = ["affine=none", "optimizer.scales=[1]", "optimizer.iterations=[1]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    pair, fixed_labels, moving_labels = shapes_pair(3, (24, 24))
    for name, x in (("f", pair.fixed.data), ("m", pair.moving.data), ("fl", fixed_labels), ("ml", moving_labels)):
        write_image(folder / f"{name}.nii.gz", x, pair.fixed.grid, integer=name.endswith("l"))
    write_image(folder / "constant.nii.gz", pair.fixed.data * 0 + 1, pair.fixed.grid)
    sheared = np.eye(4)
    sheared[0, 1] = 0.8
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 12), dtype=np.float32), sheared), folder / "sheared.nii.gz")
    nib.save(nib.Nifti1Image(np.random.default_rng(1).random((12, 12, 12), dtype=np.float32), np.eye(4)), folder / "cube.nii.gz")
    write_mesh(folder / "a.vtk", np.random.default_rng(0).random((30, 2)), None)
    write_mesh(folder / "b.vtk", np.random.default_rng(1).random((30, 2)), None)
    (folder / "done").mkdir()
    (folder / "done" / "run.json").write_text("{}")
    (folder / "file").write_text("")
    return folder


REFUSED = [
    ("f constant", 3, "no contrast"),
    ("constant m", 3, "no contrast"),
    ("sheared cube", 3, "shear"),
    ("f cube", 3, "2D"),
    ("f m initializer=regions dynamics=rdmm", 2, "--regions"),
    ("f m initializer=regions --regions ml", 2, "dynamics=rdmm"),
    ("f m initializer=regions dynamics=rdmm --regions ml smoother=fine", 2, "must have 4 numbers"),
    ("f m landmark_weight=1", 2, "--landmarks"),
    ("a.vtk b.vtk landmark_weight=1", 2, "--landmarks"),
    ("f m similarity=kernel", 3, "compares shapes"),
    ("f m similarity=[lncc,energy]", 3, "compares shapes"),
    ("f m +similarity@affine.similarity=hausdorff affine=opt", 3, "compares shapes"),
    ("a.vtk b.vtk similarity=lncc", 3, "compares images"),
    ("a.vtk b.vtk similarity=[lncc,sinkhorn_points]", 3, "compares images"),
    ("f m affine=points", 2, "affine=opt"),
    ("a.vtk b.vtk affine=opt", 2, "affine=points"),
    ("f m initializer=controls", 2, "images start from"),
    ("f m initializer=transported", 2, "images start from"),
    ("a.vtk b.vtk initializer=zero", 2, "initializer=controls"),
    ("f m dynamics=points barrier=0", 2, "dynamics=svf"),
    ("f m stages=two_step similarity=softmin", 3, "compares shapes"),
    ("f m stages=transport_first similarity=softmin", 3, "compares shapes"),
    ("f m -o {d}/done/", 3, "--overwrite"),
    ("f m -o {d}/none/x_", 3, "no such folder"),
    ("f m -o {d}/file/x/", 3, "cannot write"),
    ("f m -o /proc/none/x/", 3, "cannot write"),
    ("f m --seed 18446744073709551616", 2, "--seed"),
]  # fmt: skip


def invoke(command, folder, text, *more):
    words = [str(folder / f"{w}.nii.gz") if (folder / f"{w}.nii.gz").exists() else w.format(d=folder) for w in text.split()]
    words = [str(folder / w) if w.endswith(".vtk") else w for w in words]
    out = [] if "-o" in words else ["-o", f"{folder}/new/deep/"]
    fast = [] if ".vtk" in text or any(w.startswith("affine") for w in words) else FAST[:1]
    return CliRunner().invoke(main, [command, *words, *out, *fast, "--quiet", *more])


@pytest.mark.parametrize(("text", "code", "message"), REFUSED, ids=[r[0][:40] for r in REFUSED])
@pytest.mark.fault(14, 28, 43, 45)
def test_refused_like_the_run(folder, monkeypatch, text, code, message):
    """The dry run and the run say the same, the run before its first stage."""
    monkeypatch.setattr(stages.Chain, "__call__", lambda *_: pytest.fail("the run computed"))
    before = sorted(p for p in folder.rglob("*"))
    said = []
    for more in (["--dry-run"], []):
        done = invoke("register", folder, text, *more)
        assert done.exit_code == code and message in done.stderr and "Traceback" not in done.output, done.output
        assert not done.stdout
        said.append(done.stderr)
        if more:
            assert sorted(p for p in folder.rglob("*")) == before
    assert said[0] == said[1] or "cannot write" in message


def test_a_dry_run_prints_settings_for_people(folder):
    done = invoke("register", folder, "f m -o {d}/other/ similarity_weight=0.02", "--dry-run")
    assert done.exit_code == 0 and not (folder / "other").exists()
    assert "\n  similarity_weight: 0.02\n" in done.stdout and "{'" not in done.stdout and "&id" not in done.stdout
    shown = json.loads(invoke("register", folder, "f m", "--dry-run", "--json").stdout)
    assert shown["config"]["similarity_weight"] == 0.05


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("f m --regions ml", "--regions has no effect"),
        ("f m --fixed-labels fl", "--fixed-labels alone only say where the subject is"),
        ("f m penalty=omt", "penalty has no effect"),
    ],
)
def test_what_has_no_effect_is_said(folder, tmp_path, text, warning):
    assert warning in invoke("register", folder, text, "--dry-run").stderr
    done = invoke("register", folder, text, "-o", f"{tmp_path}/", *FAST[1:])
    assert done.exit_code == 0 and warning in done.stderr
    assert any(warning in w for w in json.loads((tmp_path / "run.json").read_text())["warnings"])


def test_what_has_an_effect_is_not(folder):
    for text in (
        "f m --moving-labels ml",
        "f m --fixed-labels fl --moving-labels ml",
        "f m dynamics=rdmm smoother=medium initializer=regions --regions ml",
        "f m penalty=omt dynamics=rdmm",
    ):
        done = invoke("register", folder, text, "--dry-run")
        assert done.exit_code == 0 and "no effect" not in done.stderr, done.output


def test_a_batch_names_the_pairs_that_would_fail(folder, tmp_path):
    (folder / "pairs.csv").write_text(
        "id,fixed,moving\ngood,f.nii.gz,m.nii.gz\nflat,f.nii.gz,constant.nii.gz\nlost,f.nii.gz,none.nii.gz\nmixed,f.nii.gz,cube.nii.gz\n"
    )
    arguments = ["batch", str(folder / "pairs.csv"), "-o", str(tmp_path / "out"), "--dry-run", "--json", "--quiet"]
    done = CliRunner().invoke(main, arguments)
    shown = json.loads(done.stdout)["unusable"]
    assert done.exit_code == 2 and sorted(line.split(":")[0] for line in shown) == ["flat", "lost", "mixed"]
    assert not (tmp_path / "out").exists()
    refused = CliRunner().invoke(main, [*arguments, "initializer=nonsense"])
    assert refused.exit_code == 2
    (tmp_path / "out" / "good").mkdir(parents=True)
    (tmp_path / "out" / "good" / "run.json").write_text("{}")
    assert CliRunner().invoke(main, arguments).exit_code == 3
    assert CliRunner().invoke(main, [*arguments, "--resume"]).exit_code == 2


def test_commands_that_write_nothing_have_no_overwrite():
    for name in ("info", "evaluate"):
        assert "--overwrite" not in [o for p in main.commands[name].params for o in p.opts]


def test_python_refuses_before_computing_too(monkeypatch):
    monkeypatch.setattr(stages.Chain, "__call__", lambda *_: pytest.fail("the run computed"))
    pair, _, _ = shapes_pair(3, (24, 24))
    with pytest.raises(rdmm.ConfigError, match="landmarks=CSV"):
        rdmm.register(fixed=pair.fixed, moving=pair.moving, landmark_weight=1)
