"""Errors in one line: what was found, what was expected, what to do."""

import difflib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf

from pancseg.configuration import conf_folder
from pancseg.errors import PancsegError


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
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)"


def quoting_advice(override: str, name: str) -> str:
    """The command line again, with the value that Hydra's grammar refuses in quotes."""
    key, _, value = override.partition("=")
    quoted = f'{key}="{value}"'
    words = [quoted if word == override else word for word in sys.argv[1:]]
    command_line = " ".join(shlex.quote(word) for word in words)
    return (
        f"{override}: has a character that needs quotes; paste: "
        f"python -m pancseg.{name} {command_line}"
    )


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
    """Every key of a command's default configuration, in dots."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return list(dotted_keys(OmegaConf.to_container(hydra.compose(name))))


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys of nested dictionaries.

    >>> list(dotted_keys({"a": {"b": 1}, "c": 2}))
    ['a', 'a.b', 'c']
    """
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from dotted_keys(value, f"{prefix}{key}.")
