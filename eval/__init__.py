"""Studies: data sets times methods, tables and figures."""

import rdmm  # noqa: F401  it says how threads wait, which is too late once torch is loaded
