"""What mattered in a sweep: how far each parameter tells good jobs from the others."""

import math
import warnings
from typing import Any

from pancseg.sweeping.sweep_jobs import Job

FEWEST = 4  # jobs that say anything
BEST_SHARE = 0.25  # of the jobs that are compared with all


def importances(jobs: list[Job], keys: list[str]) -> dict[str, float]:
    """Share of each parameter in what made jobs good, the most important first.

    PED-ANOVA, of Optuna: S. Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter
    Importance in Arbitrary Subspaces", IJCAI 2023. fANOVA would need scikit-learn.

    Args:
        jobs: Those that came to their end count.
        keys: Parameters, each with several values.

    Returns:
        Shares that sum to 1; none where there are too few jobs, or Optuna is not installed.
    """
    done = [job for job in jobs if job.status == "done" and job.dice is not None]
    shared = [key for key in keys if len({str(job.params.get(key)) for job in done}) > 1]
    if len(done) < FEWEST or not shared:
        return {}
    try:
        import optuna
    except ImportError:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    space = {key: distribution([job.params.get(key) for job in done]) for key in shared}
    for job in done:
        params = {key: as_param(job.params.get(key), space[key]) for key in shared}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=space, value=job.dice)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few trials, and of what is experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {} if any(math.isnan(one) for one in found.values()) else dict(found)


def distribution(values: list[Any]) -> Any:
    """A range for numbers, on a logarithmic scale where it spans a decade; else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(one, (int, float)) for one in values):
        return FloatDistribution(min(values), max(values), log=spans_a_decade(values))
    return CategoricalDistribution(list(dict.fromkeys(str(one) for one in values)))


def spans_a_decade(values: list[Any]) -> bool:
    """Whether positive numbers are better shown on a logarithmic scale.

    >>> spans_a_decade([0.001, 0.1]), spans_a_decade([0, 10]), spans_a_decade([2, 5])
    (True, False, False)
    """
    return min(values) > 0 and max(values) >= 10 * min(values)


def as_param(value: Any, chosen: Any) -> Any:
    """A value as its distribution takes it."""
    return str(value) if hasattr(chosen, "choices") else float(value)
