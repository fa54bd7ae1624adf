"""Running out of memory is ResourceError, whichever library says so, and only that."""

from __future__ import annotations

import errno
import inspect

import numpy as np
import pytest
import torch

import rdmm
from rdmm.cli import main
from rdmm.runtime.memory import memory_errors
from rdmm.types import InputError, ResourceError
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import run_job


def allocator_error() -> BaseException:
    """What torch raises where the CPU's memory is too small."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    return raised.value


def numpy_error() -> BaseException:
    with pytest.raises(MemoryError) as raised:
        np.empty(2**60, np.uint8)
    return raised.value


ERRORS = {
    "torch, CPU": allocator_error,
    "torch, CPU, other words": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory"),
    "torch, CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuFFT": lambda: RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "MKL": lambda: RuntimeError("MKL FFT error: Intel oneMKL DFTI ERROR: Memory allocation failed"),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "numpy": numpy_error,
    "numba": lambda: MemoryError("Allocation failed (probably too large)."),
    "Python": MemoryError,
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "loader": lambda: ImportError("libtorch_cpu.so: failed to map segment from shared object"),
}

OTHERS = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    RuntimeError("Expected all tensors to be on the same device"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("out of memory lane"),
    InputError("f.nii: out of memory of the scanner"),
    KeyboardInterrupt(),
]


@pytest.mark.fault(35, 51)
@pytest.mark.parametrize("name", ERRORS)
def test_every_librarys_error_is_one(name):
    error = ERRORS[name]()
    with pytest.raises(ResourceError) as raised, memory_errors():
        raise error
    text = str(raised.value)
    first = (str(error).splitlines() or [""])[0]
    assert first[:40] in text and "GiB" in text and "use" in text and "\n" not in text


@pytest.mark.fault(51)
@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, memory_errors():
        raise error
    assert raised.value is error


@pytest.mark.fault(51)
@pytest.mark.parametrize("name", ["torch, CPU", "torch, CUDA", "numba"])
def test_wherever_a_run_begins(tmp_path, monkeypatch, capsys, name):
    """A command, a pair of a batch, Python."""
    error = ERRORS[name]()

    def full(*_, **__):
        raise error

    for place in ("rdmm.workflows.job.read_inputs", "rdmm.registration.entry.read_inputs", "rdmm.io.images.read_raw"):
        monkeypatch.setattr(place, full, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["register", "f.nii", "m.nii", "-o", f"{tmp_path}/"])
    assert ended.value.code == 3 and "ResourceError: out of memory" in capsys.readouterr().err
    row = run_job(Job("f.nii", "m.nii", f"{tmp_path}/"))
    assert (row["status"], row["exit_code"]) == ("ResourceError", 3)
    with pytest.raises(ResourceError):
        rdmm.register(fixed="f.nii", moving="m.nii")
    assert inspect.signature(rdmm.register).parameters["spacing"].kind is inspect.Parameter.KEYWORD_ONLY


def test_it_is_asked_without_torch():
    """``rdmm --help`` imports the gate, and no torch."""
    import subprocess
    import sys

    code = "import sys, rdmm.runtime.memory; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
