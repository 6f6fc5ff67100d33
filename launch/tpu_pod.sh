#!/usr/bin/env bash
# A run on a slice of Cloud TPUs.
#
#   export TPU=my-slice ZONE=us-east5-a TYPE=v5p-128 [PROJECT=...] [VERSION=v2-alpha-tpuv5] [SPOT=1]
#   bash launch/tpu_pod.sh create             make the slice and install this clone on every host
#   bash launch/tpu_pod.sh queue              the same by a queued resource: `queued` tells its state,
#                                             `install` follows once it is ACTIVE
#   bash launch/tpu_pod.sh run [COMMAND] --config=vitg --workdir=/mnt/shared/runs/vitg
#   bash launch/tpu_pod.sh logs               follow what process 0 says
#   bash launch/tpu_pod.sh stop               SIGTERM: the run saves and ends; `run` resumes it
#   bash launch/tpu_pod.sh delete             unqueue, of a queued resource
#   bash launch/tpu_pod.sh --dry-run ACTION ...   prints the commands and runs nothing
#   bash launch/tpu_pod.sh --help
#
# COMMAND: of `jepa` (default: train). train and evaluate run on every host; any other on the CPU of
# the first one.
# TYPE counts cores for v4 and v5p (v5p-128 is 64 chips, 4x4x4), chips for v5e and v6e. The workdir
# is on a file system that all hosts mount (Filestore, Lustre) or in a bucket, gs://BUCKET/runs/vitg.
# A run that ends with status 75 or is killed starts itself again, up to 100 times, or 5 in a row that
# last less than ten minutes each: a host that ended by an error does not come back.
set -euo pipefail
dry=''
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
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
[[ ${1:-} == --help || ${1:-} == -h ]] && help && exit 0
usage() { help >&2 && exit 2; }
[[ $# -ge 1 ]] || usage
for name in TPU ZONE; do
  [[ -n ${!name:-} ]] || { echo "$name is not set" >&2 && exit 2; }
done
place=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
do_() {
  if [[ -n $dry ]]; then show "$@"; else "$@"; fi
}
# on a worker, or all of them; the script that it runs is shown as it is
there() {
  if [[ -n $dry ]]; then
    show gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" "--worker=$1" --command=SCRIPT
    printf 'SCRIPT:\n%s\n' "$2" | sed '2,$s/^/    /'
  else
    gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --worker="$1" --command="$2"
  fi
}
install() {
  archive=$(mktemp) && trap 'rm -f "$archive"' EXIT
  do_ git archive --format=tar.gz --output="$archive" HEAD
  do_ gcloud compute tpus tpu-vm scp "$archive" "$TPU:jepa_jax.tar.gz" "${place[@]}" --worker=all
  # the image's own Python may be older than 3.11; uv brings one that is not
  there all "set -e
mkdir -p jepa_jax && tar -xzf jepa_jax.tar.gz -C jepa_jax
python3 -m pip install -q uv && python3 -m uv venv -q --python 3.12 venv
python3 -m uv pip install -q -p venv/bin/python './jepa_jax[tpu,tensorboard]'"
}

action=$1 && shift
case $action in
  create)
    [[ -n ${TYPE:-} ]] || { echo 'TYPE is not set' >&2 && exit 2; }
    do_ gcloud compute tpus tpu-vm create "$TPU" "${place[@]}" --accelerator-type="$TYPE" \
      --version="${VERSION:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    install
    ;;
  queue)
    [[ -n ${TYPE:-} ]] || { echo 'TYPE is not set' >&2 && exit 2; }
    do_ gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" "${place[@]}" \
      --accelerator-type="$TYPE" --runtime-version="${VERSION:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    ;;
  queued) do_ gcloud compute tpus queued-resources describe "$TPU" "${place[@]}" --format='value(state.state)' ;;
  install) install ;;
  run)
    name=train
    if [[ ${1:-} =~ ^[a-z] ]]; then name=$1 && shift; fi
    [[ $# -ge 1 ]] || usage
    printf -v arguments '%q ' "$@"
    hosts=all settings='JEPA_JAX_DISTRIBUTED=1'
    [[ $name == train || $name == evaluate ]] || hosts=0 settings='JEPA_JAX_DISTRIBUTED=0 JAX_PLATFORMS=cpu'
    loop="for i in \$(seq 100); do
  begun=\$SECONDS
  $settings ../venv/bin/python -m jepa_jax $name $arguments
  status=\$?
  short=\$((SECONDS - begun < 600 ? short + 1 : 0))
  case \$status in 75|134|137) ((short < 5)) || exit \$status; sleep 30;; *) exit \$status;; esac
done"
    quote="'\\''"
    there "$hosts" "cd jepa_jax && nohup bash -c '${loop//\'/"$quote"}' > ../train.log 2>&1 < /dev/null &"
    ;;
  logs)
    do_ gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --worker=0 --command='tail -F train.log'
    ;;
  stop) # the loop, then the run: its process, not a shell whose command names it, nor its workers
    there all "pkill -f '^bash -c for i in'; pkill -TERM -o -f '^[^ ]*python -m jepa_jax '"
    ;;
  delete) do_ gcloud compute tpus tpu-vm delete "$TPU" "${place[@]}" --quiet ;;
  unqueue) do_ gcloud compute tpus queued-resources delete "$TPU" "${place[@]}" --force --quiet ;;
  *)
    echo "$action: allowed are create, queue, queued, install, run, logs, stop, delete, unqueue" >&2
    exit 2
    ;;
esac
