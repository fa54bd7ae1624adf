"""Classes from outside rdmm: named by settings where the user, or an installed plug-in, says so, and refused where nobody does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import rdmm
from rdmm.cli import main
from rdmm.config.build import build
from rdmm.config.compose import compose
from rdmm.config.plugins import allowing, plugin_folders
from rdmm.config.trust import require_trusted, require_trusted_yaml
from rdmm.types import ConfigError, options_are_typed

SIMILARITY = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Unknown

@dataclass
class Difference:
    power: float = 2.0
    scales: list = ()
    def __call__(self, moved, target):
        return (moved.data - target.data).abs().pow(self.power).flatten(1).mean(1)

class Loose:
    def __init__(self, kind: Unknown = None, **more):
        self.more = more

class Broken:
    def __init__(self):
        raise KeyError("what")
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package in the current folder, with an option of its own; what it leaves in Python is taken away."""
    (tmp_path / "own_losses" / "conf" / "similarity").mkdir(parents=True)
    (tmp_path / "own_losses" / "__init__.py").write_text("")
    (tmp_path / "own_losses" / "parts.py").write_text(SIMILARITY)
    (tmp_path / "own_losses" / "fails.py").write_text("1 / 0")
    (tmp_path / "own_losses" / "conf" / "similarity" / "own.yaml").write_text("_target_: own_losses.parts.Difference\npower: 2.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "own_losses"]:
        del sys.modules[name]


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def test_a_class_of_an_allowed_package_is_built(package):
    node = {"_target_": "own_losses.parts.Difference", "power": 1, "scales": [1, 2]}
    with pytest.raises(ConfigError, match=r"own_losses, give allow=\"own_losses\""):
        build(node, "similarity")
    with allowing("own_losses"):
        assert build(node, "similarity").scales == [1, 2]
        assert build({"_target_": "own_losses.parts.Loose", "b": 1}, "x").more == {"b": 1}
        assert build({"_target_": "own_losses.parts.Difference", "_partial_": True, "power": 3.0}, "x")(scales=()).power == 3
        assert compose(["similarity=own"])["similarity"]["power"] == 2.0, "the folder conf of a package adds options"
    with pytest.raises(ConfigError, match="no such option"):
        compose(["similarity=own"])


@pytest.mark.fault(150)
@pytest.mark.parametrize(
    ("target", "entries", "says"),
    [
        ("parts.Difference", {"power": "two"}, r"similarity\.power must be a number; got 'two'"),
        ("parts.Difference", {"pwer": 2}, r"unknown key 'pwer' \(did you mean 'power'"),
        ("parts.Diference", {}, "there is no own_losses.parts.Diference"),
        ("prts.Difference", {}, "there is no own_losses.prts.Difference"),
        ("parts.Broken", {}, "own_losses.parts.Broken raised KeyError: 'what'"),
        ("fails.Loss", {}, "own_losses.fails cannot be imported: ZeroDivisionError"),
        ("parts.__name__", {}, "no class and no function"),
    ],
)
def test_faults_of_ones_own_class_are_one_line(package, target, entries, says):
    with allowing(["own_losses"]), pytest.raises(ConfigError, match=says) as caught:
        build({"_target_": f"own_losses.{target}", **entries}, "similarity")
    assert "\n" not in str(caught.value)


@pytest.mark.fault(150)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_loses", r"there is no package own_loses .*did you mean 'own_losses'"),
        ("own_losses.prts", "there is no package own_losses.prts"),
        ("own_losses/parts.py", "as Python imports it"),
        ("", "as Python imports it"),
        (".own", "as Python imports it"),
        ("rdmm", "part of rdmm or of Python"),
        ("networks.model", "part of rdmm or of Python"),
        ("os", "part of rdmm or of Python"),
    ],
)
def test_packages_that_cannot_be_allowed(package, name, says):
    with options_are_typed(), pytest.raises(ConfigError, match=says) as caught, allowing([name]):
        pass
    assert f"--allow {name}".strip() in str(caught.value) or not name
    assert invoke("report", package, "--allow", name).exit_code == ConfigError.exit_code


def test_files_of_others_need_the_users_word(package):
    node = {"predictor": {"_target_": "own_losses.parts.Difference"}}
    with options_are_typed(), pytest.raises(ConfigError, match=r"here: _target_ .* is not allowed: .* give --allow own_losses "):
        require_trusted(node, "here")
    with options_are_typed(), pytest.raises(ConfigError, match=r"give --allow torch\.optim "):
        require_trusted({"_target_": "torch.optim.SGD"}, "here")
    for target in ("os.system", "subprocess.run", "rdmm.cli.main", "x", None):
        with pytest.raises(ConfigError) as caught:
            require_trusted({"_target_": target}, "here")
        assert "allow=" not in str(caught.value), "Python's and rdmm's own are not advertised"
    folder = package / "folder"
    folder.mkdir()
    (folder / "x.yaml").write_text("_target_: own_losses.parts.Difference")
    with pytest.raises(ConfigError, match="own_losses"):
        require_trusted_yaml(folder)
    with allowing(["own_losses"]):
        assert require_trusted(node, "here") == node
        require_trusted_yaml(folder)


def test_an_installed_plugin_is_trusted_without_a_word(package, monkeypatch):
    facts = package / "site" / "own_losses-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own-losses\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[rdmm.plugins]\nlosses = own_losses\n")
    monkeypatch.syspath_prepend(str(package / "site"))
    monkeypatch.syspath_prepend(str(package))
    assert plugin_folders() == [package / "own_losses" / "conf"]
    assert build(compose(["similarity=own"])["similarity"], "similarity").power == 2.0


KEYS = ["similarity=own", "affine=none", "optimizer.scales=[1]", "optimizer.iterations=[1]"]


def test_the_commands_register_report_and_apply(package, images):
    """A run with an own similarity: its report needs the word, too; its transforms do not."""
    fixed, moving, out = images / "f.nii.gz", images / "m.nii.gz", package / "out"
    done = invoke("register", fixed, moving, "-o", f"{out}/", *KEYS, "--allow", "own_losses", "--no-report")
    assert done.exit_code in (0, 5), done.stderr
    run = json.loads((out / "run.json").read_text())
    assert "--allow own_losses" in run["command"] and run["config"]["similarity"]["_target_"] == "own_losses.parts.Difference"
    refused = invoke("report", out)
    assert refused.exit_code == ConfigError.exit_code and "give --allow own_losses" in refused.stderr
    assert invoke("report", out, "--allow", "own_losses").exit_code == 0
    assert invoke("info", out).exit_code == 0
    moved = invoke("apply", moving, "-t", f"{out}/", "-r", fixed, "-o", package / "moved.nii.gz")
    assert moved.exit_code == 0, moved.stderr
    checked = invoke("register", fixed, moving, "-o", f"{out}/2_", *KEYS, "--dry-run")
    assert checked.exit_code == 2 and "no such option" in checked.stderr
    (package / "pairs.csv").write_text(f"fixed,moving\n{fixed},{moving}\n")
    batch = invoke("batch", package / "pairs.csv", "-o", package / "study", *KEYS, "--allow", "own_losses", "--dry-run")
    assert batch.exit_code == 0, batch.stderr


def test_python(package, images):
    words = {"affine": "none", "optimizer": "none", "similarity": {"_target_": "own_losses.parts.Difference", "window": None}}
    files = {"fixed": images / "f.nii.gz", "moving": images / "m.nii.gz"}
    with pytest.raises(ConfigError, match='allow="own_losses"'):
        rdmm.register(**files, **words)
    with pytest.raises(ConfigError, match="allow must be the name"):
        rdmm.register(**files, allow=5)
