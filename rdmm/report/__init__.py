"""Pictures and pages.

``figures``, ``animation`` and ``shape_figures`` draw tensors; ``html`` fills the templates of ``pages``.
Nothing here knows a registration: report.html, the studies and TensorBoard draw with the same functions.
"""
