"""Studies: data sets times methods, tables and figures."""
