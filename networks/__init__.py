"""Networks that predict affine maps and initial conditions."""
