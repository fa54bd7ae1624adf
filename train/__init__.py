"""Training of the networks that predict affine maps and initial conditions."""
