"""Commands of SLURM for tests: jobs are processes of this machine, and the queue is a folder with a file for each."""

from __future__ import annotations

from pathlib import Path

SBATCH = """#!/bin/bash
number=$(( $(ls "$FAKE/jobs" | wc -l) + 101 ))
cp "$1" "$FAKE/jobs/$number"
[ -n "$FAKE_REFUSES" ] && { echo "sbatch: error: Batch job submission failed: $FAKE_REFUSES" >&2; exit 1; }
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
start() {
  touch "$FAKE/queue/$1"
  [ -n "$FAKE_LOSES" ] && { rm "$FAKE/queue/$1"; return; }
  (
    export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_ID=$number
    [ -n "$2" ] && export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$2
    setsid bash -c 'echo $$ > "$FAKE/queue/'$1'"; bash "$FAKE/jobs/'$number'"; rm -f "$FAKE/queue/'$1'"' > /dev/null 2>&1 &
  )
}
if [ -z "$last" ]; then start "$number" ""; else for i in $(seq 0 "$last"); do start "${number}_$i" "$i"; done; fi
echo "Submitted batch job $number"
"""

SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do
  case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""

SQUEUE = """#!/bin/bash
echo x >> "$FAKE/asked"
[ -e "$FAKE/silent" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
ls "$FAKE/queue"
"""

SCANCEL = """#!/bin/bash
for job in "$@"; do
  for file in "$FAKE/queue/$job" "$FAKE/queue/${job}"_*; do
    [ -e "$file" ] && { pid=$(cat "$file"); kill -TERM -- "-$pid" 2> /dev/null; rm -f "$file"; }
  done
done
"""

SACCT = """#!/bin/bash
[ -n "$FAKE_ACCOUNTS" ] || { echo "Slurm accounting storage is disabled" >&2; exit 1; }
echo "$FAKE_ACCOUNTS"
"""

SCONTROL = """#!/bin/bash
echo "Configuration data as of 2026-01-01"
echo "MaxArraySize            = ${FAKE_ARRAY:-1001}"
"""


def install(folder: Path) -> Path:
    """Write the commands to ``folder``/bin; the folder of the queue and of the submitted jobs."""
    commands = {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scancel": SCANCEL, "sacct": SACCT, "scontrol": SCONTROL}
    for name in ("bin", "queue", "jobs"):
        (folder / name).mkdir(parents=True)
    for name, text in commands.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder
