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
# # Experiment 13: what passes can buy
# Scores of recipes that differ in checkpoint, draws and inverse, each with the passes of its parts. What one recipe needs is
# kept in `offers/`; at the end the scores of all become one bundle, in eight bits, from which readers choose within a budget.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the run's model, the curvature and the draws
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-offers
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.OffersStudy(opened, templates.ground_truths(opened, ground_truth, results=results))
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for queries, offers in made.metrics["offers"].items():
    for offer in offers:
        print(f"{queries:9} {offer['name']:40} {sum(offer['passes'].values()):7,} passes  {100 * offer['lds']:5.1f} %")
