"""``rdmm batch``."""

from __future__ import annotations

from typing import Any

import click

from rdmm.cli.terminal import common_options, set_log, show


@click.command(no_args_is_help=True)
@click.argument("pairs")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", required=True, help="Folder: one folder of results for each pair, a table, failures.json, index.html.")
@click.option("--root", help="Folder that the paths of PAIRS are below; by default its own.")
@click.option("--resume", is_flag=True, help="Skip pairs whose results are there: same settings, inputs and files by checksum.")
@click.option("--shard", metavar="I/N", help="Every N-th pair from the I-th, for N machines that share the folder.")
@click.option("--jobs", type=int, help="Pairs at a time; by default as many as cores and memory allow.")
@click.option("--launcher", type=click.Choice(["local", "submitit"]), default="local", show_default=True)
@click.option("--slurm", multiple=True, metavar="NAME=VALUE", help="Option of sbatch, with --launcher submitit; repeat it.")
@click.option("--weights", help="Model that train.py wrote.")
@click.option("--init", type=click.Choice(["auto", "header", "com", "axes"]), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), help="What to do with NaN and Inf: an error without it.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--max-folding", type=float, help="A pair of which more than this percentage of cells folds has failed.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of each pair.")
@click.option("--seed", type=int, default=0)
@click.option("--dry-run", is_flag=True, help="Check the list and the settings, estimate the memory, compute nothing.")
@common_options
def batch(pairs: str, overrides: tuple[str, ...], out: str, **options: Any) -> int:
    """Register the pairs of a CSV (columns fixed, moving[, id, fixed_labels, ...]) or of a Learn2Reg JSON.

    Each pair runs on its own: one that fails is listed in failures.json, and the exit code is 4.

    \b
    Examples:
      rdmm batch pairs.csv -o out/ --jobs 2
      rdmm batch pairs.csv -o out/ --resume dynamics=lddmm
      rdmm batch dataset.json -o out/ --shard 1/4 --launcher submitit --slurm partition=cpu
    """
    wrong = [a for a in overrides if "=" not in a]
    if wrong:
        raise click.UsageError(f"settings are KEY=VALUE; got {wrong[0]!r}")
    set_log(options["quiet"], options["debug"])
    return _batch(pairs, out, list(overrides), **options)


def _batch(pairs: str, out: str, overrides: list[str], **o: Any) -> int:
    from rdmm.runtime.interrupt import interruptible
    from rdmm.workflows import batch as batches
    from rdmm.workflows.job import Job
    from rdmm.workflows.launchers import Launcher

    settings = {k: o[k] for k in ("init", "weights", "device", "threads", "seed", "max_folding")}
    job = Job("", "", "", overrides, {"nan": o["nan"], "strict": o["strict"]}, **settings)
    whole = batches.Batch(pairs, out, job, o["root"], batches.parse_shard(o["shard"]))
    jobs = whole.jobs()
    launcher: Launcher = batches.choose_launcher(o["launcher"], jobs, o["jobs"], o["slurm"])
    if o["dry_run"]:
        whole.check(jobs)
        show({"pairs": len(jobs), "launcher": str(launcher)}, o["as_json"])
        return 0
    with interruptible("no more pairs are begun, those that run write their best result (once more: quit at once)") as seen:
        rows = {}
        for id, row in whole.run(launcher, resume=o["resume"], overwrite=o["overwrite"]):
            rows[id] = row
            if not o["quiet"]:
                click.echo(f"[{len(rows)}/{len(jobs)}] {batches.format_outcome(id, row)}", err=True)
    failed = [id for id, row in rows.items() if batches.has_failed(row)]
    listed = [{"id": id, **rows[id]} for id in jobs]
    if o["as_json"]:
        show({"pairs": len(jobs), "done": len(rows) - len(failed), "failed": failed, "rows": listed}, True)
    else:
        click.echo(batches.format_table(listed))
        click.echo(f"{len(rows) - len(failed)} of {len(jobs)} pairs done; {whole.path('table.csv')}")
    if seen:
        return 128 + seen["signal"]
    return 4 if failed else 0
