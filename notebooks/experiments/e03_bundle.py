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
# # Experiment 3: the ground truth as a bundle
# Collects the measurements of every retrained model into one small bundle that the book reads.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the full model, the subsets and the measurement's draws
subsets = 0  # number of subsets M; 0: the preset's
seeds = 0  # trainings of each subset, K; 0: the preset's
known = ""  # a bundle of this ground truth whose models are not retrained; empty: all are
bundle = ""  # the bundle's name; empty: <preset>-ground-truth
results = ""  # the folder of bundles; empty: book/results

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed)
folder = di.runs.ground_truth_bundle(
    opened,
    bundle or None,
    subsets=subsets or None,
    seeds=seeds or None,
    root=results or None,
    known=templates.known(opened, known, results),
)
made = di.load_bundle(folder.name, root=folder.parent)
print(made.provenance)

# %%
made.metrics
