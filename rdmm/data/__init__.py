"""Data: pairs made here or read from the layouts of data sets."""
