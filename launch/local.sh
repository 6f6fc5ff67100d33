#!/usr/bin/env bash
# N processes of one run on this machine, as a trial of what a cluster does.
#
#   bash launch/local.sh N [COMMAND] --config=NAME [--workdir=DIR] [--config.FIELD=VALUE ...]
#   bash launch/local.sh --dry-run N ...         prints the commands and runs nothing
#   bash launch/local.sh --help
#
# COMMAND: of `jepa` (default: train). train and evaluate work together; embed shares its inputs,
# `--part i/N` is added; any other runs alone, with N = 1.
# DEVICES_PER_PROCESS=4 gives each process so many CPU devices. On GPUs, process i gets GPU i.
# PORT: of the coordinator (default: a free one). Output of process i > 0 has the prefix [i].
# Ends with 0 if all did, 75 if the run wants to be queued again, else with the first other status;
# when one process fails, the others end by themselves, or are ended GRACE seconds later (default
# 60). Needs bash 5.1.
set -uo pipefail
help() { awk 'NR > 1 && !/^#( |$)/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"; }
# a command as it may be typed, a flag a line
show() {
  local word
  printf '%q' "$1"
  for word in "${@:2}"; do
    if [[ $word == --* ]]; then printf ' \\\n    %q' "$word"; else printf ' %q' "$word"; fi
  done
  echo
}
dry=''
[[ ${1:-} == --help || ${1:-} == -h ]] && help && exit 0
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash launch/local.sh [--dry-run] N [COMMAND] --config=NAME ..." >&2
  exit 2
fi
count=$1 && shift
name=train
if [[ ${1:-} =~ ^[a-z] ]]; then name=$1 && shift; fi
case $name in
  train | evaluate | embed) ;;
  *) ((count == 1)) || { echo "$name runs as one process: bash launch/local.sh 1 $name ..." >&2 && exit 2; } ;;
esac
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
together=("JEPA_JAX_COORDINATOR=localhost:$port" "JEPA_JAX_PROCESSES=$count")
[[ $name == train || $name == evaluate ]] || together=(JEPA_JAX_DISTRIBUTED=0)
[[ -n ${DEVICES_PER_PROCESS:-} ]] && together+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$DEVICES_PER_PROCESS")
gpus='' platform=${DEVICES_PER_PROCESS:+cpu}
[[ ${platform:-${JAX_PLATFORMS:-}} != cpu ]] && command -v nvidia-smi > /dev/null && gpus=1

declare -A running
for ((i = 0; i < count; i++)); do
  settings=("${together[@]}")
  [[ ${settings[0]} == JEPA_JAX_COORDINATOR=* ]] && settings+=("JEPA_JAX_PROCESS=$i")
  shared=()
  [[ $name == embed ]] && ((count > 1)) && shared=(--part "$((i + 1))/$count")
  [[ -n $gpus ]] && settings+=("CUDA_VISIBLE_DEVICES=$i")
  command=(env "${settings[@]}" "$python" -m jepa_jax "$name" "$@" "${shared[@]}")
  if [[ -n $dry ]]; then
    echo "# process $i" && show "${command[@]}"
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
  # of several that are killed at once, wait -n tells one and knows no more of the others
  for pid in "${!running[@]}"; do kill -0 "$pid" 2> /dev/null || ended=$pid; done
  if [[ -n $ended ]]; then
    wait "$ended"
  else
    wait -n -p ended "${!running[@]}" ${watchdog:+"$watchdog"} 2> /dev/null
  fi
  status=$?
  [[ -n ${ended:-} ]] || continue # a signal woke us
  if [[ $ended == "${watchdog:-}" ]]; then
    kill -KILL "${!running[@]}" 2> /dev/null
    watchdog='' && continue
  fi
  unset "running[$ended]"
  if ((status != 0)); then
    ((worst == 0 || worst == 75)) && worst=$status
    if [[ -z ${watchdog:-} && ${#running[@]} -gt 0 ]]; then
      sleep "${GRACE:-60}" &
      watchdog=$!
    fi
  fi
done
[[ -n ${watchdog:-} ]] && kill "$watchdog" 2> /dev/null
# a killed process takes the others along, and a new start resumes from the last checkpoint
((worst == 137 || worst == 134)) && echo 'a process was killed; start again to resume' >&2 && worst=75
exit "$worst"
