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
# # Experiment 9: the loss by timestep
# The loss of every query within each range of timesteps, by the models of a ground truth, and how well scores of each range
# predict it. The retrained models of the run are read, and trained only where they are missing. Each model's measurements
# are kept in `timesteps/`. Shards share nothing but the run folder; the one that finishes last writes the bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the full model, the subsets and the measurement's draws
subsets = 0  # number of subsets M; 0: the preset's
seeds = 0  # trainings of each subset, K; 0: the preset's
bins = 10  # ranges of timesteps
shard = 0  # this shard …
shards = 1  # … of so many
bundle = ""  # the bundle's name; empty: <preset>-timesteps
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import numpy as np

import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.TimestepStudy(opened, bins=bins, subsets=subsets, seeds=seeds)
templates.compute(study, shard, shards)

# %%
made = templates.finish(study, bundle, results)
for queries, found in made.metrics["sets"].items() if made else []:
    print(f"{queries}: LDS in %, rows scores, columns measured losses, the whole loss last")
    print(np.round(100 * np.array(found["lds"]), 1))
    for place, gain in enumerate(found.get("held_out_gain", [])):
        value, low, high = 100 * np.array([gain["value"], *gain["interval"]])
        print(f"range {place}: the best scores gain {value:.1f} [{low:.1f}, {high:.1f}] on its own, on other subsets")
