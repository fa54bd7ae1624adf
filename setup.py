"""What pyproject.toml cannot say: a wheel holds conf/ and networks/ below rdmm/_share, so that pip installs one top-level name.

An editable install takes both from the checkout. As its packages then lie in one plain tree, setuptools puts the checkout on the path.
There, the package rdmm wins over a mere folder of that name beside a user's script; with an import hook the folder would win.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("conf/**/*.yaml", "networks/*.py", "networks/*.safetensors")


class BuildWithShared(build_py):
    """Copies the shared files into a wheel."""

    def _copies(self) -> dict[str, str]:
        """Shared file -> its place in the wheel."""
        files = [path for pattern in SHARED for path in sorted(Path().glob(pattern))]
        return {str(path): str(Path(self.build_lib, "rdmm", "_share", path)) for path in files}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._copies().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._copies()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._copies().values())]


setup(cmdclass={"build_py": BuildWithShared})
