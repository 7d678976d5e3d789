"""A disk that is full at every write: one line, the right exit code, and nothing lost."""

from pathlib import Path

import pytest

from tests.conftest import Ended
from tests.storm.ledger import Ledger
from tests.storm.works import Work
from tests.storm.yard import Yard, counted

COMMANDS = ["prepare", "train", "evaluate", "predict", "report"]
SHORT = [
    pytest.param(name, once, 2, marks=pytest.mark.slow, id=f"{name}-short")
    for name, once in zip(COMMANDS, (False, False, True, False, True), strict=True)
]
LONG = [
    pytest.param(name, once, 16, marks=pytest.mark.storm, id=f"{name}-{'once' if once else 'long'}")
    for name in COMMANDS
    for once in (False, True)
]


def assert_told(ended: Ended, name: str) -> None:
    """One line of its own, in front of which only warnings may stand; no traceback."""
    assert ended.code in (1, 2), (ended.code, ended.err)
    assert "Traceback" not in ended.err + ended.out, ended.err
    told = [line for line in ended.err.splitlines() if line.startswith(f"pancseg.{name}: ")]
    assert len(told) == 1, ended.err
    assert ended.err.rstrip().endswith(told[0]), ended.err


def moments(writes: int, most: int) -> list[int]:
    """Some of all writes: the first, the last and those between them, evenly."""
    return sorted({round(1 + k * (writes - 1) / max(1, most - 1)) for k in range(most)})


@pytest.mark.parametrize(("name", "once", "most"), [*SHORT, *LONG])
def test_a_write_that_finds_no_room_is_told_and_costs_nothing_that_is_done(
    yard: Yard,
    works: dict[str, Work],
    tmp_path: Path,
    ledger: Ledger,
    name: str,
    most: int,
    once: bool,
) -> None:
    yard.needs_shim()
    work, alone = works[name], tmp_path / "alone"
    alone.mkdir()
    work.lay_out(alone)
    weather, counter = yard.full(alone, at=0)
    assert yard.run(name, *work.words(alone), weather=weather).code == 0
    expected, writes = work.result(alone), counted(counter)
    ends: dict[int, int] = {}
    for at in moments(writes, most):
        folder = tmp_path / str(at)
        folder.mkdir()
        work.lay_out(folder)
        weather, counter = yard.full(folder, at, once)
        ended = yard.run(name, *work.words(folder), weather=weather)
        ends[ended.code] = ends.get(ended.code, 0) + 1
        work.whole(folder)
        if ended.code:  # else it was a line of a log, or nothing: all else is compared
            assert counted(counter) >= at
            assert_told(ended, name)
            again = yard.run(name, *work.words(folder))
            assert again.code == 0, again.err
        assert work.result(folder) == expected, f"write {at} of {writes}"
        print(f"{name}: write {at} of {writes} failed: exit code {ended.code}", flush=True)
    ledger.add(f"disk full at a write of `{name}`{', for once' if once else ''}", ends)
