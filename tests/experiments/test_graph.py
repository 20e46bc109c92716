"""The graph of an experiment: which launches there are, what each waits for, and what they cost."""

import pytest

import diffinf_lib as di
from diffinf_lib.cli import main
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.experiments import Experiment
from diffinf_lib.experiments.costs import costs_of
from diffinf_lib.experiments.graph import all_studies
from diffinf_lib.experiments.plans import makespan


def experiment(**config):
    return Experiment.of({"preset": "smoke", "run": "anywhere"} | config)


def test_a_ground_truth_is_a_model_its_shards_and_a_bundle():
    jobs = experiment(shards=3).jobs
    shards = tuple(f"e02_ground_truth-{index}-of-3" for index in range(3))
    assert list(jobs) == ["e01_model", *shards, "e03_bundle"]
    assert [jobs[name].after for name in jobs] == [(), *[("e01_model",)] * 3, shards]
    assert jobs[shards[2]].parameters["shard"] == 2 and "shard" not in jobs["e03_bundle"].parameters


def test_a_study_waits_for_what_it_reads():
    jobs = experiment(shards=2, studies="all").jobs
    shards = tuple(f"e02_ground_truth-{index}-of-2" for index in range(2))
    assert set(all_studies()) <= set(jobs)
    assert jobs["e05_methods"].after == ("e03_bundle",)  # it compares with a ground truth
    assert jobs["e09_timesteps-1-of-2"].after == shards  # it measures the retrained models
    assert jobs["e09_timesteps"].after == ("e09_timesteps-0-of-2", "e09_timesteps-1-of-2")
    assert jobs["e15_solves"].after == ("e01_model",) and jobs["e12_decomposition"].after == ()
    seen = set()
    for job in jobs.values():  # an order in which they can be run
        assert seen.issuperset(job.after)
        seen.add(job.name)


def test_parameters_go_to_every_template_that_has_them():
    jobs = experiment(studies="e04_draws", parameters={"seed": 3, "counts": [8], "results": "elsewhere"}).jobs
    assert [name for name, job in jobs.items() if "counts" in job.parameters] == ["e04_draws"]
    assert all(job.parameters["seed"] == 3 for job in jobs.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"studies": "e05_method"}, "studies=e05_method: no such study; give some of e04_draws, "),
        ({"parameters": {"sead": 1}}, "parameter='sead': none of that name here; give one of "),
        ({"parameters": {"shard": 1}}, "parameter='shard': none of that name here"),
        ({"parameters": {"seed": "x"}}, "seed='x': give a whole number"),
        ({"preset": "smok"}, "preset='smok': no such preset"),
        ({"preset": ""}, "preset: none given"),
        ({"shards": 0}, "shards=0: give a positive whole number"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything(config, message):
    with pytest.raises(ConfigurationError, match=message):
        experiment(**config)


def test_jobs_cost_what_the_planner_says_however_they_are_cut():
    plan = di.planner.estimate(di.get_preset("smoke"), flops_per_second=1e9)
    stages = ("model", "samples", "retrained", "measurements")
    for shards in (1, 4):
        costs = costs_of(experiment(shards=shards), flops=1e9)
        assert sum(cost.seconds for cost in costs.values()) == pytest.approx(sum(plan[name].seconds for name in stages))
    one = next(cost for name, cost in costs.items() if name.startswith("e02"))
    assert one.minutes(2) == pytest.approx(2 * one.minutes(1), abs=1) and one.megabytes(1) > 1000
    more = costs_of(experiment(parameters={"subsets": 8, "options": {"subsets.seeds": 4}}), flops=1e9)
    assert more["e02_ground_truth-0-of-1"].seconds == pytest.approx(4 * 4 * one.seconds)


def test_a_study_costs_what_it_took_on_the_digits():
    """Planned for the digits at the speed at which their ground truth was made, a study takes what its bundle says."""
    truth = di.load_bundle("digits-ground-truth").metrics
    plan = di.planner.estimate(di.get_preset("digits"), flops_per_second=1.0)
    speed = (plan["retrained"].flops + plan["measurements"].flops) / (
        truth["training_seconds"] + truth["measurement_seconds"]
    )
    digits = Experiment.of({"preset": "digits", "run": "anywhere", "studies": ["e15_solves", "e06_curvatures"]})
    costs = costs_of(digits, flops=speed)
    assert costs["e15_solves"].seconds == pytest.approx(
        di.load_bundle("digits-solves").metrics["seconds"],
        rel=0.01,  # reading is planned by bytes, not by FLOPs
    )
    assert costs["e06_curvatures"].guessed and not costs["e15_solves"].guessed


def test_time_side_by_side():
    jobs = list(experiment(shards=4).jobs.values())
    seconds = {job.name: 10.0 for job in jobs}
    assert [makespan(jobs, seconds, at_once) for at_once in (1, 2, 4, 9)] == [60, 40, 30, 30]


def test_a_dry_run_prints_jobs_hours_and_disk_and_leaves_nothing(capsys, tmp_path):
    words = ["experiment", "cifar2-small", "--run", str(tmp_path / "run"), "--studies", "e06_curvatures", "--dry-run"]
    assert main([*words, "--shards", "8", "--gpus", "4", "--per-gpu", "2", "--flops", "20e12"]) == 0
    printed = capsys.readouterr().out
    assert "GPU-hours" in printed and "11 of 11 jobs to do" in printed and "with 8 at once" in printed
    assert "e06_curvatures*" in printed and "at least" not in printed.split("\n\n")[0]
    assert not list(tmp_path.iterdir())
