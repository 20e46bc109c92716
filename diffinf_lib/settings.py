"""Settings of torch that hold for a whole process: whatever a caller has set, results here are the same.

A default type of float64 would change every draw, a default device would part positions from what they point into, and in
inference mode no gradient can be taken. What makes tensors or takes gradients therefore begins with `@own_settings`.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def default_dtype(dtype: "torch.dtype") -> Iterator[None]:
    """Another default type for the tensors that are made inside."""
    import torch  # here: configurations, which compute without having loaded it, carry the decorator too

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _own_settings() -> Iterator[None]:
    """float32 and the CPU as defaults, and no inference mode."""
    import torch

    with ExitStack() as stack:
        stack.enter_context(default_dtype(torch.float32))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        yield


def own_settings(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run a function, or each step of a generator, with the defaults of a fresh process.

    It stands outside `torch.no_grad()`: to leave inference mode is to allow gradients again.
    """

    @wraps(function)
    def called(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with _own_settings():
            return function(*args, **options)

    @wraps(function)
    def stepped(*args: Arguments.args, **options: Arguments.kwargs) -> Iterator[object]:
        steps = cast(Iterator[object], function(*args, **options))
        made: list[object] = []
        while True:
            with _own_settings():
                try:
                    made.append(next(steps))
                except StopIteration:
                    return
            yield made.pop()  # handed on, not held: it may be large

    return (
        cast(Callable[Arguments, Result], stepped) if inspect.isgeneratorfunction(inspect.unwrap(function)) else called
    )
