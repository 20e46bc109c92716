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
# # Experiment 2: the ground truth, one shard
# Retrains the model on random subsets of the training images and measures every query with each. Shards share nothing
# but the run folder: start as many as there are cores or GPUs. Steps: `retrained`, `measurements`.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the full model, the subsets and the measurement's draws
subsets = 0  # number of subsets M; 0: the preset's
seeds = 0  # trainings of each subset, K; 0: the preset's
known = ""  # a bundle of this ground truth whose models are not retrained; empty: all are
shard = 0  # this shard …
shards = 1  # … of so many
together = 1  # models retrained at a time, stacked in one step; 0: as many as are fastest here
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import time

import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
opened.preset.subsets

# %%
started = time.monotonic()
for subset, training_seed in di.runs.ground_truth_shard(
    opened,
    subsets=subsets or None,
    seeds=seeds or None,
    shard=shard,
    shards=shards,
    together=together or None,
    known=templates.known(opened, known, results),
):
    print(f"{time.monotonic() - started:7.0f} s  subset {subset}, seed {training_seed}", flush=True)
