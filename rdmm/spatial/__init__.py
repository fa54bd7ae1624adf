"""Where things are and how they move: grids, sampling and differences, Gaussian filters, transforms, images, measures and pairs."""
