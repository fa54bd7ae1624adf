"""What networks are trained on.

``sources`` and ``tables`` list images, ``splits`` divides subjects and makes pairs, ``library`` reads onto one grid, ``augment`` varies.
``pairs`` gives training pair number k: the same one in every process and after every resume.
"""
