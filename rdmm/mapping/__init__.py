"""Maps at work: images, points and labels go through transforms, and transforms are composed, inverted, converted and measured.

The functions return what they compute, and write it if ``out`` is given. The commands of the same names, ``rdmm.apply``, ``rdmm.points``
and the others call them.
"""

from rdmm.mapping.evaluation import evaluate, jacobian
from rdmm.mapping.images import apply
from rdmm.mapping.moved_points import points
from rdmm.mapping.transforms import compose, convert, invert

__all__ = ["apply", "compose", "convert", "evaluate", "invert", "jacobian", "points"]
