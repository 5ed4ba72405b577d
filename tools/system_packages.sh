#!/usr/bin/env bash
# Install the packages of system-packages.txt that are missing: as root with apt-get, otherwise
# print the line to run.
#   tools/system_packages.sh [PYTHON [LIST]]
# Exit status: 0 nothing is missing any more, 1 something is.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
list=${2:-system-packages.txt}

present() {  # PROBE: is what the probe names on this machine?
  local kind=${1%%:*} name=${1#*:}
  case $kind in
    command) command -v "$name" >/dev/null || command -v "/usr/sbin/$name" >/dev/null ;;
    file) [ -e "$name" ] ;;
    header) echo "#include <$name>" | g++ -E -x c++ - >/dev/null 2>&1 ;;
    python)
      if [ "$name" = Python.h ]; then
        "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
      else
        "$python" -c "import $name" 2>/dev/null
      fi ;;
    *) echo "$list: unknown probe $1" >&2; exit 2 ;;
  esac
}

missing=()
while read -r package probe _; do
  case $package in ''|'#'*) continue ;; esac
  present "$probe" || missing+=("$package")
done < "$list"

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "[system] installing ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive bash -c "$line"
else
  echo "Missing on this machine: ${missing[*]}" >&2
  echo "Run this, then make again:" >&2
  echo "    sudo sh -c '$line'" >&2
  echo "(on another distribution: its packages of the same purpose, see $list)" >&2
  exit 1
fi
