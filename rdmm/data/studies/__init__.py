"""Data sets for evaluation. Each gives the names of its cases, and for each case a function that reads it.

Images come with labels, landmarks or regions, by which a map is evaluated.
"""
