"""Writes docs/api.md: the public names and their docstrings. Run it after one of them has changed."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

HERE = Path(__file__).parent
MODULES = {
    "rdmm": "Registration in one call, its building blocks, and the errors.",
    "rdmm.similarity": "Similarities of images, and of points, curves and surfaces; smaller is better.",
    "rdmm.transform": "Transforms: maps between points.",
    "rdmm.io": "Reading and writing files.",
    "rdmm.metrics": "Accuracy and regularity of a registration.",
}


def signature(name: str, thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    for noise in (
        "rdmm.types.",
        "rdmm.spatial.grid.",
        "rdmm.spatial.image.",
        "rdmm.spatial.transform.",
        "pathlib.",
        "collections.abc.",
        "numpy.",
    ):
        text = text.replace(noise, "")
    return f"{name}{text}".replace("'", "")


def public_names(module: object) -> list[str]:
    """The names in ``__all__``, or the module's own functions and classes."""
    public = getattr(module, "__all__", None)
    if public is not None:
        return sorted(n for n in public if not n.startswith("_"))
    own = getattr(module, "__name__", "")
    return sorted(n for n, x in vars(module).items() if not n.startswith("_") and getattr(x, "__module__", None) == own and callable(x))


def render_page() -> str:
    shapes = "Shapes: `b` batch, `c` channels, `d` dimensions, `n` points or Gaussians, `*s` a grid's axes."
    units = "Domain units: millimeters over the longest edge; world: RAS+ millimeters."
    numbers = "`model (n)` is equation (n) of [model.md](model.md)."
    lines = ["# API", "", f"Written by `python docs/api.py` from the docstrings. {shapes} {units} {numbers}", ""]
    for name, what in MODULES.items():
        module = importlib.import_module(name)
        lines += [f"## {name}", "", what, ""]
        for entry in public_names(module):
            thing = getattr(module, entry)
            if inspect.ismodule(thing):
                continue
            lines += [f"### {entry}", ""]
            if callable(thing):
                lines += ["```python", signature(entry, thing), "```", ""]
            lines += ["```text", inspect.getdoc(thing) or "", "```", ""]
            methods = [(k, m) for k, m in vars(thing).items() if not k.startswith("_")] if inspect.isclass(thing) else []
            for method, function in methods:
                text = inspect.getdoc(function)
                if text and (inspect.isfunction(function) or isinstance(function, property)):
                    lines.append(f"- `{method}`: {' '.join(text.split())}")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "api.md").write_text(render_page())
