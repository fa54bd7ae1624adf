"""Training: losses, the loop, going on after anything, several processes, wrong settings."""

import math
import os

import pytest
import torch
from conftest import GRIDS
from test_networks import SMOOTHER, TINY, pair_of, randomize_weights

from networks.affine import AffineNet
from networks.model import Networks
from networks.predictor import Predictor
from networks.unet import Basic
from rdmm import LDDMM, RDMM, ConfigError, DivergenceError, InputError, Integrator, Problem, ResourceError
from rdmm.data.inputs import Inputs
from rdmm.data.synthetic.contrasts import Contrasts
from rdmm.data.synthetic.random_maps import random_diffeomorphism
from rdmm.data.training.pairs import ContrastPairs, SyntheticPairs
from rdmm.data.training.splits import seeded_generator
from rdmm.metrics import dice, mean_dice
from rdmm.runtime.interrupt import stop
from rdmm.similarity import NCC, SSD
from rdmm.spatial.image import Image
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Dense, Identity, invert
from train.batches import both_ways
from train.checkpoint import BEST, LAST, STATE, RunFolder
from train.log import Log, draw_pair
from train.loggers import Run, TensorBoard
from train.losses import AffineObjective, DeformationObjective, evaluate, inverse_consistency, soft_dice
from train.parallel import World
from train.trainer import Trainer, Training

DATA = SyntheticPairs((32, 32), limit=2)


def problem(dynamics=LDDMM):
    return Problem(dynamics(SMOOTHER, Integrator(steps=3)), SSD(), similarity_weight=10.0)


def objective(networks, **more):
    return DeformationObjective(networks.predictor, problem(RDMM if networks.predictor.weights else LDDMM), networks.affine, **more)


def networks(weights=False, affine=False, seed=0):
    torch.manual_seed(seed)
    return Networks(AffineNet(TINY, (32, 32), 8) if affine else None, Predictor(SMOOTHER, TINY, (32, 32), weights))


def training(path, nets=None, make=objective, *, data=DATA, resume=False, world=None, **more):
    settings = {"max_steps": 6, "batch": 1, "warmup": 2, "validate_every": 3, "checkpoint_every": 2, "log_every": 100, **more}
    path.mkdir(exist_ok=True)
    folder = RunFolder(path, {"steps": 2}, {"seed": 0})
    quiet = Log("test", settings["max_steps"])
    nets = nets or networks()
    return Training(Trainer(**settings), data, nets, make, folder, world or World(), 0, torch.device("cpu"), resume, quiet)


# ---- losses


def test_maps_that_invert_each_other_are_consistent():
    grid = GRIDS["2d"]
    there = random_diffeomorphism(seeded_generator(0), grid, 0.02, 0.15)
    u = there(grid.identity(torch.zeros(1))) - grid.identity(torch.zeros(1))
    w, _ = invert(u, grid)
    pair = Pair(*(Image(x.data.repeat(2, 1, 1, 1), grid) for x in (pair_of(grid).fixed, pair_of(grid).moving)))
    error = inverse_consistency(Dense(torch.cat([u, w]), grid), pair)
    assert float(error) < 0.01
    assert float(inverse_consistency(Dense(torch.cat([u, u]), grid), pair)) > 100 * float(error)
    assert float(inverse_consistency(Identity(), pair)) == 0


def test_soft_dice_of_hard_labels_is_dice():
    sample = DATA.pair(1)
    expected = mean_dice(dice(sample.moving_labels.data, sample.fixed_labels.data))[0]
    assert float(soft_dice(sample, Identity(), 99, 0)) == pytest.approx(1 - expected, abs=1e-5)
    some = [float(soft_dice(sample, Identity(), 1, seed)) for seed in range(8)]
    assert len(set(some)) > 1  # labels are drawn
    with pytest.raises(ConfigError, match="no labels"):
        soft_dice(Inputs(sample.pair), Identity(), 1, 0)


def test_the_loss_is_the_objective_of_a_registration():
    """One step, both ways: the mean of Problem.energy of the pair and of the swapped pair."""
    nets = networks(weights=True)
    randomize_weights(nets.predictor, 0.05)
    batch = both_ways(DATA.pair(0))
    outcome = DeformationObjective(nets.predictor, problem(RDMM), steps=1, inverse_consistency=0.0)(batch, 3, 0, True)
    one = DATA.pair(0).pair
    energies = [float(problem(RDMM).energy(nets.predictor(p), p, 3)[0].total.detach()) for p in (one, Pair(one.moving, one.fixed))]
    assert float(outcome.loss.detach()) == pytest.approx(sum(energies) / 2, rel=1e-5)


def test_a_geodesic_that_diverges_is_trained_on_its_energy():
    """The loss is finite and falls with the momentum, so that training finds its way back."""
    nets = networks()
    randomize_weights(nets.predictor, 2.0)
    outcome = objective(nets)(DATA.pair(0), 0, 0, False)
    assert outcome.terms["diverged"] == 1
    assert math.isfinite(float(outcome.loss.detach()))
    outcome.loss.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in nets.predictor.parameters() if p.grad is not None)


@pytest.mark.fault(59)
def test_mixed_precision_is_for_the_networks_only():
    """Fault 59: what they predict is shot in single precision, whatever autocast says."""
    nets = networks(weights=True)
    randomize_weights(nets.predictor, 0.05)
    batch = both_ways(DATA.pair(0))
    plain = objective(nets)(batch, 0, 0, True)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(nets)(batch, 0, 0, True)
    assert half.loss.dtype == half.ic[0].momentum.dtype == half.ic[0].weights.dtype == torch.float32
    assert float(half.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=0.02)
    ic = plain.ic[0]
    a = problem(RDMM).energy(ic, batch.pair)[0].total
    with torch.autocast("cpu", torch.bfloat16):
        b = problem(RDMM).energy(ic, batch.pair)[0].total
    assert torch.equal(a, b)


# ---- the loop


def test_the_rate_rises_and_falls_along_a_cosine():
    t = Trainer(max_steps=110, warmup=10, learning_rate=2.0, floor=0.1)
    assert t.rate(0) == pytest.approx(0.2)
    assert t.rate(9) == t.rate(10) == pytest.approx(2.0)
    assert t.rate(60) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert t.rate(110) == pytest.approx(0.2)


@pytest.mark.slow
def test_training_learns(tmp_path):
    """Shapes: within seconds, half of what differs between held-out images is gone, without folds."""
    torch.manual_seed(0)
    nets = Networks(None, Predictor(SMOOTHER, Basic([8] * 5), (32, 32)))
    cases = [c() for c in DATA.held_out("validation").values()]
    before = [evaluate(objective(nets), c, 0)[0]["similarity"] for c in cases]
    done = training(tmp_path, nets, max_steps=60, warmup=10, validate_every=60, batch=4, learning_rate=5e-3).run()
    after = [evaluate(objective(nets), c, 0)[0] for c in cases]
    assert done.skipped == 0
    assert sum(a["similarity"] for a in after) < 0.7 * sum(before)
    assert all(a["folds_percent"] == 0 for a in after)
    assert (tmp_path / BEST).exists()


def test_the_affine_network_learns(tmp_path):
    def make(nets):
        return AffineObjective(nets.affine, NCC(), stretch_weight=0.01)

    nets = networks(affine=True)
    cases = [c() for c in DATA.held_out("validation").values()]
    first = sum(evaluate(make(nets), c, 0)[0]["similarity"] for c in cases)
    training(tmp_path, nets, make, max_steps=60, batch=4, learning_rate=3e-3, validate_every=60).run()
    assert sum(evaluate(make(nets), c, 0)[0]["similarity"] for c in cases) < first
    assert all(p.grad is None for p in nets.predictor.parameters())


def weights_of(path):
    return (path / LAST).read_bytes()


@pytest.mark.fault(50)
def test_going_on_takes_the_steps_that_would_have_been_taken(tmp_path):
    """Fault 50: stopped at every step, with two workers' worth of data order, the last weights are the same to the bit."""
    training(tmp_path / "whole").run()
    for step in range(1, 6):
        path = tmp_path / f"cut{step}"
        first = training(path)
        original, count = first._step, [0]

        def cut(*arguments, original=original, count=count, step=step):
            out = original(*arguments)
            count[0] += 1
            return out or count[0] == step

        first._step = cut
        assert first.run().step == step
        again = training(path, networks(seed=9), resume=True)  # other initial weights: the state decides
        assert again.run().step == 6
        assert weights_of(path) == weights_of(tmp_path / "whole")
        assert (path / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_one_seed_one_result(tmp_path):
    for name in ("a", "b"):
        training(tmp_path / name, networks(weights=True)).run()
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def test_what_a_run_says_of_itself(tmp_path):
    """Scalars, pictures and histograms for TensorBoard, of RDMM with its sigma(x), in 2D and 3D."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    nets = networks(weights=True)
    run = training(tmp_path, nets, max_steps=3, validate_every=3, log_every=1, picture_every=3)
    run.log = Log("rdmm", 3, Run(tmp_path, "rdmm"), [TensorBoard()], problem(RDMM).dynamics)
    run.run()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/gradient", "train/learning_rate", "validation/dice", "validation/folds_percent"} <= set(tags["scalars"])
    assert {"momentum/step0", "preweights/step1_0"} <= set(tags["histograms"])
    assert {"train/pair", "validation/pair"} <= set(tags["images"])
    volume = ContrastPairs(Contrasts((16, 20, 18))).pair(0)
    nets = Networks(None, Predictor(SMOOTHER, TINY, (16, 20, 18), True))
    figure = draw_pair(volume, objective(nets)(volume, 0, 0, False), problem(RDMM).dynamics)
    assert [a.get_title() for a in figure.axes] == ["fixed", "moving", "warped", "log det J", "sigma(x) in mm"]


def test_a_frozen_affine_network_stays_as_it_is(tmp_path):
    nets = networks(affine=True)
    nets.affine.requires_grad_(False)
    before = {k: v.clone() for k, v in nets.affine.state_dict().items()}
    training(tmp_path, nets).run()
    assert all(torch.equal(v, before[k]) for k, v in nets.affine.state_dict().items())


def test_no_better_score_ends_a_run(tmp_path):
    run = training(tmp_path, max_steps=60, validate_every=2, patience=2, learning_rate=1e-12, warmup=0)
    done = run.run()
    assert done.step == 6  # best at 2, then two validations that are no better
    again = training(tmp_path, max_steps=60, validate_every=2, patience=2, learning_rate=1e-12, warmup=0, resume=True)
    assert again.run().step == 6


def test_without_finite_gradients_a_run_is_given_up(tmp_path):
    class Broken:
        def __init__(self, nets):
            self.trained = nets.predictor

        def __call__(self, batch, epoch, seed, both):
            out = objective(Networks(None, self.trained))(batch, epoch, seed, both)
            return type(out)(out.loss * math.nan, out.terms, out.transform, out.ic)

    nets = networks()
    before = {k: v.clone() for k, v in nets.state_dict().items()}
    with pytest.raises(DivergenceError, match=r"lower trainer\.learning_rate"):
        training(tmp_path, nets, Broken, max_steps=50, validate_every=50).run()
    assert all(torch.equal(v, before[k]) for k, v in nets.state_dict().items())


@pytest.mark.fault(56)
def test_a_single_bad_step_is_skipped(tmp_path):
    """Fault 56, in training: NaN once; the step is not taken and the run goes on."""

    class Once:
        count = 0

        def __init__(self, nets):
            self.made, self.trained = objective(nets), nets.predictor

        def __call__(self, *arguments, **more):
            out = self.made(*arguments, **more)
            Once.count += 1
            return type(out)(out.loss * (math.nan if Once.count == 2 else 1), out.terms, out.transform, out.ic)

    done = training(tmp_path, networks(), Once, validate_every=6).run()
    assert (done.step, done.skipped, done.skipped_in_a_row) == (6, 1, 0)


@pytest.mark.fault(51)
def test_out_of_memory_says_what_to_do(tmp_path):
    """Fault 51."""

    class Huge:
        def __init__(self, nets):
            self.trained = nets.predictor

        def __call__(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match=r"smaller trainer\.batch"):
        training(tmp_path, networks(), Huge).run()


def test_told_to_stop_it_keeps_its_state(tmp_path):
    stop.set()
    try:
        assert training(tmp_path, max_steps=50).run().step == 1
    finally:
        stop.clear()
    assert (tmp_path / STATE).exists() and (tmp_path / LAST).exists()


def test_a_state_of_other_settings_is_refused(tmp_path):
    training(tmp_path).run()
    other = training(tmp_path, resume=True)
    other.folder = RunFolder(tmp_path, {}, {"seed": 1})
    with pytest.raises(ConfigError, match="was trained with seed=0, not 1"):
        other.run()


@pytest.mark.fault(79)
def test_pickles_are_refused(tmp_path):
    """Fault 79: a state that would run code when it is opened."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/marker",))

    torch.save({"networks": Evil()}, tmp_path / STATE)
    with pytest.raises(InputError, match="no state of a training run"):
        training(tmp_path, resume=True).run()
    (tmp_path / STATE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="no state of a training run"):
        training(tmp_path, resume=True).run()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_steps", 0, "at least 1"),
        ("learning_rate", -1.0, "> 0"),
        ("workers", -1, ">= 0"),
        ("floor", 2.0, r"\[0, 1\]"),
        ("batch", 0, "at least 1"),
    ],
)
def test_wrong_trainers_say_so(key, value, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(**{key: value})
