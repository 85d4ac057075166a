#!/usr/bin/env bash
# Runs drnas_jax.main on a Cloud TPU VM or on a TPU pod.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END_OF_USAGE'
usage: launch/tpu_vm.sh --name=NAME --zone=ZONE --type=TYPE --version=VERSION \
           [OPTION]... -- ARGUMENTS OF drnas_jax.main

Creates a TPU if it does not exist, copies this checkout to all its workers, installs it, and runs
the command on all of them. Needs gcloud. Defaults are in parentheses.

  --name=NAME       name of the TPU, and of its queued resource
  --zone=ZONE       zone, for example us-east5-b
  --type=TYPE       accelerator type, for example v6e-64
  --version=VERSION version of the TPU software, for example v2-alpha-tpuv6e
  --project=P       project (gcloud's default)
  --spot            create a cheaper TPU that may be preempted
  --queued          wait for the TPU as a queued resource
  --create=FLAG     pass a flag to the command that creates the TPU, for example
                    --create=--data-disk=source=DISK,mode=read-only; can be repeated
  --before=COMMAND  run a command on every worker before each start, for example to mount a disk
  --env=NAME=VALUE  set an environment variable of the program; can be repeated
  --restarts=N      start again up to N times after a crash or a preemption (10)
  --poll=SECONDS    time between two checks whether the TPU is ready (30)
  --delete          delete the TPU at the end in any case (it stays, and costs money)
  --dry-run         print the commands of one start and run nothing
  --help            print this text

A preempted TPU is deleted and created again, and the command resumes from its checkpoint, which
must be on storage that outlives the TPU. Ctrl-C lets the program write a checkpoint, then ends.

  launch/tpu_vm.sh --name=drnas --zone=us-east5-b --type=v6e-64 --version=v2-alpha-tpuv6e \
      --spot --queued --before='sudo bash drnas_jax/mounts.sh' -- \
      --config=configs/imagenet.py --config.data.dir=/data --workdir=/runs/imagenet
END_OF_USAGE
}

name='' zone='' type='' version='' project='' spot='' queued='' before='' restarts=10 poll=30
delete='' flags=() environment=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --create=*) flags+=("${1#*=}") ;;
    --before=*) before=${1#*=} ;;
    --env=*) environment+=("${1#*=}") ;;
    --restarts=*) restarts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --delete) delete=1 ;;
    --dry-run) dry_run=1 ;;
    --help) usage && exit ;;
    --) shift && break ;;
    *) unknown "$1" ;;
  esac
  shift
done
program_arguments $#
needs --name "$name"
needs --zone "$zone"
needs --type "$type"
needs --version "$version"
number --restarts "$restarts" 0
number --poll "$poll" 0
tool gcloud

tpu=(gcloud compute tpus tpu-vm)
where=("--zone=$zone" ${project:+"--project=$project"})
new=(${spot:+--spot} "--accelerator-type=$type" ${flags[@]+"${flags[@]}"})
if [[ $queued ]]; then
  resource=(gcloud compute tpus queued-resources)
  state_of=(--format='value(state.state)')
  create=("${resource[@]}" create "$name" "${where[@]}" "--node-id=$name"
    "--runtime-version=$version" "${new[@]}")
  remove=("${resource[@]}" delete "$name" "${where[@]}" --force --quiet)
else
  resource=("${tpu[@]}")
  state_of=(--format='value(state)')
  create=("${resource[@]}" create "$name" "${where[@]}" "--version=$version" "${new[@]}")
  remove=("${resource[@]}" delete "$name" "${where[@]}" --quiet)
fi

# The brackets keep pkill from matching the shell that runs it.
pattern="'[d]rnas_jax\.main'"
archive=${TMPDIR:-/tmp}/drnas_jax-$name.tgz
# Hidden files stay out: they are git's, the local .venv and caches.
pack=(tar -czf "$archive" --exclude='./.*' --exclude=./runs --exclude=__pycache__ -C "$root" .)
copy=("${tpu[@]}" scp "$archive" "$name:drnas_jax.tgz" "${where[@]}" --worker=all)
# A program that is left over from a broken connection would block the TPU. uv installs Python,
# since that of the image may be older than 3.11.
set_up="pkill -KILL -f $pattern; \
mkdir -p drnas_jax && tar -xzf drnas_jax.tgz -C drnas_jax && cd drnas_jax && \
{ [ -x .venv/bin/python ] || { curl -LsSf https://astral.sh/uv/install.sh | sh && \
~/.local/bin/uv venv -q --seed --python=3.12 .venv; }; } && \
.venv/bin/python -m pip install -q -e '.[tpu]'${before:+ && cd ~ && $before}"
program="cd drnas_jax && exec ${environment[*]:+env $(quote "${environment[@]}") }.venv/bin/python \
-m drnas_jax.main --distributed $(quote "$@")"
on_all() { run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$1"; }

if [[ $dry_run ]]; then
  echo "# if the TPU does not exist:"
  quote "${create[@]}"
  echo "# when the TPU is ready:"
  quote "${pack[@]}"
  quote "${copy[@]}"
  on_all "$set_up"
  on_all "$program"
  [[ ! $delete ]] || quote "${remove[@]}"
  exit
fi

state() {
  "${resource[@]}" describe "$name" "${where[@]}" "${state_of[@]}" 2>/dev/null || echo NONE
}

# Creates the TPU if it does not exist or was preempted, and waits until it is ready.
make_ready() {
  local now
  while :; do
    now=$(state)
    case $now in
      READY | ACTIVE) return ;;
      STOPPED)
        say "TPU $name is stopped: start it with 'gcloud compute tpus tpu-vm start'"
        finish 2
        ;;
      NONE)
        say "creating $name"
        # A failure at the first try is a mistake or a quota; later it means that no TPU is free.
        if ! "${create[@]}"; then
          ((try)) || finish 1
          sleep "$poll"
        fi
        ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        say "$name is $now: deleting it"
        "${remove[@]}" || sleep "$poll"
        ;;
      *)
        say "$name is $now: waiting"
        sleep "$poll"
        ;;
    esac
  done
}

stopped='' pid=''
# shellcheck disable=SC2329 # the traps call it
stop() {
  stopped=$1
  [[ $pid ]] || finish "$stopped"
  say "stopping: the program writes a checkpoint"
  # The oldest process is the program; the others are its input workers.
  on_all "pkill -TERM -o -f $pattern" </dev/null || true
}

finish() {
  [[ ! $delete ]] || "${remove[@]}" || true
  exit "$1"
}

# Runs the program in its own process group, which Ctrl-C does not reach. Sets `code`.
run_program() {
  set -m
  on_all "$program" </dev/null &
  set +m
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do sleep 0.2 || true; done
  code=0
  wait "$pid" || code=$?
  pid=''
}

trap 'stop 130' INT
trap 'stop 143' TERM HUP
for ((try = 0; ; try++)); do
  make_ready
  code=0
  if "${pack[@]}" && "${copy[@]}" && on_all "$set_up"; then run_program; else code=$?; fi
  [[ ! $stopped ]] || finish "$code"
  case $code in
    0 | 2) finish "$code" ;;
    130 | 143)
      # A preemption also ends the program by SIGTERM, but then the TPU disappears.
      sleep "$poll"
      case $(state) in READY | ACTIVE) finish "$code" ;; esac
      ;;
  esac
  ((try < restarts)) || finish "$code"
  say "the program exited with code $code: starting again (restart $((try + 1)) of $restarts)"
done
