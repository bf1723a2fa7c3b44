#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes it, installs, runs on all its workers, starts again after preemption.
#
#   launch/tpu_vm.sh up   --name=NAME --zone=ZONE --type=v5litepod-16 --bucket=BUCKET -- --config=configs/colorizer.py
#   launch/tpu_vm.sh logs --name=NAME --zone=ZONE      what worker 0 prints
#   launch/tpu_vm.sh down --name=NAME --zone=ZONE      deletes the slice
#
# What follows -- goes to `python -m coltran_jax train`. Checkpoints and metrics go to BUCKET/NAME; data and anything else
# in the bucket is under /mnt/bucket on the workers. The bucket wants a hierarchical namespace: checkpoints appear by rename.
# --version=IMAGE (v2-alpha-tpuv5-lite), --spot, --project=PROJECT; --dry_run shows every command and runs none.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d' >&2
  exit 2
}

refuse() {
  echo "error: $1" >&2
  exit 2
}

command=${1:-}
case $command in up | logs | down) shift ;; *) usage ;; esac

name='' zone='' type='' bucket='' version=v2-alpha-tpuv5-lite dry_run=''
create_flags=() common=()
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) common+=("$1") ;;
    --spot) create_flags+=(--spot) ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *) refuse "unexpected $1; flags of train come after --" ;;
  esac
  shift
done
[ -n "$name" ] || refuse "--name is missing"
[ -n "$zone" ] || refuse "--zone is missing"
common+=("--zone=$zone")
if [ "$command" = up ]; then
  [ -n "$type" ] || refuse "--type is missing, such as v5litepod-16"
  [ -n "$bucket" ] || refuse "--bucket is missing; checkpoints of several workers need storage that all of them see"
  [ $# -gt 0 ] || refuse "nothing to train; give --config=... after --"
  for flag in "$@"; do
    case $flag in --workdir*) refuse "--workdir is set from --bucket and --name" ;; esac
  done
fi
[ -n "$dry_run" ] || command -v gcloud >/dev/null || refuse "gcloud is not on this machine"

tpus() {
  if [ -n "$dry_run" ]; then
    printf '%q ' gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}

on_all() {
  tpus tpu-vm ssh "$name" "${common[@]}" --worker=all --command="$1"
}

state() {
  if [ -n "$dry_run" ]; then
    echo ACTIVE
  else
    gcloud compute tpus queued-resources describe "$name" "${common[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
  fi
}

create() {
  tpus queued-resources create "$name" --node-id="$name" "${common[@]}" \
    --accelerator-type="$type" --runtime-version="$version" "${create_flags[@]}"
}

delete() {
  tpus queued-resources delete "$name" "${common[@]}" --force --quiet
}

wait_until_active() {
  local found
  while found=$(state); [ "$found" != ACTIVE ]; do
    case $found in
      FAILED | SUSPENDED | SUSPENDING) delete && create ;;
      NONE) create ;;
    esac
    echo "the slice is $found; looking again in 30 s"
    sleep 30
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  tpus tpu-vm scp "$archive" "$name:coltran.tar.gz" "${common[@]}" --worker=all
  rm -f "$archive"
  on_all "set -e; mkdir -p coltran && tar -xzf coltran.tar.gz -C coltran && cd coltran
if [ ! -x .venv/bin/python ]; then
  sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv
  python3.11 -m venv .venv
fi
.venv/bin/pip install -q -r requirements.txt 'jax[tpu]'
command -v gcsfuse >/dev/null || { echo 'error: the image lacks gcsfuse, see docs/launching.md' >&2; exit 1; }
sudo mkdir -p /mnt/bucket && sudo chown \$(id -un) /mnt/bucket
mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs $bucket /mnt/bucket"
}

train() {
  local arguments
  printf -v arguments '%q ' "$@" "--workdir=/mnt/bucket/$name"
  on_all "cd coltran && .venv/bin/python -m coltran_jax train $arguments 2>&1 | tee -a ~/train.log; exit \${PIPESTATUS[0]}"
}

case $command in
  logs) tpus tpu-vm ssh "$name" "${common[@]}" --worker=0 --command='tail -n 50 -f ~/train.log' ;;
  down) delete ;;
  up)
    [ "$(state)" != NONE ] && [ -z "$dry_run" ] || create
    while true; do
      wait_until_active
      if install && train "$@"; then
        break
      fi
      # The slice is still there: the run itself failed, and would fail again.
      sleep 30
      [ "$(state)" != ACTIVE ] || refuse "training failed; see launch/tpu_vm.sh logs --name=$name --zone=$zone"
      echo "the slice was taken away; asking for another"
    done
    ;;
esac
