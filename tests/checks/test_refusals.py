"""What no check knows as a mistake, and what is no answer at all, gets one clear line."""

import inspect

import numpy as np
import pytest
import torch
from annotations import unchecked

import diffinf_lib as di
from diffinf_lib.checks import CheckFailed
from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.errors import ConfigurationError, DiffinfError
from diffinf_lib.settings import default_dtype


def right(jacobians):
    return 2 / jacobians.shape[1] * torch.einsum("dcp,dcq->pq", jacobians, jacobians) / len(jacobians)


def refused(function, check=di.checks.ggn, **options):
    with unchecked(), pytest.raises(CheckFailed) as failure:
        check(function, **options)
    message = str(failure.value)
    assert message.startswith(f"{check.__name__}: ") and "\n" not in message
    return message


def test_a_failure_is_an_assertion_and_a_refusal_of_the_library():
    assert issubclass(CheckFailed, AssertionError) and issubclass(CheckFailed, DiffinfError)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (right(torch.ones(1, 1, 1).double()), "Tensor given; give the function itself"),
        (None, "NoneType given"),
        (lambda j: None, "returns None; is there a return"),
        (lambda j: print(end=""), "returns None"),
        (lambda j: right(j).numpy(), "numpy array; give a torch tensor"),
        (lambda j: right(j).float(), "float32 and the cases are in float64"),
        (lambda j: right(j.float()).half(), "float16"),
        (lambda j: right(j.float()).double(), "right to a few digits only; something in the function is in float32"),
        (lambda j: right(j).tolist(), "returns a list; give a torch tensor or a number"),
        (lambda j: "F", "returns a str"),
        (lambda j: right(j).to(torch.complex128), "complex"),
        (lambda j: (right(j), right(j)), "returns 2 things, not 1"),
        (lambda j: right(j)[:-1], "shape [1, 2], not [2, 2]"),
        (lambda j: right(j).flatten(), "shape [4], not [2, 2]"),
        (lambda j: right(j).fill_diagonal_(torch.nan), "2 of 4 numbers are not finite"),
        (lambda j: right(j) / 0, "4 of 4 numbers are not finite"),
        (lambda j: -right(j), "the sign is the other way round"),
        (lambda j: 3 * right(j), "3 times the right answer in every case"),
        (lambda j, k: j, "raised TypeError"),
        (lambda j: j @ j[0, 0, :1], "raised RuntimeError"),
        (lambda j: right(j) * j.shape[2], "too large by a factor of P"),
        (lambda j: right(j) + 1, "in the case of two draws, outputs and weights, by hand the GGN: "),
    ],
)
def test_what_is_no_answer(function, said):
    assert said in refused(function)


def test_an_error_tells_the_line_it_arose_in():
    def shaped(jacobians):
        outputs = jacobians.shape[1]
        return right(jacobians).view(outputs, 17)

    line = shaped.__code__.co_firstlineno + 2
    assert f"raised RuntimeError in line {line}: shape '[2, 17]' is invalid" in refused(shaped)


def test_a_wrong_answer_says_where_and_by_how_much():
    def nearly(jacobians):
        answer = right(jacobians)
        answer[0, 1] += 0.25 if len(jacobians) == 2 else 0.0
        return answer

    assert refused(nearly) == (
        "ggn: in the case of two draws, outputs and weights, by hand the GGN: 1.25 at [0, 1] where 1 is right; "
        "the other cases are right"
    )


def test_arguments_that_a_function_changes_do_not_reach_the_next_case():
    def careless(jacobians):
        answer = right(jacobians)
        jacobians.zero_()
        return answer

    assert di.checks.ggn(careless)
    with pytest.raises(CheckFailed, match="sum over draws"):
        di.checks.ggn(lambda j: right(j) * len(j) + 0 * j.zero_().sum())


def test_a_network_is_given_anew_to_each_call_and_random_numbers_are_left_alone():
    """Gradients that a function leaves in the network, or weights that it spoils, do not reach the next case."""
    seen = []

    def careless(network, factor_draws, train_draws, query_draws, damping):
        seen.append((network, sum(parameter.sum().item() for parameter in network.parameters())))
        with torch.no_grad():
            network.last.bias += 1
        network(*(part.flatten(0, 1) for part in train_draws[:2])).sum().backward()
        return torch.zeros(2, 3)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in range(2):
        assert "the scores" in refused(careless, di.checks.kfac_influence)
    assert torch.equal(before, torch.get_rng_state())
    assert [size for _, size in seen[:3]] == [size for _, size in seen[3:]] and seen[1][1] == seen[2][1]


def test_a_last_case_is_heard_only_where_all_others_are_right():
    """Eigenvalues below 0 are no reason to be silent about another mistake."""

    def scores(query, train, a, b, damping, clamp=False, times=1.0):
        (e_a, q_a), (e_b, q_b) = torch.linalg.eigh(a), torch.linalg.eigh(b)
        e_a = e_a.clamp(min=0) if clamp else e_a
        solved = q_b @ (q_b.T @ query @ q_a / (torch.outer(e_b, e_a) + damping)) @ q_a.T
        return times * (train * solved).sum((1, 2)) / len(train)

    check = di.checks.kfac_score
    below = "kfac_score: an eigenvalue below 0 is divided by; it comes from rounding and counts as 0"
    assert refused(scores, check) == below
    assert refused(lambda *given: scores(*given, times=-1), check) == "kfac_score: the sign is the other way round"
    assert "float32" in repr(check(lambda *given: scores(*given, clamp=True)))


@exercise(gives="the mean", mistakes={})
def mean_of_rows():
    """`mean_of_rows(rows)`: the mean of N rows, as columns."""
    for count in (3, 5):
        rows = torch.arange(2.0 * count, dtype=torch.float64).view(count, 2) ** 2
        yield Case(f"{count} rows", torch.outer(rows.mean(0), torch.ones(2).double()), (rows,), {"N": count})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rows: rows.sum(0).unsqueeze(1).expand(2, 2), "the mean: too large by a factor of N"),
        (lambda rows: -rows.sum(0).unsqueeze(1).expand(2, 2), "factor of N, and the sign is the other way round"),
        (lambda rows: (rows.mean(0) / len(rows)).unsqueeze(1).expand(2, 2), "the mean: too small by a factor of N"),
        (lambda rows: rows.mean(0).unsqueeze(0).expand(2, 2), "the mean: it is transposed"),
    ],
)
def test_factors_and_transposes_are_recognised_without_being_listed(wrong, said):
    assert said in refused(wrong, mean_of_rows)


def test_numbers_of_any_kind_are_answers():
    assert di.checks.spearman_brown(lambda rho, k: np.float64(k * rho / (1 + (k - 1) * rho)))
    assert di.checks.spearman_brown(lambda rho, k: torch.tensor(k * rho / (1 + (k - 1) * rho), dtype=torch.float64))


def test_gradients_do_not_disturb():
    def watched(jacobians):
        return right(jacobians.requires_grad_())

    assert di.checks.ggn(watched)


def test_a_passed_check_says_what_it_tried():
    assert repr(di.checks.ggn(right)) == (
        "ggn is right. Tried: two draws, outputs and weights, by hand; 4 draws, 3 outputs and 2 weights, by a linear "
        "model's Hessian; 3 draws, 2 outputs and 5 weights, by a linear model's Hessian."
    )


@pytest.mark.parametrize("options", [{"sharing": "shared"}, {"bias": "joint"}])
def test_options_are_checked(options):
    with unchecked(), pytest.raises(ConfigurationError, match=next(iter(options))):
        di.checks.kfac(lambda inputs, gradients: (inputs, gradients), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_new_tensors_in_a_function_are_in_float64_as_its_arguments_are(dtype):
    """A right answer needs no `dtype=`, whatever the caller's default, and that default is left as it was."""
    made = []

    def my_score(query, train, input_factor, output_factor, damping):
        made.append(torch.tensor(damping).dtype)
        a = input_factor + damping**0.5 * torch.eye(len(input_factor))
        b = output_factor + damping**0.5 * torch.eye(len(output_factor))
        return (train * (torch.linalg.solve(b, query) @ torch.linalg.inv(a))).sum((1, 2)) / len(train)

    def broken(*given):
        raise ValueError

    with default_dtype(dtype):
        assert di.checks.kfac_score(my_score, damped="factors")
        assert "raised ValueError" in refused(broken, di.checks.kfac_score)
        assert torch.get_default_dtype() == dtype
    assert set(made) == {torch.float64}


def test_settings_of_the_process_do_not_matter():
    with default_dtype(torch.float64):
        assert di.checks.ggn(right)
        with torch.inference_mode():
            assert di.checks.kfac_score.exercise and di.checks.ggn(right)


def test_a_notebook_shows_one_line():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        with capture_output() as shown:
            result = shell.run_cell("import diffinf_lib as di\ndi.checks.spearman_brown(lambda rho, k: k * rho)")
    finally:
        InteractiveShell.clear_instance()
    assert isinstance(result.error_in_exec, CheckFailed)
    lines = [line for line in shown.stdout.splitlines() if line.strip()]
    assert lines == ["CheckFailed: spearman_brown: this grows without a bound: below the line belongs 1 + (k − 1) ρ"]


@pytest.mark.parametrize("name", [name for name in di.checks.__all__ if hasattr(getattr(di.checks, name), "exercise")])
def test_a_docstring_says_how_the_function_is_called(name):
    check, calls = getattr(di.checks, name), []
    with pytest.raises(CheckFailed, match="returns None"):
        check(lambda *arguments: calls.append(len(arguments)))
    called, _, arguments = check.__doc__.partition("`")[2].partition("`")[0].partition("(")
    assert called == name and calls == [arguments.count(",") + 1]
    assert str(inspect.signature(check)).startswith("(function")
