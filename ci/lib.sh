# shellcheck shell=bash
# What the scripts in ci/ share. Source it; it changes to the repository's root and does nothing else.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
VENV=${VENV:-$ROOT/.venv}
STAMPS=$ROOT/.stamps
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }

# die CODE MESSAGE: 1 fault, 2 bad input, 3 the environment lacks something (as every CLI here).
die() {
  local code=$1
  shift
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit "$code"
}

# step NAME COMMAND...: one line with the seconds; the output goes to .stamps/NAME.log, shown when it fails.
step() {
  local name=$1 started=$SECONDS log code flags=$-
  shift
  mkdir -p "$STAMPS"
  log=$STAMPS/$name.log
  printf '%-34s' "  $name" >&2
  set +e # not `if`: that would switch errexit off inside the command as well
  (
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null
  code=$?
  [[ $flags == *e* ]] && set -e
  if ((code)); then
    printf ' FAILED (exit %d); the end of .stamps/%s.log:\n' "$code" "$name" >&2
    tail -n 40 "$log" >&2
    return "$code"
  fi
  printf '%5d s\n' "$((SECONDS - started))" >&2
}

# The installable packages, `common` first: every folder at the root that has a pyproject.toml.
packages() {
  local file
  [[ -f common/pyproject.toml ]] && printf 'common\n'
  for file in */pyproject.toml; do
    [[ -f $file && $file != common/* ]] && printf '%s\n' "${file%%/*}"
  done
  return 0
}

artifacts() { packages | grep -vx common || true; }

# The first Python that is new enough; PYTHON=... chooses one. Prints the interpreter itself, neither a version
# manager's shim nor an active environment's link, or nothing.
find_python() {
  local name path
  for name in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    path=$("$name" -c 'import sys
print(getattr(sys, "_base_executable", sys.executable))
sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || continue
    printf '%s\n' "$path"
    return 0
  done
  return 1
}
