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
# # Experiment 8: removal
# The full training repeated without the images of the highest scores of a query, without those of the lowest, and without as
# many at random; what each model measures of the query, and what it draws from the seed of a generated query, against models
# trained on everything. Of each model these are kept in `removal/`, not its weights. Shards share nothing but the run folder;
# the one that finishes last writes the bundle.

# %% tags=["parameters"]
preset = "digits"  # a preset's name
run = ""  # the run folder; empty: runs/<preset>
options = {}  # preset options to replace
seed = 0  # of the full model, the scores, the random sets and the measurement's draws
queries = 6  # queries of each set
part = []  # those asked about, places from 0 among the held-out, then the generated ones; empty: all
shares = [0.02, 0.1]  # shares of the training images that are removed
seeds = 2  # trainings of each removal
full_seeds = 2  # trainings on everything, at least as many; more show what another seed alone changes
random_sets = 6  # random sets of each share
shard = 0  # this shard …
shards = 1  # … of so many
bundle = ""  # the bundle's name; empty: <preset>-removal
results = ""  # the folder of bundles; empty: book/results
threads = 1  # CPU threads

# %%
import diffinf_lib as di
from diffinf_lib.studies import templates

opened = templates.begin(preset, run, options, seed, threads=threads)
config = di.studies.RemovalConfig(
    queries=queries, part=part, shares=shares, seeds=seeds, full_seeds=full_seeds, random_sets=random_sets
)
study = di.studies.RemovalStudy(opened, config=config)
print(f"shares {list(config.shares)}: {study.counts} of {len(opened.data.train)} images")
templates.compute(study, shard, shards)

# %%
made = templates.finish(study, bundle, results)
made and made.metrics["mean_change"]
