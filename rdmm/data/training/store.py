"""Prepared images on the disk, shared by the processes of a run and by later runs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rdmm.io.files import path_problem, printable, write_atomically
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.types import OutputError
from rdmm.version import __version__

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when images are prepared in another way: then those of earlier versions are made anew."""


@dataclass(frozen=True, eq=False)
class Store:
    """A folder with one file for each prepared image and its labels.

    A file's name is the checksum of the voxels it was made of, and of everything that decides what they become. So a changed image, grid
    or intensity setting has another name, and is never read by mistake. Files are mapped, not copied, so processes share their memory.

    Args:
        folder: its path.
        grid: of the prepared images.
        settings: how images are prepared, as text.
    """

    folder: Path
    grid: Grid
    settings: str

    def read(self, content: str) -> tuple[Image, Image | None] | None:
        """The image made of the voxels with the checksum ``content``, and its labels; None: it is not there."""
        path = self._path(content)
        if not path.exists():
            return None
        try:
            tensors = load_file(path)
            image, labels = (Image(tensors[k], self.grid) if k in tensors else None for k in ("image", "labels"))
            if image is None:
                raise ValueError("there is no image in it")
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s: damaged (%s); it is made anew", path, str(error).splitlines()[0])
            return None
        return image, labels

    def write(self, content: str, image: Image, labels: Image | None) -> None:
        """Keep what was made of the voxels with the checksum ``content``. Raises OutputError."""
        parts = {"image": image, **({} if labels is None else {"labels": labels})}
        write_atomically(self._path(content), save({k: v.data.contiguous() for k, v in parts.items()}))

    def _path(self, content: str) -> Path:
        parts = (str(FORMAT), __version__, repr(self.grid.shape), _place(self.grid).hex(), self.settings, content)
        return self.folder / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}.safetensors"


def _place(grid: Grid) -> bytes:
    return np.asarray(grid.affine, dtype=np.float64).tobytes()


def make_folder(name: str) -> None:
    """Make the folder of a Store if it is not there. Raises OutputError."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"data.cache={printable(name)}: cannot make this folder: {path_problem(Path(name), error)}") from error


def content_of(images: Sequence[Image | None]) -> str:
    """The checksum of images' voxels and of where they are."""
    out = hashlib.sha256()
    for image in images:
        if image is not None:
            out.update(f"{tuple(image.data.shape)} {image.data.dtype}".encode())
            out.update(_place(image.grid))
            out.update(image.data.contiguous().numpy().tobytes())
        out.update(b"|")
    return out.hexdigest()
