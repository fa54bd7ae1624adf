"""Where things are and how they move.

``grid`` alone knows voxels, world millimeters and domain units; ``ops`` samples and differentiates; ``gaussian`` filters.
``transform`` holds maps of points; ``image`` and ``measure`` are the two kinds of shapes, and ``pair`` is what is registered.
"""
