"""Annotations: what the library's signatures say is held against what is given and returned, in every test.

What cannot be checked is what is not there yet, or cannot be seen: what an iterator yields, what a callable takes and returns,
and all entries of a list or mapping but one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
"""The tower: a whole number is a number, as type checkers have it."""


def check_annotations() -> None:
    """Check every function and dataclass of the library, if called before anything of it is imported."""
    jaxtyping.install_import_hook("diffinf_lib", CHECKER)


def check_named_tuples() -> None:
    """Check the fields of its named tuples imported so far, which the hook leaves alone."""
    checker = jaxtyping._import_hook.Typechecker(CHECKER)
    for kind in tuple.__subclasses__():
        if kind.__module__.startswith("diffinf_lib.") and not hasattr(kind.__new__, "__wrapped__"):
            kind.__new__ = staticmethod(jaxtyping.jaxtyped(kind.__new__, typechecker=checker.lookup[checker.hash]))


@contextmanager
def unchecked() -> Iterator[None]:
    """No annotation is checked, as outside the tests: what breaks one must still be refused by whom it is given to."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
