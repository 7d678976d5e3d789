"""``python -m pancseg.doctor``: what works on this machine, what is fast, and what is neither."""

from pathlib import Path

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.errors import Incomplete


def doctor(cfg: DictConfig) -> None:
    """Look at the machine and print what was found.

    Raises:
        Incomplete: If something that pancseg needs does not work.
    """
    from pancseg.checkup.examination import examine
    from pancseg.checkup.findings import BROKEN, as_json, as_lines

    findings = examine(Path(cfg.data.root), Path(cfg.runs))
    print(as_json(findings) if cfg.json else "\n".join(as_lines(findings)))
    broken = [one.name for one in findings if one.status == BROKEN]
    if broken:
        raise Incomplete(f"broken: {', '.join(broken)}; the lines above say what to do")


main = command(doctor)

if __name__ == "__main__":
    main()
