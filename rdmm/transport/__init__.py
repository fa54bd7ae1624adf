"""Entropic optimal transport, balanced and unbalanced (model (34) to (37))."""
