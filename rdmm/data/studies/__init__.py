"""Data sets of the evaluations: each gives names of cases, and for each a function that reads it.

Images come with labels, landmarks or regions by which a map is evaluated. Files are read when a case is asked for.
"""
