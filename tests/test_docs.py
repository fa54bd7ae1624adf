"""What the documentation shows is run: the gallery's scripts on small data."""

from __future__ import annotations

import re
import runpy
import subprocess

import pytest
from click.testing import CliRunner

from rdmm.cli import main
from rdmm.config.compose import share

DOCS = share() / "docs"
SMALL = {
    "register": {"size": 40, "iterations": 2},
    "labels": {"size": 72, "iterations": 2},
    "study": {"size": 32, "iterations": 2, "pairs": 2},
    "train": {"size": 32, "steps": 2},
    "shapes": {"points": 20, "iterations": 3},
}


def run_here(run):
    """``subprocess.run``, which calls the commands of rdmm in this process: a script's commands need not load torch five times."""

    def start(words, **options):
        if words[1:3] != ["-m", "rdmm"] or words[3] == "batch":
            return run(words, **options)
        done = CliRunner().invoke(main, words[3:])
        assert done.exit_code == 0, done.stderr
        return done

    return start


@pytest.mark.parametrize("name", [p.stem for p in sorted((DOCS / "gallery").glob("*.py"))])
def test_the_gallery(tmp_path, monkeypatch, name):
    monkeypatch.setattr(subprocess, "run", run_here(subprocess.run))
    runpy.run_path(str(DOCS / "gallery" / f"{name}.py"))["main"](tmp_path, **SMALL[name])
    assert list(tmp_path.rglob("run.json"))
    assert name in (DOCS / "gallery" / "README.md").read_text()


def test_the_readme_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    """The first Python example of README.md: from arrays to files."""
    code = re.findall(r"^```python\n(.*?)^```", (share() / "README.md").read_text(), re.M | re.S)[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102
    assert (tmp_path / "from_python" / "Warped.nii.gz").exists()
    assert capsys.readouterr().out.startswith("good 0.0 [[")


def test_links_lead_somewhere():
    """Every relative link of the pages is a file."""
    pages = [share() / "README.md", share() / "CONTRIBUTING.md", *DOCS.rglob("*.md"), share() / "benchmarks" / "README.md"]
    for page in pages:
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_api_page_is_up_to_date():
    """docs/api.md is what docs/api.py makes."""
    assert (DOCS / "api.md").read_text() == runpy.run_path(str(DOCS / "api.py"))["render_page"]()
