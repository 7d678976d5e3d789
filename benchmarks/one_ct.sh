#!/usr/bin/env bash
# Can one real CT be learnt by heart, and does its mask come back onto its own grid?
# Nothing is held out: this judges the way through the program, not the network.
# Usage: benchmarks/one_ct.sh IMAGE.nii.gz LABEL.nii.gz FOLDER
set -euo pipefail
image=$1 label=$2 out=$3
python=${PYTHON:-.venv/bin/python}
"$python" -m pancseg.prepare source=nifti source.images="$image" source.labels="$label" \
  data.tail=shift data.keep_empty=true data.root="$out/prepared"
# instance norm: batches of two; the data's own spacing: nothing is gained below it
time "$python" -m pancseg.train data.root="$out/prepared" split=same loss=dice_ce \
  model.norm=instance optimizer.lr=2e-3 data.spacing_mm=[3,3,3] data.spatial_size=[112,96,64] \
  trainer.max_epochs=250 trainer.check_val_every_n_epoch=10 hydra.run.dir="$out/run"
"$python" -m pancseg.evaluate checkpoint="$out/run/checkpoints/best.ckpt" subset=test
