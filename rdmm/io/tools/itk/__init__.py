"""Transforms in the files of ITK and ANTs: their files, composites in HDF5, and the maps that ITK's classes stand for."""

from rdmm.io.tools.itk.files import ITK, read_warp, write_affine, write_warp

__all__ = ["ITK", "read_warp", "write_affine", "write_warp"]
