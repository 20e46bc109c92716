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
# are a stage in `timesteps/`. Shards share nothing but the run folder; the one that finishes last writes the bundle.

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
import time

import numpy as np
import torch

import diffinf_lib as di
from diffinf_lib.stages.timestep_study import TimestepStudy

torch.set_num_threads(threads)
di.show_versions()
opened = di.open_run(di.with_options(di.get_preset(preset), options), run or None, seed=seed, progress=False)
study = TimestepStudy(opened, bins=bins, subsets=subsets or None, seeds=seeds or None)

# %%
started = time.monotonic()
for subset, training_seed in study.shard(shard, shards):
    print(f"{time.monotonic() - started:7.0f} s  subset {subset}, seed {training_seed}", flush=True)

# %%
missing = study.missing()
if missing:
    print(f"{len(missing)} of {len(study.units)} models are still missing: another shard is to write the bundle")
else:
    folder = study.bundle(bundle or None, root=results or None)
    made = di.load_bundle(folder.name, root=folder.parent)
    print(made.provenance)
    for queries, found in made.metrics["sets"].items():
        print(f"{queries}: LDS in %, rows scores, columns measured losses, the whole loss last")
        print(np.round(100 * np.array(found["lds"]), 1))
        for place, gain in enumerate(found.get("held_out_gain", [])):
            value, low, high = 100 * np.array([gain["value"], *gain["interval"]])
            print(
                f"range {place}: the best scores gain {value:.1f} [{low:.1f}, {high:.1f}] on its own, judged on other subsets"
            )
