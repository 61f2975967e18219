"""What a layer saves for its backward pass, kept in pinned host memory while the other layers run.

Copies go on a stream of their own. Forward, the host never runs more than a few layers ahead of the copies,
so that the memory they free is really there for the next layer; backward, what the half layer
before saved is fetched while this one computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

AHEAD = 2
"""Tensors that may still be under way to the host when another one comes."""
BEFORE = 3
"""Tensors fetched ahead: what an attention half saves."""


@dataclass
class _Ticket:
    """One tensor that was put away."""

    host: torch.Tensor
    done: torch.cuda.Event
    source: torch.Tensor | None
    """Held until it is copied."""
    fetched: torch.Tensor | None = None


class Offloader:
    """A stack of tensors in host memory: put in the forward pass, taken from the top in the backward pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._tickets: list[_Ticket | None] = []
        self._buffers: list[torch.Tensor] = []

    def start(self) -> None:
        """Forget what an abandoned backward pass left behind; called before each forward pass."""
        self._tickets.clear()

    def put(self, tensor: torch.Tensor) -> int:
        """Start copying ``tensor`` to the host; its number, for :meth:`take`."""
        number = len(self._tickets)
        if self.stream is None:
            self._tickets.append(_Ticket(tensor, None, tensor))  # type: ignore[arg-type]  # the CPU's own
            return number
        self._wait_for(number - AHEAD)
        host = self._buffer(number, tensor)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        self._tickets.append(_Ticket(host, done, tensor))
        return number

    def take(self, number: int) -> torch.Tensor:
        """The tensor again, on the device; those put before it start to come too."""
        ticket = self._tickets[number]
        assert ticket is not None, "each tensor is taken once"
        if self.stream is None:
            return ticket.host
        self._fetch(number)
        torch.cuda.current_stream(self.device).wait_event(ticket.done)
        found, self._tickets[number] = ticket.fetched, None
        for earlier in range(number - 1, max(-1, number - 1 - BEFORE), -1):
            self._fetch(earlier)
        assert found is not None
        return found

    def _wait_for(self, number: int) -> None:
        if number < 0:
            return
        ticket = self._tickets[number]
        if ticket is not None and ticket.source is not None:
            ticket.done.synchronize()
            ticket.source = None

    def _fetch(self, number: int) -> None:
        ticket = self._tickets[number]
        if ticket is None or ticket.fetched is not None or self.stream is None:
            return
        ticket.source = None
        ticket.fetched = torch.empty_like(ticket.host, device=self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            ticket.fetched.copy_(ticket.host, non_blocking=True)
            ticket.done = torch.cuda.Event()
            ticket.done.record(self.stream)

    def _buffer(self, number: int, like: torch.Tensor) -> torch.Tensor:
        """Pinned memory, kept from step to step."""
        size = like.numel() * like.element_size()
        if number == len(self._buffers):
            self._buffers.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        elif self._buffers[number].numel() < size:
            self._buffers[number] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._buffers[number][:size].view(like.dtype).view(like.shape)
