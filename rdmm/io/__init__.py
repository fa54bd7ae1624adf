"""Files: readers that check every value, writers that never leave half a file. No other package knows file formats.

``images`` and ``nifti`` read and write images; ``tools`` holds one file for each tool's transforms.
``transforms`` alone chooses between them; ``meshes``, ``points``, ``tables`` and
``models`` are shapes, lists of points, CSV files and trained networks. Names are loaded when they are first used.
"""

from typing import TYPE_CHECKING

from rdmm.lazy import lazy_names

__all__, __getattr__ = lazy_names(
    "rdmm.io",
    {
        "files": ["Outputs", "sha256", "write_atomically"],
        "formats.choice": ["read_grid"],
        "formats.stack": ["read_stack"],
        "images": ["read_image", "read_labels", "read_mask", "write_image"],
        "meshes": ["Mesh", "is_mesh", "read_mesh", "write_mesh"],
        "points": ["PointList", "read_points", "write_points"],
        "tables": ["read_keypoints", "read_landmarks", "write_table"],
        "tools.itk": ["write_affine", "write_warp"],
        "transforms": ["read_transform", "read_transforms"],
    },
)

if TYPE_CHECKING:
    from rdmm.io.files import Outputs, sha256, write_atomically
    from rdmm.io.formats.choice import read_grid
    from rdmm.io.formats.stack import read_stack
    from rdmm.io.images import read_image, read_labels, read_mask, write_image
    from rdmm.io.meshes import Mesh, is_mesh, read_mesh, write_mesh
    from rdmm.io.points import PointList, read_points, write_points
    from rdmm.io.tables import read_keypoints, read_landmarks, write_table
    from rdmm.io.tools.itk import write_affine, write_warp
    from rdmm.io.transforms import read_transform, read_transforms
