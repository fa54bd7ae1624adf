"""Networks that predict affine maps and initial conditions."""

import rdmm  # noqa: F401  it says how threads wait, which is too late once torch is loaded
