"""The files of ``rdmm demo``."""

from __future__ import annotations

import os
from pathlib import Path

from rdmm import io
from rdmm.spatial.image import Image


def make_demo(out: str, seed: int, *, overwrite: bool) -> dict[str, str]:
    """Write a synthetic pair with its labels and regions into the folder ``out``. Returns the paths by name.

    Raises:
        OutputError: a file of the demo, or of the registration that follows it, exists and ``overwrite`` is false.
    """
    from rdmm.data.synthetic.scenes import shapes_pair
    from rdmm.io.files import Outputs
    from rdmm.registration.base import file_names
    from rdmm.registration.images import MIN_WEIGHT_FILES
    from rdmm.registration.outputs import Output, image_files

    pair, fixed_labels, moving_labels = shapes_pair(seed, variation="together")
    assert pair.regions is not None
    images = {
        "fixed": pair.fixed,
        "moving": pair.moving,
        "fixed_labels": Image(fixed_labels, pair.fixed.grid),
        "moving_labels": Image(moving_labels, pair.moving.grid),
        "regions": pair.regions,
    }
    names = {k: f"{k}.nii.gz" for k in images}
    results = file_names(image_files(Output(), MIN_WEIGHT_FILES))
    outputs = Outputs.prepare(os.path.join(out, ""), [*names.values(), *results], overwrite=overwrite)
    for name, image in images.items():
        io.write_image(outputs.path(names[name]), image.data, image.grid, integer=name not in ("fixed", "moving"))
    return {k: str(Path(outputs.path(v))) for k, v in names.items()}
