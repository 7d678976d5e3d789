"""What ended a job of a sweep, written down in its folder."""

import datetime
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancseg.configuration import changes_result
from pancseg.explanation import one_line, own_error
from pancseg.files import write_json

FAILED, SUMMARY = "failed.json", "summary.json"
TRACEBACK = "PANCSEG_TRACEBACK"  # in the environment, where HYDRA_FULL_ERROR was asked for


def write_failure(
    folder: Path, error: Exception, cfg: DictConfig | None = None, words: Sequence[str] = ()
) -> None:
    """Write down what ended a job; of paths of input files, which may name patients, only the key.

    Args:
        folder: Of the job.
        error: That ended it.
        cfg: Of the job, where it could be composed.
        words: The job's overrides, where it could not.
    """
    write_json(folder / FAILED, failure_of(error, cfg, words))


def keep_failure(folder: Path, error: Exception, words: Sequence[str]) -> str:
    """Say why a job has no score, and write it down where the job could not, as one that was lost.

    Args:
        folder: Of the job.
        error: What came of it.
        words: Its overrides.
    """
    found = failure_of(error, None, words)
    if not any((folder / name).is_file() for name in (FAILED, SUMMARY)):
        write_json(folder / FAILED, found)
    return found["error"]


def failure_of(error: Exception, cfg: DictConfig | None, words: Sequence[str]) -> dict[str, Any]:
    """What ``failed.json`` holds, as :func:`write_failure` is given it."""
    if cfg is None:
        given = [word for word in words if word.startswith("source.")]
        cfg = OmegaConf.from_dotlist([word.replace("'", "").replace('"', "") for word in given])
    places = input_places(cfg)
    found: dict[str, Any] = {
        "error": without_places(one_line(own_error(error), "train"), places),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if words:
        found["overrides"] = [word for word in words if changes_result(word)]
    if os.environ.get(TRACEBACK):
        lines = "".join(traceback.format_exception(error))
        found["traceback"] = without_places(lines, places).splitlines()
    return found


def input_places(cfg: DictConfig) -> dict[str, str]:
    """Keys of ``source`` by the paths they hold, as given and absolute."""
    source = OmegaConf.to_container(cfg.source) if cfg.get("source") else {}
    named = {
        key: value
        for key, value in (source.items() if isinstance(source, dict) else ())
        if key in ("images", "labels", "folder") and isinstance(value, str) and value != "???"
    }
    return {
        form: f"<source.{key}>"
        for key, value in named.items()
        for form in (value, str(Path(value).absolute()), str(Path(value).resolve()))
    }


def without_places(text: str, places: dict[str, str]) -> str:
    r"""A text with paths below some folders replaced, up to where a message may go on.

    >>> without_places("/scans/A B/1.dcm: is no image", {"/scans": "<source.images>"})
    '<source.images>: is no image'
    """
    for path in sorted(places, key=len, reverse=True):
        follows = r"(?=$|[/\\]|[\s'\":;,)])(?:(?!: |; |, |['\"\n]| \().)*"
        text = re.sub(rf"(?<![\w/\\.-]){re.escape(path)}{follows}", places[path], text)
    return text
