"""Options for further images of the subjects and for their labels."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from rdmm.cli.numbers import FiniteRange

also_option = click.option(
    "--also",
    multiple=True,
    type=(str, str, FiniteRange(0, min_open=True)),
    metavar="FIXED2 MOVING2 [WEIGHT]",
    help="A further image of each subject, such as T2 beside T1, compared in the same way. WEIGHT (that of FIXED and MOVING is 1) is 1 if "
    "left out. Repeat it for more.",
)
guide_option = click.option(
    "--guide-labels", is_flag=True, help="--fixed-labels and --moving-labels take part in the registration, not only in its measurement."
)


class WithWeights(click.Command):
    """A command with --also, whose third value can be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_weights(args))


def with_weights(args: Sequence[str]) -> list[str]:
    """The words of a command line, with the weight 1 where --also has none.

    Raises:
        UsageError: --also is not followed by two files.
    """
    out, left = [], list(args)
    while left:
        out.append(left.pop(0))
        if out[-1] == "--":
            return out + left
        if out[-1] == "--also":
            files, left = left[:2], left[2:]
            if len(files) < 2 or any(f.startswith("-") or _is_setting(f) for f in files):
                got = " ".join(files) or "nothing"
                raise click.UsageError(f"--also takes two images, and a weight if you like: --also FIXED2 MOVING2 [WEIGHT]; got {got}")
            has_weight = bool(left) and _is_number(left[0]) and not os.path.exists(left[0])
            out += [*files, left.pop(0) if has_weight else "1"]
    return out


def _is_setting(word: str) -> bool:
    return "=" in word and not os.path.exists(word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
