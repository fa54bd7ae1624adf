"""What the terminal says: one line that says what to do, in the words that were typed."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from rdmm import io
from rdmm.cli import main
from rdmm.cli.register import register
from rdmm.config import changed_settings, compose
from rdmm.config.explain import ARGUMENTS
from rdmm.data.synthetic.scenes import shapes_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images with label maps."""
    folder = tmp_path_factory.mktemp("files")
    pair, fixed_labels, moving_labels = shapes_pair(3, (24, 24))
    for name, x in (("f", pair.fixed.data), ("m", pair.moving.data), ("fl", fixed_labels), ("ml", moving_labels)):
        io.write_image(folder / f"{name}.nii.gz", x, pair.fixed.grid, integer=name.endswith("l"))
    io.write_affine(folder / "a.mat", np.eye(3))
    return folder


def said(folder, text):
    """The exit code, and what the terminal shows on stderr and stdout."""
    words = [str(folder / f"{w}.nii.gz") if (folder / f"{w}.nii.gz").exists() else w.replace("OUT", f"{folder}/new/") for w in text.split()]
    done = CliRunner().invoke(main, words)
    return done.exit_code, done.stderr, done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("register f m -o OUT --similarity ncc", "--similarity is a setting and no option: write similarity=ncc, without dashes"),
        ("register f m -o OUT --optimizer.iterations=[3]", "write optimizer.iterations=[3], without dashes"),
        ("register f m -o OUT --dynamics", "write dynamics=VALUE"),
        ("register f m -o OUT similarity = lncc", "no spaces around =: write similarity=lncc"),
        ("register f m -o OUT similarity= lncc", "no spaces around =: write similarity=lncc"),
        ("register f m -o OUT similarity =lncc", "no spaces around =: write similarity=lncc"),
        ("register f -o OUT", "give two images, FIXED and MOVING; got 1"),
        ("register f m", "Missing option '-o' / '--out'"),
        ("register f m -o OUT --strct", "No such option '--strct'"),
        ("registr f m", "Did you mean 'register'?"),
        ("register f m -o OUT/w.nii.gz", "the results are several files, so --out is a folder"),
        ("register f m -o OUT/w.nii.gz --dry-run", "the results are several files, so --out is a folder"),
        ("register f m -o OUT out=x", "did you mean --out?"),
        ("register f m -o OUT --device gpu", "cpu or cuda"),
        ("register f m -o OUT affine=none --init header", "affine.init (--init) has no effect with affine=none"),
    ],
)
@pytest.mark.fault(67, 121)
def test_a_usage_error_is_one_line_that_says_what_to_do(folder, text, message):
    code, err, out = said(folder, text)
    assert code in (2, 3) and message in err and err.startswith("rdmm: ") and err.count("\n") == 1 and not out, err
    assert not (folder / "new").exists()


def test_arguments_that_are_no_settings_are_options():
    """The names that an unknown key may have meant."""
    options = {p.name for p in register.params}
    assert set(ARGUMENTS) <= options, set(ARGUMENTS) - options


def test_one_label_map_without_the_other_is_said(folder):
    assert (
        "--moving-labels alone are warped and written; Dice needs --fixed-labels"
        in said(folder, "register f m -o OUT --dry-run --moving-labels ml")[1]
    )
    assert (
        "--fixed-labels alone only say where the subject is: Dice needs --moving-labels"
        in said(folder, "register f m -o OUT --dry-run --fixed-labels fl")[1]
    )


def test_a_dry_run_shows_what_differs_from_the_defaults(folder):
    code, _, out = said(folder, "register f m -o OUT --dry-run optimizer.scales=[.5,1] optimizer.iterations=[3,4] similarity=SSD")
    assert code == 0 and len(out.splitlines()) < 12, out
    assert "  optimizer.scales: [0.5, 1]\n" in out and "  similarity: rdmm.similarity.SSD\n" in out
    assert "settings: the defaults" in said(folder, "register f m -o OUT --dry-run")[2]
    assert "deform:" in said(folder, "register f m -o OUT --dry-run --debug")[2]


def test_settings_that_follow_others_are_shown_once():
    assert changed_settings(compose(["smoother.sigmas=[.1,.2,.3,.4]"])) == {"smoother.sigmas": [0.1, 0.2, 0.3, 0.4]}
    assert changed_settings(compose(["dynamics=lddmm", "smoother=fine"])) == {"dynamics": "rdmm.dynamics.LDDMM"}
    assert changed_settings(compose((), "shapes"), "shapes") == {}
