"""What is searched: Hydra's words for ranges and choices as Optuna's distributions."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from pancseg.errors import PancsegError


def parse(words: list[str], parser: OverridesParser) -> tuple[dict[str, Any], list[str]]:
    """Split overrides into what is searched and what is the same in each trial.

    Args:
        words: As on a command line; a later word wins over an earlier one of the same key.
        parser: Hydra's.

    Returns:
        Distributions by key, and the other words.

    Raises:
        PancsegError: If Optuna cannot search what is asked for.
    """
    searched: dict[str, Any] = {}
    fixed: dict[str, str] = {}
    for override in parser.parse_overrides(words):
        key = override.get_key_element()
        searched.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            searched[key] = distribution(override)
        else:
            fixed[key] = override.input_line or ""
    if not searched:
        raise PancsegError(
            "hydra/sweeper=optuna: nothing is searched; give a key several values, such as "
            "'optimizer.lr=interval(1e-4,1e-2)' or loss=dice,dice_ce"
        )
    return searched, list(fixed.values())


def distribution(override: Override) -> Any:
    """Optuna's word for a choice, a range or an interval."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        ends: list[Any] = [value.start, value.end]
        low, high = ends
        whole = isinstance(low, int) and isinstance(high, int)
        try:
            made = IntDistribution if whole else FloatDistribution
            return made(low, high, log="log" in value.tags)
        except ValueError as error:
            raise PancsegError(f"{override.input_line}: cannot be searched ({error})") from error
    each = [as_value(text) for text in override.sweep_string_iterator()]
    if override.is_range_sweep() and len(each) > 1 and all(isinstance(one, int) for one in each):
        step = each[1] - each[0]
        if step > 0 and each == list(range(each[0], each[-1] + 1, step)):  # it is not shuffled
            return IntDistribution(each[0], each[-1], step=step)
    return CategoricalDistribution(list(dict.fromkeys(each)))


def as_value(text: str) -> Any:
    """A number as one, anything else as Hydra writes it.

    >>> as_value("3"), as_value("1e-3"), as_value("dice_ce"), as_value("null")
    (3, 0.001, 'dice_ce', 'null')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def as_overrides(params: dict[str, Any]) -> list[str]:
    """What a trial is given, as words of a command line."""
    return [f"{key}={value}" for key, value in params.items()]


def quoted(text: str) -> str:
    r"""A text as Hydra's grammar takes any.

    >>> quoted("sqlite:///a b.db"), quoted("it's")
    ("'sqlite:///a b.db'", "'it\\'s'")
    """
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"
