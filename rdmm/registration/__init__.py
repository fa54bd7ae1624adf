"""From files or arrays to a finished registration, and from there to files."""

from rdmm.registration.images import Registration, register
from rdmm.registration.outputs import Output
from rdmm.registration.shapes import ShapeRegistration, register_shapes

__all__ = ["Output", "Registration", "ShapeRegistration", "register", "register_shapes"]
