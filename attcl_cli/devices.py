"""Which device networks run on, and which other processes take part.

Several processes are started by `torchrun` or `accelerate launch`; accelerate finds out what they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from attcl_cli.errors import UsageError

if TYPE_CHECKING:  # the command line imports this file to answer --help at once
    import torch
    from accelerate import PartialState
    from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]
"""What networks compute in: the machine's business, no setting of a method."""

Thing = TypeVar("Thing")


class Processes:
    """The processes that train together; by default there is one.

    Attributes:
        rank: this process' number.
        count: how many there are.
    """

    def __init__(self, state: PartialState | None = None) -> None:
        self._state = state
        self.rank = state.process_index if state else 0
        self.count = state.num_processes if state else 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self._state:
            self._state.wait_for_everyone()

    def leave(self) -> None:
        """Ends the common work, all at once: a process that exits while another still listens takes that one down."""
        if self._state:
            self._state.wait_for_everyone()
            self._state.destroy_process_group()
            self._state = None

    def agree(self, thing: Thing) -> Thing:
        """The main process' `thing`, in all processes."""
        if self._state is None:
            return thing
        from accelerate.utils import broadcast_object_list  # noqa: PLC0415 - slow, and rarely needed

        things = [thing]
        broadcast_object_list(things)
        return things[0]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self._state is None:
            return value
        from accelerate.utils import reduce  # noqa: PLC0415

        return reduce(value, "mean")

    def any(self, flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - the value itself
        """Return whether `flag` is set in any process."""
        if self._state is None:
            return flag
        import torch  # noqa: PLC0415

        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces gradients by their mean over the processes, in one message."""
        if self._state is None or not parameters:
            return
        import torch  # noqa: PLC0415

        for parameter in parameters:
            if parameter.grad is None:  # all processes must send tensors of one shape
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(
            gradients, mean.split([item.numel() for item in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def select(name: str) -> torch.device:
    """`auto` takes the best there is; a device that is named and absent is an error.

    Raises:
        UsageError: no such device here.
    """
    import torch  # noqa: PLC0415

    if name == "auto":
        best = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
        return torch.device(best)
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
            f"--device: {name!r} is not on this machine, expected auto, {', '.join(present)}",
            "-d auto takes the best there is",
        )
    return torch.device(name)


def join(name: str) -> tuple[torch.device, Processes]:
    """The device of this process, and the processes it was started with.

    Raises:
        UsageError: no such device here.
    """
    device = select(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, Processes()
    from accelerate import PartialState  # noqa: PLC0415

    state = PartialState(cpu=device.type == "cpu")
    return state.device, Processes(state)
