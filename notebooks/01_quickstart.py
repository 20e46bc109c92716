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
# `cifar2`, is the experiment of the paper {cite}`mlodozeniec2025influence`: the same calls serve it, with other names of
# preset and retrained models.

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
# $$ m_x(\theta) = \mathbb{E}_{t,\varepsilon}\, \tfrac{1}{C} \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2 $$ (eq-measurement)
#
# Here $x_t$ is the digit with noise added up to timestep $t$, $\varepsilon_\theta$ is the network's guess of that noise, and
# $C = 64$ is the number of pixels. This is a **measurement** of the trained weights $\theta$. A higher loss means a less
# likely digit, roughly; {doc}`03_measurements` says how roughly. The digit asked about is the **query**.
#
# The honest way to an answer is to train 300 more models, each without one of the images. An **influence function** answers
# from the one model that is there.
#
# Here is the idea with a single weight. Training has found the bottom of a bowl: the mean of 300 bowls, one for each image.
# Take one of them out of the mean, and the bottom moves a little.

# %% mystnb={"image": {"alt": "Two parabolas over one weight. The mean of all losses has its minimum at zero; without one image's loss the minimum lies a little to the right"}, "figure": {"caption": "The mean loss of five images, and what is left of it without the one that is steepest at the bottom (dotted). Its minimum moves away from that image's own.", "name": "fig-bowl"}} tags=["hide-input"]
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
    label="a fifth of the first",
)
axes.set(xlabel="weight", ylabel="loss")
axes.legend()
torch.testing.assert_close(minima[1:].mean(), torch.tensor(0.4))
torch.testing.assert_close(-2 * minima[0] / 5 / 2, torch.tensor(0.32))
figure

# %% [markdown]
# How far does it move? At the old bottom, the mean of all has slope zero. So what is left without image $n$ has the slope
# $-\tfrac1N \nabla \ell_n$, where $\ell_n$ is {eq}`eq-measurement` with image $n$ in place of $x$. One Newton step goes
# downhill by slope over curvature: the weights move by $+\tfrac{1}{N} H^{-1} \nabla \ell_n$, with $H$ the curvature of the
# training loss. That is the curvature of all images, although one has gone. Among five images the difference shows: the
# step would be 0.32, and the bottom in {numref}`fig-bowl` moves by 0.40. Among 300 it hardly matters. A network is not quite
# at a bottom, and its bowl is not round; {doc}`04_influence` says when the step still works, and retraining, below, tests it.
#
# The measurement then moves by its own gradient times that step, and this is the **score** of image $n$:
#
# $$ \text{score}(x, n) = \frac{1}{N}\, \nabla m_x(\theta)^\top (F + \lambda I)^{-1}\, \nabla \ell_n(\theta) $$ (eq-score)
#
# The curvature $H$ of 160,000 weights is too large to write down, so $F$ stands in for it: **K-FAC**, two small matrices a
# layer ({doc}`06_kfac`), or **EK-FAC**, which measures the sizes along K-FAC's directions anew ({doc}`07_ekfac`). The
# **damping** $\lambda$ is added to all its eigenvalues, so that the small ones do not blow up. A *positive* score says:
# without image $n$ the measurement goes up, and the digit is *less* likely.

# %% [markdown]
# ## The answer
#
# The generated digits we ask about are the first samples of such a model. They ship with the book, so that they fit the
# retrained models that were measured on them (we come to that). Three steps: fit the curvature, take gradients, multiply.

# %%
truth = di.load_ground_truth("digits-ground-truth", "generated")
curvature = di.runs.curvature_of_run(run)
queries = truth.queries
scores = di.influence_scores(run, queries, damping=[preset.damping])[0]
scores.shape  # queries × training images

# %% mystnb={"image": {"alt": "A generated digit with three rows of training images: the most positive look like it, the most negative are of the other shape or style, those nearest to zero are mixed"}, "figure": {"caption": "One generated digit and the training images with the highest and the lowest scores, and those nearest to zero.", "name": "fig-top-influence"}}
di.figures.top_influence(data.train, queries, scores, query=1)

# %% [markdown]
# Look for yourself. The most positive images resemble the query. The most negative ones are those whose removal is
# *predicted* to make it more likely. Whether it really does is another matter: {doc}`../book/removal` trained without them,
# and found that the query hardly became more likely. Choose a digit; point at an image, or reach it with Tab and the arrow
# keys, to read its rank. Training images are numbered by their places among scikit-learn's 1,797 digits.

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
    "highest and the lowest scores, and those nearest to zero.",
)

# %% [markdown]
# ## How do we know it is right?
#
# Pictures convince too easily. The test is retraining. Draw a random half of the training images, train a new model on
# it, measure every query; repeat. For each half, equation {eq}`eq-score` predicts the outcome: add up the scores of the
# images left out. The outcome is the mean over three trainings, which differ by their seed. The **linear datamodelling
# score** (LDS) {cite}`park2023trak` is the rank correlation (Spearman's) between prediction and outcome, averaged over
# queries: 100% is perfect, 0% is guessing.
#
# That retraining is the expensive part, so it is done once and shipped:

# %% tags=["hide-input"]
halves, seeds, count = truth.measurements.shape
assert seeds == 3
print(f"{halves} random halves × {seeds} seeds, {count} generated digits")
print(truth.provenance)

# %% mystnb={"image": {"alt": "Scatter plot of predicted change against measured loss for one query over all halves, a rising cloud"}, "figure": {"caption": "For one generated digit: what the scores predict for each random half, and what retraining on it measured.", "name": "fig-scatter"}}
di.figures.predicted_against_measured(scores, truth, query=1)

# %% [markdown]
# Now all queries, and beside EK-FAC the answers one could have had for less. These are plain K-FAC, the dot product of
# gradients without any curvature, the distance between pixels, and random numbers. We begin with digits that nobody
# trained on, held out from the data; their retraining ships too.
#
# What could one hope for? Suppose you retrain for every question, once. Even that does not reach 100%, because two models
# trained on the same half with different seeds differ. How well one seed's measurements predict the mean of the others is
# the **ceiling**. (Methods are held against the mean of all three seeds, which is a little easier to predict.) **Before you
# run the cell:** the ceiling will be below 80%. Where do you expect EK-FAC, and where the
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
    caption=f"LDS on {len(held_out.queries)} held-out digits, "
    "with 95% intervals.",
)

# %% mystnb={"image": {"alt": "Bar chart of the LDS of EK-FAC, K-FAC, gradient dot product, pixel distance and random scores on held-out digits, with intervals and the ceiling of one exact retraining"}, "figure": {"caption": "LDS on held-out digits. Whiskers: 95% bootstrap intervals over halves and queries together. Dashed: the ceiling.", "name": "fig-lds-held-out"}} tags=["hide-input"]
di.figures.lds_bars(results)

# %% [markdown]
# :::{admonition} Checkpoint
# Both kinds of influence reach nine tenths of the ceiling. The baselines stay below six tenths of it, and the interval of
# the random scores contains zero.
# :::

# %%
ekfac, kfac, *baselines = results.values()
height = di.ceiling(held_out)
assert min(ekfac.mean, kfac.mean) > 0.9 * height
assert all(other.mean < 0.6 * height for other in baselines)
assert results["random"].interval[0] < 0 < results["random"].interval[1]

# %% [markdown]
# The pixels find look-alikes, and a look-alike need not be what the model learnt from. And for the generated digits:

# %% mystnb={"image": {"alt": "The same bar chart for generated digits"}, "figure": {"caption": "LDS on generated digits.", "name": "fig-lds-generated"}}
generated = di.runs.lds_of_run(run, truth)
di.figures.lds_bars(generated)

# %% [markdown]
# The interval of the random scores just misses zero. At 95% one set of random scores in twenty does so, and it shows how far
# to trust a few points.
#
# "Ceiling" is the usual name, and it misleads: the dashed line is no limit. It is what *one* retraining reaches, and the luck
# of its own seed counts against it. A prediction that is free of such luck can do better: {doc}`../book/methods` has
# methods above the line.

# %%
assert -0.02 < generated["random"].interval[1] < 0
spread = [
    float(values.max() - values.min())
    for values in (
        di.evaluation.predicted_changes(scores, truth)[1],
        truth.measurements[:, :, 1].mean(1),
    )
]
each = di.lds(scores, truth).per_query
assert 15 < spread[0] / spread[1] < 30
print(f"{len(each)} correlations, from {each.min():.2f} to {each.max():.2f}")

# %% [markdown]
# ## Pitfalls
#
# - **Positive means harmful to remove.** Every score in this book estimates the measurement after removal minus before. A
#   measurement of the loss goes *up* when a query becomes less likely.
# - **Similar is not influential.** Look-alikes explain something: the pixels beat the plain dot product of gradients. But they
#   stay far below the ceiling; it is the curvature that makes gradients better than pixels.
# - **Ranks, not sizes.** In {numref}`fig-scatter` the predictions spread some twenty times as wide as the measurements. Do not
#   read a score of +0.03 as a rise of 0.03; read it as a place in an order. The LDS asks only whether the order is right, and
#   {doc}`../book/removal` shows the sizes.
# - **One query proves nothing.** The scatter above is one of many, whose correlations the last cell prints. Only the average
#   with its interval is a result.
#
# ## Exercises

# %% [markdown]
# :::{exercise} How much does the damping matter? · 5 minutes · ★
# :label: ex-damping
# The default damping is $\lambda = 10^{-8}$. Score the held-out digits with $\lambda$ from $10^{-10}$ to $10^{-2}$ and show
# the LDS of each. A list of dampings costs one pass over the gradients: `di.influence_scores(run, held_out.queries,
# damping=[…])` gives one matrix of scores for each, and `di.lds(scores, held_out)` the LDS of one matrix.
# :::
#
# :::{solution-start} ex-damping
# :label: sol-damping
# :class: dropdown
# :::

# %%
dampings = [1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
sweep = di.influence_scores(run, held_out.queries, damping=dampings)
rows = [di.lds(matrix, held_out, bootstrap=200) for matrix in sweep]
ends = rows[1].mean, results["gradient dot product"].mean
assert 0.3 < (rows[-1].mean - ends[1]) / (ends[0] - ends[1]) < 0.7
di.tables.table([
    {"λ": f"{value:.0e}",
     "LDS, %": di.tables.percent(row.mean, row.interval)}
    for value, row in zip(dampings, rows, strict=True)
])  # fmt: skip

# %% [markdown]
# Below a certain size it hardly matters. A large damping turns the inverse into a multiple of the identity, and EK-FAC into
# the gradient dot product; $10^{-2}$ is half-way there.
#
# :::{solution-end}
# :::
#
# :::{exercise} Is EK-FAC better than K-FAC here? · 5 minutes · ★
# :label: ex-paired
# The two intervals overlap. Both methods were scored against the same retrained models, so their *difference* is known
# better than either value. Compute it with `di.paired_difference(first, second, held_out)`, and say whether the data tell the
# two apart. K-FAC's scores come from `di.influence_scores(run, held_out.queries, approximation="kfac")[0]`.
# :::
#
# :::{solution-start} ex-paired
# :label: sol-paired
# :class: dropdown
# :::

# %%
pair = [
    di.influence_scores(run, held_out.queries, approximation=name)[0]
    for name in ("ekfac", "kfac")
]
difference, interval = di.paired_difference(*pair, held_out)
assert interval[1] < 0
di.tables.percent(difference, interval, signed=True)

# %% [markdown]
# No. These are points of LDS, EK-FAC minus K-FAC: here EK-FAC is a little *worse*, and the data tell the two apart, for the
# interval excludes zero. It is far narrower than those of the bars, because what both share drops out. Whether the order
# turns elsewhere is a question of {doc}`07_ekfac`.
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
# and moves no rank. A positive factor for each query changes no rank either (a negative one turns the order round).


# %%
def unseen(scores):
    return scores + 1


di.checks.keeps_lds(unseen)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} What do the negative scores carry? · 5 minutes · ★★
# :label: ex-clamp
# Set all negative scores to zero and compute the LDS again. **Guess first:** does it fall, stay, or rise? Take the paired
# difference to be sure (with `pair`, the two matrices of {ref}`ex-paired`).
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
clamped = di.lds(pair[0].clamp(min=0), held_out).mean
as_many = di.evaluation.retraining_lds(held_out)  # judged by all three seeds
assert di.ceiling(held_out) < clamped < as_many
di.tables.table([
    {"scores": name, "gain, points": di.tables.percent(*gain, signed=True)}
    for name, gain in gains.items()
])  # fmt: skip

# %% [markdown]
# It rises, above the dashed line, though not above a retraining that is judged by as many seeds. Throwing away more than
# half of the scores makes the prediction *better*. So the negative scores, as they stand, do harm to the LDS on these
# digits. {doc}`09_lds` finds what that says about them, and {doc}`11_challenges` why it is so.
#
# :::{solution-end}
# :::
