"""Processes that train one network together, each on its share of every batch: what torchrun starts.

    torchrun --nproc-per-node 2 -m lurm build data/shop

Rank 0 leads: it alone builds the other stages, writes, and says anything. A batch, its views and its loss are those of
one process: ranks embed their own users, exchange the embeddings, and add up their gradients, so every rank takes
the same step, and the one that a single process would take. All see one artifacts folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lurm.errors import LurmError

_AT_MOST = timedelta(minutes=30)  # between two ranks' turns at one step
_STAGES_AT_MOST = timedelta(days=7)  # of what the leader does alone before
_NO_GRADIENT, _DENSE, _SPARSE = range(3)

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


def _exchange(method: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """Say in our words when another rank is gone."""

    @wraps(method)
    def exchange(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            raise LurmError(
                f"another rank of this training has ended, or is silent: {str(error).splitlines()[0]}. "
                "See what it said; the same command goes on from the last checkpoint"
            ) from error

    return exchange


class Ranks:
    """The processes of one training, seen from one of them; alone, nothing is exchanged.

    Every rank calls the same methods in the same order, from its main thread.

    Attributes:
        rank: of this process, 0 for the leader.
        n: how many there are.

    Raises:
        LurmError: (every method that exchanges) a rank has ended, or kept the others waiting for half an hour.
    """

    def __init__(self, rank: int = 0, n: int = 1) -> None:
        self.rank, self.n = rank, n

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, n_rows: int) -> slice:
        """Which of so many rows are this rank's own; shares are in the order of ranks and differ by at most one."""
        return slice(n_rows * self.rank // self.n, n_rows * (self.rank + 1) // self.n)

    @_exchange
    def gathered(self, own_be: Tensor, n_rows: int) -> Tensor:
        """(n_rows, E) the rows of all ranks from each one's share; the gradient goes to the own rows alone.

        So where all ranks compute one loss from all rows, the sum over ranks of the gradients of weights is the
        gradient that a single process would have.
        """
        if self.n == 1:
            return own_be
        shares = [Ranks(rank, self.n).share(n_rows) for rank in range(self.n)]
        gathered: Tensor = _Gather.apply(own_be, shares, self.rank)  # type: ignore[no-untyped-call]
        return gathered

    @_exchange
    def add_up_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Let every rank have the sum of the gradients of all; the sparse ones stay sparse.

        A rank whose share of a batch is empty has none and adds nothing; where no rank has one, there is none.
        """
        if self.n == 1:
            return
        parameters = list(parameters)
        kind_p = torch.tensor([_kind(parameter.grad) for parameter in parameters])
        dist.all_reduce(kind_p, dist.ReduceOp.MAX)
        dense = []
        for parameter, kind in zip(parameters, kind_p.tolist(), strict=True):
            if kind == _NO_GRADIENT:
                continue
            if parameter.grad is None:
                parameter.grad = _no_rows(parameter) if kind == _SPARSE else torch.zeros_like(parameter)
            if kind == _SPARSE:
                parameter.grad = parameter.grad.coalesce()
                dist.all_reduce(parameter.grad)
            else:
                dense.append(parameter.grad)
        if not dense:
            return
        together = torch.cat([gradient.flatten() for gradient in dense])
        dist.all_reduce(together)
        start = 0
        for gradient in dense:
            gradient.copy_(together[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    @_exchange
    def add_up(self, own: Tensor) -> None:
        """Replace a tensor by its sum over all ranks."""
        if self.n > 1:
            dist.all_reduce(own)

    @_exchange
    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Write the leader's values into these tensors."""
        if self.n > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    @_exchange
    def agreed(self, number: float) -> float:
        """The leader's number."""
        leaders = torch.tensor(number, dtype=torch.float64)
        self.follow([leaders])
        return float(leaders)

    @_exchange
    def told(self, words: bytes = b"") -> bytes:
        """What the leader says; the others wait for it, up to a week."""
        if self.n == 1:
            return words
        dist.monitored_barrier(timeout=_STAGES_AT_MOST)
        said = torch.zeros(int(self.agreed(len(words))), dtype=torch.uint8)
        if self.leads:
            said = torch.frombuffer(bytearray(words), dtype=torch.uint8) if words else said
        self.follow([said])
        return bytes(said.tolist())


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started together with this process; alone where it was started otherwise."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=_AT_MOST)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _kind(gradient: Tensor | None) -> int:
    if gradient is None:
        return _NO_GRADIENT
    return _SPARSE if gradient.is_sparse else _DENSE


def _no_rows(parameter: Tensor) -> Tensor:
    """The gradient of a table of which no row was looked up."""
    nowhere = torch.zeros(1, 0, dtype=torch.int64, device=parameter.device)
    return torch.sparse_coo_tensor(nowhere, parameter.detach()[:0], parameter.shape, check_invariants=True)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_be: Tensor, shares: list[slice], rank: int) -> Tensor:
        ctx.own = shares[rank]
        sizes = [share.stop - share.start for share in shares]
        padded = own_be.new_zeros(max(sizes), own_be.shape[1])
        padded[: len(own_be)] = own_be
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient_be: Tensor) -> tuple[Tensor, None, None]:
        return gradient_be[ctx.own], None, None
