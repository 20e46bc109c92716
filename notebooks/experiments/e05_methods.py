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
# # Experiment 5: every method under one protocol
# Scores of every method for held-out and generated queries, attributing the loss and the ELBO, each held against what
# retrained models measure. Each cell (method, queries, measurement attributed) is kept in `methods/`; at the end all of
# them become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the draws
methods = []  # names of methods; empty: all that the run can
attributed = ["loss", "elbo"]  # measurements whose gradients are taken
further = ["ekfac", "kfac", "trak", "gradient-cosine"]  # methods that attribute more than the first measurement
measured = ["loss", "elbo", "log_likelihood"]  # measurements of the retrained models to predict
clip_source = ""  # a CLIP model's folder or hub id; empty leaves CLIP out
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-methods
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.MethodsStudy(
    opened, templates.ground_truths(opened, ground_truth, measured, results=results), methods=methods or None, attributed=attributed,
    further=further, clip_source=clip_source,
)  # fmt: skip
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for row in made.metrics["results"]:
    low, high = row["interval"]
    print(
        f"{row['queries']:9} {row['attributed']:>5} → {row['measured']:15} {row['label']:36} "
        f"{100 * row['lds']:5.1f} [{100 * low:.1f}, {100 * high:.1f}]  {row['draws']} draws, {row['seconds']} s"
    )
