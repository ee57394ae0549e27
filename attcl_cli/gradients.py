"""The mean of gradients over processes, sent in parts while the backward pass still computes the next ones.

DistributedDataParallel does this for one network that is called once; a training step here calls several networks, some
of them several times, and steps a part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

MESSAGE_BYTES = 4 * 2**20
"""About what one message holds: small enough for several per network, large enough to use a connection well."""


class GradientMean:
    """The mean of the gradients of some parameters over all processes, for one backward pass.

    Messages leave in one fixed order in all processes, the last parameters first, since their gradients are ready
    first. So a process whose gradients come in another order, or not at all, waits for nothing that never comes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], processes: int) -> None:
        self._processes = processes
        self._messages = _messages(parameters)
        self._awaited = [sum(item.requires_grad for item in message) for message in self._messages]
        self._sent: list[tuple[Tensor, dist.Work]] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send each message as soon as its last gradient is complete; encloses the backward pass."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(self._counting(number))
            for number, message in enumerate(self._messages)
            for parameter in message
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def receive(self) -> None:
        """Send what is left, wait for all, and replace the gradients by their mean."""
        while len(self._sent) < len(self._messages):
            self._send_next()
        for message, (total, work) in zip(self._messages, self._sent, strict=True):
            work.wait()
            sizes = [parameter.numel() for parameter in message]
            for parameter, part in zip(
                message, (total / self._processes).split(sizes), strict=True
            ):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))

    def _counting(self, number: int) -> Callable[[Tensor], None]:
        """Return what counts a complete gradient of a message, and sends all that is complete."""

        def count(_parameter: Tensor) -> None:
            if number < len(self._sent):
                raise RuntimeError(
                    "a gradient changed after it had left: one backward pass at a time"
                )
            self._awaited[number] -= 1
            while len(self._sent) < len(self._messages) and not self._awaited[len(self._sent)]:
                self._send_next()

        return count

    def _send_next(self) -> None:
        """Send the next message; gradients that are missing count as 0."""
        message = self._messages[len(self._sent)]
        total = torch.cat(
            [
                (torch.zeros_like(item) if item.grad is None else item.grad).flatten()
                for item in message
            ]
        )
        work = dist.all_reduce(total, async_op=True)
        self._sent.append((total, work))


def _messages(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters, the last ones first, in groups of about `MESSAGE_BYTES`."""
    messages: list[list[nn.Parameter]] = [[]]
    room = MESSAGE_BYTES
    for parameter in reversed(parameters):
        if messages[-1] and room <= 0:
            messages.append([])
            room = MESSAGE_BYTES
        messages[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return messages
