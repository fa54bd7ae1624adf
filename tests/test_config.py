import json
import pickle
import time

import hydra
import pytest
import yaml
from conftest import targets
from test_networks import write_small_model

from rdmm import ConfigError, similarity
from rdmm.config.build import ALLOWED, build
from rdmm.config.compose import check_overrides, compose, quoted, share
from rdmm.dynamics import rdmm as dynamics
from train.plan import plan_trainings

CONF = share() / "conf"
OF_TRAINING = {f"{p.parent.name}/{p.stem}" for g in ("data", "backbone", "logger") for p in (CONF / g).glob("*.yaml")}
OF_TRAINING |= {f"experiment/{p.stem}" for p in (CONF / "experiment").glob("*_net.yaml")}
FROM_A_LIST = {"similarity/sum"}  # compose makes it of a list of similarities
OPTIONS = sorted({f"{p.parent.name}/{p.stem}" for p in CONF.glob("*/*.yaml")} - OF_TRAINING - FROM_A_LIST)
OF_SHAPES = ("affine/points", "dynamics/points", "initializer/controls", "initializer/transported", "optimizer/shapes", "smoother/shapes")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds(option, tmp_path):
    group, name = option.split("/")
    model = []
    if option in ("affine/net", "initializer/unet"):
        write_small_model(tmp_path / "m.safetensors")
        model = [f"weights={quoted(str(tmp_path / 'm.safetensors'))}"]
    of_shapes = option in OF_SHAPES or "override /dynamics: points" in (CONF / f"{option}.yaml").read_text()
    settings = "shapes" if of_shapes else "register"
    config = compose([f"{group}={name}", *model], settings)
    assert build(config["stages"], "stages")
    assert settings == "shapes" or build(config["intensity"])
    if group not in ("experiment",):
        assert build(config[group]) is not None


NEEDED = {
    "data/folder": ["data.source.root=somewhere"],
    "data/mixture": ["+data@data.sets.a=shapes", "shape=[32,32]"],
    "experiment/images_net": ["data.source.root=somewhere"],
    "experiment/paper_net": ["data.source.root=somewhere"],
    "experiment/oai_net": ["data.source.path=somewhere"],
}
"""What an option cannot do without."""


@pytest.mark.parametrize("option", sorted(OF_TRAINING))
def test_every_option_of_training_builds(option):
    """Every network that a configuration describes is made, and its data set, before any file is asked for."""
    group, name = option.split("/")
    rest = NEEDED.get(option, [])
    overrides = [f"{group}={name}", *([] if group not in ("backbone", "logger") else ["shape=[32,32]", "data=shapes"]), *rest]
    assert plan_trainings(compose(overrides, "train"), overrides)
    assert build(compose(overrides, "train")["data"], "data").held_out


@pytest.mark.parametrize("source", sorted(p.stem for p in (CONF / "data/source").glob("*.yaml")))
def test_every_source_of_data_builds(source):
    key = "path" if source in ("table", "pairs") else "root"
    node = compose([f"data/source={source}", f"data.source.{key}=somewhere"], "train")["data"]["source"]
    assert build(node, "data.source").items
    with pytest.raises(ConfigError, match=f"data.source.{key} is not set"):
        build(compose([f"data/source={source}"], "train")["data"], "data")


def test_groups_bring_what_goes_with_them():
    assert compose()["free_weights"] is True
    regions = compose(["dynamics=rdmm", "initializer=regions"])
    assert regions["free_weights"] is False
    assert regions["optimizer"]["weights"] is False
    assert compose(["dynamics=lddmm"])["smoother"]["sigmas"] == compose()["smoother"]["sigmas"][1:]
    assert compose(["dynamics=rdmm"])["smoother"]["sigmas"] == [0.025, 0.05, 0.12]
    assert compose(["dynamics=rdmm", "smoother=paper"])["smoother"]["sigmas"][0] == 0.05
    assert compose(["dynamics=rdmm", "smoother.sigmas=[.1]", "smoother.weights=[1]"])["smoother"]["sigmas"] == [0.1]


def test_targets_are_our_own():
    """Hydra's strings escape import-linter."""
    for path in CONF.rglob("*.yaml"):
        for target in targets(yaml.safe_load(path.read_text())):
            assert target.startswith(("rdmm.", "networks.", "train.")), path


def test_a_list_of_similarities_is_their_weighted_sum():
    for text in ("similarity=[lncc,sinkhorn]", 'similarity=["lncc", "sinkhorn"]'):
        node = compose([text, "similarity.weights.sinkhorn=100", "similarity.terms.sinkhorn.blur=.05"])["similarity"]
        terms = {"lncc": similarity.LNCC(), "sinkhorn": similarity.GridSinkhorn(0.05, normalise=True)}
        assert build(node, "similarity") == similarity.Sum(terms, {"lncc": 1.0, "sinkhorn": 100})
    for text, message in (("[lncc,lncc]", "different"), ("[]", "different"), ("[lncc,sinkhor]", "did you mean 'sinkhorn'")):
        with pytest.raises(ConfigError, match=message):
            compose([f"similarity={text}"])
    with pytest.raises(ConfigError, match=r"no term 'lnc' \(did you mean 'lncc'\?\)"):
        similarity.Sum({"lncc": similarity.LNCC(3)}, {"lnc": 1.0})
    with pytest.raises(ConfigError, match="at least one term"):
        build(compose(["similarity=sum"])["similarity"], "similarity")


def test_every_similarity_and_dynamics_has_an_option():
    found = {t.rpartition(".")[2] for p in CONF.glob("*/*.yaml") for t in targets(yaml.safe_load(p.read_text()))}
    assert set(similarity.__all__) <= found
    assert {"SVF", "LDDMM", "RDMM"} <= found
    assert dynamics.RDMM


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dynamic=rdmm", "'dynamics'"),
        ("dynamics=rdm", "did you mean 'rdmm'"),
        ("optimizer.scals=[1]", "'optimizer.scales'"),
        ("lrr=2", "unknown key 'lrr'"),
        ("+lrr=2", "unknown key 'lrr'"),
        ("+optimizer.foo=2", "optimizer: unknown key 'foo'"),
        ("similarity_weight=abc", "similarity_weight must be a number; got 'abc'"),
        ("similarity_weight=-1", "must be > 0"),
        ("optimizer.iterations=[abc]", "optimizer.iterations must be a list of whole numbers"),
        ("optimizer.iterations=[0,1,1]", "at least 1"),
        ("optimizer.scales=[]", "0 scales"),
        ("smoother.boundary=zer", "zero, periodic, reflect"),
        ("smoother.weights=[.5,.5,.5,.5]", "sum to 1"),
        ("smoother.weights=[-.5,.5,.5,.5]", ">= 0"),
        ("integrator.steps=2.5", "whole number"),
        ("similarity.window=4", "odd"),
        ("affine.init=con", "header"),
        ("optimizer.scales=[.1,", ""),
        ("nonsense", "KEY=VALUE"),
        ("similarity_weight=${oc.env:HOME}", "references"),
        ("affine._target_=pathlib.Path.write_text", "not allowed"),
    ],
)
@pytest.mark.fault(62, 67, 68, 69)
def test_wrong_settings_are_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        build(compose([override])["stages"], "stages")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("similarity.window=abc", "similarity.window must be a whole number or null; got 'abc'"),
        ("stages=two_step similarity.window=abc", "similarity.window must be a whole number or null; got 'abc'"),
        ("optimizer.iterations=10", "optimizer.iterations must be a list of whole numbers, e.g. [15,12,20]; got 10"),
        ("smoother.sigmas=[a]", "smoother.sigmas must be a list of numbers, e.g. [0.01,0.02,0.06,0.16]; got ['a']"),
        ("affine.models=[turn]", "affine.models must be a list of any of translation, rigid, similarity, affine"),
        ("integrator.steps=2.5", "integrator.steps must be a whole number; got 2.5"),
        ("penalty.range=3", "penalty.range has no effect with penalty=none; it needs penalty=omt"),
        ("+penalty.range=3", "penalty: unknown key 'range'; it needs penalty=omt"),
        ("affine=none affine.init=com", "affine.init (init) has no effect with affine=none; it needs affine=opt"),
        ("optimizer=none optimizer.scales=[1]", "optimizer.scales has no effect with optimizer=none; it needs optimizer=lbfgs"),
        (
            "similarity=LNC",
            "similarity=LNC: no such option (did you mean 'lncc'?); there are cr, lncc, mind, mklncc, ncc, nmi, sinkhorn, ssd",
        ),
        ("similarity=lncc,nmi", "similarity=lncc,nmi: for their sum write similarity=[lncc,nmi]"),
        ("optimizer=none,fast", "optimizer is one option, so write one of accurate, fast, lbfgs, none, refine"),
        ("similarity=[lncc,nmi] similarity.weights.mni=2", "'similarity.weights.mni' (did you mean 'similarity.weights.nmi'?)"),
        ("fixed_label=f.nii.gz", "unknown key 'fixed_label' (did you mean fixed_labels?)"),
        ("window=5", "unknown key 'window' (did you mean 'similarity.window'?)"),
        ("affine/similarity=ssd", "unknown key 'affine/similarity'; to choose an option there, type +similarity@affine.similarity=ssd"),
        ("data=folder", "'data' is a group that this configuration does not use"),
    ],
)
@pytest.mark.fault(67, 68)
def test_an_error_names_the_typed_key_and_what_to_type(overrides, message):
    with pytest.raises(ConfigError) as caught:
        build(compose(overrides.split())["stages"], "stages")
    assert message in str(caught.value)
    assert "stages[" not in str(caught.value)


def test_the_suggested_option_of_a_nested_group_works():
    assert build(compose(["+similarity@affine.similarity=ssd"])["affine"]).similarity == similarity.SSD()


def test_the_similarity_of_the_affine_stage():
    """nmi and mind drive the affine stage, too, unless its own similarity is typed."""

    def of_affine(*overrides):
        return build(compose(overrides)["affine"]).similarity

    assert of_affine() == of_affine("similarity=ssd") == similarity.CorrelationRatio()
    assert of_affine("similarity=mind") == similarity.MIND()
    assert of_affine("similarity=nmi", "similarity.bins=16") == similarity.NMI(16)
    assert of_affine("affine.similarity=NMI") == of_affine("affine.similarity=nmi", "similarity=mind") == similarity.NMI()
    assert compose(["similarity=nmi", "affine=none"])["affine"] == {"_target_": "rdmm.stages.Skip"}
    with pytest.raises(ConfigError, match="unknown key 'similarity'"):
        of_affine("affine.similarity=nmi", "affine=none")


def test_settings_compose_once(monkeypatch):
    """The keys that an error suggests are composed for an error only."""
    calls = []
    composed = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *a, **k: calls.append(a) or composed(*a, **k))
    for name, overrides in (("register", ["dynamics=rdmm", "similarity=[lncc,sinkhorn]", "+transport=1"]), ("train", ["seed=3"])):
        assert compose(overrides, name)
        assert len(calls) == 1
        calls.clear()
    check_overrides(["experiment=pairs", "+study.limit=3"], "eval")
    assert calls == []


def test_settings_are_plain_data():
    """The keys that a node remembers do not change what is written, compared or sent to another process."""
    config = compose(["dynamics=rdmm"])
    assert config["stages"].origins == {"stages[0]": "affine", "stages[1]": "deform"}
    assert json.loads(json.dumps(config)) == config
    again = pickle.loads(pickle.dumps(config))  # noqa: S301
    assert again == config and again["stages"].origins == config["stages"].origins


@pytest.mark.fault(80)
def test_only_allowed_targets_are_built():
    begin = time.perf_counter()
    for target in ("os.system", "pathlib.Path.write_text", "builtins.eval", "rdmmx.y"):
        with pytest.raises(ConfigError, match="not allowed"):
            build({"_target_": target, "x": 1})
    assert time.perf_counter() - begin < 1
    assert all(prefix.endswith(".") for prefix in ALLOWED)
    with pytest.raises(ConfigError, match="there is no"):
        build({"_target_": "rdmm.similarity.Missing"})
    with pytest.raises(ConfigError, match="missing"):
        build({"_target_": "rdmm.regularizer.MultiGaussian", "sigmas": [0.1]})


def test_earlier_names_that_are_typed_become_todays():
    """So that batches and training runs whose settings were typed with them are resumed."""
    assert compose(["optimizer._target_=rdmm.optimise.LBFGS"])["optimizer"]["_target_"] == "rdmm.optim.LBFGS"
    node = compose(["similarity._target_=rdmm.similarity.measures.SinkhornDivergence"], "shapes")["similarity"]
    assert build(node, "similarity") == similarity.SinkhornDivergence()
