#!/usr/bin/env bash
# Can one real CT be learnt by heart, and does its mask come back onto its own grid?
# Nothing is held out: this judges the way through the program, not the network.
# Usage: benchmarks/one_ct.sh IMAGE.nii.gz LABEL.nii.gz FOLDER [groups|strong]
set -euo pipefail
image=$1 label=$2 out=$3 how=${4:-groups}
python=${PYTHON:-.venv/bin/python}
root="$out/prepared_$how" run="$out/run_$how"
"$python" -m pancseg.prepare source=nifti source.images="$image" source.labels="$label" \
  data.tail=shift data.keep_empty=true data.root="$root"
case $how in
  # instance norm: batches of two; the data's own spacing: nothing is gained below it
  groups) words=(loss=dice_ce model.norm=instance optimizer.lr=2e-3
    "data.spacing_mm=[3,3,3]" "data.spatial_size=[112,96,64]"
    trainer.max_epochs=250 trainer.check_val_every_n_epoch=10) ;;
  strong) words=(experiment=strong trainer.max_time=00:00:10:00) ;;
  *) echo "$how: expected groups or strong" >&2; exit 2 ;;
esac
time "$python" -m pancseg.train data.root="$root" split=same "${words[@]}" hydra.run.dir="$run"
"$python" -m pancseg.evaluate checkpoint="$run/checkpoints/best.ckpt" subset=test
