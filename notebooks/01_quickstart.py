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
# # Quickstart: from a generated digit to the images behind it
#
# ```{admonition} In this chapter
# :class: tip
# - train a diffusion model on 300 real handwritten digits and draw new ones from it;
# - ask which training images made a generated digit likely, and get an answer for every one of them;
# - check the answer against models that were really retrained without those images;
# - see how far simpler answers get.
#
# *Two cores: about three minutes · no network · later chapters explain each step*
# ```

# %% tags=["hide-input"]
import torch

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()

# %% [markdown]
# ## A model of threes and eights
#
# A **preset** fixes everything about an experiment: data, network, training, attribution. The one used here, `digits`,
# takes the threes and eights among the handwritten digits that ship with scikit-learn, 8×8 pixels each. Another preset,
# `cifar2`, is the experiment of the paper {cite}`mlodozeniec2025influence`, and the cells below would not change.

# %%
preset = di.get_preset("digits")
run = di.open_run(preset, progress=False)  # a folder: what is finished is kept, what was interrupted goes on
data = run.data
print(f"{len(data.train)} training images, {len(data.queries)} held-out images, {data.train.shape} each")

# %% mystnb={"image": {"alt": "Thirty-two of the training images, handwritten threes and eights of eight by eight pixels"}, "figure": {"caption": "Some of the training images.", "name": "fig-digits"}} tags=["hide-input"]
di.figures.image_grid(data.train.images[:32], columns=16)

# %% [markdown]
# Training takes well under a minute. The weights that count are not the last ones but their running average over the
# training, as is usual for diffusion models; {doc}`02_ddpm` builds all of this from scratch.

# %% mystnb={"image": {"alt": "Training loss against step, falling by about a factor of ten"}, "figure": {"caption": "The loss of each batch, and its running mean.", "name": "fig-training"}}
trained = di.runs.full_model(run)
di.figures.training_curve(trained.losses)

# %% [markdown]
# A sample starts as noise and is denoised in 1,000 steps. Each has a seed of its own, so sample 7 is the same whether it
# is drawn alone or among sixty-four.

# %% mystnb={"image": {"alt": "Sixteen generated digits that look like handwritten threes and eights"}, "figure": {"caption": "Sixteen digits that nobody wrote.", "name": "fig-samples"}}
samples = di.sample(trained.model, 16, data.train.shape)
di.figures.image_grid(samples, columns=16)

# %% [markdown]
# ## The question
#
# Take one generated digit. It is made of what the model learnt, and the model learnt from 300 images. *If training image
# $n$ had not been there, how much less likely would this digit be?*
#
# Likely is measured by the model's own loss on the digit $x$, averaged over timesteps $t$ and noise $\varepsilon$,
#
# ```{math}
# :label: eq-measurement
# m(\theta) = \mathbb{E}_{t,\varepsilon}\, \tfrac{1}{C} \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2 ,
# ```
#
# a **measurement** of the trained weights $\theta$: the higher, the less likely. The honest way to answer would be to train
# again without image $n$, three hundred times over. Influence functions answer from the one model that is there. Leaving
# out one of $N$ images moves the optimum by about $\tfrac{1}{N} H^{-1} \nabla \ell_n$, with $\ell_n$ the loss of image $n$
# and $H$ the curvature of the training loss, and so the measurement by
#
# ```{math}
# :label: eq-score
# \text{score}(x, n) = \frac{1}{N}\, \nabla m(\theta)^\top (F + \lambda I)^{-1}\, \nabla \ell_n(\theta) .
# ```
#
# The curvature $H$ of 160,000 weights is too large to write down, so $F$ is a structured stand-in for it, **EK-FAC**; the
# damping $\lambda$ keeps its inverse tame. A *positive* score says: without image $n$ the digit would be *less* likely.

# %% [markdown]
# ## The answer
#
# The generated digits we ask about ship with the book, together with the outcome of retraining on them (we come to that).
# Three steps: fit the curvature, take gradients, multiply.

# %%
truth = di.load_ground_truth("digits-ground-truth", "generated")
curvature = di.runs.curvature_of_run(run)
scores = di.influence_scores(run, truth.queries, damping=[preset.damping])[0]
scores.shape  # queries × training images

# %% mystnb={"image": {"alt": "A generated digit with three rows of training images: the most positive look like it, the most negative are of the other shape or style, the neutral ones are mixed"}, "figure": {"caption": "One generated digit and the training images with the highest, the lowest and the smallest influence on it; the numbers are scores.", "name": "fig-top-influence"}}
di.figures.top_influence(data.train, truth.queries, scores, query=1)

# %% [markdown]
# Look for yourself. The most positive images resemble the query; the most negative ones are those it would be better off
# without. Choose a digit; point at an image, or reach it with Tab and the arrow keys, to read its rank.

# %% tags=["hide-input"]
first, second = scores[:12].topk(2).values.T
leads, close = int((first / second).argmax()), int((first / second).argmin())
di.interactive.Explorer(
    data.train,
    truth.queries,
    scores,
    shown=range(12),
    start={"Query": leads},
    presets=[
        di.interactive.Preset("one image leads", {"Query": leads}, "Here the first is furthest ahead of the second."),
        di.interactive.Preset("a close race", {"Query": close}, "Here the first two are nearest to each other."),
    ],
    caption="Twelve generated digits and the training images with the highest, the lowest and the smallest scores.",
)

# %% [markdown]
# ## How do we know it is right?
#
# Pictures convince too easily. The test is retraining: draw a random half of the training images, train a new model on
# it, measure every query; repeat. For each half, equation {eq}`eq-score` predicts the outcome by adding up the scores of the
# images left out. The **linear datamodelling score** (LDS) {cite}`park2023trak` is the rank correlation between prediction and
# outcome, averaged over queries: 100% is perfect, 0% is guessing.
#
# That retraining is the expensive part, so it is done once and shipped:

# %% tags=["hide-input"]
subsets, seeds, _ = truth.measurements.shape
print(
    f"{subsets} random halves × {seeds} seeds = {subsets * seeds} retrained models, {len(truth.query_ids)} generated digits"
)
print(truth.provenance)

# %% mystnb={"image": {"alt": "Scatter plot of predicted change against measured loss for one query over all subsets, a rising cloud"}, "figure": {"caption": "For one generated digit: what the scores predict for each random half, and what retraining on it measured.", "name": "fig-scatter"}}
di.figures.predicted_against_measured(scores, truth, query=1)

# %% [markdown]
# Now all queries, and next to EK-FAC the answers one could have had for less: the same with plain K-FAC, the dot product of
# gradients without any curvature, the distance between pixels, and random numbers. First for digits that nobody
# trained on, held out from the data; their retraining ships too.

# %%
held_out = di.load_ground_truth("digits-ground-truth", "held-out")
results = di.runs.lds_of_run(run, held_out)
for method, result in results.items():
    print(f"{method:22} {result}")

# %% mystnb={"image": {"alt": "Bar chart of the LDS of EK-FAC, K-FAC, gradient dot product, pixel distance and random scores on held-out digits, with intervals and the ceiling of one exact retraining"}, "figure": {"caption": "LDS on held-out digits. Whiskers: 95% bootstrap intervals over subsets and queries together. Dashed: how well one retrained model predicts the others.", "name": "fig-lds-held-out"}} tags=["hide-input"]
di.figures.lds_bars(results)

# %% [markdown]
# ```{admonition} Checkpoint
# EK-FAC reaches more than 55% on held-out digits, far more than the baselines, and random scores tell nothing.
# ```

# %%
ekfac, *others = results.values()
baselines = [results[name] for name in ("gradient dot product", "pixel distance", "random")]
assert ekfac.mean > 0.55
assert all(ekfac.interval[0] > baseline.interval[1] for baseline in baselines)
assert results["random"].interval[0] < 0 < results["random"].interval[1]

# %% [markdown]
# And for the generated digits:

# %% mystnb={"image": {"alt": "The same bar chart for generated digits"}, "figure": {"caption": "LDS on generated digits.", "name": "fig-lds-generated"}}
di.figures.lds_bars(di.runs.lds_of_run(run, truth))

# %% [markdown]
# The dashed line is not 100%. Two models trained on the same half with different seeds differ, and no prediction from the
# data alone can know the seed. One exact retraining for every question, which is what influence stands in for, gets no
# further than that line.
#
# ## Pitfalls
#
# - **Positive means harmful to remove.** Every score in this book estimates the measurement after removal minus before; a
#   measurement of the loss goes *up* when a query becomes less likely.
# - **Similar is not influential.** The pixel baseline finds look-alikes, and its LDS says how little that explains.
# - **Ranks, not sizes.** On the two axes of {numref}`fig-scatter` the same change has different sizes. Leaving out half of the
#   data is no small step, and the LDS asks only whether the order is right.
# - **One query proves nothing.** The scatter above is one of dozens; only the average with its interval is a result.
#
# ## Exercises

# %% [markdown]
# ```{exercise} How much does the damping matter?
# :label: ex-damping
# The default damping is $\lambda = 10^{-8}$. Score the held-out digits with $\lambda$ from $10^{-10}$ to $10^{-2}$ and print
# the LDS of each. A list of dampings costs one pass over the gradients.
# ```
#
# ```{solution-start} ex-damping
# :label: sol-damping
# :class: dropdown
# ```

# %%
dampings = [1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
sweep = di.influence_scores(run, held_out.queries, damping=dampings)
for damping, matrix in zip(dampings, sweep, strict=True):
    print(f"λ = {damping:7.0e}: LDS {di.lds(matrix, held_out, bootstrap=200)}")

# %% [markdown]
# Below a certain size it hardly matters; a large damping turns the inverse into a multiple of the identity, and EK-FAC into
# the gradient dot product.
#
# ```{solution-end}
# ```
#
# ```{exercise} Is EK-FAC better than K-FAC here?
# :label: ex-paired
# The two bars overlap. Both were scored against the same retrained models, so their *difference* is known better than either
# value: compute it with `di.paired_difference` and say whether the data tell the two apart.
# ```
#
# ```{solution-start} ex-paired
# :label: sol-paired
# :class: dropdown
# ```

# %%
pair = [di.influence_scores(run, held_out.queries, approximation=name)[0] for name in ("ekfac", "kfac")]
difference, (low, high) = di.paired_difference(*pair, held_out)
print(f"EK-FAC − K-FAC: {100 * difference:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")
print("told apart" if low > 0 or high < 0 else "not told apart by this ground truth")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} What do the signs carry?
# :label: ex-signs
# Take the absolute value of all scores and compute the LDS again. What does the result say about negative influence?
# ```
#
# ```{solution-start} ex-signs
# :label: sol-signs
# :class: dropdown
# ```

# %%
print("signed  ", di.lds(pair[0], held_out, bootstrap=200))
print("absolute", di.lds(pair[0].abs(), held_out, bootstrap=200))

# %% [markdown]
# If images with a negative score only added noise, dropping the sign would cost little.
#
# ```{solution-end}
# ```
