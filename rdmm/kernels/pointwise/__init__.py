"""Compiled loops of what is done at each voxel by itself: affine sampling, measures that look at no neighbors, and RDMM's velocity."""
