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
# # Experiment 10: from the paper's recipe to the best scores
# A change at a time: draws, checkpoints, inverse. Each rung is compared in pairs with the one it changes, for models of two
# training seeds. `rungs="budget"` makes the best scores for few passes instead, and `"budget of one training"` those of them
# that need no second model, for `model_seeds=[0]`. What a rung needs at one checkpoint is kept in `ladder/`; at the end all
# rungs become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the run's model, the curvature and the draws
model_seeds = [0, 1]  # trainings that are attributed
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
rungs = "ladder"  # which rungs: "ladder", "budget" for the best scores at few passes, or "budget of one training"
bundle = ""  # the bundle's name; empty: <preset>-ladder or <preset>-budget
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
truths = templates.ground_truths(opened, ground_truth, results=results)
study = di.studies.LadderStudy(opened, truths, rungs=di.studies.LADDERS[rungs], model_seeds=model_seeds)
templates.compute(study)

# %%
made = templates.finish(study, bundle or f"{opened.preset.name}-{rungs.split()[0]}", results)
for row in made.metrics["results"]:
    print(
        f"{row['queries']:9} seed {row['model_seed']}  {row['rung']:30} {100 * row['lds']:5.1f} %  {row['seconds']} s"
    )
