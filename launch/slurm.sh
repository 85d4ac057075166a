#!/usr/bin/env bash
# Submits drnas_jax.main to Slurm.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END_OF_USAGE'
usage: launch/slurm.sh [OPTION]... -- ARGUMENTS OF drnas_jax.main

Submits a job to Slurm: whole nodes, and on each of them one process with all its GPUs.

  --nodes=N          how many (1)
  --gpus-per-node=G  GPUs of a node (none)
  --time=LIMIT       time limit of the job, as sbatch takes it (the partition's)
  --grace=SECONDS    SIGTERM comes so long before the time limit: write a checkpoint (120)
  --restarts=N       start the program again so many times after a crash, in the same job (0)
  --name=NAME        of the job (drnas_jax)
  --python=PATH      .venv/bin/python of this checkout if there is one, else python3;
                     the same path on all nodes
  --sbatch=FLAG      one more flag of sbatch, for instance --sbatch=--partition=gpu;
                     can be repeated
  --dry-run          print the command and run nothing
  --help

At its time limit, or when it is preempted, the job goes back into the queue and resumes.
A job that failed or was cancelled is resumed by submitting the same command again.

  launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- \
      --config=configs/imagenet.py --config.data.dir=/data/tfds --workdir=/shared/runs/imagenet
END_OF_USAGE
}

nodes=1 gpus='' time='' grace=120 restarts=0 name=drnas_jax python=$(default_python) flags=()
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --sbatch=*) flags+=("${1#*=}") ;;
    --dry-run) dry_run=1 ;;
    --help) usage && exit ;;
    --) shift && break ;;
    *) unknown "$1" ;;
  esac
  shift
done
program_arguments $#
number --nodes "$nodes" 1
[[ ! $gpus ]] || number --gpus-per-node "$gpus" 1
number --grace "$grace" 1
number --restarts "$restarts" 0
tool sbatch

# A first task that ends leaves the others a minute: to finish their checkpoint too, or, after a
# crash, no longer than that to hang.
step=(srun --kill-on-bad-exit=0 --wait=60 --cpu-bind=none)
if [[ $gpus ]]; then
  # Under Slurm JAX would take one GPU a task; this is all of the node's.
  step+=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))")
fi
step+=("$python" -m drnas_jax.main --distributed "$@")

# Slurm requeues by itself after preemption and a node's failure, but not at the time limit. The
# shell does not get the SIGTERM that precedes it, while scancel ends the shell too: no requeue.
script="for try in \$(seq 0 $restarts); do \
$(quote "${step[@]}") && exit; code=\$?; \
case \$code in 2 | 130) break ;; 143) scontrol requeue \$SLURM_JOB_ID; break ;; esac; \
done; exit \$code"

run sbatch "--job-name=$name" "--nodes=$nodes" --ntasks-per-node=1 --exclusive --mem=0 \
  ${gpus:+"--gpus-per-node=$gpus"} ${time:+"--time=$time"} \
  --requeue "--signal=TERM@$grace" --open-mode=append \
  ${flags[@]+"${flags[@]}"} "--wrap=$script"
