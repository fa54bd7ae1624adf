"""What geodesics need on their grid: cubic sampling, differences of the fourth order, and fields on finer and coarser grids.

A search finds initial conditions that suit the numerics it sees. What is of low order here would be fitted together with the images, and
the geodesic of the same initial conditions on a finer grid would be another one (docs/model.md, facts that were checked).
"""
