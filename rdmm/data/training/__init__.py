"""Training data of networks.

``sources`` and ``tables`` find images, ``splits`` splits subjects and lists pairs, ``library`` reads images onto one grid, ``store``
keeps them on the disk, ``augment`` varies them. ``pairs`` gives training pair number k, which is the same in every process and after
resuming; ``mixture`` draws it from several data sets.
"""
