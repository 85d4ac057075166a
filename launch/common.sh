# shellcheck shell=bash
# What the launch scripts share; they source it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=''

say() { echo "${0##*/}: $*" >&2; }

# Ends with 2, as drnas_jax.main does after a mistake of its user.
die() {
  say "$*"
  exit 2
}

unknown() { die "unknown option $1: options are --name=value, see --help"; }

# needs OPTION VALUE: the value may not be empty.
needs() { [[ $2 ]] || die "$1 is missing, see --help"; }

# number OPTION VALUE LEAST
number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    die "$1 must be a whole number from $3 on, not '$2'"
  fi
}

# program_arguments COUNT: something must follow '--'.
program_arguments() {
  (($1)) || die "nothing after --: give the arguments of drnas_jax.main, see --help"
}

tool() { [[ $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not installed"; }

# The arguments as one line that any POSIX shell reads back.
quote() {
  local argument line='' inner="'\\''"
  for argument; do
    [[ $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || argument="'${argument//\'/$inner}'"
    line+=" $argument"
  done
  printf '%s\n' "${line:1}"
}

# Runs a command, or prints it.
run() { if [[ $dry_run ]]; then quote "$@"; else "$@"; fi; }

default_python() {
  if [[ -x $root/.venv/bin/python ]]; then echo "$root/.venv/bin/python"; else echo python3; fi
}
