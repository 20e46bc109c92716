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
# Trains the preset's model on all training images and draws the generated queries. Stages: `model`, `samples`.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace, e.g. {"training.steps": 300}
seed = 0  # of the model, its samples and the draws
threads = 1  # CPU threads

# %%
import torch

import diffinf_lib as di

torch.set_num_threads(threads)
di.show_versions()
opened = di.open_run(di.with_options(di.get_preset(preset), options), run or None, seed=seed, progress=False)
opened.preset

# %%
result = di.full_model(opened)
di.figures.training_curve(result.losses)

# %%
samples = di.generated_queries(opened)
di.figures.image_grid(samples.images, columns=16)

# %%
for name, queries in di.query_sets(opened).items():
    measured = di.measure(result.model, queries, opened.preset.measurement, seed=seed)
    print(f"{name}: mean {opened.preset.measurement.name} {measured.mean():.4f} over {len(queries)} queries")
