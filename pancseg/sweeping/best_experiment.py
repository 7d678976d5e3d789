"""The best job of a sweep as a file for ``conf/experiment``.

It names every choice and number itself rather than the experiment that the sweep began with: a
later change of that one would change what was found to be best.
"""

from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pancseg.configuration import changes_result, conf_folder, leaves
from pancseg.files import write_text
from pancseg.output.run_files import read_yaml
from pancseg.sweeping.search_space import quoted
from pancseg.sweeping.sweep_jobs import SETTINGS, Job

NAME = "best_experiment"
# given again by whoever trains it: they say where things lie
PLACES = ("data.root", "split.path", "init_from")


def write_best(folder: Path, job: Job) -> Path:
    """Write the configuration of a job as an experiment.

    Args:
        folder: Where ``best_experiment.yaml`` is written.
        job: With its ``.hydra``.

    Returns:
        The file.
    """
    settings = read_yaml(job.folder / SETTINGS / "hydra.yaml", dict)
    choices = {
        str(group): choice
        for group, choice in settings["hydra"]["runtime"]["choices"].items()
        if choice is not None and not str(group).startswith("hydra/") and group != "experiment"
    }
    own = own_folders(settings)
    standard, chosen = composed({}, own), composed(choices, own)
    named = {group: one for group, one in choices.items() if standard["groups"].get(group) != one}
    config = read_yaml(job.folder / SETTINGS / "config.yaml", dict)
    base = dict(leaves(chosen["values"]))
    told = {
        key: value
        for key, value in leaves(config)
        if (key not in base or base[key] != value) and changes_result(key) and key not in PLACES
    }
    path = folder / f"{NAME}.yaml"
    write_text(path, as_text(job, named, told))
    return path


def own_folders(settings: dict[str, Any]) -> list[str]:
    """Folders of configuration that a sweep was given, by ``--config-dir`` or a search path.

    Args:
        settings: What Hydra kept of a job, ``hydra.yaml``.
    """
    sources = settings["hydra"]["runtime"].get("config_sources", ())
    ours = ("main", "hydra")  # as Hydra calls the package's own and its own
    given = [
        one["path"] for one in sources if one["schema"] == "file" and one["provider"] not in ours
    ]
    return [path for path in given if Path(path).is_dir()]


def composed(choices: dict[str, Any], own: list[str]) -> dict[str, Any]:
    """What a training is with some choices and no experiment: its groups, and its values.

    Args:
        choices: File by group.
        own: Folders of configuration beside the package's.
    """
    words = [f"{group}={one}" for group, one in choices.items()]
    places = ",".join(quoted(f"file://{path}") for path in own)
    words.append(f"hydra.searchpath=[{places}]")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        found = hydra.compose("train", words, return_hydra_config=True)
    groups = dict(found.hydra.runtime.choices)
    values: Any = OmegaConf.to_container(found)
    return {"groups": groups, "values": {k: one for k, one in values.items() if k != "hydra"}}


def as_text(job: Job, groups: dict[str, Any], values: dict[str, Any]) -> str:
    """The file: a head that says where it is from, the groups, and the values."""
    content: dict[str, Any] = {
        "defaults": [*({f"override /{group}": one} for group, one in groups.items()), "_self_"]
    }
    for key, value in values.items():
        node = content
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    lines = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return (
        "# @package _global_\n"
        f"# {job.folder.name} of a sweep: the best by val/dice, {job.dice:.4f},\n"
        "# which chose it and is no held-out score\n"
        f"# python -m pancseg.train experiment={NAME} data.root=PREPARED\n{lines}"
    )
