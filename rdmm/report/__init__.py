"""Pictures and pages. Tensors and tables go in, figures and HTML come out: nothing here knows a registration."""
