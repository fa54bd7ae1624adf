"""Images of formats other than NIfTI: one module for each library that reads them."""
