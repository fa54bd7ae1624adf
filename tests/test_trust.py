"""A configuration from a file names only what conf/ names, and nothing of it reaches the environment or another file."""

import json
import re
import sys

import pytest

import rdmm
from rdmm import ConfigError
from rdmm.config.compose import check_overrides, compose
from rdmm.config.trust import conf_targets, require_trusted, require_trusted_yaml
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.io import write_image
from rdmm.workflows.reports import write_report

FOREIGN = [
    "rdmm.io.tables.write_table",
    "rdmm.cli.main",
    "rdmm.registration.register",
    "rdmm.io.files.write_atomically",
    "train.main.main",
    "eval.main.evaluate",
    "networks.model.save",
    "torch.optim.Adam",
    "monai.networks.nets.UNet",
    "os.system",
    "rdmm.stages.Chain.__init__",
    "",
    "None",
    None,
    5,
    ["rdmm.stages.Skip"],
    {"a": 1},
]
"""Targets that no file of conf/ names."""

NODES = ["stages", "intensity", "output", "affine", "deform", "dynamics", "similarity", "smoother"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    pair, _, _ = shapes_pair(3, (40, 32))
    for name, image in (("f", pair.fixed), ("m", pair.moving)):
        write_image(folder / f"{name}.nii.gz", image.data, image.grid)
    files = {"fixed": folder / "f.nii.gz", "moving": folder / "m.nii.gz"}
    rdmm.register(**files, affine="none", optimizer="none").save(f"{folder}/out/")
    return folder / "out"


@pytest.mark.parametrize("target", FOREIGN, ids=str)
@pytest.mark.fault(80, 87)
def test_a_report_builds_only_what_conf_names(run, target):
    """Wherever the class stands in run.json's configuration, nothing is called and no page is replaced."""
    record = run / "run.json"
    whole, page = record.read_text(), (run / "report.html").read_bytes()
    node = {"_target_": target, "path": str(run / "marker"), "rows": [{"text": "x"}], "args": ["demo"]}
    try:
        for name in NODES:
            for value in (node, {**json.loads(whole)["config"][name], "more": [node]}, [node]):
                summary = json.loads(whole)
                summary["config"][name] = value
                record.write_text(json.dumps(summary))
                with pytest.raises(ConfigError, match=r"run\.json: _target_ .* is not allowed") as caught:
                    write_report(str(run), overwrite=True)
                assert "\n" not in str(caught.value)
    finally:
        record.write_text(whole)
    assert (run / "report.html").read_bytes() == page and not (run / "marker").exists()


@pytest.mark.fault(82, 87)
def test_a_report_resolves_no_reference(run, monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    record = run / "run.json"
    whole = record.read_text()
    for text in ("${oc.env:SECRET}", "${similarity}", "a ${now:x}"):
        record.write_text(re.sub(r'"similarity_weight": [0-9.]+', lambda _, text=text: f'"similarity_weight": {json.dumps(text)}', whole))
        with pytest.raises(ConfigError, match="reference") as caught:
            write_report(str(run), overwrite=True)
        assert "sesame" not in str(caught.value)
    record.write_text(whole)


def test_settings_that_are_trusted():
    for name in ("register", "shapes", "train"):
        assert require_trusted(compose((), name), "here")
    assert require_trusted({"_target_": "rdmm.optimise.NoOptimiser"}, "here") == {"_target_": "rdmm.optim.NoOptimizer"}
    assert conf_targets() > {"rdmm.stages.Chain", "networks.model.predictor"}


@pytest.mark.fault(81, 87)
def test_deep_settings_of_a_file():
    node = "x"
    for _ in range(2 * sys.getrecursionlimit()):
        node = [node]
    with pytest.raises(ConfigError, match="nested too deeply"):
        require_trusted({"a": node}, "here")


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A folder besides conf/ with a file that reads the environment; the path that leads to it from a group of conf/."""
    monkeypatch.setenv("SECRET", "sesame")
    (tmp_path / "x.yaml").write_text("# @package _global_\nsimilarity_weight: ${oc.env:SECRET}\noutput: !!python/name:os.system\n")
    return "../" * 20 + str(tmp_path / "x")


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}"', "[{}]", "['{}',b]", "{}.yaml", "/{}", "./{}", "..", ".", "a.b", "..\\x"])
@pytest.mark.fault(82, 87)
def test_options_of_groups_are_names(secret, form):
    for group in ("experiment", "affine", "data/source"):
        for prefix in ("", "+", "++"):
            for place in ("", "@_global_"):
                with pytest.raises(ConfigError) as caught:
                    check_overrides([f"{prefix}{group}{place}={form.format(secret)}"], "train")
                assert "an option is a name" in str(caught.value) and "sesame" not in str(caught.value)


@pytest.mark.fault(82, 87)
def test_references_are_resolved_nowhere_on_the_command_line(secret):
    for form in ("output.{}=1", "output.times=[{}]", "+output.x={{a:{}}}", "~output={}", "weights={}"):
        text = form.format("${oc.env:SECRET}")
        with pytest.raises(ConfigError, match="references are not resolved") as caught:
            compose([text])
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "study: {data: {x: {_target_: os.system, command: touch marker}}}",
        "study: {methods: {a: [affine._target_=rdmm.cli.main]}}",
        "models: {a: ['+affine={_target_: rdmm.cli.main}']}",
        "similarity_weight: ${oc.env:SECRET}",
        "similarity_weight: ${${a}.env:SECRET}",
        "similarity_weight: ${oc.${a}:SECRET}",
        "similarity_weight: ${oc.decode:${oc.env:SECRET}}",
        "a: '${hydra:${oc.env:SECRET}}'",
        "${oc.env:SECRET}: 1",
        "hydra: {job_logging: {handlers: {x: {(): os.system}}}}",
        "\"hy\\x64ra\": {callbacks: {}}",
        "defaults: [other@hydra.job_logging]",
        "# @package hydra.job_logging\na: 1",
    ],
)  # fmt: skip
@pytest.mark.fault(80, 82, 87)
def test_a_folder_of_configurations_names_only_what_conf_names(tmp_path, monkeypatch, text):
    """What train.py --config-dir FOLDER reads, through links too."""
    monkeypatch.setenv("SECRET", "sesame")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.yaml").write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "experiment").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match=r"x\.yaml: ") as caught:
        require_trusted_yaml(tmp_path / "folder")
    assert "sesame" not in str(caught.value)


def test_an_experiment_of_ones_own(tmp_path):
    lines = ["# @package _global_", "defaults: [override /dynamics: rdmm]", "smoother: {sigmas: [.1], weights: [1]}"]
    lines += ["shape: ${smoother.sigmas}", "study: {methods: {a: [dynamics=svf]}}", "name: ${now:%H}"]
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    require_trusted_yaml(tmp_path)


def test_a_class_on_the_command_line_is_the_users_word():
    assert compose(["similarity._target_=rdmm.spatial.ops.total"])["similarity"] == {"_target_": "rdmm.spatial.ops.total", "window": None}
