"""The model that comes with rdmm: initializer=unet and affine=net without a file."""

import pytest

from networks import model as models
from rdmm.config.compose import quoted
from rdmm.config.location import bundled_model
from rdmm.data.studies.brains import Brains
from rdmm.data.synthetic.contrasts import Contrasts
from rdmm.data.training.pairs import ContrastPairs
from rdmm.registration.entry import compose_settings, run


def test_it_is_small_and_sound():
    assert bundled_model().stat().st_size < 10 * 2**20
    assert models.load(None).predictor is not None and models.load(None).affine is not None


def test_it_registers_random_anatomies_better_than_its_affine_map():
    """Anatomies of another seed than those that it was trained on, on another grid."""
    sample = ContrastPairs(Contrasts((48, 56, 44)), seed=12345).pair(0)
    learned = run(sample, compose_settings(["initializer=unet"])).metrics
    file = f"weights={quoted(str(bundled_model()))}"
    affine = run(sample, compose_settings([file, "initializer=zero", "optimizer=none", "stages=single"])).metrics
    assert learned["dice"] > learned["dice_before"] + 0.05
    assert learned["folds_percent"] == 0
    assert learned["dice"] > affine["dice"] + 0.05


@pytest.mark.slow
@pytest.mark.data
def test_it_beats_affine_on_two_brains(data):
    """Trained on nothing but random volumes."""
    case = Brains(str(data), ("a:b",)).cases()["brain_a-b"]()
    learned = run(case, compose_settings(["initializer=unet"])).metrics
    assert learned["dice"] > learned["dice_before"] + 0.025  # the two are aligned by an affine map already
    assert learned["folds_percent"] == 0
