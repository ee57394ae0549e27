"""Which device networks run on."""

from __future__ import annotations

import torch

from attcl_cli.errors import UsageError


def select(name: str) -> torch.device:
    """`auto` takes the best there is; a device that is named and absent is an error.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, _, index = name.partition(":")
    there = {
        "cpu": not index,
        "mps": torch.backends.mps.is_available() and not index,
        "cuda": torch.cuda.is_available()
        and (not index or (index.isdigit() and int(index) < torch.cuda.device_count())),
    }
    if not there.get(kind, False):
        present = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UsageError(
            f"--device: {name!r} is not on this machine, wanted auto, {', '.join(present)}"
        )
    return torch.device(name)
