"""Maps at work: images, points and labels go through transforms, and transforms are composed, inverted, converted and measured.

The functions return what they compute, and write it if ``out`` is given. The commands of the same names, ``rdmm.apply``, ``rdmm.points``
and the others call them. Names are loaded when they are first used.
"""

from typing import TYPE_CHECKING

from rdmm.lazy import lazy_names

__all__, __getattr__ = lazy_names(
    "rdmm.mapping",
    {
        "evaluation": ["evaluate", "jacobian"],
        "images": ["apply"],
        "moved_points": ["points"],
        "transforms": ["compose", "convert", "invert"],
    },
)

if TYPE_CHECKING:
    from rdmm.mapping.evaluation import evaluate, jacobian
    from rdmm.mapping.images import apply
    from rdmm.mapping.moved_points import points
    from rdmm.mapping.transforms import compose, convert, invert
