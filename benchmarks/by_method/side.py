"""One side of one case: ``side.py JOB.json RESULT.json``. Its own process, so that neither sees the other."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "training"))
sys.path.insert(2, str(Path(__file__).resolve().parents[2] / "tests"))

from cases import Job


def main() -> None:
    """Make the model where it is missing, train, write what was measured."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if job.side == "make":
        from making import make

        make(job.model, Path(job.folder))
        return
    if job.side == "whet":
        from whet_side import run
    else:
        from plain_side import run
    Path(sys.argv[2]).write_text(json.dumps(asdict(run(job))), encoding="utf-8")


if __name__ == "__main__":
    main()
