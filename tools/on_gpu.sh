#!/usr/bin/env bash
# What the program does on one GPU, in at most nine minutes, as one JSON file (tools/gpu_suite.py).
#
#   bash tools/on_gpu.sh --wheels [3.12]      here: collects what that machine may lack, for its Python
#   bash tools/on_gpu.sh --out gpu.json       there: JAX with CUDA, PyTorch and transformers, no network
#   bash tools/on_gpu.sh --tiny               anywhere: the same parts in a minute or two, on a CPU
#
# Wheels travel in tools/wheels, beside this script; those whose packages are there already, as new
# or newer, are left out. PYTHON names another interpreter than python3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
words=()
for word in "$@"; do # a file is meant from where it is typed
  if [[ $word == --out=[!/]* ]]; then word=--out=$PWD/${word#--out=}; fi
  if [[ ${last:-} == --out && $word != /* ]]; then word=$PWD/$word; fi
  words+=("$word") last=$word
done
set -- "${words[@]}"
cd "$here/.."
python=${PYTHON:-python3}
packages=(
  absl-py array-record av einops etils flax grain ml-collections optax orbax-checkpoint portpicker tqdm
)

if [[ ${1:-} == --wheels ]]; then
  rm -rf "$here/wheels" # those of another Python or version would be installed, too
  platforms=()
  for tag in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${tag}_x86_64"); done
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${2:-3.12}" "${platforms[@]}" --platform manylinux2014_x86_64 \
    --dest "$here/wheels" "${packages[@]}"
  du -sh "$here/wheels"
  exit
fi

export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if [[ -d $here/wheels && " $* " != *' --tiny '* ]]; then
  mapfile -t wheels < <("$python" -m tools.gpu_suite --missing "$here/wheels")
  if ((${#wheels[@]})) && [[ -n ${wheels[0]} ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$place/site" "${wheels[@]}"
    export PYTHONPATH="$place/site:$PYTHONPATH"
  fi
fi
export JEPA_JAX_CACHE="$place/cache" XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 PYTHONUNBUFFERED=1
if [[ " $* " == *' --tiny '* ]]; then
  export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1  # programs run for less than they compile
fi
"$python" -m tools.gpu_suite "$@"
