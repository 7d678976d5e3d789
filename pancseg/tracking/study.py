"""Opens an Optuna study: the sweeper's, which a trial reports to as well.

Each start of ``train`` reads this file, so Optuna is imported where it is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pancseg.errors import PancsegError

WAIT_S = 60  # for another worker that writes to an SQLite file


def optuna_package() -> Any:
    """Optuna, which is an extra.

    Raises:
        PancsegError: If it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise PancsegError(
            "hydra/sweeper=optuna: Optuna is not installed; run pip install 'pancseg[sweep]'"
        ) from None
    return optuna


@contextmanager
def open_study(storage: str, name: str, pruner: dict[str, int] | None) -> Iterator[Any]:
    """Open a study, or begin one; its connections are closed afterwards.

    Args:
        storage: Address of a database, as SQLAlchemy writes it.
        name: Of the study.
        pruner: ``startup_trials``, which are never stopped, and ``warmup_epochs``, in which none
            is; None for none.

    Raises:
        PancsegError: If Optuna is not installed.
    """
    optuna = optuna_package()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waits = {"timeout": WAIT_S} if storage.startswith("sqlite") else {}
    database = optuna.storages.RDBStorage(storage, engine_kwargs={"connect_args": waits})
    chosen: Any = optuna.pruners.NopPruner()
    if pruner is not None:
        first = pruner["warmup_epochs"] + 1  # that may be stopped at; our epochs count from 1
        chosen = optuna.pruners.MedianPruner(pruner["startup_trials"], first)
    try:
        yield optuna.create_study(
            storage=database, study_name=name, direction="maximize", pruner=chosen,
            load_if_exists=True,
        )  # fmt: skip
    finally:
        database.remove_session()
        database.engine.dispose()
