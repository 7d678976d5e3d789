"""Two at a time: one works, the other waits or is refused in one line."""

import time
from pathlib import Path

import pytest

from tests.conftest import smoke
from tests.storm.ledger import Ledger
from tests.storm.works import Work
from tests.storm.yard import Yard

ROUNDS = [
    pytest.param(1, marks=pytest.mark.slow, id="short"),
    pytest.param(10, marks=pytest.mark.storm, id="long"),
]


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        pytest.param("evaluate", 1, marks=pytest.mark.slow, id="short"),
        *(
            pytest.param(name, 10, marks=pytest.mark.storm, id=name)
            for name in ("evaluate", "report")
        ),
    ],
)
def test_two_at_once_leave_what_one_leaves(
    yard: Yard, works: dict[str, Work], tmp_path: Path, ledger: Ledger, name: str, rounds: int
) -> None:
    work, alone = works[name], tmp_path / "alone"
    alone.mkdir()
    work.lay_out(alone)
    assert yard.run(name, *work.words(alone)).code == 0
    expected = work.result(alone)
    for n in range(rounds):
        folder = tmp_path / str(n)
        folder.mkdir()
        work.lay_out(folder)
        both = [yard.start(name, *work.words(folder)) for _ in range(2)]
        ended = [one.wait() for one in both]
        assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
        assert work.result(folder) == expected
    ledger.add(f"two `{name}` at once on one folder", {0: 2 * rounds})


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_second_training_into_one_folder_is_refused_and_harms_nothing(
    yard: Yard, works: dict[str, Work], prepared: Path, tmp_path: Path, ledger: Ledger, rounds: int
) -> None:
    work, alone = works["train"], tmp_path / "alone"
    alone.mkdir()
    assert yard.run("train", *work.words(alone)).code == 0
    expected = work.result(alone)
    ends: dict[int, int] = {}
    for n in range(rounds):
        folder = tmp_path / str(n)
        folder.mkdir()
        first = yard.start("train", *work.words(folder))
        while not (folder / "run" / "checkpoints" / "last.ckpt").is_file():
            assert first.is_alive(), first.text("err")
            time.sleep(0.01)
        before = (folder / "run" / ".hydra" / "overrides.yaml").read_text()
        second = yard.run("train", *smoke(prepared, folder / "run", "seed=1"))
        if first.is_alive():
            assert second.code == 2
            assert "another pancseg.train is writing to it" in second.err
            assert second.err.count("\n") == 1
            assert (folder / "run" / ".hydra" / "overrides.yaml").read_text() == before
            ends[second.code] = ends.get(second.code, 0) + 1
        assert first.wait().code == 0
        assert second.code == 0 or work.result(folder) == expected
    assert ends
    ledger.add("a second `train` into one run folder", ends)
