"""The command line of train.py and eval.py: Hydra's own options, and names with fields typed without quotes."""

import sys

import pytest

from rdmm.config.compose import compose, expand
from rdmm.config.location import use_folders
from rdmm.config.program import Ended, run_program
from rdmm.types import ConfigError


@pytest.fixture
def program(monkeypatch, tmp_path, capsys):
    """Runs a program with typed words; the configuration, the settings that it got, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def start(name, *words):
        got = []

        def record(config, overrides, folder):
            got.append((config, overrides, compose(overrides, name) if name == "train" else None))
            return Ended()

        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, f"hydra.run.dir={tmp_path}/run"])
        try:
            run_program(name, record, check=compose if name == "train" else run_program.__defaults__[0])
        except SystemExit as ended:
            return ended.code, capsys.readouterr()
        return got[0] if got else None, capsys.readouterr()

    yield start
    use_folders([])


@pytest.mark.fault(67)
@pytest.mark.parametrize("name", ["train", "eval"])
@pytest.mark.parametrize("words", [["--cfg", "job"], ["-c", "job"], ["--cfg", "job", "--package", "trainer"], ["--info", "searchpath"]])
def test_what_hydra_shows_is_shown(program, name, words):
    """--cfg job shows the configuration even where data are still to be named."""
    words = words if name == "train" else [w.replace("trainer", "study") for w in words]
    ran, printed = program(name, *words)
    assert ran is None and ("device: cpu" in printed.out or "max_steps" in printed.out or "methods" in printed.out or "conf" in printed.out)


@pytest.mark.parametrize("words", [["--help"], ["--hydra-help"]])
def test_help_is_help(program, words):
    ran, printed = program("train", *words)
    assert ran in (None, 0) and "hydra" in printed.out.lower()


@pytest.mark.parametrize("option", ["--config-dir", "-cd"])
def test_a_folder_of_ones_own_adds_options(program, tmp_path, option):
    """Its experiments and options are known to every composition of the program, and a mistyped one is explained."""
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "penalty").mkdir()
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /penalty: strong\nseed: 7\n")
    (own / "penalty" / "strong.yaml").write_text("_target_: rdmm.regularizer.WeightPenalty\nomt: 0.5\n")
    (config, overrides, again), _ = program("train", option, str(own), "experiment=mine", "data=shapes")
    assert config["seed"] == again["seed"] == 7 and config["penalty"]["omt"] == again["penalty"]["omt"] == 0.5
    assert overrides == ["experiment=mine", "data=shapes"]
    code, printed = program("train", option, str(own), "experiment=mien", "data=shapes")
    assert code == 2 and "did you mean 'mine'" in printed.err
    code, printed = program("train", option, str(tmp_path / "onw"), "data=shapes")
    assert code == 2 and "onw" in printed.err and "did you mean 'own'" in printed.err


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("a={subject}.nii.gz", "{subject}.nii.gz"),
        ("a={subject}_{time}.nii.gz", "{subject}_{time}.nii.gz"),
        ("a=sub_{subject}/ses-{time}/t1 w.nii.gz", "sub_{subject}/ses-{time}/t1 w.nii.gz"),
        ("""a='"{subject}.nii"'""", '"{subject}.nii"'),
        ("a='{subject}.nii'", "{subject}.nii"),
        ("a=[x/{case}_1Warp.nii.gz,x/{case}.mat]", ["x/{case}_1Warp.nii.gz", "x/{case}.mat"]),
        ("a={warps: [{case}.nii], form: fsl}", {"warps": ["{case}.nii"], "form": "fsl"}),
        ("a={b: 1, c: {d: 2}}", {"b": 1, "c": {"d": 2}}),
        ("a={}", {}),
    ],
)
def test_names_with_fields_need_no_quotes(typed, wanted):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    (override,) = OverridesParser.create().parse_overrides(expand(typed))
    config = OmegaConf.create({})
    OmegaConf.update(config, "a", override.value(), merge=False)
    assert OmegaConf.to_container(config)["a"] == wanted


def test_a_pattern_typed_as_it_is_reaches_the_data(program):
    (config, _, again), _ = program("train", "data.source.root=/x", "data.source.images={subject}_{time}.nii.gz")
    assert config["data"]["source"]["images"] == again["data"]["source"]["images"] == "{subject}_{time}.nii.gz"


def test_a_search_path_of_hydra_is_searched_by_every_composition(program, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    for text in (f"[file://{tmp_path}/own]", f"['{tmp_path}/own']"):
        (config, _, again), _ = program("train", f"hydra.searchpath={text}", "experiment=mine", "data=shapes")
        assert config["seed"] == again["seed"] == 7
    code, printed = program("train", f"hydra.searchpath=[{tmp_path}/onw]", "experiment=mine", "data=shapes")
    assert code == 2 and "did you mean 'own'" in printed.err


@pytest.mark.parametrize("words", [["similarity=[lncc,]"], ["lrr=2"], ["trainer.max_stepz=1"], ["experiment=oasis2d_nte"]])
def test_mistakes_are_still_explained(program, words):
    code, printed = program("train", *words)
    assert code == 2 and printed.err.startswith("train: ConfigError: ")


def test_compose_knows_only_the_folders_in_use():
    use_folders([])
    with pytest.raises(ConfigError, match="no such option"):
        compose(["experiment=mine"], "train")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("study.methods.mine=[dynamics=svf,similarity_weight=.1]", "++study.methods.mine=['dynamics=svf','similarity_weight=.1']"),
        ("+study.methods.mine=[dynamics=svf]", "++study.methods.mine=['dynamics=svf']"),
        ("study.methods.mine=['dynamics=svf']", "++study.methods.mine=['dynamics=svf']"),
        ("study.methods={a: [dynamics=svf, penalty=none]}", "++study.methods={a: ['dynamics=svf', 'penalty=none']}"),
        ("study.style.names={svf: SVF}", "++study.style.names={svf: SVF}"),
        ("study.families={a: [b, c]}", "++study.families={a: [b, c]}"),
        ("study.limit=3", "study.limit=3"),
        ("study.style.dpi=40", "study.style.dpi=40"),
    ],
)
def test_entries_of_a_study_are_typed_as_they_stand_in_a_file(typed, read):
    assert expand(typed) == [read]


def test_a_study_gets_entries_of_ones_own(program):
    words = [
        "study.style.names={svf: SVF}",
        "study.families={all: [svf, mine]}",
        "study.methods.mine=[dynamics=svf]",
        "study.choose_by=dice",
    ]
    got, _ = program("eval", "experiment=pairs", "study.data.pairs.path=x.csv", *words)
    study = got[0]["study"]
    assert study["methods"]["mine"] == ["dynamics=svf"] and "lddmm" in study["methods"]
    assert study["style"]["names"] == {"svf": "SVF"} and study["families"] == {"all": ["svf", "mine"]}
