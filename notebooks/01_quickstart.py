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
# :::{admonition} In this chapter
# :class: tip
# You train a diffusion model on 300 real handwritten digits and draw new ones from it. You ask which training images are
# behind a drawn digit, and get a score for every one of them. Then you check the scores against models that were really
# trained again, and see how far simpler answers get.
#
# *20 minutes to read · two cores: about three minutes · no network · later chapters explain each step*
# :::

# %% tags=["hide-input"]
import torch

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()

# %% [markdown]
# ## A model of threes and eights
#
# A **preset** fixes everything about an experiment: data, network, training, attribution. The one used here is `digits`. It
# takes the threes and eights among the handwritten digits that ship with scikit-learn, 8×8 pixels each. Another preset,
# `cifar2`, is the experiment of the paper {cite}`mlodozeniec2025influence`, and the cells below would not change.

# %%
preset = di.get_preset("digits")
run = di.open_run(preset, progress=False)  # a folder: what was begun goes on
data = run.data
print(len(data.train), "training images,", len(data.queries), "held out")

# %% mystnb={"image": {"alt": "Thirty-two of the training images, handwritten threes and eights of eight by eight pixels"}, "figure": {"caption": "Some of the training images.", "name": "fig-digits"}} tags=["hide-input"]
di.figures.image_grid(data.train.images[:32], columns=16)

# %% [markdown]
# Training takes about a minute. The weights that count are not the last ones but their running average, as is usual for
# diffusion models. {doc}`02_ddpm` builds all of this from scratch.

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
# We need a number for "likely". Take the model's own loss on the digit $x$, averaged over timesteps $t$ and noise
# $\varepsilon$:
#
# $$ m(\theta) = \mathbb{E}_{t,\varepsilon}\, \tfrac{1}{C} \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2 $$ (eq-measurement)
#
# This is a **measurement** of the trained weights $\theta$. The higher it is, the less likely is the digit. The honest answer
# would be to train again without image $n$, three hundred times over. An **influence function** answers from the one model
# that is there.
#
# Here is the idea with a single weight. Training has found the bottom of a bowl: the mean of 300 bowls, one for each image.
# Take one of them out of the mean, and the bottom moves a little.

# %% mystnb={"image": {"alt": "Two parabolas over one weight. The mean of all losses has its minimum at zero; without one image's loss the minimum lies a little to the right"}, "figure": {"caption": "The mean loss of five images, and what is left of it without the steepest one. Its minimum moves away from that image's own.", "name": "fig-bowl"}} tags=["hide-input"]
minima = torch.tensor([-1.6, -0.3, 0.2, 0.6, 1.1])  # of five images' losses
weight = torch.linspace(-2, 2, 101)
bowls = (weight - minima.unsqueeze(1)).square()
figure, axes = di.figures.subplots(figsize=(5.5, 2.6))
for mean, label in (
    (bowls.mean(0), "all five"),
    (bowls[1:].sum(0) / 5, "without the first"),
):
    (line,) = axes.plot(weight, mean, label=label)
    place = int(mean.argmin())
    axes.plot(weight[place], mean[place], "o", color=line.get_color())
axes.plot(
    weight,
    bowls[0] / 5,
    ":",
    color=di.figures.GREY,
    label="the first alone, its fifth",
)
axes.set(xlabel="weight", ylabel="loss")
axes.legend()
figure

# %% [markdown]
# How far does it move? At the old bottom, the mean of all has slope zero. So what is left without image $n$ has the slope
# $-\tfrac1N \nabla \ell_n$, where $\ell_n$ is the loss of image $n$. One Newton step goes downhill by slope over curvature:
# the weights move by $+\tfrac{1}{N} H^{-1} \nabla \ell_n$, with $H$ the curvature of the training loss. The measurement then
# moves by its own gradient times that step, and this is the **score** of image $n$:
#
# $$ \text{score}(x, n) = \frac{1}{N}\, \nabla m(\theta)^\top (F + \lambda I)^{-1}\, \nabla \ell_n(\theta) $$ (eq-score)
#
# The curvature $H$ of 160,000 weights is too large to write down, so $F$ is a structured stand-in for it, **EK-FAC**. The
# **damping** $\lambda$ keeps its inverse tame. A *positive* score says: without image $n$ the measurement goes up, and the
# digit is *less* likely.

# %% [markdown]
# ## The answer
#
# The generated digits we ask about ship with the book, together with the outcome of retraining on them (we come to that).
# Three steps: fit the curvature, take gradients, multiply.

# %%
truth = di.load_ground_truth("digits-ground-truth", "generated")
curvature = di.runs.curvature_of_run(run)
queries = truth.queries
scores = di.influence_scores(run, queries, damping=[preset.damping])[0]
scores.shape  # queries × training images

# %% mystnb={"image": {"alt": "A generated digit with three rows of training images: the most positive look like it, the most negative are of the other shape or style, the neutral ones are mixed"}, "figure": {"caption": "One generated digit and the training images with the highest, the lowest and the smallest scores.", "name": "fig-top-influence"}}
di.figures.top_influence(data.train, queries, scores, query=1)

# %% [markdown]
# Look for yourself. The most positive images resemble the query. The most negative ones are those whose removal is
# *predicted* to make it more likely. Whether it really does is another matter: {doc}`../book/removal` tried it, and found
# little of it. Choose a digit; point at an image, or reach it with Tab and the arrow keys, to read its rank.

# %% tags=["hide-input"]
first, second = scores[:12].topk(2).values.T
leads = int((first / second).argmax())
close = int((first / second).argmin())
Preset = di.interactive.Preset
far = "Here the first is furthest ahead of the second."
near = "Here the first two are nearest to each other."
di.interactive.Explorer(
    data.train,
    queries,
    scores,
    shown=range(12),
    start={"Query": leads},
    presets=[
        Preset("one image leads", {"Query": leads}, far),
        Preset("a close race", {"Query": close}, near),
    ],
    caption="Twelve generated digits and the training images with the "
    "highest, the lowest and the smallest scores.",
)

# %% [markdown]
# ## How do we know it is right?
#
# Pictures convince too easily. The test is retraining. Draw a random half of the training images, train a new model on
# it, measure every query; repeat. For each half, equation {eq}`eq-score` predicts the outcome: add up the scores of the
# images left out. The **linear datamodelling score** (LDS) {cite}`park2023trak` is the rank correlation between prediction and
# outcome, averaged over queries: 100% is perfect, 0% is guessing.
#
# That retraining is the expensive part, so it is done once and shipped:

# %% tags=["hide-input"]
subsets, seeds, asked = truth.measurements.shape
print(f"{subsets} random halves × {seeds} seeds, {asked} generated digits")
print(truth.provenance)

# %% mystnb={"image": {"alt": "Scatter plot of predicted change against measured loss for one query over all subsets, a rising cloud"}, "figure": {"caption": "For one generated digit: what the scores predict for each random half, and what retraining on it measured.", "name": "fig-scatter"}}
di.figures.predicted_against_measured(scores, truth, query=1)

# %% [markdown]
# Now all queries, and beside EK-FAC the answers one could have had for less. These are plain K-FAC, the dot product of
# gradients without any curvature, the distance between pixels, and random numbers. We begin with digits that nobody
# trained on, held out from the data; their retraining ships too.
#
# What could one hope for? Suppose you retrain for every question, once. Even that does not reach 100%, because two models
# trained on the same half with different seeds differ. How well one seed's measurements predict the mean of the others is
# the **ceiling**. **Before you run the cell:** the ceiling will be below 80%. Where do you expect EK-FAC, and where the
# distance between pixels?

# %%
held_out = di.load_ground_truth("digits-ground-truth", "held-out")
results = di.runs.lds_of_run(run, held_out)
ceiling = {
    "method": "ceiling",
    "LDS, %": di.tables.percent(di.ceiling(held_out)),
}
di.tables.table(
    [
        {
            "method": name,
            "LDS, %": di.tables.percent(found.mean, found.interval),
        }
        for name, found in results.items()
    ]
    + [ceiling],
    caption="LDS on held-out digits, with 95% intervals.",
)

# %% mystnb={"image": {"alt": "Bar chart of the LDS of EK-FAC, K-FAC, gradient dot product, pixel distance and random scores on held-out digits, with intervals and the ceiling of one exact retraining"}, "figure": {"caption": "LDS on held-out digits. Whiskers: 95% bootstrap intervals over subsets and queries together. Dashed: the ceiling.", "name": "fig-lds-held-out"}} tags=["hide-input"]
di.figures.lds_bars(results)

# %% [markdown]
# :::{admonition} Checkpoint
# Both kinds of influence come close to the ceiling. The baselines stay below half of it, and random scores tell nothing.
# :::

# %%
ekfac, kfac, *baselines = results.values()
height = di.ceiling(held_out)
assert min(ekfac.mean, kfac.mean) > 0.9 * height
assert all(other.mean < 0.6 * height for other in baselines)
assert results["random"].interval[0] < 0 < results["random"].interval[1]

# %% [markdown]
# If you expected more of the pixels: they find look-alikes, and that is not the same thing. And for the generated digits:

# %% mystnb={"image": {"alt": "The same bar chart for generated digits"}, "figure": {"caption": "LDS on generated digits.", "name": "fig-lds-generated"}}
di.figures.lds_bars(di.runs.lds_of_run(run, truth))

# %% [markdown]
# Is the dashed line a limit? No. It is what *one* retraining reaches, and its own seed is chance. A prediction that is free
# of such chance can do better: {doc}`../book/methods` has methods above the line.
#
# ## Pitfalls
#
# - **Positive means harmful to remove.** Every score in this book estimates the measurement after removal minus before. A
#   measurement of the loss goes *up* when a query becomes less likely.
# - **Similar is not influential.** The pixel baseline finds look-alikes, and its LDS says how little that explains.
# - **Ranks, not sizes.** On the two axes of {numref}`fig-scatter` the same change has different sizes. Leaving out half of
#   the data is no small step, and the LDS asks only whether the order is right.
# - **One query proves nothing.** The scatter above is one of dozens; only the average with its interval is a result.
#
# ## Exercises

# %% [markdown]
# :::{exercise} How much does the damping matter? · 5 minutes · ★
# :label: ex-damping
# The default damping is $\lambda = 10^{-8}$. Score the held-out digits with $\lambda$ from $10^{-10}$ to $10^{-2}$ and show
# the LDS of each. A list of dampings costs one pass over the gradients.
# :::
#
# :::{solution-start} ex-damping
# :label: sol-damping
# :class: dropdown
# :::

# %%
dampings = [1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
asked = held_out.queries
sweep = di.influence_scores(run, asked, damping=dampings)
rows = [di.lds(matrix, held_out, bootstrap=200) for matrix in sweep]
di.tables.table([
    {"λ": f"{value:.0e}",
     "LDS, %": di.tables.percent(row.mean, row.interval)}
    for value, row in zip(dampings, rows, strict=True)
])  # fmt: skip

# %% [markdown]
# Below a certain size it hardly matters. A large damping turns the inverse into a multiple of the identity, and EK-FAC into
# the gradient dot product.
#
# :::{solution-end}
# :::
#
# :::{exercise} Is EK-FAC better than K-FAC here? · 5 minutes · ★
# :label: ex-paired
# The two bars overlap. Both were scored against the same retrained models, so their *difference* is known better than either
# value. Compute it with `di.paired_difference`, and say whether the data tell the two apart.
# :::
#
# :::{solution-start} ex-paired
# :label: sol-paired
# :class: dropdown
# :::

# %%
pair = [
    di.influence_scores(run, asked, approximation=name)[0]
    for name in ("ekfac", "kfac")
]
difference, interval = di.paired_difference(*pair, held_out)
apart = interval[0] > 0 or interval[1] < 0
print("told apart" if apart else "not told apart by this ground truth")
di.tables.percent(difference, interval, signed=True)

# %% [markdown]
# Points of LDS, EK-FAC minus K-FAC. The interval is far narrower than those of the bars, because what both share drops out.
#
# :::{solution-end}
# :::
#
# :::{exercise} What the LDS cannot see · 10 minutes · ★★
# :label: ex-invariance
# All halves have one size. (i) Show that adding a constant to all scores of a query changes no LDS, and find another change
# of that kind. (ii) Write `unseen(scores)`, which changes every score and no query's LDS, and run
# `di.checks.keeps_lds(unseen)`.
# :::
#
# :::{solution-start} ex-invariance
# :label: sol-invariance
# :class: dropdown
# :::
#
# (i) A half leaves out $N/2$ images, whichever these are. So a constant $c$ adds $c\,N/2$ to the prediction for every half,
# and moves no rank. A positive factor for each query changes no rank either.


# %%
def unseen(scores):
    return 3 * scores + 1


di.checks.keeps_lds(unseen)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} What do the negative scores carry? · 5 minutes · ★★
# :label: ex-clamp
# Set all negative scores to zero and compute the LDS again. **Guess first:** does it fall, stay, or rise? Take the paired
# difference to be sure.
# :::
#
# :::{solution-start} ex-clamp
# :label: sol-clamp
# :class: dropdown
# :::

# %%
gains = {
    name: di.paired_difference(raw.clamp(min=0), raw, held_out)
    for name, raw in zip(("EK-FAC", "K-FAC"), pair, strict=True)
}
assert all(gain.interval[0] > 0 for gain in gains.values())
assert (pair[0] < 0).double().mean() > 0.5
di.tables.table([
    {"scores": name, "gain, points": di.tables.percent(*gain, signed=True)}
    for name, gain in gains.items()
])  # fmt: skip

# %% [markdown]
# It rises. Throwing away more than half of the scores makes the prediction *better*. So the negative scores, as they stand,
# do harm. Why that is, and whether it holds elsewhere, is an open question that a later chapter takes up.
#
# :::{solution-end}
# :::
