"""``rdmm batch``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from rdmm.cli.images import guide_option
from rdmm.cli.numbers import JOBS, PERCENT, SEED, THREADS
from rdmm.cli.terminal import allow_option, common_options, print_result, report_option, set_log
from rdmm.data.given import AFFINE_STARTS, TRANSFORM_HELP, TRANSFORMS
from rdmm.types import ConfigError

if TYPE_CHECKING:
    from rdmm.workflows.batch import Batch
    from rdmm.workflows.launchers import Outcome


@click.command(no_args_is_help=True)
@click.argument("pairs")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", required=True, help="Output folder: one folder per pair, table.csv, failures.json, index.html.")
@click.option("--root", help="Folder that all paths in PAIRS are relative to; by default the folder of PAIRS.")
@click.option("--resume", is_flag=True, help="Skip finished pairs: those with the same settings, inputs and result files.")
@click.option("--verify", is_flag=True, help="With --resume: read all files of finished pairs, also those that look unchanged.")
@click.option("--shard", metavar="I/N", help="Run every N-th pair, starting at the I-th; for N machines that share the folder.")
@click.option("--jobs", type=JOBS, help="Number of pairs that run at the same time; by default as many as cores and memory allow.")
@click.option("--launcher", type=click.Choice(["local", "submitit"]), default="local", show_default=True)
@click.option("--slurm", multiple=True, metavar="NAME=VALUE", help="Option of sbatch, or pairs_per_task=N (--launcher submitit).")
@click.option("--weights", help="Model that train.py wrote.")
@guide_option
@click.option("--transform", type=click.Choice(TRANSFORMS), help=TRANSFORM_HELP)
@click.option("--init", type=click.Choice(AFFINE_STARTS), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), help="How to treat NaN and Inf; by default they are an error.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--max-folding", type=PERCENT, help="A pair fails if more than this percentage of its cells folds.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="CPU threads per pair.")
@click.option("--seed", type=SEED, default=0)
@click.option(
    "--dry-run", is_flag=True, help="Check the list, the settings and every pair, compute nothing. Exit code 2: some pairs would fail."
)
@allow_option
@report_option
@common_options
def batch(
    pairs: str,
    overrides: tuple[str, ...],
    out: str,
    root: str | None,
    resume: bool,
    verify: bool,
    shard: str | None,
    jobs: int | None,
    launcher: str,
    slurm: tuple[str, ...],
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Register the pairs of a CSV (columns fixed, moving[, id, fixed_labels, ...]) or of a Learn2Reg JSON.

    Each pair runs in its own process. If some fail, the others go on; failures.json lists those that failed, and the exit code is 4.

    \b
    Examples:
      rdmm batch pairs.csv -o out/ --jobs 2
      rdmm batch pairs.csv -o out/ --resume dynamics=lddmm
      rdmm batch dataset.json -o out/ --shard 1/4 --launcher submitit --slurm partition=cpu
    """
    wrong = [a for a in overrides if "=" not in a]
    if wrong:
        raise click.UsageError(f"settings are KEY=VALUE; got {wrong[0]!r}")
    if verify and not resume:
        raise click.UsageError("--verify works only with --resume")
    set_log(quiet, debug)
    from rdmm.workflows.batch import Batch, choose_launcher, parse_shard
    from rdmm.workflows.job import Job

    inputs = {"nan": options.pop("nan"), "strict": options.pop("strict")}
    whole = Batch(pairs, out, Job("", "", "", list(overrides), inputs, **options), root, parse_shard(shard))
    chosen = whole.jobs()
    launch = choose_launcher(launcher, chosen, jobs, slurm)
    if dry_run:
        failing = whole.check(chosen, resume=resume, overwrite=overwrite)
        unusable = [f"{id}: {outcome['message']}" for id, outcome in failing.items()]
        print_result({"pairs": len(chosen), "launcher": launcher, "unusable": unusable}, as_json)
        return ConfigError.exit_code if unusable else 0
    return run(whole, whole.run(launch, resume=resume, overwrite=overwrite, verify=verify), list(chosen), quiet=quiet, as_json=as_json)


def run(batch: Batch, ended: Iterator[tuple[str, Outcome]], ids: list[str], *, quiet: bool, as_json: bool) -> int:
    """Run a batch: print one line per pair that has ended, and at the end the table of ``ids``. Returns the exit code."""
    from rdmm.runtime.interrupt import interruptible
    from rdmm.workflows.batch import format_outcome, format_table, has_failed

    outcomes = {}
    with interruptible("no new pairs are started; running pairs write their best result (press again to quit at once)") as seen:
        for id, outcome in ended:
            outcomes[id] = outcome
            if not quiet:
                click.echo(f"[{len(outcomes)}/{len(ids)}] {format_outcome(id, outcome)}", err=True)
    failed = [id for id, outcome in outcomes.items() if has_failed(outcome)]
    done = len(outcomes) - len(failed)
    rows = [{"id": id, **outcomes[id]} for id in ids]
    if as_json:
        print_result({"pairs": len(ids), "done": done, "failed": failed, "rows": rows}, as_json)
    else:
        click.echo(format_table(rows))
        grades = [row.get("verdict") for row in rows]
        counts = ", ".join(f"{grades.count(grade)} {grade}" for grade in ("good", "check", "failed") if grade in grades)
        click.echo(f"{done} of {len(ids)} pairs done{f' ({counts})' if counts else ''}; {batch.path('table.csv')}")
    if seen and any(row["exit_code"] == 130 for row in rows):  # otherwise the signal came when all pairs had ended
        return 128 + seen["signal"]
    return 4 if failed else 0
