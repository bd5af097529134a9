#!/usr/bin/env bash
# Trains on all hosts of a TPU slice, and starts again after an interruption:
#   NAME=mine ZONE=us-west4-a bash examples/tpu_vm.sh --config=configs/reviews.py --workdir=/mnt/runs/a
# Run it from the root of the repository. All hosts need to share the disk of --workdir.
set -euo pipefail

NAME=${NAME:?name of the slice, created if it is missing}
ZONE=${ZONE:?zone of the slice}
TYPE=${TYPE:-v5litepod-8}              # accelerator type of a new slice
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # image of its hosts
PYTHON=${PYTHON:-python3.11}           # on the hosts, 3.11 to 3.13
TRIES=${TRIES:-100}                    # most starts of the same command

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

if ! gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" >/dev/null 2>&1; then
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --version="$VERSION"
fi

tree=$(mktemp --suffix=.tar.gz) # the files that git knows, as they are now
trap 'rm -f "$tree"' EXIT
git ls-files -z | tar --create --gzip --null --files-from=- --file="$tree"
gcloud compute tpus tpu-vm scp "$tree" "$NAME:weitiao.tar.gz" --zone="$ZONE" --worker=all
on_all_hosts "mkdir -p weitiao && tar -xzf weitiao.tar.gz -C weitiao && cd weitiao &&
  $PYTHON -m venv venv && venv/bin/pip install --quiet -e '.[demo,tpu]'"

command="cd weitiao && venv/bin/python main.py$(printf ' %q' "$@")"
for ((try = 1; ; try++)); do
  code=0
  on_all_hosts "$command" || code=$?
  # 75: interrupted, and all is saved.
  if ((code != 75 || try == TRIES)); then
    exit "$code"
  fi
done
