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
# # Experiment 16: how few draws measure a retrained model
# The loss of some queries, or another measurement, by the models of a ground truth, over few and over many draws, by several
# rules of drawing: the noise of a difference of two models, and the LDS that it costs. The retrained models of the run are read,
# and trained only where they are missing. Each model's measurements are kept in `measuring/`. Shards share nothing but the run
# folder; the one that finishes last writes the bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the full model and the subsets; the draws have others
subsets = 0  # number of subsets M; 0: the preset's
seeds = 0  # trainings of each subset, K; 0: the preset's
counts = [8, 32, 128]  # numbers of draws
reference = 512  # draws of each half of the reference
queries = 24  # the first held-out ones
measurement = "loss"  # the label of one of the preset's measurements
rules = []  # names of rules of drawing; empty: those of the loss
shard = 0  # this shard …
shards = 1  # … of so many
bundle = ""  # the bundle's name; empty: <preset>-measuring, of the ELBO <preset>-elbo-measuring
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import measuring, templates

opened = templates.begin(preset, run, options, seed, threads=threads)
study = di.studies.MeasuringStudy(
    opened, counts=counts, rules=rules or measuring.MEASURED_RULES, reference=reference, query_count=queries,
    subsets=subsets, seeds=seeds, measurement=measurement,
)  # fmt: skip
templates.compute(study, shard, shards)

# %%
made = templates.finish(study, bundle, results)
for row in made.metrics["results"] if made else []:
    lost = f", LDS {100 * row['lost']:+.2f} points" if "lost" in row else ""
    print(f"{row['rule']:22} {row['count']:5} draws: noise {100 * row['share']:.3f} % of the variance{lost}")
