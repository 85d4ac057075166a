#!/usr/bin/env bash
# Submits drnas_jax.main to a TPU cluster in GKE, with xpk.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END_OF_USAGE'
usage: launch/xpk.sh --cluster=C --workload=W --tpu-type=T --[base-]docker-image=IMAGE \
           [OPTION]... -- ARGUMENTS OF drnas_jax.main

Submits a workload to a cluster that was created with 'xpk cluster create'. Defaults are in
parentheses.

  --cluster=NAME            name of the cluster
  --workload=NAME           name for this run
  --tpu-type=TYPE           type of TPU, for example v6e-256
  --docker-image=IMAGE      image with the project and all it needs, used as it is
  --base-docker-image=IMAGE image with Python 3.11 or newer; this checkout is added to it, and
                            installed when a pod starts
  --num-slices=N            number of TPUs of this type, which work together (1)
  --restarts=N              start all pods again up to N times after a crash or a preemption (10)
  --grace=SECONDS           time between SIGTERM and SIGKILL, to write a checkpoint (120)
  --project=P --zone=Z      project and zone of the cluster (gcloud's defaults)
  --storage=NAME            storage attached with 'xpk storage attach'; can be repeated
  --xpk=FLAG                pass a flag to 'xpk workload create', for example --xpk=--spot;
                            can be repeated
  --dry-run                 print the command and run nothing
  --help                    print this text

  launch/xpk.sh --cluster=tpus --workload=imagenet-1 --tpu-type=v6e-64 \
      --base-docker-image=python:3.12 --storage=imagenet --storage=runs -- \
      --config=configs/imagenet.py --config.data.dir=/data --workdir=/runs/imagenet
END_OF_USAGE
}

cluster='' workload='' tpu_type='' image='' base='' slices=1 restarts=10 grace=120 flags=()
while (($#)); do
  case $1 in
    --cluster=*) cluster=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --tpu-type=*) tpu_type=${1#*=} ;;
    --docker-image=*) image=${1#*=} ;;
    --base-docker-image=*) base=${1#*=} ;;
    --num-slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --project=* | --zone=* | --storage=*) flags+=("$1") ;;
    --xpk=*) flags+=("${1#*=}") ;;
    --dry-run) dry_run=1 ;;
    --help) usage && exit ;;
    --) shift && break ;;
    *) unknown "$1" ;;
  esac
  shift
done
program_arguments $#
needs --cluster "$cluster"
needs --workload "$workload"
needs --tpu-type "$tpu_type"
[[ ! $image || ! $base ]] ||
  die "--docker-image and --base-docker-image cannot be combined: give only one of them"
needs "--docker-image or --base-docker-image" "$image$base"
number --num-slices "$slices" 1
number --restarts "$restarts" 0
number --grace "$grace" 1
tool xpk

# exec, because xpk sends its SIGTERM to the shell that runs this line.
command="exec $(quote python -m drnas_jax.main --distributed "$@")"
if [[ $image ]]; then
  images=("--docker-image=$image")
else
  images=("--base-docker-image=$base" "--script-dir=$root")
  command="python -m pip install -q -e '.[tpu]' && $command"
fi

# xpk restarts by itself after exit codes 127 to 255, which include signals and aborts. Code 1, of
# an exception, must be added. Code 2, a mistake of the user, must not lead to a restart.
run xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$tpu_type" \
  "--num-slices=$slices" "${images[@]}" \
  "--max-restarts=$restarts" --restart-on-exit-codes=1 \
  "--termination-grace-period-seconds=$grace" \
  ${flags[@]+"${flags[@]}"} "--command=$command"
