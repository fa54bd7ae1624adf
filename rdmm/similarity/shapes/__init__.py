"""Similarities of points, curves and surfaces: divergences of measures, each in its own file."""
