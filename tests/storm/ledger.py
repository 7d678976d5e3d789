"""What storms were seen to do, as the table of docs/reliability.md."""

import json
import os
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"
TABLE = re.compile(r"(?s)(<!-- storms -->\n).*(<!-- end of storms -->)")
HEAD = (
    "| what was done | how often | how it ended (exit code: times) | lost or wrong afterwards |\n"
    "|--|--|--|--|\n"
)


class Ledger:
    """Collects rows; the long form writes them into the page.

    Args:
        path: Of the rows so far, where ``make storm`` asks for them.
    """

    def __init__(self, path: str | None) -> None:
        self.path = PAGE.parent.parent / path if path else None  # tests have folders of their own

    def add(self, what: str, ends: dict[int, int], note: str = "") -> None:
        """Add a row for a storm that lost nothing; a longer form of it stays.

        Args:
            what: Was done.
            ends: How often each exit code came.
            note: To stand behind it.
        """
        times = sum(ends.values())
        told = ", ".join(f"{code}: {ends[code]}" for code in sorted(ends))
        print(f"{what}{note}: {times} times, {told}", flush=True)
        if not self.path:
            return
        rows = self.rows()
        if times >= int(rows.get(what, ["", "0"])[1]):
            rows[what] = [f"{what}{note}", str(times), told, "nothing"]
        self.keep(rows)

    def count(self, what: str, how: str, times: int) -> None:
        """Count a test that passed, by the mark ``row`` it carries.

        Args:
            what: Was done.
            how: It ended.
            times: It was done in this test.
        """
        if self.path:
            rows = self.rows()
            before = int(rows.get(what, ["", "0"])[1])
            self.keep({**rows, what: [what, str(before + times), how, "nothing"]})

    def rows(self) -> dict[str, list[str]]:
        """Those so far."""
        return json.loads(self.path.read_text()) if self.path and self.path.is_file() else {}

    def keep(self, rows: dict[str, list[str]]) -> None:
        """Keep rows, and write them into the page."""
        assert self.path
        self.path.write_text(json.dumps(rows, indent=1))
        write_table(rows)


def write_table(rows: dict[str, list[str]]) -> None:
    """Write the table into the page."""
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in rows.values())
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda m: m[1] + HEAD + lines + m[2], page), encoding="utf-8")


def from_environment() -> Ledger:
    return Ledger(os.environ.get("STORM_ROWS"))
