"""Writes docs/faults.md: what happens at each fault, and its tests.

Run it after a test is marked with ``@pytest.mark.fault(number)``.
"""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent

FAULTS = {
    "Input images": {
        1: ("missing file", "InputError with the nearest name"),
        2: ("directory instead of a file", "InputError"),
        3: ("empty file", "InputError"),
        4: ("text, or another format", "InputError that names what it is"),
        5: ("truncated .nii.gz", "InputError with the bytes expected and found"),
        6: ("truncated .nii", "InputError with the bytes expected and found"),
        7: ("flipped bits in .nii.gz", "InputError: the CRC is wrong"),
        8: ("header of 30000^3 voxels, small file", "InputError before any memory is taken"),
        9: ("one NaN voxel", "InputError; --nan zero or mask"),
        10: ("5 % NaN", "as 9"),
        11: ("Inf", "as 9"),
        12: ("NaN everywhere", "InputError"),
        13: ("NaN in the fixed image", "as 9"),
        14: ("constant moving image", "InputError: no contrast"),
        15: ("constant fixed image", "InputError: no contrast"),
        16: ("both constant", "InputError: no contrast"),
        17: ("2D with 3D", "InputError with both shapes; 2D with 2D works"),
        18: ("4D", "InputError: choose --volume"),
        19: ("trailing axis of one voxel", "accepted"),
        20: ("very few voxels", "fewer levels; InputError below four"),
        21: ("one slice (X, Y, 1)", "2D, with a notice"),
        22: ("RGB voxels", "InputError"),
        23: ("complex voxels", "InputError"),
        24: ("uint8, int16, int64, float64", "the result of float32"),
        25: ("scl_slope NaN, Inf or 0", "1, with a warning"),
        26: ("no s-form, no q-form, voxel size 0", "identity, with a warning; --strict refuses"),
        27: ("singular affine", "InputError"),
        28: ("sheared affine", "works; ITK's files are refused"),
        29: ("left- and right-handed storage", "the same result in the world"),
        30: ("oblique axes", "the accuracy of straight ones"),
        31: ("anisotropic voxels", "smoothing in millimeters, the same accuracy"),
        32: ("images of different grids", "works; results on the fixed grid"),
        33: ("no overlap", "InputError with both boxes; --init com"),
        34: ("s-form and q-form disagree", "s-form, with a warning"),
        35: ("more memory than there is", "ResourceError before the start, with an estimate"),
        36: ("intensities of 1e6 or 1e-6, negative", "the same result"),
        90: ("files that hold far more than their header says, or less", "nothing is read beyond the header's size; an error at once"),
        91: ("lengths in meters or micrometers", "read as millimeters; results have the unit of the fixed file"),
        92: ("a transform of another tool, or several in one file", "read as its tool means it, or refused by name; never as another's"),
        107: ("2D and 3D transforms, images and points together", "InputError that names both files and their dimensions"),
        106: ("single slices of any plane", "2D, in the plane of the slice; slices of two planes: InputError"),
    },
    "Masks, labels, points": {
        37: ("empty mask", "InputError"),
        38: ("mask or labels of another grid", "resampled with a notice; another shape at the same place: InputError"),
        39: ("mask that is not binary", "where it is above 0"),
        40: ("label missing from one image", "not counted, n_valid says so; never 0 or 1"),
        41: ("label that vanishes in the warped image", "HD95 inf: a failure, counted in hd95_empty"),
        42: ("landmarks: wrong columns, NaN, outside, wrong space", "InputError with the row"),
        100: (
            "tables: a column twice, surplus fields, huge fields, formulas",
            "InputError with the row; cells like =1+1 are written as text",
        ),
        104: ("meshes and streamlines of other versions, damaged, with negative or huge counts", "the same shape, or InputError at once"),
        108: ("points of other tools: LPS, Slicer, identifiers", "the declared frame, or a warning; other columns are kept"),
        120: ("a mesh or list in a format that cannot hold all of it", "a warning names what is left out; an error where nothing is left"),
        88: ("label numbers of any integer width", "kept exactly up to 64 bits; InputError names what cannot be held"),
        96: ("values outside a mask", "no influence: the map is the same to the bit"),
        127: ("a subject without a voxel, or outside the warp, for SDlogJ inside it", "no number (null); `rdmm evaluate` warns"),
    },
    "Output": {
        105: ("outside the field of view", "0 or --default-value; warps of files: the identity, with a warning"),
        43: ("folder missing or not writable", "OutputError before computing"),
        44: ("disk full", "OutputError; the old file stays"),
        45: ("results already exist", "OutputError without --overwrite"),
        46: ("two runs in one folder", "the second gets an OutputError"),
        47: ("killed while writing", "the old file or the new one; what is left is removed by the next run"),
        110: ("killed while --overwrite replaces results", "no run.json, so that nothing vouches for a mixture of two runs"),
        102: ("an output name whose ending is not written", "ConfigError before anything is computed; .NII.GZ is .nii.gz"),
    },
    "Interruption, resources": {
        48: ("Ctrl-C", "best result so far within 10 s, status interrupted, code 130; after the search: status done, code 0"),
        49: ("SIGTERM", "the same, code 143"),
        109: ("SIGHUP: the terminal is closed, the connection lost", "the same, code 129; ignored under nohup"),
        50: ("training killed", "resume gives the weights of an uninterrupted run"),
        51: ("out of memory", "ResourceError with advice; a batch goes on"),
        52: ("a reading process dies", "error that names the file"),
        53: ("bad file in a data set", "named; left out with data.skip_bad"),
        54: ("one of several training processes dies", "the others stop; the last checkpoint is whole"),
    },
    "Numerics": {
        89: ("NaN or Inf in arrays, parameters and results", "InputError or ConfigError; OutputError instead of a file that holds them"),
        103: ("arrays, None, other devices, no_grad in Python", "InputError that says what to pass; the result does not depend on no_grad"),
        119: (
            "`spacing=`, `affine=` that do not fit an array, or without one; labels of another shape",
            "ConfigError or InputError that names it",
        ),
        126: ("`volume=` of an image in memory; numbers that no type of ANTs holds", "ConfigError; OutputError"),
        55: ("divergent shooting", "the line search backs off; DivergenceError without progress; never NaN"),
        56: ("one NaN energy", "the line search backs off and recovers"),
        57: ("the line search fails", "a gradient step"),
        58: ("folding", "counted two ways; --max-folding, code 5"),
        59: ("autocast", "float32 inside; the same result"),
        60: ("mixed devices or types", "moved, or ConfigError that names both"),
        61: ("weights negative, above 1, not summing to 1", "ConfigError; optimized ones stay on the sphere"),
        62: ("no iterations, no levels, a kernel wider than the image", "ConfigError"),
        63: ("identical images", "identity"),
        95: ("a result that cannot be trusted", "verdict check or failed with reasons, on every surface; failed is code 5"),
    },
    "Determinism": {
        64: ("the same seed twice", "files equal to the bit"),
        65: ("one and two threads", "equal to the bit"),
        66: ("order, workers, shards", "the same result of each pair"),
    },
    "Configuration and command line": {
        67: ("unknown key", "ConfigError with the nearest"),
        68: ("wrong type or range", "ConfigError before data are read"),
        69: ("unknown option of a group", "the list and the nearest"),
        144: (
            "regions: an unknown name or entry, weights that do not fit the Gaussians",
            "ConfigError with the nearest, or with what is missing",
        ),
        145: (
            "regions without a label, labels without a region",
            "a warning that names them; an error where no label has weights of its own",
        ),
        70: ("no arguments, -h, --version", "help and 2, 0, 0"),
        71: ("spaces, accents, bytes that are not UTF-8, relative paths", "work"),
        101: (
            "paths that cannot be opened or written: too long, links to nothing, NUL, no rights, pipes",
            "one line before anything is computed",
        ),
    },
    "Batch and data sets": {
        72: ("one corrupt pair of many", "the results of the others, table, failures.json, code 4"),
        73: ("a worker is killed", "this pair fails"),
        74: ("an id twice", "ConfigError with both rows"),
        75: ("an id that is a path", "ConfigError"),
        76: ("one subject in training and test", "ConfigError"),
        77: (
            "a finished batch again",
            "pairs whose files have the right checksums are skipped",
        ),
        78: ("links out of the data, missing columns, wrong JSON, BOM, CRLF", "ConfigError with the line; BOM and CRLF work"),
        97: ("a second training in a folder", "refused, or the earlier models, state and log are moved aside; never deleted"),
        98: ("a cluster's time limits and lost jobs", "the best result so far; every pair has a status; never waited for without end"),
        111: (
            "one image in two splits, a name with two subjects, two images of one name",
            "ConfigError with both files, or both readings; in a list of pairs, names get their folders",
        ),
    },
    "Security": {
        79: ("pickled checkpoint", "refused, not opened"),
        80: ("model that names a function to call", "refused by the allow-list"),
        81: ("YAML tags, alias bombs, huge files", "ConfigError at once"),
        82: ("${oc.env:...} in a model's settings", "not resolved; nothing of the environment is written"),
        83: ("damaged model", "error that names the checksum or the tensor"),
        84: ("model of a newer version, or with missing tensors", "error; nothing is loaded partly"),
        85: ("HTML in names", "shown as text"),
        86: ("network", "never used, at import or in a run"),
        99: ("malformed run.json, failures.json", "InputError that names the field; no page is replaced"),
        87: ("configuration from a file that names a class conf/ does not name", "ConfigError; nothing is called"),
        150: (
            "a class from outside rdmm that was not allowed, does not exist, or fails; a package to allow that is none",
            "ConfigError that names it, and the option to give",
        ),
        151: ("a mistake in one value of a sweep; a job of a sweep that fails", "ConfigError before the first job; the others still run"),
        152: (
            "a class of another kind than its key wants: an optimizer, a schedule, a source, a network, a term of the loss",
            "ConfigError before data are read",
        ),
    },
    "Any file, setting and command": {
        116: ("values that do not fit the type of a result", "the input's type is widened, with a warning; OutputError with --dtype"),
        117: (
            "a label map moved without --labels",
            "noticed by its voxels, moved by nearest neighbor, with a warning that names the options",
        ),
        123: (".nrrd, .nhdr, .mha, .mhd, .mgz, .mgh: cut, empty, a size bomb, degenerate, NaN, no SimpleITK", "InputError or ConfigError"),
        124: ("a DICOM folder with several series, missing slices or none", "InputError that lists them, or says what is missing"),
        125: ("vectors or tensors that are not turned, or nothing to turn", "a warning that names --reorient; ConfigError"),
        115: ("an image, an empty folder or an unknown form of brackets as a transform", "InputError that says what to give"),
        118: ("a further image (`--also`) without its partner, with a weight that is none, or elsewhere", "an error that names it"),
        114: ("settings that contradict `--transform`, or that it leaves without effect", "ConfigError that names both"),
        121: ("a setting typed as an option, spaces around =, -o with the name of a file", "one line that says what to type"),
        112: (
            "hostile values in any field, drawn by the thousand",
            "a finite, exact result that can be written and read; or one error",
        ),
        113: ("characters that control a terminal", "messages show them as escapes"),
    },
    "Shapes and studies": {
        140: ("features that a file does not have, of two sizes, or of images", "InputError with the nearest name; ConfigError for images"),
        141: ("numbers (d = 1) where shapes are registered; powers and costs that are none", "InputError; ConfigError"),
        142: ("families, parts and styles that a study does not have", "ConfigError before anything runs"),
        143: ("a gradient flow of a curve, or without a step", "ConfigError"),
    },
    "Where it runs": {
        93: ("read-only installation, no HOME, a cache of others", "compiled for this run alone, with a notice; torch instead of KeOps"),
        94: ("the run that compiles the kernels", "the bits of every later run"),
    },
}


def tests_by_fault() -> dict[int, list[str]]:
    """The tests of each fault, as file::name."""
    out: dict[int, list[str]] = {}
    for path in sorted((HERE.parent / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    for number in mark.args:
                        out.setdefault(ast.literal_eval(number), []).append(f"{path.name}::{node.name}")
    return out


def render_page() -> str:
    tests = tests_by_fault()
    intro = "Each row is a kind of fault: its tests draw cases from the whole kind, not only one example."
    lines = ["# Faults and what happens", "", intro, "Written by `python docs/faults.py` from the marks of the tests.", ""]
    for heading, faults in FAULTS.items():
        lines += [f"## {heading}", "", "| | fault | what happens | tests |", "|---|---|---|---|"]
        for number, (fault, outcome) in faults.items():
            named = "<br>".join(f"`{t}`" for t in tests.get(number, []))
            lines.append(f"| {number} | {fault} | {outcome} | {named} |".replace("$", "\\$"))
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "faults.md").write_text(render_page())
