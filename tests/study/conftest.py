"""The modules of examples/study lie beside its Snakefile, and are no part of the package."""

from __future__ import annotations

import sys
from pathlib import Path

STUDY = Path(__file__).resolve().parents[2] / "examples" / "study"
sys.path.insert(0, str(STUDY))
