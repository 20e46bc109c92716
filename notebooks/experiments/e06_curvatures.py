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
# Each fit against one set of queries is kept in `curvatures/`; at the end all of them become one bundle.

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
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.CurvatureStudy(opened, templates.ground_truths(opened, ground_truth, results=results))
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for row in made.metrics["results"]:
    print(
        f"{row['queries']:9} {row['partition']:16} {row['sharing']:6} {row['approximation']:5} {100 * row['lds']:5.1f} %"
    )
