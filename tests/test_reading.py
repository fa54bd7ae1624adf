"""What reading an image may cost, and which names results may have."""

import pytest

from rdmm.io.files import require_ending
from rdmm.runtime.resources import available_memory, require_memory
from rdmm.types import ConfigError, ResourceError


@pytest.mark.fault(35)
def test_more_memory_than_there_is():
    require_memory(1000, "x.nii")
    with pytest.raises(ResourceError, match=r"^x\.nii needs about [\d.]+ GiB, but only [\d.]+ GiB are free; crop it$"):
        require_memory(2 * available_memory(), "x.nii", "crop it")


@pytest.mark.fault(102)
@pytest.mark.parametrize("name", ["o.nii", "o.nii.gz", "O.NII.GZ", "a.b.Nii"])
def test_endings_in_any_case(name):
    assert require_ending(name, (".nii", ".nii.gz"), "an image").name == name


@pytest.mark.fault(102)
@pytest.mark.parametrize("name", ["o", "o.mha", "o.nii.bz2", "o.gz", "onii", "o.nii.gz.png"])
def test_endings_that_are_not_written(name):
    with pytest.raises(ConfigError, match=r"an image ends in \.nii or \.nii\.gz"):
        require_ending(name, (".nii", ".nii.gz"), "an image")
