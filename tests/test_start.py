"""What a command costs beside the registration: modules, pictures and settings only where they are wanted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rdmm.cli import main
from rdmm.registration.images import Registration
from rdmm.workflows import batch as batches
from rdmm.workflows import job as jobs
from rdmm.workflows.launchers import run_job

FAST = ["optimizer.iterations=[1]", "optimizer.scales=[0.5]", "affine=none", "--quiet"]

UNUSED = {
    *("matplotlib", "torchdiffeq", "sympy", "monai", "surface_distance", "torch._dynamo", "torch._refs"),
    *("rdmm.io.meshes.vtk", "scipy.io", "scipy.ndimage", "scipy.spatial", "scipy.special", "scipy.stats"),
}
"""Modules that a registration of two images does not need, nor its page."""


def run(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(args=[str(w) for w in words], prog_name="rdmm")
    return ended.value.code


def register(images, out, *words) -> int:
    return run("register", images / "f.nii.gz", images / "m.nii.gz", "-o", f"{out}/", *FAST, *words)


@pytest.fixture
def without_pictures(monkeypatch):
    """Any picture is an error."""
    for name in ("figures", "frames", "thumbnail"):
        monkeypatch.setattr(Registration, name, lambda _, name=name: pytest.fail(f"drew {name}"))


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name not in ("run.json", "report.html")}


def test_without_a_report_all_else_is_the_same(images, tmp_path, monkeypatch, capsys):
    """An earlier page goes, as it shows another result; rdmm report writes it later."""
    assert register(images, tmp_path / "out") == 0
    before = files(tmp_path / "out")
    with monkeypatch.context() as patched:
        for name in ("figures", "frames", "thumbnail"):
            patched.setattr(Registration, name, lambda _, name=name: pytest.fail(f"drew {name}"))
        asked, geodesic = [], Registration.geodesic
        patched.setattr(Registration, "geodesic", lambda self, times: asked.append(len(times)) or geodesic(self, times))
        capsys.readouterr()
        assert register(images, tmp_path / "out", "--no-report", "--overwrite") == 0
    assert set(asked) <= {1}, "the whole path of a geodesic is for the animation"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert files(tmp_path / "out") == before and "Warped.nii.gz" in before
    assert "report.html" not in record["outputs"] and "thumbnail" not in record and "report.html" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "report.html").exists()
    assert run("report", tmp_path / "out") == 0 and (tmp_path / "out" / "report.html").exists()


def test_an_existing_page_is_not_removed_unasked(images, tmp_path, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert register(images, tmp_path, "--no-report") != 0
    assert "report.html" in capsys.readouterr().err and (tmp_path / "report.html").read_text() == "mine"


def test_a_batch_without_reports(images, tmp_path, monkeypatch, without_pictures):
    """Its table of pairs has no links to pages that there are not. All pairs share the settings, which are composed once."""
    (images / "pairs.csv").write_text("fixed,moving,id\nf.nii.gz,m.nii.gz,a\n")

    def launch(left, logs):
        yield from ((name, run_job(job)) for name, job in left.items())

    composed = []
    compose = jobs.compose_settings
    monkeypatch.setattr(jobs, "compose_settings", lambda *a: composed.append(a) or compose(*a))
    monkeypatch.setattr(batches, "choose_launcher", lambda *_: launch)
    assert run("batch", images / "pairs.csv", "-o", tmp_path / "out", "--no-report", *FAST) == 0
    assert {p.name for p in (tmp_path / "out" / "a").iterdir()} > {"run.json", "Warped.nii.gz"}
    assert not (tmp_path / "out" / "a" / "report.html").exists()
    assert "report.html" not in (tmp_path / "out" / "index.html").read_text()
    assert len(composed) == 1


def test_a_dry_run_tells_what_will_be_written(images, tmp_path, capsys):
    assert register(images, tmp_path / "out", "--dry-run") == 0
    assert "report.html" in capsys.readouterr().out
    assert register(images, tmp_path / "out", "--dry-run", "--no-report") == 0
    assert "report.html" not in capsys.readouterr().out


def test_modules_are_loaded_where_they_are_used(images, tmp_path):
    """Each would take a tenth of a second or more of a small pair's time."""
    words = ["register", images / "f.nii.gz", images / "m.nii.gz", "-o", f"{tmp_path}/", "optimizer.iterations=[1,1,1]"]
    code = f"""import sys, importlib.util
sys.argv[1:] = {[str(w) for w in words]}
from rdmm.__main__ import main
try:
    main()
finally:
    print(*sorted(sys.modules))
    import torch
    importlib.util.find_spec("torch._dynamo")  # its first step to be imported
    print(*torch.nn.Conv2d(1, 1, 3, device="meta")(torch.empty(1, 1, 5, 5, device="meta")).shape)"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (tmp_path / "report.html").exists(), ended.stderr
    *_, modules, shape = ended.stdout.splitlines()
    assert not UNUSED & set(modules.split())
    assert shape == "1 1 3 3", "torch's compiler has all of torch"


def test_a_mistyped_option_needs_no_torch():
    code = """import sys
sys.argv[1:] = ["register", "--similarity", "ncc"]
from rdmm.__main__ import main
try:
    main()
finally:
    print("torch" in sys.modules)"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "False\n" and "write similarity=ncc" in ended.stderr


def test_torch_that_is_loaded_already_stays_whole():
    """A notebook may run the command in its own process; torch's compiler then still finds its tables."""
    script = (
        "import torch\nfrom rdmm.runtime.torch_start import defer_tables\ndefer_tables()\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[2.0, 2.0]", done.stderr
