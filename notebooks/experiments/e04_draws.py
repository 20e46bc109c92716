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
# # Experiment 4: how many draws, and which
# The LDS of EK-FAC influence against the number of draws of each training gradient, for every rule of drawing timesteps and
# noise. Each cell (rule, number, seed) is kept in `draws/`; at the end all of them become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the measurement's draws
counts = [8, 16, 32, 64, 128, 250, 500, 1000]  # numbers of draws
seeds = 5  # seeds of the draws …
seeds_above_128 = 2  # … and where draws are many
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-draws
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
seeds_of = {count: seeds if count <= 128 else seeds_above_128 for count in counts}
study = di.studies.DrawsStudy(
    opened, templates.ground_truths(opened, ground_truth, results=results), counts=counts, seeds=seeds_of
)
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for queries, of_rules in ((queries, made.arrays[f"{queries}/lds"]) for queries in study.truths):
    for rule, of_counts in zip(study.rules, of_rules, strict=True):
        values = ", ".join(
            f"{count}: {100 * lds[0].mean():.1f} %" for count, lds in zip(counts, of_counts, strict=True)
        )
        print(f"{queries:9} {rule:27} {values}")
