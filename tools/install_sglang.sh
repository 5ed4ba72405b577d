#!/usr/bin/env bash
# Install SGLang and torch into the environment of PYTHON: `tools/install_sglang.sh PYTHON`.
#
# Without a GPU torch must be its CPU build: the CUDA build brings gigabytes that nothing here could
# use. Which of the two a package index serves differs, so we ask before anything is downloaded.
#   TORCH_INDEX=URL      take torch from this index (pytorch.org shows that of the CPU builds)
#   TORCH_ALLOW_CUDA=1   take the CUDA build although there is no GPU
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
pip=("$python" -m pip --disable-pip-version-check)
[ -t 1 ] || export PIP_PROGRESS_BAR=off
serving=tests/serving
torch=$(grep '^torch==' $serving/constraints.txt)
sglang=$(grep '^sglang==' $serving/constraints.txt)

if nvidia-smi -L >/dev/null 2>&1; then
  if "$python" -c 'import torch, sglang' 2>/dev/null; then
    echo "[sglang] found in this environment"
  else
    echo "[sglang] a GPU is present: installing $sglang with its own torch (several GB)"
    "${pip[@]}" install "$sglang"
  fi
  exit 0
fi

if ! "$python" -c 'import torch' 2>/dev/null; then
  index=()
  [ -z "${TORCH_INDEX:-}" ] || index=(--index-url "$TORCH_INDEX")
  if [ -z "${TORCH_ALLOW_CUDA:-}" ]; then
    echo "[torch] asking the package index which build of $torch it serves"
    "${pip[@]}" install --quiet --dry-run --report build/torch.json "${index[@]}" "$torch"
    if grep -qE '"name": "(nvidia|cuda)[-_]' build/torch.json; then
      echo "Your package index serves the CUDA build of $torch, and this machine has no GPU." >&2
      echo "Pass the index of the CPU builds, which pytorch.org shows under 'Get started':" >&2
      echo "    make TORCH_INDEX=URL ...     (or TORCH_ALLOW_CUDA=1 to take several GB of CUDA)" >&2
      exit 1
    fi
  fi
  echo "[torch] installing $torch"
  "${pip[@]}" install "${index[@]}" "$torch"
fi
echo "[sglang] installing $sglang for the CPU (a minute)"
# Without their dependencies: these ask for CUDA libraries that a CPU never loads. pip then says of
# each pin that it is not met, which is meant; everything else that it says is shown.
expected='requires .*which is (not installed|incompatible)|^ERROR: pip.s dependency resolver'
"${pip[@]}" install --no-deps $(grep -E '^(torchvision|sglang|xgrammar)==' $serving/constraints.txt)
"${pip[@]}" install -c $serving/constraints.txt -r $serving/requirements.txt \
  2> >(grep -vE "$expected" >&2)
"$python" - <<'PY'
import torch
if torch.version.cuda is not None:
    print(f"[torch] note: {torch.__version__} is a CUDA build, and there is no GPU here: large")
PY
