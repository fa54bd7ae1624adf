"""The names of all that a registration may be given besides its two images. No torch here: the command line uses them."""

from __future__ import annotations

PER_IMAGE_INPUTS = ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "fixed_keypoints", "moving_keypoints")
"""What may be given of either image."""
