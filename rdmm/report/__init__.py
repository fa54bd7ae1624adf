"""Figures and web pages of results.

``figures``, ``animation`` and ``shape_figures`` draw tensors; ``html`` fills the templates of ``pages``.
This package knows no registration. report.html, the pages of studies and TensorBoard use the same functions.
"""
