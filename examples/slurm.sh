#!/usr/bin/env bash
# Trains on the GPUs of several nodes; goes back to the queue when its time is up:
#   sbatch examples/slurm.sh --config=configs/reviews.py --workdir=/shared/runs/a
# Submit it from the root of the repository. All nodes need to share the disk of --workdir.
#SBATCH --job-name=weitiao
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# A task for each GPU, as JAX expects of Slurm. SIGTERM comes 300 s before the end; the log of a
# requeued job goes on in the same file.
set -euo pipefail

PYTHON=${PYTHON:-python} # of an environment with '.[demo,cuda]'

code=0
# Tasks end by themselves, each with its checkpoint written: none may be killed for another's end.
srun --kill-on-bad-exit=0 "$PYTHON" main.py "$@" || code=$?
# 75: interrupted, and all is saved.
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
