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
# # Experiment 14: the protocol of D-TRAK's authors
# TRAK and D-TRAK with a few evenly spaced timesteps, and λ chosen on the retrained models that are reported, beside a λ chosen on
# others. Each method and number of timesteps is kept in `protocol/`; at the end all become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the draws
counts = [10, 100]  # numbers of timesteps
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-protocol
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.ProtocolStudy(opened, templates.ground_truths(opened, ground_truth, results=results), counts=counts)
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for row in made.metrics["results"]:
    print(
        f"{row['queries']:9} {row['label']:7} {row['timesteps']:4}  best {100 * row['best']:5.1f} %  tuned {100 * row['tuned']:5.1f} %"
    )
