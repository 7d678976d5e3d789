"""Errors in one line: what was found, what was expected, what to do."""

import difflib
import errno
import os
import re
import shlex
import sys

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf

from pancseg.configuration import conf_folder, leaves
from pancseg.errors import NO_ROOM, PancsegError

ON_WINDOWS = os.name == "nt"


def one_line(error: BaseException, name: str) -> str:
    """Say an error in one line: what was found, what was expected, what to do."""
    if isinstance(error, OverrideParseException):
        return quoting_advice(str(error.override), name)
    if isinstance(error, MissingConfigException) and error.options:
        group = str(error.missing_cfg_file).rpartition("/")[0]
        wanted = str(error.missing_cfg_file).rpartition("/")[2]
        choices = ", ".join(option for option in error.options)
        return f"{group}={wanted}: no such choice; choices are {choices}"
    if str(error).startswith("Ambiguous value for argument"):
        return quoting_advice(str(error).split("'")[1], name)
    if isinstance(error, ConfigCompositionException):
        return unknown_key_advice(error, name)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PancsegError):
        return text
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EACCES):
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}{error.strerror}; make room or give another folder, and run the same command "
            "again: what was reported as done stays"
        )
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)"


def quoting_advice(override: str, name: str) -> str:
    """The command line again, with all values quoted that Hydra's grammar refuses."""
    is_sweep = bool({"-m", "--multirun"} & set(sys.argv))
    words = [
        quoted(word) if word == override or needs_quotes(word, is_sweep) else word
        for word in sys.argv[1:]
    ]
    command_line = " ".join(in_shell(word) for word in words)
    return (
        f"{override}: has a character that needs quotes; paste: "
        f"python -m pancseg.{name} {command_line}"
    )


def needs_quotes(word: str, is_sweep: bool) -> bool:
    """Whether Hydra refuses an override as it stands, or splits its value at commas."""
    if word.startswith("-") or "=" not in word:
        return False
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return True
    return override.is_sweep_override() and not is_sweep


def quoted(override: str) -> str:
    """An override with its value in quotes, or those items of a list that need them.

    >>> quoted("labels=[Bauchspeicheldrüse,7]") if not ON_WINDOWS else 'labels=["Bauch...",7]'
    'labels=["Bauchspeicheldrüse",7]'
    """
    key, _, value = override.partition("=")
    if value.startswith("[") and value.endswith("]"):
        items = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)""", value[1:-1])
        return f"{key}=[{','.join(map(quoted_value, items))}]"
    return f"{key}={quoted_value(value)}"


def quoted_value(text: str) -> str:
    """A value in quotes if Hydra refuses it without; backslashes before a quote are doubled."""
    if not needs_quotes(f"x={text}", is_sweep=False):
        return text
    mark = "'" if ON_WINDOWS else '"'  # the shell leaves it alone within its own quotes
    escaped = re.sub(rf"(\\*)({mark}|$)", lambda m: 2 * m[1] + "\\" * len(m[2]) + m[2], text)
    return mark + escaped + mark


def in_shell(word: str) -> str:
    """A word of a command line as the shell here takes it.

    >>> in_shell("data=group64")
    'data=group64'
    """
    if not ON_WINDOWS:
        return shlex.quote(word)
    return f'"{word}"' if set(word) & set(" '(),") else word


def unknown_key_advice(error: ConfigCompositionException, name: str) -> str:
    """Which key is unknown, and which known one is closest to it."""
    text = str(error).splitlines()[0]
    key = text.partition("'")[2].partition("'")[0]
    if not key or "override" not in text:
        return " ".join(f"{error} {error.__cause__ or ''}".split())
    close = difflib.get_close_matches(key, known_keys(name), n=1, cutoff=0.6)
    advice = (
        f"did you mean {close[0]}?" if close else f"python -m pancseg.{name} --cfg job lists them"
    )
    return f"{key}: no such key; {advice}"


def known_keys(name: str) -> list[str]:
    """Every key of a command's default configuration, in dots, and every group of keys."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        values = OmegaConf.to_container(hydra.compose(name))
    parts = [key.split(".") for key, _ in leaves(values)]
    return sorted({".".join(one[:n]) for one in parts for n in range(1, len(one) + 1)})


def own_error(error: Exception) -> Exception:
    """The error itself where ``instantiate`` wrapped it."""
    cause = error.__cause__
    wrapped = isinstance(error, InstantiationException) and isinstance(cause, PancsegError)
    return cause if wrapped else error  # type: ignore[return-value]
