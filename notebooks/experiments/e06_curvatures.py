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
# # Experiment 6: which curvature
# GGN^model and GGN^loss, expand and reduce, EK-FAC and K-FAC, at every damping: the paper's appendix G and its damping sweep.
# Each fit against one set of queries is a stage in `curvature-study/`; at the end all of them become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the draws
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-curvatures
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import time

import torch

import diffinf_lib as di
from diffinf_lib.stages.curvature_study import CHOICES

torch.set_num_threads(threads)
di.show_versions()
opened = di.open_run(di.with_options(di.get_preset(preset), options), run or None, seed=seed, progress=False)
truths = {
    queries: di.load_ground_truth(ground_truth or f"{preset}-ground-truth", queries)
    for queries in ("held-out", "generated")
}
study = di.CurvatureStudy(opened, truths)

# %%
started = time.monotonic()
for choice in CHOICES:
    for queries in truths:
        study.scores(choice, queries)
        print(f"{time.monotonic() - started:7.0f} s  {choice.name}, {queries}", flush=True)

# %%
folder = study.bundle(bundle or f"{preset}-curvatures", root=results or None)
made = di.load_bundle(folder.name, root=folder.parent)
print(made.provenance)
for row in made.metrics["results"]:
    print(
        f"{row['queries']:9} {row['partition']:16} {row['sharing']:6} {row['approximation']:5} {100 * row['lds']:5.1f} %"
    )
