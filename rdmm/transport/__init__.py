"""Entropic optimal transport, balanced and unbalanced (MODEL.md section 6)."""
