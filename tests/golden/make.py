"""Write demo_losses.json anew: run it when the demo's model, data or recipe changed on purpose.

PYTHONPATH=src:tests python -P tests/golden/make.py
"""

from __future__ import annotations

import json
import os
import tempfile

from support.demo_losses import GOLDEN, first_losses

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["WHET_HOME"] = home
        losses = [round(loss, 6) for loss in first_losses()]
    GOLDEN.write_text(json.dumps({"losses": losses}, indent=1) + "\n", encoding="utf-8")
    print(f"{GOLDEN}: {losses[0]} ... {losses[-1]}")
