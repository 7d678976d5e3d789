#!/usr/bin/env bash
# Wall-clock of preparing many small patients, by the number of processes.
# Usage: benchmarks/workers.sh FOLDER [PATIENTS]
set -euo pipefail
out=$1 patients=${2:-200}
python=${PYTHON:-.venv/bin/python}
[ -d "$out/dicom" ] || "$python" -m pancseg.phantom out="$out/dicom" patients="$patients" seed=2 \
  shape=[128,128,64] spacing_mm=[3,3,4]
for processes in 1 2 4; do
  rm -rf "$out/prepared"
  echo "processes=$processes"
  time "$python" -m pancseg.prepare source.images="$out/dicom/images" privacy=none \
    source.labels="$out/dicom/labels" data.root="$out/prepared" processes="$processes"
done
