#!/usr/bin/env bash
# Submits a job with drnas_jax.main to Slurm.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END_OF_USAGE'
usage: launch/slurm.sh [OPTION]... -- ARGUMENTS OF drnas_jax.main

Submits a job to Slurm that takes whole nodes, with one process per node for all its GPUs. Defaults
are in parentheses.

  --nodes=N          number of nodes (1)
  --gpus-per-node=G  number of GPUs of a node (none)
  --time=LIMIT       time limit of the job, in sbatch's format (that of the partition)
  --grace=SECONDS    time between SIGTERM and the time limit, to write a checkpoint (120)
  --restarts=N       start the program again up to N times after a crash, in the same job (0)
  --array            submit one task for each of the config's runs (cost.targets times seeds), which
                     share the workdir and stop and resume separately; asks the program for their
                     number, so --python must run here too
  --name=NAME        name of the job (drnas_jax)
  --python=PATH      Python to use, at the same path on all nodes
                     (.venv/bin/python of this checkout if it exists, else python3)
  --sbatch=FLAG      pass a flag to sbatch, for example --sbatch=--partition=gpu; can be repeated
  --dry-run          print the command and run nothing
  --help             print this text

If the job reaches its time limit or is preempted, it returns to the queue and resumes later. If it
failed or was cancelled, submit the same command again to resume it.

  launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- \
      --config=configs/imagenet.py --config.data.dir=/data/tfds --workdir=/shared/runs/imagenet
END_OF_USAGE
}

nodes=1 gpus='' time='' grace=120 restarts=0 array='' name=drnas_jax python=$(default_python)
flags=()
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --array) array=1 ;;
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

# When the first task ends, the others get one minute: enough to finish a checkpoint, and a limit if
# they hang after a crash.
step=(srun --kill-on-bad-exit=0 --wait=60 --cpu-bind=none)
if [[ $gpus ]]; then
  # Under Slurm JAX takes one GPU per task unless it is told to take all GPUs of the node.
  step+=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))")
fi
step+=("$python" -m drnas_jax.main --distributed "$@")
command=$(quote "${step[@]}")
job="\$SLURM_JOB_ID"
if [[ $array ]]; then
  for argument; do
    [[ $argument != --config.element* ]] || die "--array sets config.element: remove $argument"
  done
  runs=$("$python" -m drnas_jax.main --list_elements "$@") || exit 2  # it has said why
  last=${runs##*$'\n'} # the number of the last run, and its directory
  count=${last%% *}
  number --array "$count" 1
  flags=("--array=1-$count" ${flags[@]+"${flags[@]}"})
  command+=" --config.element=\$SLURM_ARRAY_TASK_ID"
  # The number of the job alone may be that of the whole array.
  job="\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID"
fi

# Slurm requeues a job by itself after a preemption or a node failure, but not at the time limit.
# The SIGTERM before the limit goes only to the program, so the shell can requeue the job. scancel
# ends the shell as well, so a cancelled job is not requeued.
script="for try in \$(seq 0 $restarts); do \
$command && exit; code=\$?; \
case \$code in 2 | 130) break ;; 143) scontrol requeue $job; break ;; esac; \
done; exit \$code"

run sbatch "--job-name=$name" "--nodes=$nodes" --ntasks-per-node=1 --exclusive --mem=0 \
  ${gpus:+"--gpus-per-node=$gpus"} ${time:+"--time=$time"} \
  --requeue "--signal=TERM@$grace" --open-mode=append \
  ${flags[@]+"${flags[@]}"} "--wrap=$script"
