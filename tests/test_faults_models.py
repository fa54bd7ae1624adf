"""Model files that are damaged, hostile, foreign or of another time (faults 79 to 84), and how they are used."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save
from test_faults_input import make_picture, save_nifti
from test_networks import write_small_model

import rdmm
from networks import model as models
from rdmm import ConfigError, InputError
from rdmm.cli import main
from rdmm.config import location
from rdmm.config.compose import compose, quoted, share
from rdmm.config.trust import require_trusted_yaml
from rdmm.io.models import Model, digest, read_model, write_model


def rewrite_header(path, change):
    """The model file with another header, its checksum mended: hostile, not damaged."""
    model = read_model(path)
    head = {"format": 1, "version": "9", "settings": dict(model.settings), "facts": {}}
    tensors = dict(model.tensors)
    change(head, tensors)
    head["sha256"] = digest(tensors, head)
    path.write_bytes(save(tensors, metadata={"rdmm": json.dumps(head)}))
    return path


@pytest.fixture
def file(tmp_path):
    write_small_model(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.fault(79)
def test_pickled_checkpoints_are_refused_and_not_opened(tmp_path):
    """Fault 79."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/marker",))

    for name in ("m.pt", "m.safetensors"):
        torch.save({"weights": Evil()}, tmp_path / name)
        with pytest.raises(InputError, match="pickled checkpoint, which could run code: refused"):
            models.load(str(tmp_path / name))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "target", ["pathlib.Path.write_text", "os.system", "rdmm.io.files.write_atomically", "rdmm.registration.register", "train.main.main"]
)
@pytest.mark.fault(80)
def test_settings_name_only_what_conf_names(file, tmp_path, target):
    """Fault 80: the networks of a file are built from a list of targets that conf/ itself uses, not from any function of rdmm."""

    def change(head, _):
        head["settings"]["register"]["similarity"] = {"_target_": target, "path": str(tmp_path / "marker"), "data": "x"}

    rewrite_header(file, change)
    for use in (lambda: models.load(str(file)), lambda: compose([f"weights={quoted(str(file))}"])):
        with pytest.raises(ConfigError, match="is not allowed"):
            use()
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault(82)
def test_references_in_settings_are_not_resolved(file, monkeypatch):
    """Fault 82."""
    monkeypatch.setenv("SECRET", "sesame")

    def change(head, _):
        head["settings"]["register"]["similarity_weight"] = "${oc.env:SECRET}"

    rewrite_header(file, change)
    with pytest.raises(ConfigError, match="not resolved") as caught:
        compose([f"weights={quoted(str(file))}"])
    assert "sesame" not in str(caught.value)


@pytest.mark.fault(83)
def test_damaged_files_are_found(file):
    """Fault 83: any flipped byte, any missing end."""
    whole = file.read_bytes()
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        i = int(torch.randint(len(whole), (1,), generator=rng))
        damaged = bytearray(whole)
        damaged[i] ^= 1 << int(torch.randint(8, (1,), generator=rng))
        file.write_bytes(bytes(damaged))
        with pytest.raises(InputError) as caught:
            models.load(str(file))
        assert "\n" not in str(caught.value)
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError):
            models.load(str(file))


@pytest.mark.fault(83, 84)
def test_another_architecture_names_the_tensor(file):
    """Faults 83 and 84: a shape, a missing name, one too many."""

    def other(head, tensors):
        head["settings"]["predictor"]["backbone"]["features"] = [4, 4, 4, 4, 6]

    rewrite_header(file, other)
    with pytest.raises(InputError, match=r"tensor 'predictor\.momentum.*' is .* wants .*another architecture"):
        models.load(str(file))
    write_small_model(file)
    name = next(k for k in read_model(file).tensors if k.startswith("predictor"))
    rewrite_header(file, lambda _, tensors: tensors.pop(name))
    with pytest.raises(InputError, match=f"no tensor '{name}'"):
        models.load(str(file))
    write_small_model(file)
    rewrite_header(file, lambda _, tensors: tensors.update(extra=torch.zeros(3)))
    with pytest.raises(InputError, match="'extra' belongs to no network"):
        models.load(str(file))


@pytest.mark.fault(84)
def test_newer_and_foreign_files_say_so(file, tmp_path):
    """Fault 84."""
    rewrite_header(file, lambda head, _: head.update(format=2))
    with pytest.raises(InputError, match="format 2, written by rdmm 9; this is rdmm"):
        models.load(str(file))
    (tmp_path / "f.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    with pytest.raises(InputError, match="no model of rdmm"):
        models.load(str(tmp_path / "f.safetensors"))
    with pytest.raises(InputError, match=r"no such file.*did you mean 'm.safetensors'"):
        models.load(str(tmp_path / "n.safetensors"))
    write_model(tmp_path / "e.safetensors", Model({}, {"affine": {"_target_": "rdmm.stages.Skip"}}))
    with pytest.raises(ConfigError, match=r"AffineNet.* is wanted, not Skip"):
        models.load(str(tmp_path / "e.safetensors"))


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [touch marker]\n",
        "a: &a [1,1]\n" + "".join(f"b{i}: &b{i} [*a,*a,*a,*a,*a,*a,*a,*a]\n" for i in range(30)),
        "a: " + "x" * (2**20 + 1),
        "a: [1, 2\n",
        "a: " + "[" * 5000,
    ],
)
@pytest.mark.fault(81)
def test_hostile_yaml_is_refused_at_once(tmp_path, text):
    """Fault 81, for configuration folders of one's own (train.py --config-dir)."""
    (tmp_path / "c.yaml").write_text(text)
    begin = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        require_trusted_yaml(tmp_path)
    assert time.perf_counter() - begin < 1
    assert "c.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_hostile_folder_ends_the_program(tmp_path):
    (tmp_path / "c.yaml").write_text("a: !!python/object/apply:os.system [touch marker]\n")
    run = [sys.executable, "train.py", f"--config-dir={tmp_path}"]
    done = subprocess.run(run, cwd=share(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "c.yaml" in done.stderr and "Traceback" not in done.stderr


# ---- use


def test_the_model_brings_its_settings_and_gives_way_to_overrides(file):
    weights = f"weights={quoted(str(file))}"
    config = compose([weights])
    assert config["dynamics"]["_target_"] == "rdmm.dynamics.RDMM"
    assert config["deform"]["problem"]["similarity_weight"] == 3.0
    assert config["optimizer"]["_target_"].endswith("NoOptimizer")
    assert config["stages"]["steps"] == 2
    assert config["affine"]["_target_"] == "networks.model.affine"
    refined = compose([weights, "optimizer=refine", "optimizer.iterations=[7]", "similarity=ncc", "similarity_weight=2", "affine=none"])
    assert refined["deform"]["optimizer"]["iterations"] == [7]
    assert refined["deform"]["problem"]["similarity"] == {"_target_": "rdmm.similarity.NCC"}
    assert refined["similarity_weight"] == 2
    assert refined["affine"] == {"_target_": "rdmm.stages.Skip"}
    plain = compose([weights, "initializer=zero", "optimizer=lbfgs"])
    assert plain["stages"]["_target_"] == "rdmm.stages.Chain"
    assert plain["dynamics"]["_target_"] == "rdmm.dynamics.RDMM"
    for key in ("dynamics=svf", "smoother=fine", "smoother.sigmas=[.1]", "intensity.low=1"):
        with pytest.raises(ConfigError, match="brings its own"):
            compose([weights, key])


def test_a_registration_by_a_model(tmp_path, file):
    """Command line and Python alike: all files of a registration, the model's checksum in run.json."""
    torch.manual_seed(0)
    from rdmm.data.training.pairs import SyntheticPairs

    sample = SyntheticPairs((40, 40)).pair(0)
    result = rdmm.register(fixed=sample.pair.fixed, moving=sample.pair.moving, weights=str(file))
    assert result.status == "done"
    assert result.metrics["folds_percent"] == 0
    written = {p.name for p in result.save(f"{tmp_path}/out/")}
    assert {"0GenericAffine.mat", "1Warp.nii.gz", "Sigma0.nii.gz", "initial_conditions.safetensors", "report.html"} <= written
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["inputs"]["weights"]["sha256"] == rdmm.io.sha256(file)
    again = rdmm.register(fixed=sample.pair.fixed, moving=sample.pair.moving, weights=str(file))
    assert torch.equal(again.warped.data, result.warped.data)
    refined = rdmm.register(
        fixed=sample.pair.fixed, moving=sample.pair.moving, weights=str(file), overrides=["optimizer=refine", "optimizer.iterations=[5]"]
    )
    assert refined.energy["total"] < result.energy["total"]


def test_the_command_line_takes_weights(tmp_path, file):
    odd = tmp_path / "it's a model, é.safetensors"
    file.rename(odd)
    fixed, moving = save_nifti(tmp_path / "f.nii.gz", make_picture()), save_nifti(tmp_path / "m.nii.gz", make_picture(1))
    run = ["register", str(fixed), str(moving), "-o", f"{tmp_path}/out/", "--weights", str(odd)]
    done = CliRunner().invoke(main, run)
    assert done.exit_code == 3 and "this network is for 2D images, not for 3D" in done.stderr, done.stderr
    write_small_model(odd, shape=(16, 16, 16))
    done = CliRunner().invoke(main, run)
    assert done.exit_code in (0, 5), done.stderr  # an untrained model on noise: the verdict says so
    assert (tmp_path / "out/1Warp.nii.gz").exists()
    shown = CliRunner().invoke(main, ["info", str(odd)]).stdout
    assert "kind: trained model" in shown and "dynamics: RDMM" in shown and "networks: affine and predictor" in shown


def test_networks_without_a_model_say_so(monkeypatch, file):
    monkeypatch.setattr(location, "bundled_model", lambda: file.parent / "none.safetensors")
    with pytest.raises(ConfigError, match=r"pass weights=\"MODEL\.safetensors"):
        compose(["initializer=unet"])
    write_small_model(file, affine=False)
    with pytest.raises(ConfigError, match="holds no affine network"):
        models.affine(str(file))
