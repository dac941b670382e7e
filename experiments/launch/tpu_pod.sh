#!/bin/bash
# Runs one command on every machine of a Cloud TPU slice; xtrainer.initialize() joins them.
#
#   TPU_NAME=my-v5e-16 ZONE=us-west4-a experiments/launch/tpu_pod.sh \
#       python experiments/byte_lm.py --config.trainer.logger.log_path=/mnt/shared/runs/byte-lm
#
# Before that, once for every machine: the code in REMOTE_DIR (default: xtrainer, below the home
# folder) and, in the environment that VENV names, `pip install "xtrainer[tpu]"`. PROJECT is that of
# gcloud unless it is set; the log path is a folder that all machines see.
#
# A slice that was preempted is made anew; the same command on the new one goes on at the newest
# checkpoint. For TPU7x and later, which Cloud TPU's own interface does not know, see gke_jobset.yaml.
set -euo pipefail

: "${TPU_NAME:?is the name of the TPU, as gcloud compute tpus tpu-vm list shows it}"
: "${ZONE:?is the zone of the TPU}"
if [ "$#" -eq 0 ]; then
    echo "usage: TPU_NAME=... ZONE=... $0 command [argument ...]" >&2
    exit 2
fi

# Quoted once more, since a shell on each machine reads the line again.
remote="cd $(printf '%q' "${REMOTE_DIR:-xtrainer}")"
if [ -n "${VENV:-}" ]; then
    remote+=" && source $(printf '%q' "$VENV/bin/activate")"
fi
remote+=" && exec$(printf ' %q' "$@")"

exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} \
    --worker=all --command="$remote"
