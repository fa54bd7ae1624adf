"""Data sets of the evaluations: for each case a name, and a function that reads it."""
