"""Generators of hostile inputs, a module for each family of formats, and the oracle that judges what comes of them."""
