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
# # Experiment 1: the model and its samples
# Trains the preset's model on all training images and draws the generated queries. Steps: `model`, `samples`.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace, e.g. {"training.steps": 300}
seed = 0  # of the model, its samples and the draws
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
opened.preset

# %%
result = di.runs.full_model(opened)
di.figures.training_curve(result.losses)

# %%
samples = di.runs.generated_queries(opened)
di.figures.image_grid(samples.images, columns=16)

# %%
for name, queries in di.runs.query_sets(opened).items():
    measured = di.measure(result.model, queries, opened.preset.measurement, seed=seed)
    print(f"{name}: mean {opened.preset.measurement.name} {measured.mean():.4f} over {len(queries)} queries")
