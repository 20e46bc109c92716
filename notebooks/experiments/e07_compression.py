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
# # Experiment 7: gradients in fewer bytes
# What each format of stored gradients saves in bytes and loses in scores: correlation with the scores in float32, and LDS. A
# format packs the training gradients, the preconditioned queries, or both. Each format is kept in `compression/`; at
# the end all of them become one bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the model, the curvature and the measurement's draws
formats = []  # names of formats; empty: all
ground_truth = ""  # the bundle of the ground truth; empty: <preset>-ground-truth
bundle = ""  # the bundle's name; empty: <preset>-compression
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates
from diffinf_lib.studies.compression import FORMATS, USES

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.CompressionStudy(
    opened, templates.ground_truths(opened, ground_truth, results=results), formats=formats or list(FORMATS)
)
templates.compute(study)

# %%
made = templates.finish(study, bundle, results)
for index, label in enumerate(made.metrics["formats"]):
    for queries in study.truths:
        found = (made.arrays[f"{queries}/{key}"][index] for key in ("lds", "difference"))
        for use, lds, change in zip(USES, *found, strict=True):
            print(
                f"{label:28} {100 * made.metrics['bytes'][index]:5.1f} % of the bytes  {queries:9} {use:18} "
                f"LDS {100 * lds.mean():5.1f} % ({100 * change[0]:+.2f} [{100 * change[1]:+.2f}, {100 * change[2]:+.2f}])"
            )
