"""What makes one generator of steps a method of both clients."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from lurm.client.exchange import Steps

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Blocks(ABC):
    """A client whose methods return when they are done."""

    @abstractmethod
    def drive(self, steps: Steps[_T]) -> _T:
        """What the steps come to, done one after the other."""


class Awaits(ABC):
    """A client whose methods are awaited."""

    @abstractmethod
    async def drive(self, steps: Steps[_T]) -> _T:
        """What the steps come to, done one after the other."""


class Method(Generic[_P, _T]):
    """A method of both clients, from a generator of its steps."""

    def __init__(self, steps: Callable[Concatenate[Any, _P], Steps[_T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, _P], Steps[_T]]: ...
    @overload
    def __get__(self, client: Blocks, owner: type) -> Callable[_P, _T]: ...
    @overload
    def __get__(self, client: Awaits, owner: type) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
    def __get__(self, client: Blocks | Awaits | None, owner: type) -> Callable[..., Any]:
        if client is None:
            return self._steps

        steps = MethodType(self._steps, client)

        @functools.wraps(steps)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            return client.drive(steps(*args, **kwargs))

        return call
