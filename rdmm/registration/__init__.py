"""From files or arrays to a finished registration, and from there to files."""

from rdmm.registration.entry import register, register_shapes
from rdmm.registration.images import Registration
from rdmm.registration.outputs import Output
from rdmm.registration.shapes import ShapeRegistration

__all__ = ["Output", "Registration", "ShapeRegistration", "register", "register_shapes"]
