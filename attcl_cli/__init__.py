"""AttCL-GAN: completing the missing MR modalities of a dataset.

Holds the version, and the functions of the stages: each is loaded when it is first used, so that importing the package
costs nothing. Each checks everything first, raises `errors.AttclError`, prints nothing, and returns a typed result.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attcl_cli.completion.report import show as show
    from attcl_cli.completion.run import complete as complete
    from attcl_cli.data.dataset import open_dataset as open_dataset
    from attcl_cli.data.prepare import prepare_splits as prepare_splits
    from attcl_cli.errors import AttclError as AttclError
    from attcl_cli.scoring.run import score as score
    from attcl_cli.segmentation.run import segment as segment
    from attcl_cli.segmentation.run_evaluate import evaluate as evaluate
    from attcl_cli.segmentation.run_export import export as export
    from attcl_cli.training.run import train as train

__version__ = "0.1.0"

# Name -> the module that holds it.
_MODULES = {
    "AttclError": "attcl_cli.errors",
    "complete": "attcl_cli.completion.run",
    "evaluate": "attcl_cli.segmentation.run_evaluate",
    "export": "attcl_cli.segmentation.run_export",
    "open_dataset": "attcl_cli.data.dataset",
    "prepare_splits": "attcl_cli.data.prepare",
    "score": "attcl_cli.scoring.run",
    "segment": "attcl_cli.segmentation.run",
    "show": "attcl_cli.completion.report",
    "train": "attcl_cli.training.run",
}

__all__ = [
    "AttclError",
    "__version__",
    "complete",
    "evaluate",
    "export",
    "open_dataset",
    "prepare_splits",
    "score",
    "segment",
    "show",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
