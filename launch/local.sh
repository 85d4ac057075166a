#!/usr/bin/env bash
# Runs drnas_jax.main in several processes on this machine.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END_OF_USAGE'
usage: launch/local.sh [OPTION]... -- ARGUMENTS OF drnas_jax.main

Runs one command in several processes on this machine, which work together. Defaults are in
parentheses.

  --processes=N         number of processes (2)
  --devices=D           number of simulated CPU devices per process, to try it without accelerators
  --gpus-per-process=G  give the first G GPUs to process 0, the next G to process 1, and so on
  --restarts=N          start all processes again up to N times after a crash (0)
  --port=P              port of the coordinator, which is process 0 (a free one)
  --python=PATH         Python to use
                        (.venv/bin/python of this checkout if it exists, else python3)
  --log-dir=DIR         write the output of process I to DIR/process_I.log, for I from 1 on
                        (it goes to stderr, with [I] before each line)
  --dry-run             print the commands and run nothing
  --help                print this text

If a process crashes, the others are killed. The exit code is 0 if all processes exit with 0, else
that of the first process that did not. Codes 2 (a mistake of the user), 130 and 143 (stopped by a
signal) never lead to a restart. SIGINT and SIGTERM are passed on to all processes.

  launch/local.sh --processes=2 --devices=4 -- \
      --config=configs/digits.py:smoke --workdir=runs/two
END_OF_USAGE
}

processes=2 devices='' gpus='' restarts=0 port='' python=$(default_python) log_dir=''
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --gpus-per-process=*) gpus=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --log-dir=*) log_dir=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help) usage && exit ;;
    --) shift && break ;;
    *) unknown "$1" ;;
  esac
  shift
done
program_arguments $#
arguments=("$@")
number --processes "$processes" 1
number --restarts "$restarts" 0
[[ ! $port ]] || number --port "$port" 1
[[ ! $devices ]] || number --devices "$devices" 1
[[ ! $gpus ]] || number --gpus-per-process "$gpus" 1
[[ ! $devices || ! $gpus ]] ||
  die "--devices simulates CPUs and --gpus-per-process needs GPUs: give only one of them"
tool "$python"

# Sets `visible` to the GPUs of process $1, chosen from those that this script may use.
choose_gpus() {
  local all=() first=$(($1 * gpus)) i
  if [[ ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra all <<<"$CUDA_VISIBLE_DEVICES"
    ((${#all[@]} >= processes * gpus)) ||
      die "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has too few GPUs:" \
        "$processes processes with $gpus each need $((processes * gpus))"
  else
    for ((i = 0; i < processes * gpus; i++)); do all+=("$i"); done
  fi
  visible=$(IFS=, && echo "${all[*]:first:gpus}")
}

# Sets `command` to the command of process $1.
make_command() {
  command=()
  if [[ $devices ]]; then
    local flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
    command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=${flags# }")
  elif [[ $gpus ]]; then
    choose_gpus "$1"
    command=(env "CUDA_VISIBLE_DEVICES=$visible")
  fi
  command+=("$python" -m drnas_jax.main "--coordinator=127.0.0.1:$now_port"
    "--num_processes=$processes" "--process_id=$1" "${arguments[@]}")
}

if [[ $dry_run ]]; then
  now_port=${port:-8476}
  for ((i = 0; i < processes; i++)); do
    make_command "$i"
    echo "$(quote "${command[@]}") &"
  done
  echo wait
  exit
fi

free_port() {
  "$python" -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}

# Copies lines with [$1] before each. It ignores signals and ends at the end of its input, so that
# the last lines are never lost.
prefix() {
  trap '' INT TERM HUP
  local line
  while IFS= read -r line || [[ $line ]]; do printf '[%d] %s\n' "$1" "$line"; done
}

# Starts process $1 in its own process group and adds it to `pids`. So Ctrl-C reaches it only once,
# through this script, and SIGKILL also reaches its input workers.
start() {
  make_command "$1"
  local out
  if (($1 == 0)); then
    set -m
    "${command[@]}" </dev/null &
  else
    if [[ $log_dir ]]; then
      exec {out}>>"$log_dir/process_$1.log"
    else
      exec {out}> >(prefix "$1" >&2)
      readers+=($!)
    fi
    set -m
    "${command[@]}" </dev/null >&"$out" 2>&1 {out}>&- &
  fi
  set +m
  pids[$1]=$!
  [[ ! ${out:-} ]] || exec {out}>&-
}

kill_groups() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

# Starts all processes and waits for them. Sets `code` to the exit code of the first one that
# failed, or to 0.
run_all() {
  local i status deadline='' alive=()
  now_port=${port:-$(free_port)}
  pids=() readers=() code=0
  for ((i = 0; i < processes; i++)); do start "$i"; done
  # A signal may have come before all processes were started.
  [[ ! $stopped ]] || pass_on "$stopped"
  alive=("${pids[@]}")
  while ((${#alive[@]})); do
    { sleep 0.2 || true; } 2>/dev/null # bash would report each killed job here
    for i in "${!alive[@]}"; do
      ! kill -0 "${alive[i]}" 2>/dev/null || continue
      status=0
      wait "${alive[i]}" 2>/dev/null || status=$?
      unset "alive[i]"
      ((status)) || continue
      if ((!code)); then
        code=$status
        say "process $i exited with code $status"
      fi
      # After a signal all processes write a checkpoint together, which takes its time. After a
      # crash the others would hang; three seconds let them report errors of their own.
      case $status in 130 | 143) ;; *) deadline=${deadline:-$((SECONDS + 3))} ;; esac
    done
    [[ ! $deadline ]] || ((SECONDS < deadline)) || kill_groups
  done
  kill_groups # input workers may outlive their process
  ((!${#readers[@]})) || wait "${readers[@]}" 2>/dev/null || true
}

pids=() stopped=''
# shellcheck disable=SC2329 # the traps call it
pass_on() {
  local pid
  stopped=$1
  for pid in "${pids[@]}"; do kill -"$1" "$pid" 2>/dev/null || true; done
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP

[[ ! $log_dir ]] || mkdir -p "$log_dir"
for ((try = 0; ; try++)); do
  run_all
  case $code in 0 | 2 | 130 | 143) break ;; esac
  if [[ $stopped ]] || ((try >= restarts)); then break; fi
  say "starting all processes again (restart $((try + 1)) of $restarts)"
done
exit "$code"
