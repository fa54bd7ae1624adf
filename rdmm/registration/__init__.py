"""From files or arrays to a finished registration, and from there to files.

``entry`` composes settings and runs a registration, for the command line, batches, studies and Python. ``images`` and ``shapes`` are the
finished registrations. ``outputs`` is the table of files that they write, ``record`` writes and reads run.json, and ``stored`` rebuilds
a registration from its files.
"""

from rdmm.registration.entry import register, register_shapes
from rdmm.registration.images import Registration
from rdmm.registration.outputs import Output
from rdmm.registration.shapes import ShapeRegistration

__all__ = ["Output", "Registration", "ShapeRegistration", "register", "register_shapes"]
