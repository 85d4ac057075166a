# shellcheck shell=bash
# Functions that the launch scripts share. They source this file.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=''

say() { echo "${0##*/}: $*" >&2; }

# Exits with code 2, which drnas_jax.main also uses for mistakes of its user.
die() {
  say "$*"
  exit 2
}

unknown() { die "unknown option $1: options have the form --name=value, see --help"; }

# needs OPTION VALUE: exits if the value is empty.
needs() { [[ $2 ]] || die "$1 is missing, see --help"; }

# number OPTION VALUE LEAST: exits unless the value is a whole number and at least LEAST.
number() {
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    die "$1 is '$2': expected a whole number of at least $3"
  fi
}

# program_arguments COUNT: exits if nothing follows '--'.
program_arguments() {
  (($1)) || die "nothing after --: give the arguments of drnas_jax.main, see --help"
}

# tool NAME: exits unless the program is installed; a dry run does not need it.
tool() { [[ $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not installed"; }

# Prints the arguments as one line that any POSIX shell parses back into the same arguments.
quote() {
  local argument line='' inner="'\\''"
  for argument; do
    [[ $argument =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || argument="'${argument//\'/$inner}'"
    line+=" $argument"
  done
  printf '%s\n' "${line:1}"
}

# Runs a command, or prints it in a dry run.
run() { if [[ $dry_run ]]; then quote "$@"; else "$@"; fi; }

default_python() {
  if [[ -x $root/.venv/bin/python ]]; then echo "$root/.venv/bin/python"; else echo python3; fi
}
