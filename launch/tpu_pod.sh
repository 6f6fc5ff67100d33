#!/usr/bin/env bash
# A run on a slice of Cloud TPUs.
#
#   export TPU=my-slice ZONE=us-east5-a TYPE=v5p-128 [PROJECT=...] [VERSION=v2-alpha-tpuv5] [SPOT=1]
#   bash launch/tpu_pod.sh create             make the slice and install this clone on every host
#   bash launch/tpu_pod.sh run --config=configs/vitg.py --workdir=/mnt/shared/runs/vitg
#   bash launch/tpu_pod.sh logs               follow what process 0 says
#   bash launch/tpu_pod.sh stop               SIGTERM: the run saves and ends; `run` resumes it
#   bash launch/tpu_pod.sh delete
#   bash launch/tpu_pod.sh --dry-run COMMAND ...   prints the commands and runs nothing
#
# TYPE counts cores for v4 and v5p (v5p-128 is 64 chips, 4x4x4), chips for v5e and v6e. The workdir
# must be on a file system that all hosts mount (Filestore, Lustre). A run that ends with status 75
# or is killed starts itself again, up to 100 times.
set -euo pipefail
dry=''
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
usage() { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
[[ $# -ge 1 ]] || usage
for name in TPU ZONE; do
  [[ -n ${!name:-} ]] || { echo "$name is not set" >&2 && exit 2; }
done
place=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
do_() {
  if [[ -n $dry ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}
everywhere() { do_ gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --worker=all --command="$1"; }

action=$1 && shift
case $action in
  create)
    [[ -n ${TYPE:-} ]] || { echo 'TYPE is not set' >&2 && exit 2; }
    do_ gcloud compute tpus tpu-vm create "$TPU" "${place[@]}" --accelerator-type="$TYPE" \
      --version="${VERSION:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    archive=$(mktemp) && trap 'rm -f "$archive"' EXIT
    do_ git archive --format=tar.gz --output="$archive" HEAD
    do_ gcloud compute tpus tpu-vm scp "$archive" "$TPU:jepa_jax.tar.gz" "${place[@]}" --worker=all
    # the image's own Python may be older than 3.11; uv brings one that is not
    everywhere "mkdir -p jepa_jax && tar -xzf jepa_jax.tar.gz -C jepa_jax \
&& python3 -m pip install -q uv && python3 -m uv venv -q --python 3.12 venv \
&& python3 -m uv pip install -q -p venv/bin/python './jepa_jax[tpu,tensorboard]'"
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    printf -v arguments '%q ' "$@"
    everywhere "cd jepa_jax && nohup bash -c 'for i in \$(seq 100); do JEPA_JAX_DISTRIBUTED=1 \
../venv/bin/python -m jepa_jax.train $arguments; status=\$?; \
case \$status in 75|134|137) sleep 30;; *) exit \$status;; esac; done' > ../train.log 2>&1 < /dev/null &"
    ;;
  logs)
    do_ gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --worker=0 --command='tail -F train.log'
    ;;
  stop) # the loop, then the run: its process, not a shell whose command names it, nor its workers
    everywhere "pkill -f '^bash -c for i in'; pkill -TERM -o -f '^[^ ]*python -m jepa_jax.train'"
    ;;
  delete) do_ gcloud compute tpus tpu-vm delete "$TPU" "${place[@]}" --quiet ;;
  *) usage ;;
esac
