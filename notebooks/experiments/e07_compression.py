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
# format packs the training gradients, the preconditioned queries, or both. Each format is a stage in `compression-study/`; at
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
import time

import numpy as np
import torch

import diffinf_lib as di
from diffinf_lib.stages.compression_study import FORMATS, USES, CompressionStudy

torch.set_num_threads(threads)
di.show_versions()
opened = di.open_run(di.with_options(di.get_preset(preset), options), run or None, seed=seed, progress=False)
truths = {
    queries: di.load_ground_truth(ground_truth or f"{preset}-ground-truth", queries, measurement="loss")
    for queries in ("held-out", "generated")
}
study = CompressionStudy(opened, truths)
labels = formats or list(FORMATS)

# %%
started = time.monotonic()
for label in labels:
    found = study.results(label)
    share = study.stored_bytes(label) / study.stored_bytes("float32")
    print(f"{time.monotonic() - started:7.0f} s  {label}: {100 * share:.1f} % of the bytes", flush=True)
    for queries in truths:
        for index, use in enumerate(USES):
            lds, rank, change = (found[f"{queries}/{key}"][index] for key in ("lds", "rank_correlation", "difference"))
            if not np.isnan(lds).all():
                print(
                    f"{'':11}{queries}, {use}: LDS {100 * lds.mean():.1f} % ({100 * change[0]:+.2f} "
                    f"[{100 * change[1]:+.2f}, {100 * change[2]:+.2f}]), rank correlation {rank.mean():.4f}",
                    flush=True,
                )

# %%
folder = study.bundle(bundle or f"{preset}-compression", labels, root=results or None)
made = di.load_bundle(folder.name, root=folder.parent)
print(made.provenance)
