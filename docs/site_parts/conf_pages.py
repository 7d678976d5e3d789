"""Reference pages made from ``conf/``: keys, defaults, and meanings from the comments."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

REMARK = re.compile(r"(?:^|[\s}\]])#\s?(.*)$")
BUILT_BY = "_target_"
GLOBAL = "@package _global_"
COMMANDS = {
    "prepare": "turns folders of DICOM, NIfTI or NRRD into a prepared folder",
    "train": "trains on a prepared folder and writes a run with its checkpoints",
    "evaluate": "scores whole cases on their own grid",
    "predict": "segments new scans",
    "report": "writes the report of a run or sweep, or compares runs",
    "export": "writes a network for programs without pancseg, or data for nnU-Net",
    "phantom": "writes synthetic CT as DICOM",
}
OF_HYDRA = ("sweeper",)  # Hydra's own groups for which there are choices

INTRODUCTION_OF_COMMANDS = """Made from `conf/` when this site is built. Give a key as `key=value`
on the command line. `python -m pancseg.train --cfg job` prints all resolved values, `--help` lists
the choices. `hydra.run.dir=FOLDER` sets the folder of a run, `hydra.sweep.dir=FOLDER` that of a
sweep; the defaults are made from name and time, or from the options of the sweep. `???` has no
default and must be given; `null` means no value. `${...}` is the value of another key,
`${machine:...}` a property of this machine."""
INTRODUCTION_OF_CHOICES = """Made from `conf/` when this site is built. Choose with `group=choice`,
such as `model=resunet`; the keys of the choice are then `group.key=value`, such as
`model.width=16`. [Commands](commands.md) lists the groups of each command."""


@dataclass(frozen=True)
class Key:
    """A key of a configuration file.

    Attributes:
        name: In dots, without the group's.
        value: As the file writes it, in one line.
        remark: What the comment beside it says; empty where there is none.
    """

    name: str
    value: str
    remark: str


@dataclass(frozen=True)
class Choice:
    """A configuration file: what its first comment says, what it builds on, its keys.

    One with ``@package _global_`` states whole keys; the others those of their group.
    """

    name: str
    about: str
    defaults: list[tuple[str, str | None]]
    keys: list[Key]
    is_global: bool


def read_choice(path: Path) -> Choice:
    """Read a configuration file with its comments, which YAML's own readers drop."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)
    assert root is None or isinstance(root, yaml.MappingNode), path
    keys = [] if root is None else list(keys_of(root, lines, ""))
    own = [key for key in keys if key.name.split(".")[0] not in ("defaults", "hydra")]
    plain = yaml.safe_load(text) or {}
    return Choice(path.stem, head_of(lines), defaults_of(plain), own, GLOBAL in text)


def head_of(lines: list[str]) -> str:
    """What a file's first comment says."""
    said = []
    for line in lines:
        if line == "#" or not line.startswith("#"):
            break
        said.append(line.removeprefix("#").strip())
    return " ".join(line for line in said if line != GLOBAL)


def defaults_of(plain: dict) -> list[tuple[str, str | None]]:
    """Groups a file takes something from, each with the choice it takes."""
    found = []
    for entry in plain.get("defaults", []):
        pairs = entry.items() if isinstance(entry, dict) else [(entry, "")]
        for group, choice in pairs:
            name = str(group).removeprefix("override ").removeprefix("/")
            if name != "_self_" and not name.startswith("hydra"):
                found.append((name, choice))
    return found


def keys_of(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Key]:
    """Every key that holds a value, depth first."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            above = remark_at(lines, key.end_mark) if not value.flow_style else ""
            if above:
                yield Key(name, "", above)
            yield from keys_of(value, lines, f"{name}.")
        else:
            yield Key(name, written(value), remark_at(lines, end_of(key, value)))


def end_of(key: yaml.Node, value: yaml.Node) -> yaml.Mark:
    """Where the line of a key ends: a list below it has its own lines."""
    below = isinstance(value, yaml.SequenceNode) and not value.flow_style
    return key.end_mark if below else value.end_mark


def remark_at(lines: list[str], mark: yaml.Mark) -> str:
    """The comment behind a place, with the lines below that go on with it."""
    found = REMARK.search(lines[mark.line][mark.column :])
    if not found:
        return ""
    said = [found.group(1)]
    column = mark.column + found.start() + found.group(0).index("#")
    for line in lines[mark.line + 1 :]:
        if not (line.strip().startswith("#") and line.index("#") == column > 1):
            break
        said.append(line.strip().removeprefix("#").strip())
    return " ".join(said).strip()


def written(node: yaml.Node) -> str:
    """A value in one line; of a list of classes their names."""
    if isinstance(node, yaml.ScalarNode):
        return node.value or "null"
    assert isinstance(node, yaml.SequenceNode | yaml.MappingNode)
    if isinstance(node, yaml.MappingNode):
        return "{}"
    return "[" + ", ".join(class_of(one) or written(one) for one in node.value) + "]"


def class_of(node: yaml.Node) -> str:
    """The name of the class that a node builds; empty where it builds none."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((v.value.rpartition(".")[2] for k, v in pairs if k.value == BUILT_BY), "")


def groups(conf: Path) -> dict[str, list[Choice]]:
    """Every group with its choices; one that others build on comes before them."""
    folders = [path for path in sorted(conf.iterdir()) if path.is_dir() and path.name != "hydra"]
    folders += [conf / "hydra" / name for name in OF_HYDRA]
    return {
        folder.relative_to(conf).as_posix(): [read_choice(p) for p in sorted(folder.glob("*.yaml"))]
        for folder in folders
    }


def meanings(conf: Path) -> dict[str, str]:
    """What each key means, by its whole name, wherever a comment first says so."""
    found: dict[str, str] = {}
    for group, choices in groups(conf).items():
        for choice in sorted(choices, key=lambda one: bool(one.defaults)):
            for key in choice.keys:
                whole = f"{prefix_of(group, choice)}{key.name}"
                if key.remark and not found.get(whole):
                    found[whole] = key.remark
    for key in read_choice(conf / "train.yaml").keys:
        found.setdefault(key.name, key.remark)
    return found


def explained(choice: Choice, prefix: str, known: dict[str, str]) -> list[Key]:
    """Keys under their whole names; a choice need not say again what a key means."""
    return [
        Key(whole, key.value, key.remark or known.get(whole) or told_by_name(key))
        for key in choice.keys
        for whole in [f"{prefix}{key.name}"]
    ]


def told_by_name(key: Key) -> str:
    """What a key that is the same everywhere needs no comment for."""
    return "the class that is built" if key.name.split(".")[-1] == BUILT_BY else ""


def table(keys: list[Key]) -> list[str]:
    """Rows of keys, values and remarks."""
    rows = [f"| `{k.name}` | {code(k.value)} | {cell(k.remark)} |" for k in keys]
    return ["", "| key | default | meaning |", "|--|--|--|", *rows, ""] if rows else [""]


def code(value: str) -> str:
    """A value as code."""
    return f"`{cell(value)}`" if value else ""


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", r"\|")


def choices_page(conf: Path) -> str:
    """All groups and choices."""
    page, known = ["# Choices and their keys", "", INTRODUCTION_OF_CHOICES], meanings(conf)
    for group, read in groups(conf).items():
        place = group.replace("/", "-")
        page += ["", f"## {group} {{ #{place} }}", ""]
        for choice in read:
            page += ["", f"### {group}={choice.name} {{ #{place}-{choice.name} }}", ""]
            page += [sentence(choice.about), "", builds_on(choice, group)]
            page += table(explained(choice, prefix_of(group, choice), known))
    return "\n".join(page) + "\n"


def prefix_of(group: str, choice: Choice) -> str:
    """What the keys of a choice begin with on the command line; nothing where they are global."""
    return "" if choice.is_global else f"{group.replace('/', '.')}."


def builds_on(choice: Choice, group: str) -> str:
    """What a choice takes from others."""
    parts = []
    for name, taken in choice.defaults:
        other = f"{group}={name.partition('@')[0]}" if not taken else f"{name}={taken}"
        parts.append(f"[`{other}`](#{other.replace('=', '-')})")
    return f"Takes the rest from {', '.join(parts)}." if parts else ""


def commands_page(conf: Path) -> str:
    """All commands."""
    page = ["# Commands and their keys", "", INTRODUCTION_OF_COMMANDS]
    for path in sorted(conf.glob("*.yaml"), key=lambda one: order_of(one.stem)):
        choice = read_choice(path)
        page += ["", f"## {path.stem} {{ #{path.stem} }}", ""]
        page += [f"`python -m pancseg.{path.stem}`: {COMMANDS.get(path.stem) or choice.about}."]
        page += table(explained(choice, "", {}))
        if choice.defaults:
            page += ["Groups of keys, by default:", ""]
            page += [f"- {line}" for line in group_lines(choice)]
    return "\n".join(page) + "\n"


def group_lines(choice: Choice) -> Iterator[str]:
    """The groups of a command, linked."""
    for group, taken in choice.defaults:
        if taken is None:
            yield f"[`{group}`](choices.md#{group}): none"
        else:
            yield f"[`{group}={taken}`](choices.md#{group}-{taken})"


def order_of(command: str) -> tuple[int, str]:
    """As one uses them."""
    known = list(COMMANDS)
    return (known.index(command) if command in known else len(known), command)


def sentence(text: str) -> str:
    """Begins large and ends with a point."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""
