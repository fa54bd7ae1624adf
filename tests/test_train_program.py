"""The program train.py: killed, interrupted, wrongly called, in several processes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rdmm.config.compose import share
from rdmm.io.models import read_model
from train.checkpoint import BEST, LAST, STATE
from train.main import main

SMALL = ["experiment=synthetic2d_net", "shape=[32,32]", "backbone.features=[4,4,4,4,4]", "data.limit=2", "table.limit=0", "threads=1"]
SMALL += ["trainer.batch=1", "trainer.warmup=2", "trainer.log_every=1", "trainer.validate_every=4", "trainer.checkpoint_every=2"]
ONE = ["~models", "dynamics=rdmm", "smoother=synthetic", "penalty=omt"]


def command(out, *keys):
    return [sys.executable, "train.py", *SMALL, *ONE, *keys, f"hydra.run.dir={out}"]


def launch(out, *keys, **more):
    return subprocess.run(command(out, *keys), cwd=share(), capture_output=True, text=True, timeout=300, check=False, **more)


@pytest.mark.slow
@pytest.mark.fault(50)
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path):
    """Fault 50, with kill -9 on the program itself: whatever it was doing, resume=true ends at the same files."""
    whole = launch(tmp_path / "whole", "trainer.max_steps=12")
    assert whole.returncode == 0, whole.stderr + whole.stdout
    cut = tmp_path / "cut"
    rng = np.random.default_rng(0)
    for _ in range(2):
        process = subprocess.Popen(command(cut, "trainer.max_steps=12", "resume=true"), cwd=share(), stdout=subprocess.PIPE, text=True)
        wanted = int(rng.integers(2, 5))
        for line in process.stdout:
            wanted -= bool(re.search(r" step \d+ of 12", line))
            if wanted == 0:
                time.sleep(float(rng.uniform(0, 0.1)))
                break
        process.kill()
        process.wait()
        process.stdout.close()
        assert torch.load(cut / "rdmm" / STATE, weights_only=True)["progress"]["step"] in range(13)
        assert all(read_model(path).tensors for path in (cut / "rdmm").glob("*.safetensors"))
    done = launch(cut, "trainer.max_steps=12", "resume=true")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "going on from step" in done.stdout
    for name in (LAST, BEST):
        assert (cut / "rdmm" / name).read_bytes() == (tmp_path / "whole/rdmm" / name).read_bytes()
    again = launch(cut, "trainer.max_steps=12")
    assert again.returncode == 3
    assert "a run is there already" in again.stdout
    anew = launch(cut, "trainer.max_steps=1", "overwrite=true")
    assert anew.returncode == 0
    assert read_model(cut / "rdmm" / LAST).facts["step"] == read_model(cut / "rdmm" / BEST).facts["step"] == 1


@pytest.mark.slow
def test_interrupted_it_keeps_its_state(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "trainer.max_steps=5000"), cwd=share(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if "step 2 of" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 130, rest
    assert (tmp_path / "rdmm" / STATE).exists() and (tmp_path / "rdmm" / LAST).exists()


@pytest.mark.slow
def test_the_program_writes_models_and_the_table(tmp_path):
    done = launch(tmp_path, "trainer.max_steps=4", "table.limit=1", "table.optimized=['optimizer.iterations=[2,2,2]']")
    assert done.returncode == 0, done.stderr + done.stdout
    text = (tmp_path / "table.md").read_text()
    assert all(f"| test | rdmm-{kind} | 1 | 0 |" in text for kind in ("net", "net+5", "opt"))
    assert json.loads((tmp_path / "models.json").read_text()) == {"rdmm": "rdmm/best.safetensors"}
    assert list((tmp_path / "rdmm/tensorboard").iterdir())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["lrr=2"], "unknown key 'lrr'"),
        (["+lrr=2"], "unknown key 'lrr'"),
        (["trainer.max_step=2"], "did you mean 'trainer.max_steps'"),
        (["experiment=oasis2d_nte"], "did you mean 'oasis2d_net'"),
        (["data=shapes", "shape=[32,32]", "backbone=unett"], "no such option"),
    ],
)
@pytest.mark.fault(67, 68, 69)
def test_unknown_settings_end_before_hydra(refused, keys, message):
    """Faults 67 to 69."""
    code, said = refused(main, *keys)
    assert code == 2 and message in said


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        (["trainer.learning_rate=abc"], 2, "trainer.learning_rate must be a number; got 'abc'"),
        (["trainer.learning_rate=-1"], 2, "must be > 0"),
        (["data.source.root=/nowhere"], 3, "no data at /nowhere"),
        ([], 2, "data.source.root is not set"),
        (["data=shapes", "shape=[8,8]", "network.predictor.reduction=3"], 2, "1, 2, 4 or 8"),
        (["data=shapes", "shape=[32,32]", "device=tpu"], 2, "tpu"),
    ],
)
@pytest.mark.fault(67, 68, 69)
def test_wrong_settings_end_before_data_are_read(tmp_path, keys, code, message):
    """Faults 67 to 69."""
    arguments = [sys.executable, "train.py", *keys, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(arguments, cwd=share(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# ---- several processes


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def two(tmp_path, *keys, **more):
    arguments = [*TORCHRUN, *command(tmp_path, *keys)[1:]]
    return subprocess.run(arguments, cwd=share(), capture_output=True, text=True, timeout=300, check=False, **more)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(tmp_path):
    done = two(tmp_path / "two", "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    alone = launch(tmp_path / "one", "trainer.max_steps=4", "trainer.batch=2")
    assert alone.returncode == 0
    a, b = (read_model(tmp_path / n / "rdmm" / LAST).tensors for n in ("two", "one"))
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's threads")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """A thread of gloo that lets go of a tensor while the interpreter ends kills the process, after all its work is done."""
    script = tmp_path / "threads.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(share())!r})\n"
        "import torch\n"
        "from train.parallel import world\n"
        "with world(60, torch.device('cpu')) as ranks:\n"
        "    import torch.distributed.nn.functional\n"
        "    assert ranks.total([1.0]) == [2.0] and ranks.broadcast('a') == 'a'\n"
        "    assert ranks.union([str(ranks.rank), 'x']) == ['0', '1', 'x']\n"
        "names = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]\n"
        "assert not [n for n in names if 'gloo' in n], names\n"
    )
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.fault(54)
def test_when_one_process_dies_the_other_ends(tmp_path):
    """Fault 54."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(share())!r})\n"
        "import train.trainer as t\n"
        "step = t.Training._step\n"
        "def dying(self, *a):\n"
        "    if self.world.rank == 1 and a[-1].step == 3:\n"
        "        os._exit(9)\n"
        "    return step(self, *a)\n"
        "t.Training._step = dying\n"
        "from train.main import main\n"
        "main()\n"
    )
    begin = time.perf_counter()
    arguments = [*TORCHRUN, str(script), *command(tmp_path / "run", "trainer.max_steps=50", "trainer.timeout=30")[2:]]
    done = subprocess.run(arguments, cwd=share(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert time.perf_counter() - begin < 120
    state = torch.load(tmp_path / "run/rdmm" / STATE, weights_only=True)
    assert state["progress"]["step"] == 2
