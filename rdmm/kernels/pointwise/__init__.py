"""Compiled loops of what the affine search does at each voxel by itself: sampling, and measures that look at no neighbors."""
