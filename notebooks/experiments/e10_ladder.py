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
# # Experiment 10: from the paper's recipe to the best scores of one run
# A change at a time: draws, checkpoints, inverse. Each rung is compared in pairs with the one it changes, for models of two
# training seeds. What a rung needs at one checkpoint is a stage in `ladder/`; at the end all rungs become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the run's model, the curvature and the draws
model_seeds = [0, 1]  # trainings that are attributed
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-ladder
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import time

import torch

import diffinf_lib as di
from diffinf_lib.stages.ladder import LADDER

torch.set_num_threads(threads)
di.show_versions()
opened = di.open_run(di.with_options(di.get_preset(preset), options), run or None, seed=seed, progress=False)
truths = {
    queries: di.load_ground_truth(ground_truth or f"{preset}-ground-truth", queries)
    for queries in ("held-out", "generated")
}
study = di.LadderStudy(opened, truths)

# %%
started = time.monotonic()
for model_seed in model_seeds:
    for rung in LADDER:
        found = {queries: study.scores(rung, queries, model_seed) for queries in truths}
        values = ", ".join(
            f"{q} {100 * di.lds(scores, truths[q], bootstrap=2).mean:.1f} %" for q, (scores, _) in found.items()
        )
        print(f"{time.monotonic() - started:7.0f} s  seed {model_seed}, {rung.name}: {values}", flush=True)

# %%
folder = study.bundle(bundle or f"{preset}-ladder", LADDER, model_seeds, root=results or None)
made = di.load_bundle(folder.name, root=folder.parent)
print(made.provenance)
