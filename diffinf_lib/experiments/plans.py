"""Plans of experiments: the jobs that would be run, what they cost, and how long they take side by side."""

from collections.abc import Mapping, Sequence

from diffinf_lib.experiments.costs import Cost
from diffinf_lib.experiments.graph import Experiment, Job
from diffinf_lib.experiments.records import remaining


def makespan(jobs: Sequence[Job], seconds: Mapping[str, float], at_once: int) -> float:
    """Seconds until all jobs are done, each started as soon as what it needs is done and a place is free."""
    free, ends = [0.0] * at_once, dict[str, float]()
    for job in jobs:
        place = min(range(at_once), key=free.__getitem__)
        start = max([free[place], *(ends[name] for name in job.after if name in ends)])
        free[place] = ends[job.name] = start + seconds[job.name]
    return max(ends.values(), default=0.0)


def plan_table(experiment: Experiment, costs: Mapping[str, Cost], *, at_once: int, gpus: int) -> str:
    """What is left of an experiment, a row a template: jobs, hours, disk, memory; and the whole of it."""
    from diffinf_lib.planner.plan import readable_bytes, readable_time

    left = remaining(experiment)
    hours = "GPU-hours" if gpus else "core-hours"
    lines = [f"{experiment.preset:21}{'jobs':>5}{'done':>5}{'each':>10}{hours:>11}{'disk':>9}{'memory':>9}"]
    for template in dict.fromkeys(job.template for job in experiment.jobs.values()):
        every = [job for job in experiment.jobs.values() if job.template == template]
        todo = [costs[job.name] for job in every if job in left]
        longest = max((cost.seconds for cost in todo), default=0.0)
        mark = "*" if any(costs[job.name].guessed for job in every) else ""
        lines.append(
            f"{template + mark:21}{len(every):5}{len(every) - len(todo):5}{readable_time(longest):>10}"
            f"{sum(cost.seconds for cost in todo) / 3600:11.3g}{readable_bytes(sum(cost.disk_bytes for cost in todo)):>9}"
            f"{readable_bytes(max((cost.peak_bytes for cost in todo), default=0)):>9}"
        )
    seconds = {job.name: costs[job.name].seconds for job in left}
    disk = readable_bytes(sum(costs[job.name].disk_bytes for job in left))
    lines.append(f"\n{len(left)} of {len(experiment.jobs)} jobs to do: {sum(seconds.values()) / 3600:.3g} {hours}, {disk} of "
                 f"disk,\nabout {readable_time(makespan(left, seconds, at_once))} with {at_once} at once")  # fmt: skip
    if any(costs[job.name].guessed for job in left):
        lines.append(
            "* the planner does not know this study: counted as one attribution of all queries, the least it takes"
        )
    return "\n".join(lines)
