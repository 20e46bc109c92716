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
# # Experiment 15: the exact GGN, step by step
# Scores of a few queries with the exact GGN, after each of many steps of conjugate gradients, for several dampings and numbers
# of draws. They show at which size scores stop growing. Each solve is kept in `solves/`; at the end all become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the draws
asked = [["held-out", 14], ["held-out", 42]]  # queries: set and position
solves = [
    [4, 0.1, 8],
    [4, 0.01, 12],
    [4, 0.001, 24],
    [4, 1e-8, 12],
    [1, 0.01, 40],
    [1, 0.001, 30],
]  # draws of the GGN for each image, damping, steps
bundle = ""  # the bundle's name; empty: <preset>-solves
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import numpy as np

import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
cells = [di.studies.SolveCell(*solve) for solve in solves]
study = di.studies.SolvesStudy(opened, solves=cells, asked=[(queries, position) for queries, position in asked])
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for cell, scores, left in zip(cells, made.arrays["scores"], made.arrays["residuals"], strict=True):
    sizes = np.abs(scores[: cell.steps]).mean(-1)  # [steps, Q]
    print(cell, "mean size of a score, after half of the steps and at the end:", sizes[[cell.steps // 2 - 1, -1]])
    print("   relative residuals:", left)
