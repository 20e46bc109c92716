# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper at scale: from a laptop to a cluster
#
# :::{admonition} In this chapter
# :class: tip
# You work out what an experiment of the paper costs, before you start it. You find out where the money goes, and what to
# cut. Then you launch one stage, kill it, and let it go on. At the end you know the command that takes a preset of this
# book from a laptop to eight GPUs or a cluster, and what has been tried of that: all on CPUs, and a cluster of one node.
#
# *20 minutes to read · two cores: about a minute · builds on {doc}`08_scale` and {doc}`09_lds`*
# :::

# %% tags=["hide-input"]
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import nbformat
import torch

import diffinf_lib as di
from diffinf_lib import experiments
from diffinf_lib.cli import main
from diffinf_lib.experiments.status import run_status
from diffinf_lib.planner import amounts_of, recipe_of, stage_costs
from diffinf_lib.training import Training, train_many

torch.set_num_threads(1)
di.show_versions()
number, table = di.tables.number, di.tables.table
own = di.get_preset("cifar2")
preset = replace(  # with the paper's draws
    own,
    name="cifar2, the paper's draws",
    measurement=replace(own.measurement, draws=di.DrawConfig(5_000)),
    further_measurements=di.get_preset("cifar2:as-run").further_measurements,
)
kept = tempfile.TemporaryDirectory()
folder = Path(kept.name)  # of this page's own runs


# %% [markdown]
# ## Which half costs more?
#
# An experiment of the paper has two halves. One half *scores*: it fits a curvature, takes gradients and multiplies. The
# other half *checks*: it retrains the model on random halves of the images and measures every query with each. For CIFAR-2
# that is 5,000 training images, a network of 38 million weights and 500 retrained models of 16,000 steps, each of 128
# images. Then 2,000 queries are measured with each model, over 5,000 draws.
#
# **Guess first:** which half takes more arithmetic, and by what factor?
#
# One training step can be counted by hand. A layer multiplies each of its weights once for each position of its output,
# and adds the product up. So a forward pass takes two operations a weight and position. The backward pass does such
# products twice: once for the gradient of the input, once for that of the weights. A step is three forward passes, for
# each image of a batch.

# %%
network = di.planner.network.network_count(preset.unet, preset.curvature)
_, outputs = network.pulled_back_pass(1)  # each [1, positions, channels]
products = sum(
    outputs[name].shape[1] * layer.module.weight.numel()
    for name, layer in network.layers.items()
)
forward = 2 * products
step = 3 * forward * preset.training.batch_size
models = preset.subsets.count * preset.subsets.seeds
by_hand = models * preset.subsets.steps * step
print(f"forward pass of one image: {forward / 1e9:.1f} GFLOP")
print(f"training step:             {step / 1e12:.2f} TFLOP")
print(f"{models} retrained models:      {by_hand / 1e18:.1f} EFLOP")

# %% [markdown]
# Six billion products a forward pass, twice as many floating-point operations, grow to 37 {term}`EFLOP` for 500 models. One
# EFLOP is $10^{18}$ operations. The planner counts the same on a network without numbers, and adds what we left out, such as
# attention. Here is its count for every stage, at 20 TFLOP/s. That is what we assume for an A100 in TF32; measure your own
# card.

# %%
RATE = 20e12
plan = di.planner.estimate(preset, flops_per_second=RATE)
written = di.planner.plan.readable_time, di.planner.plan.readable_bytes


def stage_row(stage):
    return {
        "stage": stage.name,
        "PFLOP": number(stage.flops / 1e15),
        "time": written[0](stage.seconds),
        "disk": written[1](stage.disk_bytes),
        "memory": written[1](stage.peak_bytes),
    }


table([stage_row(stage) for stage in plan.stages], name="tab-cifar2-plan",
      caption="CIFAR-2, the paper's draws, at 20 TFLOP/s.")  # fmt: skip

# %% tags=["hide-input"]
assert 6.0e9 < products < 6.1e9 and 36e18 < by_hand < 38e18
assert 1 < network.forward / forward < 1.05
assert 3 < network.gradient / network.forward < 3.1
assert 1 < plan["retrained"].flops / by_hand < 1.05
truth = plan["retrained"].flops + plan["measurements"].flops
of_queries = plan["query gradients"].flops + plan["scores"].flops
shared = plan["curvature"].flops + plan["train gradients"].flops
scoring = shared + of_queries
assert 0.4e18 < scoring < 0.5e18 and of_queries > 0.75 * scoring
assert preset.subsets.steps == 16_000 and models == 500
assert preset.training.batch_size == 128
assert amounts_of(preset, RATE).queries == 2_000
assert 240 < truth / scoring < 260
seen = preset.subsets.steps * preset.training.batch_size / 2_500
drawn = preset.curvature.drawn_for_factors.count
drawn += preset.curvature.draws.count + preset.gradient_draws.count
assert 800 < seen < 850 and 300 < drawn < 600
assert 80 < plan["retrained"].flops / scoring < 90
assert 1.9 < plan["measurements"].flops / plan["retrained"].flops < 2

# %% [markdown]
# Scoring takes less than half an EFLOP: the curvature, the training gradients, the queries' gradients and the products.
# Checking takes 250 times as much. If you guessed that the second-order method is the expensive part, you are in good
# company. A curvature of 38 million weights sounds costly. But the curvature and the training gradients take a few hundred
# passes over the images. A training takes 800 passes over its own, and there are 500 trainings. Most of the scoring is the
# gradients of the queries, at 5,000 draws each. The scores' half hour in the table is not arithmetic: the disk is read.
#
# The second surprise stands one row further down in the table. *Measuring* the queries with the retrained models costs
# nearly twice as much as making these models. We come to it after you have played with the numbers.
#
# ## The plan in your hands
#
# Most of what costs has a slider here; steps, batches and the ELBO are those of the preset. The bars show which stage takes
# the time and the disk, and the table says how much. Devices share retraining and measuring; all else is done by one. The draws of a measurement are also those of a query's
# gradient, because a query is differentiated as it is measured.
#
# **Guess first:** with the paper's draws one A100 is at work for two months. How long is it if you measure with a twelfth
# of them, as the preset `cifar2` does? Then press *measure with fewer draws*.

# %% tags=["hide-input"]
names = "digits", "cifar2", "cifar10", "artbench10"
digits, *large = map(di.get_preset, names)
bare = di.interactive.Planner([digits, preset, *large])
said = {
    "the paper, one A100": (preset.name, 20, {}),
    "measure with fewer draws": ("cifar2", 20, {}),
    "keep a store": ("cifar2", 20, {"keep": True}),
    "eight GPUs": ("cifar2", 20, {"devices": 8}),
    "cifar10": ("cifar10", 20, {}),
    "artbench10": ("artbench10", 20, {}),
    "digits, one core": ("digits", 0.05, {}),
}
notes = (
    "Measuring takes two thirds of two months.",
    "A twelfth of the draws: well below half the time; retraining leads.",
    "The same time and more than twice the disk, ready for other queries.",
    "Fewer draws, and models side by side: days.",
    "Ten times the images and five times the steps: retraining leads.",
    "Latent diffusion: half as many models, each trained longer.",
    "Retraining and measuring lead, even here.",
)

# %% tags=["hide-input"]
buttons = [
    di.interactive.Preset(name, bare.asked(of, rate, **changes), note)
    for (name, (of, rate, changes)), note in zip(
        said.items(), notes, strict=True
    )
]
start = bare.asked(preset.name, 20)
planner = replace(bare, presets=buttons, start=start,
    caption="Planned time and disk of every stage. Further measurements, "
    "batch sizes and steps are those of the preset.")  # fmt: skip
planner


# %% [markdown]
# 26 days. A twelfth of the measuring is left, half of it for the ELBO; without that (`--set 'further_measurements=[]'`) it
# would be 24 days. Retraining stays as it was: only fewer models, shorter trainings or more devices help with that.
#
# The figure evaluates a short formula, `di.planner.stage_costs`. A few constants of the network go in, such as the
# operations of a forward pass. It is the planner's own arithmetic, so the two must agree. The tests compare them for every
# preset, and this cell for two:


# %% tags=["hide-input"]
def shown(name, rate, **changes):
    return planner.costs(planner.state(**bare.asked(name, rate, **changes)))


def days(costs):
    return sum(cost.seconds for cost in costs.values()) / 86_400


for name in ("digits", "cifar2"):
    whole = di.planner.estimate(di.get_preset(name), flops_per_second=RATE)
    costs = shown(name, 20)
    for stage in whole.stages:
        if stage.name not in ("samples", "trajectories"):
            near = costs[stage.name].seconds / stage.seconds
            assert abs(near - 1) < 1e-9
            near = costs[stage.name].disk_bytes / stage.disk_bytes
            assert abs(near - 1) < 1e-9

# %% tags=["hide-input"]
usual, fewer, eight = (
    shown(of, rate, **changes)
    for of, rate, changes in (said[key] for key in (
        "the paper, one A100", "measure with fewer draws", "eight GPUs"))
)  # fmt: skip
assert 60 < days(usual) < 70 and round(days(fewer)) == 26
assert 0.6 < usual["measurements"].seconds / 86_400 / days(usual) < 0.7
assert fewer["retrained"].seconds > 0.6 * 86_400 * days(fewer)
of_measuring = fewer["measurements"].seconds / usual["measurements"].seconds
assert 11 < 1 / of_measuring < 13
kept_draws = own.further_measurements[0].draws.count
passes = di.measurements.forward_passes(own.measurements)
assert kept_draws == 256 and kept_draws / passes == 0.5
alone = fewer["measurements"].seconds * (1 - kept_draws / passes)
rest = 86_400 * days(fewer) - fewer["measurements"].seconds
assert 23.5 < (alone + rest) / 86_400 < 24.5
assert 3.2 < days(eight) < 3.7
disk = [sum(cost.disk_bytes for cost in costs.values()) for costs in
        (fewer, shown("cifar2", 20, keep=True))]  # fmt: skip
assert 2 < disk[1] / disk[0] < 2.5
whole = shown("cifar10", 20)
assert whole["retrained"].seconds > 2 * whole["measurements"].seconds
small = shown("digits", 0.05)
checking = small["retrained"].seconds + small["measurements"].seconds
assert checking > 0.95 * 86_400 * days(small)

# %% [markdown]
# ## Measuring costs more than retraining
#
# Why is that? Retraining a model takes three forward passes for each image of each batch. Measuring it takes one forward
# pass for each draw of each query. With $Q$ queries and $S$ draws,
#
# $$ \frac{\text{measuring}}{\text{retraining}} = \frac{Q\, S}{3 \cdot \text{steps} \cdot \text{batch}} . $$ (eq-measuring)
#
# The number of models has dropped out, and so has the network. The two cost the same at
# $S = 3 \cdot \text{steps} \cdot \text{batch} / Q$ draws. **Guess first:** the paper measures with 5,000 draws. How many
# draws would cost as much as the retraining?

# %%
subsets, batch = preset.subsets, preset.training.batch_size
queries = amounts_of(preset, RATE).queries
even = 3 * subsets.steps * batch / queries
print(f"{even:,.0f} draws cost as much as retraining")

# %% tags=["hide-input"]
drawn = (
    di.measurements.forward_passes(preset.measurements),
    preset.measurement.draws.count, 1_000, 256 + 256, 256,
)  # fmt: skip
counted = plan["measurements"].flops / plan["retrained"].flops
assert abs(drawn[0] / even / counted - 1) < 0.05  # the planner's own
assert 2e6 < subsets.steps * batch < 2.1e6
cost = plan["retrained"].seconds / 86_400
table([
    {"draws of a query": number(draws, 0),
     "times retraining": number(draws / even, 2),
     "days": number(draws / even * cost, 1)}
    for draws in drawn
], caption="What measuring takes on one device at 20 TFLOP/s. The first row "
   "is the paper's loss with 1,000 draws of the ELBO; the fourth, "
   "the preset's.")  # fmt: skip

# %% [markdown]
# Some 3,000. A training sees two million images, at three forward passes each. Two thousand queries at 3,000 draws are as
# many passes. So fewer draws are the cheapest saving there is, if they do no harm. Two things speak for them. All models
# are measured at the *same* draws, so much of the noise drops out of differences between models ({doc}`03_measurements`).
# And an LDS only needs the order of the models, which noise from retraining blurs anyway ({doc}`09_lds`). One thing speaks
# against: a query's gradient takes the same draws, and needs enough of them ({doc}`08_scale`).
#
# So how few will do? All 192 retrained models of the digits were measured again, over few draws and over many:

# %%
measuring = di.load_bundle("digits-measuring")
percent = di.tables.percent


def few_row(row):
    lost, own = (
        percent(row[name], row[f"{name}_interval"], signed=True)
        for name in ("lost", "own_lost")
    )
    return {"draws": row["count"], "noise (%)": number(100 * row["share"], 1),
            "models": lost, "models and queries' gradients": own}  # fmt: skip


pairs = [row for row in measuring.metrics["results"]
         if row["rule"] == "stratified, antithetic"]  # fmt: skip
table([few_row(row) for row in pairs], source=measuring,
      caption="Noise of few draws, in percent of the variance of what is "
      "measured. And the LDS of EK-FAC on them less that on 1,024 draws, in "
      "points: few draws for the models alone, or for both.")  # fmt: skip

# %% tags=["hide-input"]
enough = pairs[-1]
assert measuring.metrics["retrained_models"] == 192
assert enough["count"] == 128 and 0.01 < enough["share"] < 0.02
for lost in ("lost", "own_lost"):
    low, high = enough[f"{lost}_interval"]
    assert low < 0 < high
assert di.get_preset("cifar2").measurement.draws.count == 2 * 128

# %% [markdown]
# With 128 draws, stratified and in pairs $\pm\varepsilon$, the noise is under two percent of the variance. What it does to the LDS
# cannot be told from nothing, even if the queries' gradients are taken over the same few draws; a loss of more than about two
# points is excluded. The ELBO needs as few, drawn by its own weights. So `cifar2` measures either with 256 draws.
# {doc}`../book/measurements` has the other rules, and why larger images should need no more. A network of the paper's size has
# not been tried. `cifar2:as-run` keeps the paper's 5,000, and 1,000 for the ELBO.
#
# ## What fits the card
#
# Time is one limit and memory the other. One gradient of this network has 38 million numbers, 153 MB in full. The
# gradients of all training images and queries would be 1.1 TB. Yet the last column of {numref}`tab-cifar2-plan` stays
# below 20 GB. Three habits of the library see to that:
#
# - **Blocks by bytes.** Gradients are computed, packed and read at most 256 MiB at a time, here one by one.
# - **Queries in a store of 8 bits.** Up to 2 GiB of them stay on the device. More stream past from the disk.
# - **Single use.** Where a store of training gradients would be too large, they are scored as they come, and forgotten.
#
# When would keeping them pay? A kept gradient is computed once, written, and read for each set of queries. Single use
# computes it for each set. Let computing take $c$ seconds and reading or writing $r$. For $u$ sets,
#
# $$ \underbrace{c + r + u\, r}_\text{kept} < \underbrace{u\, c}_\text{single use} \quad\text{if}\quad u > \frac{c + r}{c - r} \ \text{ and }\ c > r . $$ (eq-store)


# %%
def pays_from(draws, rate):
    """Sets of queries from which a store saves time."""
    recipe = recipe_of(preset)
    compute = (draws * recipe.gradient + recipe.rotation) / rate
    read = recipe.stored_bytes / di.planner.rates.READING
    return (compute + read) / (compute - read) if compute > read else None


table([
    {"draws": draws, **{
        f"at {rate / 1e12:.0f} TFLOP/s": number(sets, 2) if sets else "never"
        for rate in (RATE, 150e12) for sets in [pays_from(draws, rate)]
    }}
    for draws in (250, 64, 8)
], caption="Sets of queries beyond which a store saves time; "
   "4 GB/s are read.")  # fmt: skip

# %% tags=["hide-input"]
assert 1 < pays_from(250, RATE) < pays_from(64, RATE) < 2
assert pays_from(8, 150e12) is None and pays_from(250, 150e12) < 2
recipe = recipe_of(preset)
amounts = amounts_of(preset, RATE)
full = 4 * recipe.entries * (amounts.train + amounts.queries)
assert 1.0e12 < full < 1.15e12 and 152e6 < 4 * recipe.entries < 154e6
assert all(stage.peak_bytes < 20e9 for stage in plan.stages)
saved = amounts.train * recipe.gradient * 250 / RATE / 60
assert 30 < saved < 45 and 180e9 < 5_000 * recipe.stored_bytes < 200e9

# %% [markdown]
# With the paper's 250 draws a store saves time from the second set on: some forty minutes a set, for 190 GB of disk. But all
# sets that you ask for together already share one computation, and so do all dampings. So the presets keep no store of
# such a size. `--set store_budget=1e13` makes it, for whoever will come back with other queries. On a fast card with few
# draws it never pays: computing is quicker than reading. (The table's $c$ also counts turning a gradient into the
# eigenbasis, which matters with few draws.)
#
# ## One experiment is one notebook
#
# Each step of an experiment is a notebook with a cell of parameters, a **template**. The tool *papermill* puts your
# parameters below that cell, runs the notebook, and keeps the executed copy as the log. There is one template to train the
# model, one for a shard of the ground truth, one for its bundle, and one for each study.

# %%
experiments.known_parameters("e02_ground_truth")

# %% [markdown]
# Here is one launch, at the size of a test: 24 digits and 20 steps. `diffinf launch e01_model -p preset=smoke` does the
# same from the command line.

# %% tags=["remove-stderr"]
lean = {"further_measurements": []}  # the loss alone
log = experiments.launch(
    "e01_model",
    {"preset": "smoke", "run": str(folder / "run"), "options": lean},
    log=folder / "run/logs/e01_model.ipynb",
    progress=False,
)

# %%
cells = nbformat.read(log, as_version=4).cells
given = next(
    cell for cell in cells if "injected-parameters" in cell.metadata.tags
)
said_last = cells[-1].outputs[0].text
print(given.source.replace(str(folder), "runs"), said_last, sep="\n\n")

# %% [markdown]
# papermill itself only warns about a parameter that the template does not have, and then runs for a day with the default.
# We refuse it before a kernel is started:

# %%
try:
    experiments.launch("e02_ground_truth", {"subset": 8}, log="x.ipynb")
except di.ConfigurationError as refusal:
    print(refusal)
assert not Path("x.ipynb").exists()

# %% [markdown]
# ## Kill it
#
# Days of work get killed: by a limit on time, by a neighbour on the card, by a power cut. So you should know what is lost.
# **Guess first:** we retrain eight models and kill the process with SIGKILL, just after the first is done. How many models
# must be made when we start again?

# %%
shutil.copytree(folder / "run", folder / "quiet")  # to compare with
command = [
    sys.executable, "-m", "diffinf_lib", "ground-truth", "smoke",
    "--run", str(folder / "run"), "--threads", "1",
    "--set", "further_measurements=[]",
]  # fmt: skip
process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
print("it said:", process.stdout.readline().strip())
process.kill()  # SIGKILL: no handler is asked
print("it ended with", process.wait())
process.stdout.close()
assert process.returncode == -9

# %% [markdown]
# `diffinf status` reads what stands in the folder:

# %% tags=["columns"]
killed = run_status(folder / "run")
print(str(killed).replace(str(folder), "runs"))
print(killed.models[1] - killed.models[0], "models are left to make")
assert 1 <= killed.models[0] < killed.models[1]

# %% [markdown]
# Seven, less what was half done: a training writes checkpoints, so a killed one goes on from its last.
#
# Now start again. To make it harder, the rest is shared out: models are dealt out in turn, and each **shard** does its own.
# Shards know nothing of each other. They share the folder, where each model has a place of its own with a manifest, and
# what is there and whole is not made again. The undisturbed run beside it does all of it at once.

# %%
small = di.with_options(di.get_preset("smoke"), lean)
goes_on, quiet = (
    di.open_run(small, folder / name, progress=False)
    for name in ("run", "quiet")
)
for shard in (1, 0):  # in any order, or side by side
    list(di.runs.ground_truth_shard(goes_on, shard=shard, shards=2))
list(di.runs.ground_truth_shard(quiet))


def digests(run):
    """Of every array and every weight in a run folder, by its place."""
    files = [*run.folder.rglob("*.safetensors"), *run.folder.rglob("*.npz")]
    return {
        str(file.relative_to(run.folder)): sha256(file.read_bytes()).digest()
        for file in files
    }


# %%
assert digests(goes_on) == digests(quiet)
done = run_status(folder / "run")
assert done.models == (8, 8)
print(len(digests(quiet)), "files, all the same bits")

# %% [markdown]
# The bits are those of the undisturbed run. That holds because nothing random depends on time, order or worker. The batch of
# a step, its draws and its dropout are functions of the seed and the step alone.
#
# The bits are promised for the same kind of machine. On another processor sums are added up in another order, and the
# last digits differ. On a GPU it has not been tried yet.
#
# ## The graph
#
# A ground truth needs the model first, and its bundle needs every shard. A study needs the bundle, the retrained models or
# the model alone. So an experiment is a graph of launches. Here is that of `digits` in four shards, with two studies:

# %% mystnb={"image": {"alt": "The model on the left; after it four shards of the ground truth and four of the removal study; then the bundle and the removal study; then the methods"}, "figure": {"caption": "Jobs of one experiment. A job starts once all that it has a line to on its left is done.", "name": "fig-jobs"}}
asked = {
    "preset": "digits", "run": str(folder / "digits"), "shards": 4,
    "studies": "e05_methods,e08_removal",
}  # fmt: skip
jobs = experiments.Experiment.of(asked).jobs.values()
di.figures.job_graph({job.name: job.after for job in jobs})

# %% [markdown]
# One command runs it, through the workflow engine Snakemake. With `--dry-run` it only says what it would do. We tell it
# the speed of a core, so that it need not measure it:

# %% tags=["columns"]
arguments = ["--run", asked["run"], "--shards", "4", "--jobs", "2"]
main(["experiment", "digits", *arguments, "--studies", asked["studies"],
      "--flops", "5e10", "--dry-run"])  # fmt: skip
assert not (folder / "digits").exists()

# %% [markdown]
# The study compares many methods, so for digits it costs as much as the ground truth. Options of the preset are given by
# `--set`, parameters of the templates by `-p`.
#
# Leave `--dry-run` out and it starts. Each job that ends well leaves a record of the manifests that it went through. A
# job without such a record, or whose files have changed since, is run again. So after a crash you give *the same command*.
# `diffinf status runs/digits` says what is done, running or failed and why, and the time left at the pace so far. A
# second Snakemake on the same folder is refused.
#
# ## A workstation, a cluster
#
# What differs between machines stands in a profile: a file that Snakemake reads. The one for a single machine is short.


# %%
profiles = di.artifacts.project_root() / "workflow/profiles"


def settings(profile):
    """Lines of a profile that are not comments."""
    lines = (profiles / profile / "config.yaml").read_text().splitlines()
    pairs = (line.partition(" #")[0].partition(":") for line in lines
             if line[:1] not in ("", "#"))  # fmt: skip
    return {name: value.strip() for name, _, value in pairs}


# %%
meaning = {
    "executor": "who runs a job: this machine, or Slurm's `sbatch`",
    "rerun-triggers": "a job is due when what it needs is newer; "
    "our records say the rest",
    "rerun-incomplete": "a job that was cut off is due again",
    "keep-going": "when one job fails, those that do not need it go on",
    "retries": "a failed job is tried again so often",
    "quiet": "what Snakemake need not tell",
    "jobs": "jobs in the queue at once",
    "latency-wait": "seconds until a shared disk shows a new file",
    "slurm-array-jobs": "templates whose shards are sent as one array",
    "slurm-no-account": "no account is named; drop the line if yours asks",
    "slurm-status-command": "how to ask for states where nothing keeps books",
}

# %% tags=["hide-input"]
local, cluster = settings("workstation"), settings("slurm")
assert set(local) | set(cluster) == set(meaning)


def value_of(name):
    here, there = (f"`{x.get(name)}`" for x in (local, cluster))
    both = f"{here}, Slurm: {there}" if name in local else f"Slurm: {there}"
    return here if here == there else both


table([
    {"setting": f"`{name}`", "value": value_of(name), "what it does": told}
    for name, told in meaning.items()
], caption="Every line of the two profiles; what is said of Slurm stands "
   "in its own alone.")  # fmt: skip

# %% [markdown]
# On one machine Snakemake counts GPUs, but says to no job which is its own. So each of our jobs takes a lock on one card
# and sees no other. The lock ends with its process, so a killed job frees its card. `--per-gpu 2` lets two small models
# share one. Without a GPU a job takes a core.
#
# On a cluster a job asks for time and memory. Both come from the planner: twice the planned time and some minutes, half
# again the planned memory and room for an idle process, and more at each attempt. Copy the folder of the profile, name your
# partition in the copy, and give its path:
#
# | where | command |
# |---|---|
# | a laptop | `diffinf experiment digits` |
# | eight GPUs | `diffinf experiment cifar2 --shards 8` |
# | a cluster | `diffinf experiment cifar2 --profile slurm --gpus 1 --flops RATE --shards 64` |
# | a cluster, your own profile | `… --profile PATH` |
# | by hand, anywhere | `diffinf launch e02_ground_truth -p preset=cifar2 -p shards=64 -p shard=3` (0 to 63) |
#
# RATE is that of the cluster's cards, for the login node has none: let `diffinf plan cifar2` run on one, and divide
# operations by seconds in its row `retrained`. Take shards so many that
# twice the time of one fits into the partition's limit. Without `--jobs` there are as many at once as GPUs, and without
# `--shards` as many shards. More shards in a later call are no harm: what is made is made.
#
# The Slurm profile has been run on a cluster of one node, and the slots for GPUs on machines without one
# ({doc}`../book/status`). Try yours with a trial run first, as in the checklist below. It takes minutes, and shows what your
# site forbids.
#
# ## Many models at a time
#
# A small network leaves most of a GPU idle. {func}`diffinf_lib.training.train_many` stacks several trainings in one step.
# Each has its own images, order, draws, folder and checkpoint. **Guess first:** are its weights the same bits as those of
# a model trained alone?

# %%
brief = replace(small.training, steps=10)
train = di.load_dataset(small.dataset).train


def training(seed):
    def start():
        model = di.build_model(small.unet, small.process, seed=seed)
        return model, train

    return Training(start, seed)


three = [training(seed) for seed in range(3)]
stacked = train_many(three, brief, together=3, progress=False)
for place, result in sorted(stacked, key=lambda found: found[0]):
    alone = three[place].alone(brief, progress=False)
    for one, other in zip(result.model.parameters(),
                          alone.model.parameters(), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

# %% [markdown]
# Not the same bits: to rounding. A batched product adds up in another order. So every model's manifest says how it was
# trained, and a run keeps to one way. Was it faster? On a CPU there is nothing idle to fill:

# %% tags=["hide-input"]
bench = di.load_benchmark("training")
table([
    {"network": case, "way": way,
     "processor time": number(row["cpu_ratio"], 2)}
    for case, results in bench["results"].items()
    for way, row in results["ways"].items()
], source=bench, caption="Retraining on two cores, one thread a process. "
   "Processor time is that of one model, over the first row's.")  # fmt: skip

# %% tags=["hide-input"]
ways = {case: {way: row["cpu_ratio"] for way, row in results["ways"].items()}
        for case, results in bench["results"].items()}  # fmt: skip
assert 0.9 < ways["digits"]["stacked by 8"] < 1.1
assert 1.4 < ways["cifar2-tiny"]["stacked by 8"] < 1.6

# %% [markdown]
# They come from a busy machine, so only processor time is shown. On digits stacking makes no difference that this table can
# show; on larger images eight in one step cost half again. So on a CPU take as many shards as there are cores, a process each. `-p together=0` times a
# few numbers on your card and takes the fastest; that has not been run on a GPU yet.
#
# ## Latents, and more images than memory
#
# `artbench10` denoises *latents*. An autoencoder turns an image of 256 × 256 pixels into 4 × 32 × 32 numbers, 48 times
# fewer, and the network learns to draw these. They are encoded once, in the folder that `DIFFINF_DATA` names. The mean and
# the spread of each are kept, and those of the mirrored image too, because its latent is not the mirrored latent. Training
# draws latents from these anew in each step, and figures decode what they show. It works for any folder of images:
# `--set dataset.autoencoder=PATH`, where PATH holds a pipeline or an `AutoencoderKL`. The plan counts the encoding as a stage
# of its own:

# %%
latent = di.get_preset("artbench10").unet
assert 3 * 256**2 / (latent.in_channels * latent.sample_size**2) == 48
print(latent.in_channels, "×", latent.sample_size, "×", latent.sample_size)
encoding = di.planner.estimate(
    di.get_preset("artbench10"), flops_per_second=RATE
)["latents"]
print(f"{written[0](encoding.seconds)}, {written[1](encoding.disk_bytes)}")

# %% [markdown]
# And images beyond memory? A folder of more than 1 GiB of pixels is decoded once into a file, and the parts in use are
# read from it. Training on 100,000 images then takes no more memory than on 10,000, and scoring does not grow with the
# number of images either ({ref}`memory` has the measurements).
#
# ## CIFAR-2 on one A100: a checklist
#
# 1. *A trial, in minutes.* `diffinf experiment cifar2 --limit -p results=runs/trial-results` goes through all stages by the
#    same code, with few images, steps and draws and a narrow network. Its numbers say nothing. But a missing package,
#    a folder that you may not write to or a forbidden partition shows now, and not after a week. Add the studies that you
#    will want. `cifar2:limited` names the same preset wherever a name is given. On a machine without a GPU add
#    `--set training.compile=false`.
# 2. *Data.* The trial has fetched CIFAR-10, or found it in the folder that `DIFFINF_DATA` names. `diffinf presets cifar2`
#    prints every option.
# 3. *Speed.* `diffinf plan cifar2` on the card itself: it times the network for a few seconds. The hours below
#    assume 20 TFLOP/s.
# 4. *Disk.* The run folder on a disk with room for the sum of the table's last column, some 160 GB.
# 5. *A dry run*: `diffinf experiment cifar2 --shards 1 --dry-run`. The paper's draws of the loss are
#    `--set measurement.draws.count=5000`; the ELBO keeps its 256.
#    Whatever you set, set it in every later call too; a folder refuses other options.
# 6. *First some hours, then a month.* The same without `--dry-run` and with `-p subsets=2 -p seeds=1`: the full model and two
#    retrained ones, all the way to a bundle. The same run folder takes more subsets later, and nothing is made twice.
# 7. *Start it* in `tmux` or as a service, so that it outlives your session.
# 8. *Look in* with `diffinf status runs/cifar2`. Compare its time left with the plan after a day.
# 9. *Then the studies*, by the same command with `--studies e05_methods,e08_removal`: they find the ground truth made.

# %% tags=["hide-input"]
together = {
    "model and samples": ("model", "samples"),
    "retrained models": ("retrained",),
    "measurements": ("measurements",),
    "curvature and gradients": ("curvature", "train gradients",
                                "query gradients"),
    "scores": ("scores",),
}  # fmt: skip
together["all"] = tuple(part for parts in together.values() for part in parts)
in_all = sum(fewer[part].disk_bytes for part in together["all"])
assert len(set(together["all"])) == len(fewer) and 150e9 < in_all < 165e9


def hours(costs, parts):
    return number(sum(costs[part].seconds for part in parts) / 3600, 1)


table([
    {"step": name, "paper's draws": hours(usual, parts),
     "256 each": hours(fewer, parts), "256, eight GPUs": hours(eight, parts),
     "disk, GB": number(sum(fewer[x].disk_bytes for x in parts) / 1e9, 1)}
    for name, parts in together.items()
], caption="Hours of `cifar2` at 20 TFLOP/s a device: with the paper's "
   "draws, as the preset is, and that on eight devices.")  # fmt: skip

# %% [markdown]
# On one card the paper's draws take two months. The preset takes 26 days, and eight cards bring that to three and a half.
# {doc}`09_lds` says what a smaller ground truth can still tell apart. This run has not been made here, so the table is
# a plan and nothing more. How good are such plans?
#
# ## How far off is the plan?
#
# Operations are counted, but the speed has to be known. On one machine the planner timed its network for a few seconds, and
# then the stages of `digits` ran. The bundles in this book came from other machines, on other days. For these we fit one
# rate, to the training of the first, and predict the rest with it. **Guess first:** how far off will that be?


# %% tags=["hide-input"]
def took(name):
    """Seconds a model of a bundle, and what one FLOP/s would need."""
    metrics = di.load_bundle(f"{name}-ground-truth").metrics
    preset = di.get_preset(name)
    amounts = replace(amounts_of(preset, 1.0), models=1)
    costs = stage_costs(recipe_of(preset), amounts)
    count = metrics["retrained_models"]
    return [
        (metrics[f"{seconds}_seconds"] / count, costs[stage].seconds)
        for seconds, stage in (
            ("training", "retrained"),
            ("measurement", "measurements"),
        )
    ]


bundles = "digits", "digits-pair", "digits-ten", "fashion", "cifar2-tiny"
found = {name: took(name) for name in bundles}
speed = found["digits"][0][1] / found["digits"][0][0]
ratios = {name: [flop / speed / seconds for seconds, flop in pairs]
          for name, pairs in found.items()}  # fmt: skip

# %% tags=["hide-input"]
timed = di.load_benchmark("planner-digits")
made = amounts_of(di.get_preset("digits"), 1.0).models
near = {name: row["estimated_seconds"] / row["seconds"]
        for name, row in timed["results"].items()}  # fmt: skip
table([
    {"what": "`digits`, timed there",
     "took, s": number(timed["results"]["retrained"]["seconds"] / made, 1),
     "training": number(near["retrained"], 2),
     "measuring": number(near["measurements"], 2)},
    *({"what": f"bundle `{name}`", "took, s": number(found[name][0][0], 1),
       "training": number(pair[0], 2), "measuring": number(pair[1], 2)}
      for name, pair in ratios.items()),
], caption="Seconds that training one model took; planned over taken time, "
   "of training and of measuring. The bundles share one rate, "
   f"{speed / 1e9:.0f} GFLOP/s.")  # fmt: skip

# %% tags=["hide-input"]
assert all(1 < 1 / value < 1.5 for value in near.values() if value < 1)
assert all(0.8 < near[name] < 1.2 for name in near if name != "scores")
assert timed["results"]["scores"]["seconds"] < 0.2
same_work = [found[name][0][0] for name in
             ("digits", "digits-pair", "digits-ten")]  # fmt: skip
assert 2 < max(same_work) / min(same_work) < 2.5
rows = list(ratios.values())
assert 3 < max(pair[0] for pair in rows) < 3.5
assert 3 < max(pair[1] for pair in rows) < 4
assert 5 < 1 / ratios["fashion"][1] < 7
assert ratios["fashion"][1] < min(pair[1] for name, pair in ratios.items()
                                  if name != "fashion")  # fmt: skip

# %% [markdown]
# Where speed was measured on the machine that then did the work, all stages of `digits` but the scores were within a fifth of
# the plan; the scores take a tenth of a second ({doc}`../book/engine` has every stage). With a rate from elsewhere it is another
# matter; only the first bundle's training is right, because the rate was fitted to it. For training, the plan says
# up to three times what it took. For measuring, it says between a sixth and three and a half times. Look at the first three
# bundles. They train the same network for the same steps, and one took more than twice the seconds of another. No count of
# operations explains that. Their machines differed, or were busy with other things, and the clock counts all of it.
#
# Nor is one rate enough for two kinds of work: passes without a gradient run in larger batches. Measuring `fashion` is the
# worst row. It took about six times its plan, and we do not know why. So measure the rates on the machine itself, under the
# load that it will have, and leave a factor of two. After a day, trust `diffinf status` instead.
#
# ## Pitfalls
#
# | what happens | why, and the way out |
# |---|---|
# | an error after a week, in the last stage | nobody went all the way before; `--limit` does, in minutes |
# | a month of measuring | {eq}`eq-measuring`: count draws × queries before you start |
# | the plan is half the truth | the rate came from another machine, or an idle one; measure it there |
# | the disk is full at model 400 | a retrained model stays: 153 MB each here; the sum stands in the dry run |
# | two runs differ in the last digits | another processor, another number of threads, or `together`; all in the manifest |
# | a folder is refused | it was made with other options; the message names the one, and another `--run` keeps both |
# | jobs die at their limit of time | the plan's rate is too high; give a lower `--flops`, and the same command goes on |
# | twice the cards, and not half the time | the full model, its curvature and the scores are work for one card |
# | half the subsets have three seeds, half none | models were shared out subset by subset; see the second exercise |
# | Slurm is done, and the engine waits | no books are kept there: `slurm-status-command: squeue`, as in the profile |
#
# ## Exercises

# %% [markdown]
# :::{exercise} A bill on paper · 5 minutes · ★
# :label: ex-bill
# You have 20,000 images of 64 × 64 pixels and a network of 2 billion products (4 GFLOP) a forward pass. You plan 100
# subsets with 2 seeds, 20,000 steps of 64 images each, and 500 queries measured at 256 draws. How many EFLOP are
# retraining and measuring? How many hours are they on four cards of 50 TFLOP/s? Which of the two would you shorten?
# :::
#
# :::{solution-start} ex-bill
# :label: sol-bill
# :class: dropdown
# :::
#
# Retraining: $200 \cdot 20000 \cdot 64 \cdot 3 \cdot 4 \cdot 10^9 \approx 3.1 \cdot 10^{18}$. Measuring:
# $200 \cdot 500 \cdot 256 \cdot 4 \cdot 10^9 \approx 1.0 \cdot 10^{17}$, a thirtieth. Four cards do $2 \cdot 10^{14}$ a
# second, so 4.3 hours and 8.5 minutes. The number of images does not enter at all: a training's length is set in steps.
# So shorten the trainings, or make fewer. Fewer draws would save you minutes.

# %%
forward, models, rate = 4e9, 100 * 2, 4 * 50e12
retraining = models * 20_000 * 64 * 3 * forward
measuring = models * 500 * 256 * forward
assert abs(retraining / 3.1e18 - 1) < 0.01
assert 8.4 < measuring / rate / 60 < 8.6
print(
    f"{retraining / rate / 3600:.2f} hours, {measuring / rate / 60:.1f} min"
)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Share it out · 15 minutes · ★★
# :label: ex-shards
# Write `my_shard(subsets, seeds, shard, shards)`. It returns the trainings that one shard does: pairs (subset, seed) as
# whole numbers in a tensor `[n, 2]`, in the order of their doing. No shard may ask another. Yet each pair must be done once, shards must be
# equally long to one pair, and two habits save you later. Every subset should have the model of its first seed early, so
# that you can look at an LDS half-way. And when you add a seed, what was done must stay in its shard. Then run
# `di.checks.shard_of(my_shard)`.
# :::
#
# :::{solution-start} ex-shards
# :label: sol-shards
# :class: dropdown
# :::


# %%
def my_shard(subsets, seeds, shard, shards):
    numbers = torch.arange(shard, subsets * seeds, shards)
    return torch.stack([numbers % subsets, numbers // subsets], dim=1)


di.checks.shard_of(my_shard)

# %% [markdown]
# Number the pairs with the seed outermost, and deal them out like cards. The seed is the quotient and the subset the
# remainder, so the first $M$ numbers, with $M$ subsets, are every subset with its first seed. A seed that is added has higher numbers, so it comes
# last in every hand.
#
# :::{solution-end}
# :::
#
# :::{exercise} Halve something · 10 minutes · ★★
# :label: ex-halve
# You may halve one thing in the paper's experiment: the draws of the measurement, the retrained models (subsets or
# seeds), the queries, or the draws of a training gradient. Which saves most time, by how much, and what does each cost
# you? **Guess first:** which one? Then move the sliders of the planner.
# :::
#
# :::{solution-start} ex-halve
# :label: sol-halve
# :class: dropdown
# :::

# %%
full = amounts_of(preset, RATE)
halves = {
    "as it is": {},
    "measurement's draws": {"measurement_draws": 2_500},
    "models": {"models": 250},
    "queries": {"queries": 1_000},
    "training gradients' draws": {"gradient_draws": 125},
}
left = {
    name: days(stage_costs(recipe, replace(full, **changes)))
    for name, changes in halves.items()
}
table([{"halved": name, "days": number(value, 1)}
       for name, value in left.items()])  # fmt: skip

# %% tags=["hide-input"]
whole = left["as it is"]
assert abs(left["models"] / whole - 0.5) < 0.01
assert 0.6 < left["queries"] / whole < 0.7
assert 0.7 < left["measurement's draws"] / whole < 0.75
assert left["training gradients' draws"] > 0.99 * whole

# %% [markdown]
# Half the models take half the time, and cost you reliability: with fewer seeds the ceiling falls, with fewer subsets the
# interval widens ({doc}`09_lds`). Halving the queries saves a third and widens the interval too. Halving the measurement's
# draws saves somewhat less, because the ELBO keeps its own. It adds noise to both sides of the comparison: to what is
# measured, and to the queries' gradients. Halving the draws of training gradients saves no time that anyone would notice.
# All it can do is make the scores worse.
#
# :::{solution-end}
# :::
