"""Every mistake that a check knows is refused in its own words, and none is mistaken for another."""

import pytest

import diffinf_lib as di
from diffinf_lib.checks import CheckFailed

CHECKS = [getattr(di.checks, name) for name in di.checks.__all__ if hasattr(getattr(di.checks, name), "exercise")]
VARIANTS = [(check, options) for check in CHECKS for options in check.exercise.options]
MISTAKES = [
    pytest.param(check, options, message, mistake, id=f"{check.__name__}{'-'.join(map(str, options.values()))}-{place}")
    for check, options in VARIANTS
    for place, (message, mistake) in enumerate(check.exercise.known(**options).items())
]


@pytest.mark.parametrize(("check", "options", "message", "mistake"), MISTAKES)
def test_a_known_mistake_is_named(check, options, message, mistake):
    with pytest.raises(CheckFailed) as failure:
        check(mistake, **options)
    assert str(failure.value) == f"{check.__name__}: {message}"
    assert "\n" not in message
