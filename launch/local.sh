#!/usr/bin/env bash
# N processes of one run on this machine, as a trial of what a cluster does.
#
#   bash launch/local.sh N --config=configs/NAME.py [--workdir=DIR] [--config.FIELD=VALUE ...]
#   bash launch/local.sh --dry-run N ...         prints the commands and runs nothing
#
# DEVICES_PER_PROCESS=4 gives each process so many CPU devices. On GPUs, process i gets GPU i.
# PORT: of the coordinator (default: a free one). Output of process i > 0 has the prefix [i].
# Ends with 0 if all did, 75 if the run wants to be queued again, else with the first other status;
# when one process fails, the others end by themselves, or are ended GRACE seconds later (default
# 60). Needs bash 5.1.
set -uo pipefail
dry=''
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash launch/local.sh [--dry-run] N --config=configs/NAME.py ..." >&2
  exit 2
fi
count=$1 && shift
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
export JEPA_JAX_COORDINATOR=localhost:$port JEPA_JAX_PROCESSES=$count
[[ -n ${DEVICES_PER_PROCESS:-} ]] && export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$DEVICES_PER_PROCESS
gpus=''
[[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi > /dev/null && gpus=1

declare -A running
for ((i = 0; i < count; i++)); do
  settings=("JEPA_JAX_PROCESS=$i")
  [[ -n $gpus ]] && settings+=("CUDA_VISIBLE_DEVICES=$i")
  command=(env "${settings[@]}" "$python" -m jepa_jax.train "$@")
  if [[ -n $dry ]]; then
    printf '%q ' env "JEPA_JAX_COORDINATOR=$JEPA_JAX_COORDINATOR" "JEPA_JAX_PROCESSES=$count" \
      ${DEVICES_PER_PROCESS:+"JAX_PLATFORMS=cpu"} \
      ${DEVICES_PER_PROCESS:+"JAX_NUM_CPU_DEVICES=$DEVICES_PER_PROCESS"} "${command[@]:1}"
    echo
  elif ((i == 0)); then
    "${command[@]}" &
    running[$!]=$i
  else
    "${command[@]}" > >(sed "s/^/[$i] /") 2> >(sed "s/^/[$i] /" >&2) &
    running[$!]=$i
  fi
done
[[ -n $dry ]] && exit 0

trap 'kill -TERM "${!running[@]}" 2> /dev/null' TERM INT
trap 'kill -KILL "${!running[@]}" 2> /dev/null' EXIT # nothing is left behind
worst=0
while ((${#running[@]})); do
  ended=''
  wait -n -p ended "${!running[@]}"
  status=$?
  [[ -n ${ended:-} ]] || continue # a signal woke us
  unset "running[$ended]"
  if ((status != 0)); then
    ((worst == 0 || worst == 75)) && worst=$status
    if [[ -z ${watchdog:-} && ${#running[@]} -gt 0 ]]; then
      (sleep "${GRACE:-60}" && kill -KILL "${!running[@]}" 2> /dev/null) &
      watchdog=$!
    fi
  fi
done
[[ -n ${watchdog:-} ]] && kill "$watchdog" 2> /dev/null
# a killed process takes the others along, and a new start resumes from the last checkpoint
((worst == 137 || worst == 134)) && echo 'a process was killed; start again to resume' >&2 && worst=75
exit "$worst"
