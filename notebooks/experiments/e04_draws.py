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
# noise. Each cell (rule, number, seed) is a stage in `draws-study/`; at the end all of them become one bundle.

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
import time

import torch

import diffinf_lib as di
from diffinf_lib.stages.draws_study import RULES

torch.set_num_threads(threads)
di.show_versions()
opened = di.open_run(di.with_options(di.get_preset(preset), options), run or None, seed=seed, progress=False)
truths = {
    queries: di.load_ground_truth(ground_truth or f"{preset}-ground-truth", queries)
    for queries in ("held-out", "generated")
}
study = di.DrawsStudy(opened, truths)
seeds_of = {count: seeds if count <= 128 else seeds_above_128 for count in counts}

# %%
started = time.monotonic()
for repeat in range(seeds):
    for count in counts:
        for rule in RULES if repeat < seeds_of[count] else []:
            found = study.lds(di.DrawsCell(rule, count, repeat))
            values = ", ".join(f"{name} {100 * lds.mean():.1f} %" for name, lds in found.items())
            print(f"{time.monotonic() - started:7.0f} s  {count:5} draws, seed {repeat}, {rule}: {values}", flush=True)

# %%
folder = study.bundle(bundle or f"{preset}-draws", counts, seeds_of, root=results or None)
made = di.load_bundle(folder.name, root=folder.parent)
print(made.provenance)
