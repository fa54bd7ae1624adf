"""What makes the host wait for a GPU, by the line of code; where there is no GPU, for a device that the CPU pretends to be.

The host waits where a value is read (``float(x)``, ``bool(x)``), where something is copied from or to the CPU, and for results whose shape
depends on values (``nonzero``, masks as indices). Tensors of the pretended device say that they are on ``cuda``. Their data are on the CPU,
so every value is right; but they mix with tensors of the CPU only as on a GPU.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 7)
"""An index that no real device has: what is cached by device is not mixed."""

aten = torch.ops.aten

BY_VALUE = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
    aten._linalg_check_errors.default,
    aten.linalg_pinv.atol_rtol_tensor,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten.repeat_interleave.Tensor,
}
"""Operations that give a value, or a shape that depends on values."""

INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._to_copy.default}

SOURCES = tuple(str(Path(__file__).parents[1] / name) for name in ("rdmm", "networks"))


class Pretended(torch.Tensor):
    """A tensor of the pretended device; ``inner`` holds the data."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        out.inner = inner
        return out

    @property
    def device(self) -> torch.device:
        return DEVICE

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:7 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def __repr__(self) -> str:
        return f"Pretended({tuple(self.inner.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the pretended device, outside of Pretence")


class Waits(list[str]):
    """Within it, ``device`` can be used, and what makes the host wait for it is added to this list."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        if torch.cuda.is_available():
            self.device = torch.device("cuda")
            self._stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            warnings.showwarning = lambda _, __, file, line, *___: self.append(f"a read at {Path(file).name}:{line}")
            torch.cuda.set_sync_debug_mode("warn")
            self._stack.callback(torch.cuda.set_sync_debug_mode, "default")
        else:
            self.device = DEVICE
            self._stack.enter_context(Pretence(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


class Pretence(TorchDispatchMode):
    """Within it, the pretended device can be used; what makes the host wait for it is added to ``waits``."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits
        self._no_driver = mock.patch("torch.cuda._lazy_init", return_value=None)

    def __enter__(self) -> Self:
        self._no_driver.start()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes a tensor of the CPU, and copies it in here
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        self._no_driver.stop()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing for torch's compiler to skip, and it takes seconds to load

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tensors = dict(kwargs or {}), []
        _mapped((args, kwargs), tensors.append)
        ours = [x for x in tensors if isinstance(x, Pretended)]
        wanted = kwargs.get("device")
        there = bool(ours) if wanted is None else torch.device(wanted).type in ("cuda", "meta")
        if ours and func not in COPIES and any(x.ndim > 0 and not isinstance(x, Pretended) for x in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        crosses = 0 < len(ours) < len(tensors) if func is aten.copy_.default else bool(tensors) and there != bool(ours)
        if crosses or (ours and _depends_on_values(func, args)):
            self.waits.append(f"{func} at {_place()}")
        if there and wanted is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = _mapped((args, kwargs), lambda x: x.inner if isinstance(x, Pretended) else x)
        out = func(*args, **kwargs)
        known = {id(x.inner): x for x in ours}  # results of operations in place
        return _mapped(out, lambda x: known[id(x)] if id(x) in known else Pretended(x)) if there else out


def _mapped(x: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Arguments or results of an operation with their tensors changed."""
    if isinstance(x, torch.Tensor):
        return change(x)
    if isinstance(x, list | tuple):
        return [_mapped(y, change) for y in x] if isinstance(x, list) else tuple(_mapped(y, change) for y in x)
    return {k: _mapped(y, change) for k, y in x.items()} if isinstance(x, dict) else x


def _depends_on_values(func: Any, args: Any) -> bool:
    return func in BY_VALUE or (func in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]))


def _place() -> str:
    """The innermost line of the package that is running."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(SOURCES):
            return f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"
    return "?"
