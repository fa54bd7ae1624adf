"""What several processes of a training agree on: devices and backends, and the means of a validation."""

import math

import pytest
import torch
from test_training import networks, training

from rdmm import ConfigError
from rdmm.data.training.pairs import SyntheticPairs
from train import parallel
from train.parallel import World, local_device, world
from train.trainer import _score


@pytest.fixture
def gpus(monkeypatch):
    """A machine with some GPUs, as far as PyTorch says."""

    def have(number, **environment):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))

    return have


@pytest.mark.parametrize(
    ("number", "environment", "name", "device"),
    [
        (4, {"WORLD_SIZE": 4, "LOCAL_RANK": 3}, "cuda", "cuda:3"),
        (2, {"WORLD_SIZE": 8, "LOCAL_RANK": 1, "RANK": 7}, "cuda", "cuda:1"),  # the fourth machine's second
        (4, {"WORLD_SIZE": 4, "LOCAL_RANK": 3}, "cpu", "cpu"),
        (4, {}, "cuda", "cuda"),
        (4, {}, "cuda:2", "cuda:2"),
        (1, {"WORLD_SIZE": 1, "LOCAL_RANK": 0}, "cuda:0", "cuda:0"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(gpus, number, environment, name, device):
    gpus(number, **environment)
    assert str(local_device(name)) == device


@pytest.mark.parametrize(
    ("number", "environment", "name", "message"),
    [
        (2, {"WORLD_SIZE": 4, "LOCAL_RANK": 2}, "cuda", r"--nproc-per-node=2"),
        (4, {"WORLD_SIZE": 4, "LOCAL_RANK": 0}, "cuda:0", r"give device=cuda"),
        (0, {"WORLD_SIZE": 2, "LOCAL_RANK": 0}, "cuda", r"no such CUDA device"),
        (2, {"WORLD_SIZE": 2, "LOCAL_RANK": "first"}, "cuda", r"LOCAL_RANK"),
    ],
)
def test_devices_that_processes_cannot_have(gpus, number, environment, name, message):
    gpus(number, **environment)
    with pytest.raises(ConfigError, match=message):
        local_device(name)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "cpu:gloo,cuda:nccl")])
def test_gradients_travel_between_gpus_by_nccl(monkeypatch, device, backend):
    started, bound = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda *a, **k: started.append(a[0]))
    monkeypatch.setattr(parallel.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", bound.append)
    with world(60, torch.device(device)) as ranks:
        assert ranks == World(1, 2)
    assert started == [backend] and bound == ([torch.device(device)] if device != "cpu" else [])


class Two(World):
    """This process beside another one, which holds the same cases without labels."""

    def __init__(self):
        super().__init__(0, 2)

    def mean_gradients(self, parameters, good, stop):
        return 1, stop

    def union(self, names):
        return sorted({*names, "similarity"})

    def total(self, numbers):
        self.sums = numbers
        return [2 * x for x in numbers]


class Unlabeled:
    """Shapes without labels, or with labels for the first held-out pair only."""

    def __init__(self, labeled=0):
        self.data, self.labeled = SyntheticPairs((32, 32), limit=2), labeled

    def __getattr__(self, name):
        return getattr(self.data, name)

    def held_out(self, part):
        cases = self.data.held_out(part)

        def unlabeled(read):
            sample = read()
            return type(sample)(sample.pair)

        return {k: read if i < self.labeled else (lambda read=read: unlabeled(read)) for i, (k, read) in enumerate(cases.items())}


def validated(path, data, ranks=None):
    run = training(path, networks(), data=data, world=ranks, max_steps=1, validate_every=1)
    said = []
    run.log.log_validation = lambda progress, means, score, shown: said.append((means, progress.best))
    run.run()
    return said[0]


@pytest.mark.parametrize("ranks", [None, Two()])
def test_without_labels_there_is_no_dice(tmp_path, ranks):
    """Neither in the log nor in the score, with one process or with several."""
    means, score = validated(tmp_path, Unlabeled(), ranks)
    assert "dice" not in means and score == pytest.approx(-means["similarity"])
    assert {"loss", "similarity", "folds_percent", "kinetic"} <= set(means) or {"loss", "similarity", "folds_percent"} <= set(means)


def test_dice_is_the_mean_of_the_pairs_that_have_labels(tmp_path):
    one, score = validated(tmp_path / "one", Unlabeled(labeled=1))
    both, _ = validated(tmp_path / "both", Unlabeled(labeled=2))
    assert score == one["dice"] > 0.3 and both["dice"] > 0.3
    assert one["similarity"] == both["similarity"]


@pytest.mark.parametrize(
    ("means", "score"),
    [
        ({"dice": 0.5, "similarity": 3.0}, 0.5),
        ({"dice": 0.0, "similarity": 3.0}, 0.0),
        ({"similarity": 3.0}, -3.0),
        ({"similarity": math.nan}, -1e30),
        ({}, -1e30),
    ],
)
def test_the_score_is_dice_where_it_was_measured(means, score):
    assert _score(means) == score
