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
# # Experiment 11: scores with their low end flattened
# Passes each method's scores through curves that flatten the low ones before they are added up, and estimates from the
# subsets what the images of each score really do. Scores are read from `methods/`, and computed where they are missing; each
# cell is kept in `rectify/`; at the end all of them become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the draws
methods = []  # names of methods; empty: those of the book
attributed = ["loss"]  # measurements whose gradients are taken, and that are predicted
further = ["ekfac", "trak"]  # methods that attribute more than the first measurement
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-rectify
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import rectify, templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.RectifyStudy(
    opened, templates.ground_truths(opened, ground_truth, attributed, results=results), methods=methods or rectify.READ,
    attributed=attributed, further=further,
)  # fmt: skip
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for row in made.metrics["results"]:
    gain, (low, high) = row["gains"]["clamp"]
    print(
        f"{row['queries']:9} {row['measured']:5} {row['label']:36} {100 * row['lds']:5.1f} %, clamped {100 * gain:+5.1f} "
        f"[{100 * low:.1f}, {100 * high:.1f}], favourite {row['favourite']}, slope ratio {row['slope_ratio'][0]:.2f}"
    )
