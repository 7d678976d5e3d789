"""``python -m pancseg.predict``: masks of scans without labels."""

import logging
import os
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError, printable

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> None:
    """Segment every scan of a path; Incomplete if one was refused or failed."""
    from pancseg.files import check_writable
    from pancseg.hardware import device_settings
    from pancseg.inference import scan_batch as sb
    from pancseg.inference.checkpoint import open_checkpoints
    from pancseg.inference.find_scans import case_names, find_scans
    from pancseg.inference.postprocessing import PostprocessOptions
    from pancseg.inference.predictor import Predictor
    from pancseg.parallel import Shard, cores, progress, throttled

    scans, folder, options = *check_request(cfg), PostprocessOptions(**cfg.postprocess)
    if options.is_auto:
        raise PancsegError("postprocess: auto is chosen by pancseg.evaluate; leave it out here")
    shard = None if cfg.shard is None else Shard.parse(cfg.shard)
    name = "" if shard is None else str(shard.index)
    models, device = open_checkpoints(cfg.checkpoint), device_settings(cfg.hardware)
    predictor = Predictor(models, mirror=cfg.tta, options=options, **device)
    thresholds = sb.ReviewThresholds(**cfg.review)
    batch = sb.ScanBatch(predictor, folder, thresholds, cfg.probabilities, cfg.rtstruct)
    found = find_scans(scans, cfg.modality, cores())
    for warning in found.warnings:  # to the console alone: it names files
        print(f"warning: {printable(warning)}", file=sys.stderr)
    sources = dict(zip(case_names(found.cases, scans), found.cases, strict=True))
    if shard:
        hashes = {case: sha256(os.fsencode(case)).hexdigest() for case in sources}
        sources = {case: sources[case] for case in sources if shard.has(hashes[case])}
    refused = [sb.PredictionRow("", str(f.path), "", sb.REFUSED, f.reason) for f in found.skipped]
    check_writable(folder, "output")
    with sb.locked_output(folder, predictor, name):
        path = folder / (f"predictions.{name}.csv" if shard else sb.TABLE)
        rows = sb.read_tables(folder)
        rows = {c: rows[c] for c in sources if c in rows and batch.is_done(sources[c], rows[c])}
        missing = {case: source for case, source in sources.items() if case not in rows}

        def table() -> list[sb.PredictionRow]:
            return [rows[case] for case in sources if case in rows] + ([] if shard else refused)

        write_now_and_then = throttled(lambda: sb.write_table(path, table()))
        try:
            for _ in progress(batch.run(missing, rows), "segmenting", "scan", len(missing)):
                write_now_and_then()
        except BaseException:
            with suppress(OSError):  # the disk may be full
                sb.write_table(path, table())
            raise
        sb.write_table(path, table())
        for part in () if shard else folder.glob("predictions.*.csv"):
            part.unlink()
    failed = print_rows(table())
    log.info("%s", path)
    if failed:
        count = "1 scan was" if failed == 1 else f"{failed} scans were"
        raise Incomplete(f"{count} refused or failed; see {path}")


def check_request(cfg: DictConfig) -> tuple[Path, Path]:
    """Input and output, checked before anything is opened."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise PancsegError(f"{missing[0]} is not given; give a path")
    scans, folder = Path(cfg.input), Path(cfg.output)
    if scans.is_dir() and folder.resolve().is_relative_to(scans.resolve()):
        raise PancsegError(
            f"output={folder}: lies in the input, where its masks would be taken for scans; give "
            "another folder"
        )
    return scans, folder


def print_rows(rows: list) -> int:
    """Print each row to the console alone, and count the scans that were refused or failed."""
    for row in rows:
        result = f"{row.volume_ml} ml, confidence {row.confidence}" if row.status == "done" else ""
        result += f", {row.structures_ml} ml" if row.structures_ml else ""
        flags = f"  [{row.flags}]" if row.flags else ""
        name = row.case or printable(row.path)
        print(f"{name}  {row.status}: {result or row.reason}{flags}")
    return sum(row.status in ("refused", "failed") for row in rows)


main = command(predict)

if __name__ == "__main__":
    main()
