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
# # Experiment 12: from leaving one image out to its score, a step at a time
# On a network so small that everything can be worked out exactly, and for models of several seeds: leave-one-out by
# retraining, the derivative through training, the minimum near the trained weights, one step with the exact curvature and with its
# approximations. The answers about each seed's model are kept in `decomposition/`; at the end all of them become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name; of it the images, at half their size
run = ""  # the run folder; empty: runs/<preset>
seeds = 6  # models: initial weights
bundle = ""  # the bundle's name; empty: <preset>-decomposition
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import time
from pathlib import Path

import torch

import diffinf_lib as di

torch.set_num_threads(threads)
di.show_versions()
config = di.studies.DecompositionConfig(seeds=seeds)
study = di.studies.Decomposition(preset, config, run or None)
started = time.monotonic()
for seed in range(seeds):
    study.cell(seed)
    print(f"{time.monotonic() - started:7.0f} s  {seed + 1} of {seeds} seeds", flush=True)

# %%
folder = Path(study.bundle(bundle or None, root=results or None))
made = di.load_bundle(folder.name, root=folder.parent)
print(made.provenance)
for row in made.metrics["results"]:
    told = [
        f"{value:5.2f} [{low:5.2f}, {high:5.2f}]" for value, (low, high) in (row["before"], row["truth"], row["own"])
    ]
    print(f"{row['rung']:14} {'  '.join(told)}  error {row['error'][0]:.2f}")
