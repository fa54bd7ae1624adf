"""What tells which tool wrote a file of transforms: its name, its first bytes and, of a NIfTI file, the header."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib

from rdmm.io.files import require_file
from rdmm.io.formats.itk_files import ENDINGS, read_itk_header
from rdmm.io.nifti import DISPLACEMENT_INTENT, VECTOR_INTENT, is_image_name, peek

HEAD = 4096
"""Bytes of a file that are looked at: a matrix of 16 numbers is shorter, and so are the comments before the first word of a tool."""


@dataclass(frozen=True)
class Start:
    """The start of a file.

    Args:
        path: the file.
        head: its first bytes.
        header: its header, if its name is that of a NIfTI file.
        shape: the shape that the header states; () without a header.
        is_itk: whether it is an image of a format of ITK, whose vectors are ITK's displacements.
    """

    path: Path
    head: bytes
    header: nib.Nifti1Header | None = None
    shape: tuple[int, ...] = ()
    is_itk: bool = False

    @classmethod
    def of(cls, path: Path) -> Start:
        """Look at a file. Raises InputError if it is missing, empty, or no NIfTI file although its name says so."""
        with open(require_file(path), "rb") as file:
            head = file.read(HEAD)
        if os.fspath(path).lower().endswith(ENDINGS):
            return cls(path, head, shape=read_itk_header(path).shape, is_itk=True)
        shape, header = peek(path) if is_image_name(path) else ((), None)
        return cls(path, head, header, shape)

    @property
    def has_vectors(self) -> bool:
        """Whether the file is an image of vectors: (X, Y, Z, 1, 2 or 3), or (X, Y, Z, 2 or 3) as in FSL and Learn2Reg."""
        return self.in_itk_layout or (len(self.shape) == 4 and self.shape[3] in (2, 3))

    @property
    def is_field(self) -> bool:
        """Whether the header says that the values are vectors, not volumes: by its intent, or by the fifth axis."""
        return self.in_itk_layout or (self.has_vectors and self.intent != 0)

    @property
    def in_itk_layout(self) -> bool:
        return len(self.shape) == 5 and self.shape[3] == 1 and self.shape[4] in (2, 3)

    @property
    def intent(self) -> int:
        """The NIfTI intent code; 0 without a header."""
        if self.is_itk:
            return VECTOR_INTENT
        return 0 if self.header is None else int(self.header["intent_code"])

    @property
    def intent_name(self) -> str:
        """The name that the intent has in the header; "" without one."""
        return "" if self.header is None else bytes(self.header["intent_name"]).rstrip(b"\0").decode("latin-1").strip()

    @cached_property
    def text(self) -> str:
        """The first bytes as text; "" if they are none, or if the file is an image."""
        if b"\0" in self.head or self.shape:
            return ""
        return self.head.decode("latin-1").removeprefix("\xef\xbb\xbf").lstrip()

    @cached_property
    def numbers(self) -> int:
        """How many numbers the file holds, if it is short and holds nothing else but comments (#); otherwise 0."""
        words = [word for line in self.text.splitlines() if not line.lstrip().startswith("#") for word in line.split()]
        try:
            return len([float(word) for word in words]) if len(self.head) < HEAD else 0
        except ValueError:
            return 0


def has_unnamed_vectors(start: Start) -> bool:
    """Whether the header does not tell which tool's vectors an image holds: there is no intent, or AFNI's, which FSL writes as well."""
    return start.has_vectors and (start.intent == DISPLACEMENT_INTENT or (start.intent == 0 and not start.in_itk_layout))
