"""run.json and failures.json that were altered: an error in one line that names the field; pages are replaced only if all is fine."""

import copy
import json
import shutil

import pytest
from click.testing import CliRunner

import rdmm
from rdmm import InputError
from rdmm.cli import main
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.io import write_image
from rdmm.registration.record import read_summary
from rdmm.registration.schema import FIELDS
from rdmm.types import RdmmError
from rdmm.workflows.inspect import info
from rdmm.workflows.job import Job
from rdmm.workflows.reports import study_rows, write_report

DEEP = json.loads("[" * 300 + "]" * 300)
NONSENSE = [None, 5, -1, "x", "", [], {}, [5], {"a": 5}, True, float("nan"), float("inf"), "1e400", 10**400, DEEP]
SETTINGS = {"affine": "none", "optimizer.scales": "[1]", "optimizer.iterations": "[1]"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run with labels, so that its metrics are nested."""
    folder = tmp_path_factory.mktemp("run")
    pair, fixed_labels, moving_labels = shapes_pair(3, (24, 24))
    labels = {"fixed_labels": fixed_labels, "moving_labels": moving_labels}
    files = {"fixed": pair.fixed.data, "moving": pair.moving.data, **labels}
    for name, x in files.items():
        write_image(folder / f"{name}.nii.gz", x, pair.fixed.grid, integer=name in labels)
    job = Job(
        str(folder / "fixed.nii.gz"),
        str(folder / "moving.nii.gz"),
        f"{folder}/out/",
        [f"{k}={v}" for k, v in SETTINGS.items()],
        {k: str(folder / f"{k}.nii.gz") for k in labels},
    )
    settings = job.settings()
    job.run(job.read(), settings)
    return job, folder / "out"


def refusal(use):
    """The error of a call, or None."""
    try:
        use()
    except RdmmError as error:
        return error
    return None


def write(path, content):
    path.write_text(json.dumps(content).replace('"1e400"', "1e400"))


def places(summary):
    """Each key of a run.json, and one key inside each that holds more, as paths."""
    for name, value in summary.items():
        yield (name,)
        inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        for key in inner[:1]:
            yield (name, key)
            if isinstance(value[key], dict) and name in ("inputs", "history", "metrics"):
                yield from ((name, key, k) for k in value[key])


def altered(summary, place):
    """The summary without the entry at a place, and with each nonsense there."""
    for value in (KeyError, *NONSENSE):
        other = copy.deepcopy(summary)
        node = other
        for key in place[:-1]:
            node = node[key]
        if value is KeyError:
            del node[place[-1]]
        else:
            node[place[-1]] = value
        yield other


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.fault(99)
def test_altered_records(run, name):
    """Report, info, lists and resume: an InputError that names the field, or the altered value is one that the field can hold."""
    job, out = run
    settings = job.settings()
    record, page = out / "run.json", out / "report.html"
    whole, before = record.read_bytes(), page.read_bytes()
    summary = json.loads(whole)
    summary.setdefault("reading", {})
    try:
        for place in [p for p in places(summary) if p[0] == name]:
            for other in altered(summary, place):
                write(record, other)
                error = refusal(lambda: read_summary(record))
                if error is not None:
                    assert isinstance(error, InputError) and name in str(error) and "run.json" in str(error)
                    assert "\n" not in str(error) and len(str(error)) < 500
                    for use in (lambda: write_report(str(out), overwrite=True), lambda: info(str(out)), lambda: info(str(record))):
                        with pytest.raises(InputError):
                            use()
                    assert job.find_finished_run(settings) is None
                    assert [row["status"] for row in study_rows(out.parent)] == ["unreadable"]
                else:
                    assert info(str(record))["kind"] == "run"
                    assert study_rows(out.parent)[0]["id"] == "out"
                    job.find_finished_run(settings)
                assert page.read_bytes() == before
    finally:
        record.write_bytes(whole)


@pytest.mark.fault(99)
def test_values_that_a_field_can_hold_but_no_run_does(run, tmp_path):
    """They pass the schema; the report is made, or refused in one line and not replaced."""
    _, out = run
    shutil.copytree(out, tmp_path / "out")
    record, page = tmp_path / "out/run.json", tmp_path / "out/report.html"
    whole, before = json.loads(record.read_text()), page.read_bytes()
    changes = [
        {"config": {}},
        {"config": {**whole["config"], "stages": None}},
        {"config": {**whole["config"], "stages": {"_target_": "rdmm.optim.Zero"}}},
        {"config": {**whole["config"], "intensity": 5}},
        {"config": {**whole["config"], "output": {"_target_": "rdmm.stages.Skip"}}},
        {"config": {**whole["config"], "stages": {"_target_": "rdmm.stages.Chain", "stages": [None]}}},
        {"inputs": {}},
        {"inputs": {"fixed": whole["inputs"]["fixed"]}},
        {"inputs": {**whole["inputs"], "moving": {"path": "none\0.nii", "sha256": "0" * 64}}},
        {"inputs": {**whole["inputs"], "moving": {"path": "/", "sha256": "0" * 64}}},
        {"inputs": {**whole["inputs"], "regions": whole["inputs"]["moving"]}},
        {"reading": {"volume": 3}},
        {"outputs": {"none": "0" * 64}},
    ]
    for change in changes:
        write(record, whole | change)
        error = refusal(lambda: write_report(str(tmp_path / "out"), overwrite=True))
        if error is not None:
            assert error.exit_code == 3 and "\n" not in str(error)
            assert page.read_bytes() == before and json.loads(record.read_text()) == whole | change
        before = page.read_bytes()


@pytest.mark.parametrize(
    "text", ["", " ", "5", "[]", "null", '"x"', "{", "NaN", "[" * 100000, '{"a":' * 100000, "\ufeff{}", "{}" * 2, "1" * 5000]
)
@pytest.mark.fault(99)
def test_files_that_are_no_record(run, tmp_path, text):
    _, out = run
    record = tmp_path / "out" / "run.json"
    shutil.copytree(out, tmp_path / "out")
    record.write_text(text)
    for use in (lambda: read_summary(record), lambda: write_report(str(tmp_path / "out"), overwrite=True), lambda: info(str(record))):
        with pytest.raises(InputError) as caught:
            use()
        assert "run.json" in str(caught.value) and "\n" not in str(caught.value)
    assert rdmm.io.sha256(tmp_path / "out/report.html") == rdmm.io.sha256(out / "report.html")


@pytest.mark.parametrize("wrong", NONSENSE, ids=lambda x: str(x)[:9])
@pytest.mark.fault(99)
def test_altered_failures(run, tmp_path, wrong):
    _, out = run
    shutil.copytree(out, tmp_path / "out")
    row = {"id": "a", "status": "InputError", "message": "m"}
    contents = [wrong, [wrong], *([{**row, k: wrong}] for k in row), *([{k: v for k, v in row.items() if k != name}] for name in row)]
    for content in contents:
        write(tmp_path / "failures.json", content)
        error = refusal(lambda: study_rows(tmp_path))
        if error is not None:
            assert isinstance(error, InputError) and "failures.json" in str(error) and "\n" not in str(error)
        else:
            assert all(isinstance(r[k], str) for r in study_rows(tmp_path) for k in row)
    assert (tmp_path / "out/report.html").exists()


def test_info_of_a_run(run):
    """A folder of results, a prefix's run.json: status and files; any other folder says what to give."""
    _, out = run
    for name in (f"{out}/", str(out), str(out / "run.json")):
        done = CliRunner().invoke(main, ["info", name, "--json"])
        assert done.exit_code == 0, done.output
        shown = json.loads(done.stdout)
        assert shown["status"] == "done" and "1Warp.nii.gz" in shown["files"] and shown["moving"].endswith("moving.nii.gz")
    with pytest.raises(InputError, match=r"is a directory without run\.json; give a file"):
        info(str(out.parent))
