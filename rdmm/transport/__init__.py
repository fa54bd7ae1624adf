"""Entropic optimal transport, balanced and unbalanced (model (34) to (37)).

``sinkhorn`` is the iteration that densities on grids (``on_grids``) and clouds of points (``on_points``) share.
``softmin`` is its inner step on grids; ``barycenter`` has weighted means of densities, and transfers values along a plan.
"""
