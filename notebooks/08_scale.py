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
# # Gradients at scale: fewer passes, fewer bytes
#
# :::{admonition} In this chapter
# :class: tip
# You find out what noise does to a score, and when it adds a similarity that is not there. You see which draws say most, and
# read off what a budget of passes buys. You write both algorithms of the paper as one function. Then you pack gradients into
# an eighth, a twentieth and less of their bytes, and measure what each packing costs.
#
# *20 minutes to read · two cores: about a minute · builds on {doc}`02_ddpm`, {doc}`04_influence` and {doc}`07_ekfac`*
# :::

# %% tags=["hide-input"]
from dataclasses import replace
from itertools import product

import numpy as np
import torch

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()
preset = di.get_preset("digits")
run = di.open_run(preset, progress=False)
model, train = di.runs.full_model(run).model, run.data.train
curvature = di.runs.curvature_of_run(run)
truth = di.load_ground_truth("digits-ground-truth", "held-out")
queries = truth.queries

# %% [markdown]
# ## Two bills
#
# The curvature is fitted, and its inverse costs one division for each weight. What a score still needs is gradients: one for
# every training image, one for every query, each a mean over draws. That sends you two bills.
#
# The first is in passes. One **pass** is a forward and a backward pass of one image at one draw. The second is in bytes,
# because a gradient has as many numbers as the network has weights. **Before you run the cell:** how large is a store with
# the gradients of CIFAR-10's 50,000 images, for the network of {cite:t}`mlodozeniec2025influence`?


# %%
def bills(name):
    preset = di.get_preset(name)
    N, _ = di.planner.plan.counts(preset, None, None)
    network = di.planner.network.NetworkCount(preset.unet, preset.curvature)
    draws = preset.gradient_draws.count
    size = di.compression.stored_bytes(
        di.StoreFormat(), network.block_shapes.values()
    )
    readable = di.planner.plan.readable_bytes
    return {"preset": name, "images": N, "draws": draws,
            "passes": N * draws, "weights": network.entries,
            "one gradient": readable(size),
            "all": readable(N * size)}  # fmt: skip


rows = [bills("digits"), bills("cifar10")]
di.tables.table(rows, caption="Training gradients in float32.")

# %% [markdown]
# Terabytes, for a data set that fits on a memory stick. So this chapter asks two questions. How few draws are enough, and
# how few bytes? Draws come first, because they hold a trap.
#
# ## A score is a product of two noisy means
#
# Multiply each gradient by the inverse square root of the curvature: $h_n = (F + \lambda I)^{-1/2}\,\nabla \ell_n$ for an
# image, $h_q = (F + \lambda I)^{-1/2}\,\nabla m_q$ for a query. We call these *whitened* gradients. A score is then an inner
# product, with nothing in between. In it $m_q$ is the query's measurement, $\ell_n$ the image's loss, $F$ the curvature,
# $\lambda$ the damping and $N$ the number of images:
#
# $$ \begin{aligned}
# \text{score}(q, n) &= \tfrac1N\, \nabla m_q^\top (F + \lambda I)^{-1}\, \nabla \ell_n \\
# &= \tfrac1N\, h_q^\top h_n .
# \end{aligned} $$ (eq-white)
#
# Both sides are means over draws, and you have only some draws of each. Take numbers that fit on paper: two weights, four
# draws that are equally likely, and their whitened gradients for a query and for an image.

# %%
query = torch.tensor([[3.0, 1], [-1, 1], [1, 3], [1, -1]]).double()
image = torch.tensor([[4.0, 0], [0, 0], [2, 3], [2, -3]]).double()
print("means:", query.mean(0).tolist(), image.mean(0).tolist())
print("their product:", (query.mean(0) @ image.mean(0)).item())

# %% [markdown]
# The true product is 2. Now you may look at *one* draw of each. **Guess first:** what do you get on average if the two draws
# are chosen independently? And what if both use the *same* draw, to save you the noise?

# %%
apart = torch.stack([a @ b for a, b in product(query, image)])
shared = torch.stack([a @ b for a, b in zip(query, image, strict=True)])
assert apart.mean() == 2 and shared.mean() == 7
print("independent:", apart.mean().item(), " shared:", shared.mean().item())

# %% [markdown]
# Independent draws are right on average, however few they are. The same draw gives more than three times the truth. Where
# does the rest come from? When the first entry of the query's gradient is above its mean, so is that of the image's. The
# product counts this agreement of their noise as if the images agreed.
#
# With $S$ draws on each side, write $\hat h$ for a mean over draws and $h_{q,s}$ for the gradient at draw $s$. If both
# sides have the same draws,
#
# $$ \mathbb{E}\bigl[\hat h_q^\top \hat h_n\bigr] = h_q^\top h_n + \tfrac{1}{S}\, \operatorname{tr} \operatorname{Cov}(h_{q,s}, h_{n,s}) . $$ (eq-shared-bias)
#
# Where draws are independent, the second term is not there. In terms of plain gradients it is
# $\operatorname{tr}\bigl((F + \lambda I)^{-1} \operatorname{Cov}(\nabla m_{q,s}, \nabla \ell_{n,s})\bigr) / S$.
#
# :::{admonition} Step by step
# :class: dropdown
# Put the two means in: $\hat h_q^\top \hat h_n = \frac{1}{S^2} \sum_{s, j} h_{q,s}^\top h_{n,j}$, with $S^2$ terms. Two
# different draws $s \ne j$ are independent, so the expectation of such a term is $h_q^\top h_n$. The $S$ terms with $s = j$ are
# where the two cases differ. With independent draws they are like all others. With the same draws their expectation is
# $\mathbb{E}[h_{q,s}^\top h_{n,s}] = h_q^\top h_n + \operatorname{tr}\operatorname{Cov}(h_{q,s}, h_{n,s})$, where
# $\operatorname{Cov}(h_{q,s}, h_{n,s}) = \mathbb{E}[(h_{n,s} - h_n)(h_{q,s} - h_q)^\top]$. They are $S$ terms of $S^2$, hence the
# $1/S$. The whitening takes $(F + \lambda I)^{-1/2}$ to both sides of the covariance, and under the trace the two meet.
# :::

# %%
covariance = (query - query.mean(0)).T @ (image - image.mean(0)) / 4
assert covariance.trace() == shared.mean() - apart.mean()  # S = 1

# %% [markdown]
# What does it add on the real network? Here one draw at a time goes to three held-out digits and a dozen training images,
# 64 times. The first 32 draws give the covariance, and so a prediction for $S = 8$. The other 32 make four real means of eight.
# The run's own scores, from many draws, stand beside: we call them the careful ones.


# %%
roots = torch.cat([
    (layer.eigenvalues("ekfac") + preset.damping).sqrt().flatten()
    for layer in curvature.layers.values()
])  # fmt: skip


def rows_of(gradients):
    """Whitened gradients, one row an image."""
    rows = [gradients[name].flatten(1) for name in curvature.layers]
    return torch.cat(rows, 1) / roots


def white(images, draws, purpose, seed=0):
    wanted = di.Expectation(draws, purpose, seed)
    return rows_of(di.gradients_of(model, curvature, images, wanted).whole())


careful_q = rows_of(di.runs.query_gradients(run, queries).whole())
careful_n = rows_of(di.runs.train_gradients(run).whole())  # [N, weights]
careful = careful_q @ careful_n.T

# %%
one = di.DrawConfig(
    1, timestep_rule="uniform", noise_rule="independent", shared=True
)
few, dozen, K = queries.subset(slice(3)), train.subset(slice(12)), 32
by_draw, eights = [], []


def singles(k):
    """Draw k of each, the same for all."""
    h_q, h_n = white(few, one, "both", k), white(dozen, one, "both", k)
    by_draw.append(careful_q[:3] @ h_n.T)  # for later
    return h_q, h_n


# %%
together = mean_q = mean_n = square_q = 0
for k in range(K):
    h_q, h_n = singles(k)
    together = together + h_q @ h_n.T / K
    mean_q, mean_n = mean_q + h_q / K, mean_n + h_n / K
    square_q = square_q + h_q.square() / K
trace = (together - mean_q @ mean_n.T) * K / (K - 1)  # unbiased

for start in range(K, 2 * K, 8):
    of_q = of_n = 0
    for k in range(start, start + 8):
        h_q, h_n = singles(k)
        of_q, of_n = of_q + h_q / 8, of_n + h_n / 8
    eights.append(of_q @ of_n.T)

# %%
known = careful[:3, :12]
predicted, added = trace / 8, torch.stack(eights).mean(0) - known
assert 0.8 < (added.mean() / predicted.mean()) < 0.95
pair = torch.stack([predicted.flatten(), added.flatten()])
assert torch.corrcoef(pair)[0, 1] > 0.8  # it knows which pairs
assert 7 < added.mean() / known.abs().mean() < 8
number, N = di.tables.number, len(train)
di.tables.table([
    {"": name, "mean": number(values.mean() / N),
     "smallest": number(values.min() / N),
     "largest": number(values.max() / N)}
    for name, values in (("size of the careful score", known.abs()),
                         ("predicted addition", predicted),
                         ("real addition", added))
], caption="36 pairs; eight uniform draws, shared.")  # fmt: skip

# %%
noise = (square_q - mean_q.square()) * K / (K - 1)  # of one draw
noisy = (noise > careful_q[:3].square()).float().mean().item()
print(f"one draw's variance is above the squared mean in {noisy:.0%}")

# %% [markdown]
# The prediction comes from other draws than the scores, and is right to about a seventh in the mean, though the
# largest one is almost twice the real one. And the addition dwarfs the scores. If you expected a small correction, note what is
# in the trace: a sum over all directions that the weights can take. In nearly all of them a query's gradient at one draw is
# mostly noise.
#
# Does it spoil the order of images? The LDS ranks retrained models, each trained on half of the images, by the sum of the
# scores of those left out. A constant for a query would add the same to each sum, and move no rank. But the
# largest addition is many times the smallest. **Guess first:** all 57 held-out digits and 300 images, eight uniform draws
# each. Which way of sharing has the best LDS, and which the worst?

# %%
eight = di.DrawConfig(8, timestep_rule="uniform", noise_rule="independent")
same = replace(eight, shared=True)
own_q, own_n = white(queries, eight, "query"), white(train, eight, "train")
tried = {
    "each its own": [own_q @ own_n.T],
    "shared among images": [],
    "shared by queries and images": [],
    "the addition alone": [],
    "careful query, images' own": [careful_q @ own_n.T],
    "careful query, shared among images": [],
}
_, images, both, addition, _, best = tried.values()
mean_q = mean_n = 0
for seed in range(5):
    h_q, h_n = (white(x, same, "eight", seed) for x in (queries, train))
    images.append(own_q @ h_n.T)
    both.append(h_q @ h_n.T)
    best.append(careful_q @ h_n.T)
    mean_q, mean_n = mean_q + h_q / 5, mean_n + h_n / 5
addition.append(sum(both) / 5 - mean_q @ mean_n.T)  # their covariance

# %%
SETS_OF = (
    "Where draws are shared: mean of five sets, with the lowest and highest."
)


def spread(values, digits=2):
    ends = (min(values), max(values)) if len(values) > 1 else None
    return di.tables.Number(np.mean(values), digits, ends)


found = {
    name: [
        100 * di.lds(scores / N, truth, bootstrap=2).mean for scores in sets
    ]
    for name, sets in tried.items()
}
di.tables.table(
    [
        {"draws": name, "LDS, %": spread(row, 1)}
        for name, row in found.items()
    ],
    caption="Held-out digits, eight uniform draws. " + SETS_OF,
)

# %%
own, images, both, addition, own_careful, best = map(np.array, found.values())
assert (both > images).all() and (both > own).all()
assert addition > own_careful and np.ptp(best) > 10
assert best.min() > own_careful - 2 and best.mean() > own_careful + 5
assert abs(best.mean() - both.mean()) < 5

# %% [markdown]
# Take the first three rows, where the query has only eight draws too. You, and we, expected sharing with the query to come
# last, and it comes first. The fourth row says why: the addition alone predicts retraining well. Two images that react
# alike to a draw are alike, and that is a **similarity** with some merit of its own.
#
# But it is not the score. It falls as $1/S$, so what you rank by changes with the number of draws. It makes scores too
# large, above by a factor of more than seven, so predictions of how far a measurement will move are wrong too.
#
# The first two rows have no bias, and are poor because of the query's noise. In the last two the query has its careful
# gradient. There, sharing among images does as well on average as sharing with the query, and without a bias. But with some
# sets of draws it gains nothing. Whether the addition helps on other data is open. It would take the same table there.

# %% [markdown]
# ## Shared among training images: free
#
# The second term of {eq}`eq-shared-bias` is there only if the *query* shares its draws with the image. If only training
# images share theirs, every score is right on average. But now the errors of different images are correlated, and a
# ranking is made of differences between images. For a given query,
#
# $$ \begin{aligned}
# \operatorname{Var}\bigl[h_q^\top(\hat h_n - \hat h_j)\bigr] = \tfrac1S \Bigl( & \operatorname{Var}\bigl[h_q^\top h_{n,s}\bigr] + \operatorname{Var}\bigl[h_q^\top h_{j,s}\bigr] \\
# & - 2 \operatorname{Cov}\bigl(h_q^\top h_{n,s},\, h_q^\top h_{j,s}\bigr) \Bigr) .
# \end{aligned} $$ (eq-difference)
#
# Own draws make the last term zero. Shared draws subtract it. How large is it here? Take the three careful query gradients
# and the images' 64 single draws from above.

# %%
by_draw = torch.stack(by_draw)  # [draws, queries, images]
variances = by_draw.var(0)
pairs = torch.triu_indices(12, 12, offset=1)
apart_by = variances[:, pairs[0]] + variances[:, pairs[1]]
together = (by_draw[..., pairs[0]] - by_draw[..., pairs[1]]).var(0)
left = (together.mean() / apart_by.mean()).item()
assert left < 1
print(f"shared draws leave {left:.0%} of the variance of a difference")


# %%
centred = careful - careful.mean(1, keepdim=True)


def against_careful(scores):
    """Correlation with the careful scores and slope, mean over queries."""
    own = scores - scores.mean(1, keepdim=True)
    product, size = (own * centred).sum(1), centred.square().sum(1)
    correlations = product / (size.sqrt() * own.norm(dim=1))
    return correlations.mean().item(), (product / size).mean().item()


ways = "careful query, images' own", "careful query, shared among images"
plain, common = (
    np.array([against_careful(scores) for scores in tried[name]]).T
    for name in ways
)  # each [correlation or slope, sets]
assert preset.gradient_draws.shared
assert not di.get_preset("cifar2").gradient_draws.shared
assert min(common[0]) > max(plain[0])
assert np.abs(common[1] - 1).mean() > 5 * np.abs(plain[1] - 1).mean()
against = "Scores from eight draws against the careful ones. "
di.tables.table([
    {"draws": name, "correlation": spread(row[0]), "factor": spread(row[1])}
    for name, row in zip(ways, (plain, common), strict=True)
], caption=against + SETS_OF)  # fmt: skip

# %% [markdown]
# What goes away is what one draw does to every image alike. What stays does less harm than its size suggests. A good part
# of it makes all scores of a query larger or smaller by one factor, and a factor moves no rank. But all images share
# their luck too. With the better draws of the next section, sets of draws differ little.
#
# Sharing costs nothing, so `di.attribute` and the book's own presets share draws by signal among training images.
# `di.influence` and the paper's presets keep to the paper, draws of each image's own, unless you give
# `draws=di.DrawConfig(64, timestep_rule="signal", shared=True)`. Queries never share with images by accident. Training
# gradients have a **purpose** of their own, a name that goes into the key of the draws: `train-gradients`
# ({ref}`all names <conv-draws>`).
#
# One more thing follows from the product. If both sides are noisy, with independent draws, the variance of a score is
#
# $$ \begin{aligned}
# \operatorname{Var}\bigl[\hat h_q^\top \hat h_n\bigr] = {} & \frac{h_n^\top \operatorname{Cov}(h_{q,s})\, h_n}{S_q} + \frac{h_q^\top \operatorname{Cov}(h_{n,s})\, h_q}{S_n} \\
# & + \frac{\operatorname{tr}\bigl(\operatorname{Cov}(h_{q,s}) \operatorname{Cov}(h_{n,s})\bigr)}{S_q S_n} ,
# \end{aligned} $$ (eq-product-variance)
#
# with $S_q$ and $S_n$ draws. More draws for the images do not touch the first term. There are far fewer queries than images,
# so give the queries many draws. Best are those of the measurement itself, as in the careful scores. Every retrained model
# is measured on them, so for that measurement the query's gradient has no error at all.
#
# :::{admonition} Step by step
# :class: dropdown
# Write $\hat h_q = h_q + e_q$ and $\hat h_n = h_n + e_n$ with independent errors of mean zero. The error of the product is
# $e_q^\top h_n + h_q^\top e_n + e_q^\top e_n$. The three parts are uncorrelated, because each product of two of them has a factor
# $e_q$ or $e_n$ to the first power, whose mean is zero. The first two variances are $h_n^\top \operatorname{Cov}(e_q)\, h_n$ and
# $h_q^\top \operatorname{Cov}(e_n)\, h_q$. The third is $\mathbb{E}[(e_q^\top e_n)^2] = \operatorname{tr}(\mathbb{E}[e_q e_q^\top]\,
# \mathbb{E}[e_n e_n^\top])$. A mean over $S$ independent draws has $1/S$ of a draw's covariance.
# :::

# %%
means = query.mean(0), image.mean(0)
covs = [torch.cov(rows.T, correction=0) for rows in (query, image)]
three = means[1] @ covs[0] @ means[1], means[0] @ covs[1] @ means[0]
whole = sum(three) + (covs[0] @ covs[1]).trace()
torch.testing.assert_close(apart.var(correction=0), whole)  # all 16 pairs

# %% [markdown]
# ## What draws buy
#
# {doc}`02_ddpm` had rules for choosing draws: one timestep from each slice (stratified), noise in opposite pairs
# (antithetic), timesteps where the image is still visible (signal). To them comes sharing. There you could only ask how
# exact a gradient gets. Now ask what counts, the agreement with retraining. The queries below have their careful
# gradients, and only the training gradients change.
#
# **Before you move the knob:** 250 uniform draws are the paper's choice. How many of the best rule do as well?

# %% tags=["hide-input"]
by, Line, Preset = (
    di.interactive.by,
    di.interactive.Line,
    di.interactive.Preset,
)
bundle = di.load_bundle("digits-draws")
COUNTS, RULES = bundle.metrics["counts"], bundle.metrics["rules"]
ASKED = ("held-out", "generated")
QUERIES = di.interactive.Choice("Queries", ASKED)
BUDGET = di.interactive.Slider("Draws per image", COUNTS)
by_seed = 100 * np.stack(  # LDS of [queries, rule, draws, seed]
    [bundle.arrays[f"{asked}/lds"].mean(-1) for asked in ASKED]
)
mean, low, high = (f(by_seed, -1) for f in (np.nanmean, np.nanmin, np.nanmax))
best = np.maximum.accumulate(mean.max(1), axis=1)
passes = len(train) * np.array(COUNTS)
assert mean[0, -1, 0] > mean[0, 0, COUNTS.index(250)]
assert mean[0, -1, 0] - mean[0, 0, 0] > 20

# %% tags=["hide-input"]
lines = [
    Line(
        rule, COUNTS, *(by(part[:, i], QUERIES) for part in (mean, low, high))
    )
    for i, rule in enumerate(RULES)
]
said = (
    "Shared signal draws lead; uniform ones are more than twenty behind.",
    "Every rule is within a few points. Here it matters little.",
    "The same order of the rules at eight draws.",
)
draws = "Draws per image"
buttons = [
    Preset("eight draws", {draws: 8}, said[0]),
    Preset("the paper's 250", {draws: 250}, said[1]),
    Preset("generated digits", {"Queries": "generated", draws: 8}, said[2]),
]

# %% tags=["hide-input"]
di.interactive.Lines(
    lines,
    "draws of each training image",
    "LDS, %",
    log_x=True,
    reading=BUDGET,
    rule="within",
    costs={"passes": [passes] * len(RULES)},
    cost_forms={"passes": "d"},
    handle=di.interactive.Handle(BUDGET, COUNTS, by(best, QUERIES)),
    x_form="d",
    y_form=".1f",
    start={draws: 8},
    presets=buttons,
    caption="LDS against draws, a line for each rule, with the range over "
    f"{by_seed.shape[-1]} seeds of the draws. The table reads off each "
    "rule's best within the budget, and the passes that it costs. Drag the "
    "knob, or use the slider.",
)

# %% [markdown]
# Eight do, and the figure starts there, so fewer may. If you guessed dozens: each ingredient removes another part of the
# noise, and together they remove most of it. Here are the ends, and what each ingredient gains.


# %% tags=["hide-input"]
def reached(rule, draws):
    at = RULES.index(rule), COUNTS.index(draws)
    return {"draws": f"{draws}, {rule}"} | {
        asked: di.tables.percent(
            mean[(place, *at)] / 100,
            (low[(place, *at)] / 100, high[(place, *at)] / 100),
        )
        for place, asked in enumerate(ASKED)
    }


full = "signal, antithetic, shared"
chosen = (("uniform", 8), ("uniform", 250), (full, 8))
di.tables.table(
    [reached(*choice) for choice in chosen],
    caption="LDS, %, with the range over the seeds of the draws.",
    source=bundle,
)


# %% tags=["hide-input"]
STEPS = {
    "slices": [("stratified", "uniform")],
    "pairs": [("stratified, antithetic", "stratified"),
              ("signal, antithetic", "signal")],
    "signal": [("signal", "stratified"),
               ("signal, antithetic", "stratified, antithetic")],
    "sharing": [(full, "signal, antithetic")],
}  # fmt: skip

# %% tags=["hide-input"]
level = {rule: mean[:, i] for i, rule in enumerate(RULES)}  # [asked, draws]
gains = {
    name: np.stack([level[a] - level[b] for a, b in steps])
    for name, steps in STEPS.items()
}


def both_of(values):
    ends = (values.min(), values.max()) if len(values) > 1 else None
    return di.tables.Number(values.mean(), 1, ends, signed=True)


eighth, usual = COUNTS.index(8), COUNTS.index(250)
di.tables.table([
    {"ingredient": name}
    | {f"{asked}, {count}": both_of(found[:, place, at])
       for count, at in ((8, eighth), (250, usual))
       for place, asked in enumerate(ASKED)}
    for name, found in gains.items()
], caption="Points of LDS that each ingredient adds at 8 and at 250 draws. "
   "Pairs and signal are added to two rules each: mean, and both values.",
   source=bundle)  # fmt: skip

# %% tags=["hide-input"]
small = max(gains[name][..., eighth].max() for name in ("slices", "sharing"))
large = min(gains[name][..., eighth].min() for name in ("pairs", "signal"))
assert small < large
assert max(gain[..., usual].max() for gain in gains.values()) < 2.2
assert (mean[:, -1, 0] > mean[:, 0, usual]).all()
assert (low[:, -1, 0] < high[:, 0, usual]).all()  # the ranges overlap

# %% [markdown]
# - *Eight draws* of the best rule do as well as 250 uniform ones: the ranges over the seeds overlap on both sets.
# - *Each ingredient.* At eight draws, pairs and the signal gain most, sharing and slices less. At 250 none gains much.
# - *Towards the right* all lines meet. A rule changes the noise, not what is estimated, so endless draws would agree.
#
# ### On other images
#
# Is that the method, or 3s and 8s? **Guess first:** sneakers and bags have 28×28 pixels and a network four times as large.
# Will eight of the best draws still do?

# %% tags=["hide-input"]
other = di.load_bundle("fashion-draws")
FEW, MORE = other.metrics["counts"]
elsewhere = 100 * np.stack(  # LDS of [queries, rule, draws, seed]
    [other.arrays[f"{asked}/lds"].mean(-1) for asked in ASKED]
)


def spread(values):
    return di.tables.Number(
        values.mean(), 1, (np.nanmin(values), np.nanmax(values))
    )


di.tables.table([
    {"draws": rule}
    | {f"{asked}, {count}": spread(elsewhere[place, i, at])
       for place, asked in enumerate(ASKED)
       for at, count in enumerate((FEW, MORE))}
    for i, rule in enumerate(other.metrics["rules"])
], caption="Sneakers and bags: LDS, %, with the range over "
   f"{elsewhere.shape[-1]} seeds of the draws.", source=other)  # fmt: skip

# %% tags=["hide-input"]
assert tuple(other.metrics["rules"]) == tuple(RULES)
average = elsewhere.mean(-1)  # of the two seeds
assert (average[:, 0, 1] > average[:, -1, 0]).all()
assert (average[..., 1] > average[..., 0]).all()
assert (average[:, -1, 0] - average[:, 0, 0] > 7).all()
apart = np.ptp(elsewhere, axis=-1)
assert elsewhere.shape[-1] == 2 and 5 < apart.max() < 6

# %% [markdown]
# Eight no longer do: thirty-two uniform draws beat them on both sets, and every rule gains from 8 to 32. What carries over
# is that rules matter most where draws are few. At eight, shared signal draws are ahead of uniform ones by seven points
# and more. But the seed alone moves a cell by up to six points, so two seeds do not tell neighbours apart. And what is
# enough, each kind of image must tell: score with the draws of two seeds, and compare the ranks.
#
# Cars and horses, 300 images of CIFAR-2 in 32×32 pixels, were tried with one seed and 24 halves:

# %% tags=["hide-input"]
cars = di.load_bundle("cifar2-tiny-draws")
third = 100 * np.stack([cars.arrays[f"{asked}/lds"].mean(-1)[..., 0]
                        for asked in ASKED])  # fmt: skip
di.tables.table([
    {"draws": rule}
    | {f"{asked}, {count}": di.tables.number(third[place, i, at], 1)
       for place, asked in enumerate(ASKED)
       for at, count in enumerate(cars.metrics["counts"])}
    for i, rule in enumerate(cars.metrics["rules"])
], caption="Cars and horses: LDS, %, one seed.", source=cars)  # fmt: skip

# %% tags=["hide-input"]
assert tuple(cars.metrics["rules"]) == tuple(RULES)
assert cars.metrics["counts"] == other.metrics["counts"]
uniform_few, uniform_more = third[:, 0, 0], third[:, 0, 1]
by_signal = third[:, list(RULES).index("signal, antithetic"), 0]
assert (by_signal > uniform_more).all()
assert (by_signal - uniform_few > 13).all()
assert (third[:, -1, 0] < by_signal).all()

# %% [markdown]
# There eight draws in pairs by signal do better than 32 uniform draws on both sets, and sharing them takes a part of this away. With one seed this
# is a hint. All three kinds of images agree in one thing: with few draws, uniform ones come last.
#
# So draws are the cheapest thing to improve. The byte bill is the same in every row, because a store holds means.
#
# ## Two algorithms, one function
#
# The paper has two algorithms, for two situations. Both do three things: add up a gradient over its draws, divide by the
# curvature *once*, and take inner products. What they do not share is which side waits.
#
# - **Algorithm 1.** You have your queries today. Precondition their gradients and keep them. Let the training gradients pass
#   by, one after another. Each is multiplied with all kept queries and forgotten.
# - **Algorithm 2.** Queries will come every day. Compute the training gradients once and keep them. Each new query is
#   preconditioned and passes by.
#
# First the gradient. It is a mean over draws, but not all draws fit in one batch. So each batch adds its share, divided by
# the number of *all* draws. Autograd does the adding. A draw's weight is 1 for uniform timesteps, and a half where a rule
# draws a timestep twice as often. The rule *signal* draws nine timesteps in ten in proportion to $\bar\alpha_t$, the
# others uniformly.


# %%
def accumulated(image, expectation, batch_size=24):
    """The mean gradient over all draws, in the eigenbasis, as a row."""
    layers = {
        name: model.network.get_submodule(name) for name in curvature.layers
    }
    model.zero_grad()
    for batch in expectation.batches(model, image, batch_size):
        x, t, noise = batch.images, batch.timesteps, batch.noise
        losses = di.per_draw_loss(model, x, t, noise) * batch.draw_weights
        (losses.sum() / expectation.draws.count).backward()  # adds to .grad
    parts = []
    for name, layer in layers.items():
        weight, bias = layer.weight.grad, layer.bias.grad
        matrix = torch.cat([weight.flatten(1), bias.unsqueeze(1)], 1)
        parts.append(curvature.layers[name].to_eigenbasis(matrix).flatten())
    return torch.cat(parts)


# %% [markdown]
# The division is element by element in the eigenbasis, as {doc}`01_quickstart` promised. And then the one function. Its first
# argument is kept, its second passes by and may be a generator that never holds two gradients at once.


# %%
def preconditioned(row):
    return row / roots.square()


def products_with(kept, passing):
    """Scores [kept, passing] of gradients, one side divided already."""
    kept = torch.stack(list(kept))
    return torch.stack([kept @ row for row in passing], 1) / len(train)


# %%
of_measurement = preset.measurement.expectation(run.seed)
of_training = di.Expectation(preset.gradient_draws, seed=run.seed)
ask, some = queries.subset(slice(2)), train.subset(slice(3))


def each(images, expectation):
    for n in range(len(images)):
        yield accumulated(images.subset(slice(n, n + 1)), expectation)


first = products_with(
    map(preconditioned, each(ask, of_measurement)), each(some, of_training)
)
second = products_with(
    each(some, of_training), map(preconditioned, each(ask, of_measurement))
).T

# %% [markdown]
# :::{admonition} Checkpoint
# The two algorithms agree with each other, and with the library.
# :::

# %%
library = di.scores_from_gradients(
    di.gradients_of(model, curvature, ask, of_measurement),
    di.gradients_of(model, curvature, some, of_training),
    curvature, damping=[preset.damping], count=len(train),
)[0].float()  # fmt: skip
torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)
model.zero_grad()  # leave nothing behind
torch.testing.assert_close(first, library, rtol=1e-3, atol=1e-6)
print(f"largest score: {first.abs().max():.1e}")
for name, other in (("other algorithm", second), ("library", library)):
    print(f"largest difference, {name}: {(first - other).abs().max():.0e}")

# %% [markdown]
# Which one should you take? Count. With $N$ training images, $Q$ queries and $S_n$ and $S_q$ draws, both need $Q S_q + N S_n$
# passes the first time. **Guess first:** what does one more query cost in each, for the paper's CIFAR-10?


# %%
def one_more(name):
    preset = di.get_preset(name)
    N, held_out = di.planner.plan.counts(preset, None, None)
    Q = held_out + preset.sampling.count
    S_n, S_q = preset.gradient_draws.count, preset.measurement.draws.count
    return [
        {"preset": name, "algorithm": 1, "keeps": f"{Q:,} queries",
         "at first": Q * S_q + N * S_n, "one more query": S_q + N * S_n},
        {"preset": name, "algorithm": 2, "keeps": f"{N:,} images",
         "at first": Q * S_q + N * S_n, "one more query": S_q},
    ], f"{name}: {held_out:,} + {Q - held_out:,}, {S_q:,} draws"  # fmt: skip


(digits_rows, digits), (paper_rows, paper) = map(
    one_more, ("digits", "cifar10")
)
di.tables.table(
    [*digits_rows, *paper_rows],
    caption="Gradients kept, and passes. Queries are held-out and generated "
    f"images ({digits}; {paper}).",
)

# %% [markdown]
# Algorithm 1 pays for all training gradients again with every new question. Algorithm 2 pays once, in bytes. In the library
# it is a matter of one argument: `di.gradients_of(..., store=folder)` keeps what it computes. It reads a part of the store,
# unpacks it, multiplies, and goes on. This is why the byte bill matters.
#
# ## Fewer bytes
#
# A stored gradient is a matrix for each layer. There are three things one can do to it: write each number in fewer bits, keep a
# few singular directions, or keep a few random inner products.
#
# ### Eight bits a number
#
# Give each row of the matrix a scale, such that its largest absolute value becomes 127, and round everything to whole
# numbers. **Guess first:** here are two rows. How wrong is the second one, if both share one scale?

# %%
rows = torch.tensor([[1.27, -0.506, 0.34], [0.0127, -0.00506, 0.0034]])


def in_8_bits(matrix, largest):
    scale = largest / 127
    return (matrix / scale).round().to(torch.int8) * scale


whole = in_8_bits(rows, rows.abs().max())
by_row = in_8_bits(rows, rows.abs().amax(1, keepdim=True))
errors = [(packed - rows).norm(dim=1) for packed in (whole, by_row)]
for error in errors:
    print([f"{part:.2%}" for part in error / rows.norm(dim=1)])
assert errors[0][1] > 10 * errors[1][1]

# %% [markdown]
# With one scale for all, a small row has hardly any levels left. A scale for each row costs four bytes and mends it. An
# entry is then off by half a scale at most. *Four bits* do the same with whole numbers from −7 to 7, two in a byte.
# *bfloat16* keeps the upper half of each float32.
#
# But does a small row matter? In plain gradients, entries differ by orders of magnitude, and the small ones count as much as the
# large ones once they are divided by the curvature. The store therefore keeps whitened gradients, where a row is one
# output direction of the eigenbasis. Their entries have about one size.
#
# ### A few singular directions
#
# The best approximation of a matrix by one of **low rank** keeps its leading singular directions. Rank four keeps
# four columns, times their singular values, and four rows. In 8 bits, each of these eight has a scale of its own.
# This is best for the *matrix*. The score asks for its product with another, and what that needs may lie in the rest. Rounding
# errors have random signs and cancel over many entries. What a low rank leaves out is always left out.
#
# ### A few random inner products
#
# Take $d$ vectors of random signs $\omega_i$ and keep only the $d$ numbers $\omega_i^\top h / \sqrt d$. Their inner products are
# right on average, whatever $h$ is, if query and image meet the *same* signs. This is a **random projection**, and its
# error can be written down:
#
# $$ \operatorname{Var}\Bigl[\tfrac1d \sum_{i=1}^{d} (\omega_i^\top h_q)(\omega_i^\top h_n)\Bigr] \;\approx\; \frac{\lVert h_q \rVert^2 \lVert h_n \rVert^2 + (h_q^\top h_n)^2}{d} . $$ (eq-projection)
#
# :::{admonition} Step by step
# :class: dropdown
# One term is $\sum_{j,l} \omega_j \omega_l\, h_{q,j} h_{n,l}$ over all pairs of entries $j, l$, where $\omega_j$ now is one sign of one
# vector. Its mean keeps $j = l$ only, where $\omega_j^2 = 1$: that is $h_q^\top h_n$. The mean of its square keeps signs that come in
# pairs. The three pairings give $\lVert h_q \rVert^2 \lVert h_n \rVert^2 + 2\,(h_q^\top h_n)^2 - 2 \sum_j h_{q,j}^2 h_{n,j}^2$; the last sum
# takes off what is counted three times where all four signs are one. Subtract the squared mean, $(h_q^\top h_n)^2$. Leave out the
# last sum, which is small where no single entry dominates. The $d$ terms are independent, so the variance of their mean has $1/d$.
# :::
#
# Read it as a ratio. The error is about $1/\sqrt d$ times $\lVert h_q \rVert \lVert h_n \rVert$, and the score is the cosine times
# the same. So $1/\sqrt d$ must be well below the cosine, and whitened gradients of two images are nearly orthogonal.

# %%
lengths = careful_q.norm(dim=1)[:, None] * careful_n.norm(dim=1)
cosine = (careful / lengths).abs().mean().item()
print(f"typical cosine: {cosine:.4f}; 1/√d is that at d = {cosine**-2:,.0f}")
cifar = di.get_preset("cifar10")
network = di.planner.network.NetworkCount(cifar.unet, cifar.curvature)
count = network.entries * 4096
print(f"CIFAR-10, d = 4,096: {count:.1e} signs, as much arithmetic for a "
      f"gradient as {2 * count / network.gradient:.0f} passes")  # fmt: skip

# %% [markdown]
# At that $d$ the error is as large as the score, so $d$ must be several thousand. So many signs are never stored: in the
# library each is a hash of its place, made again a block at a time. The arithmetic is small beside the 250 passes of one
# gradient. Is the formula right?

# %%
d, repeats = 1024, 4
kept_part = 4096  # of the directions: enough to test the formula
u, v = careful_q[:3, :kept_part], careful_n[:, :kept_part]
wrong = []
for repeat in range(repeats):
    signs = di.keyed_generator("signs", repeat)
    omega = torch.randint(2, (kept_part, d), generator=signs) * 2.0 - 1
    wrong.append((u @ omega) @ (v @ omega).T / d - u @ v.T)
predicted = (
    (u.square().sum(1)[:, None] * v.square().sum(1)) + (u @ v.T).square()
) / d
measured = torch.stack(wrong).square().mean()
assert 0.95 < (measured / predicted.mean()).sqrt() < 1.05
di.tables.table([{
    "product": (u @ v.T).square().mean().sqrt().item(),
    "predicted error": predicted.mean().sqrt().item(),
    "real error": measured.sqrt().item(),
}], caption=f"Root mean square over 3 × 300 products in {kept_part:,} "
   f"directions, projected to {d:,}.")  # fmt: skip

# %% [markdown]
# ## What a byte buys
#
# The formula is right to a few per cent. Now in points of LDS. **Guess before you look:** which loses the fewest points, four
# singular directions in 8 bits, one in full, or a projection to 4,096 numbers? The first two take about as many
# bytes, the third fewer.

# %% tags=["hide-input"]
NAMES = {"digits": "3s and 8s"}
SETS = {
    f"{title}, {asked}": (name, asked)
    for name, title in NAMES.items()
    for asked in ASKED
}
DATA = di.interactive.Choice("Data", tuple(SETS))
packed_of = {name: di.load_bundle(f"{name}-compression") for name in NAMES}
formats = packed_of["digits"].metrics["formats"]
shares = 100 * np.array(packed_of["digits"].metrics["bytes"])
FAMILIES = {
    "fewer bits, whitened": ["int4", "int8", "bfloat16"],
    "fewer bits, not whitened": [
        f"{kind}, not whitened" for kind in ("int4", "int8 a tensor", "int8")
    ],
    "low rank": [f"svd, rank {rank}" for rank in (1, 2, 4, 8, 16)],
    "low rank, in 8 bits": [f"svd, rank {r}, int8" for r in (4, 8, 16)],
    "projection": [f"projection to {k:,}" for k in (256, 1024, 4096, 16384)],
}


def lost(chosen):
    """Points of LDS against float32 and their interval, [formats, 3]."""
    name, asked = SETS[chosen]
    return 100 * packed_of[name].arrays[f"{asked}/difference"][:, 0]


# %% tags=["hide-input"]
points = np.array([lost(chosen) for chosen in SETS])


def family(name):
    at = [formats.index(label) for label in FAMILIES[name]]
    parts = (by(points[:, at, part], DATA) for part in range(3))
    return Line(name, shares[at], *parts)


def megabytes(name):
    at = [formats.index(label) for label in FAMILIES[name]]
    return shares[at] / 100 * len(train) * roots.numel() * 4 / 1e6


SHARE = di.interactive.Slider(
    "Bytes, % of float32", (0.2, 0.7, 3, 4.5, 9, 11, 14, 20, 26, 35, 50, 70)
)

# %% tags=["hide-input"]
MB = {"MB": [megabytes(name) for name in FAMILIES]}
said = (
    "Four directions in 8 bits, or a projection: these do not tell.",
    "Eight bits: nothing is lost that this ground truth could see.",
    "Four bits without whitening lose points, with it none.",
)
share = "Bytes, % of float32"
buttons = [
    Preset("a twentieth", {share: 4.5}, said[0]),
    Preset("an eighth", {share: 14}, said[2]),
    Preset("a quarter", {share: 26}, said[1]),
]

# %% tags=["hide-input"]
di.interactive.Lines(
    [family(name) for name in FAMILIES],
    "bytes, % of float32",
    "points of LDS against float32",
    log_x=True,
    reading=SHARE,
    rule="within",
    labels={"format": list(FAMILIES.values())},
    costs=MB,
    cost_forms={"MB": ".2g"},
    limits=(None, (-9, 0.5)),
    y_form=".2f",
    start={share: 4.5},
    presets=buttons,
    caption="What packing the training gradients costs, with 95 % intervals "
    "of the paired difference over subsets and queries. Projections to 256 "
    "and 1,024 lie below. The table reads off the best within the bytes.",
)

# %% [markdown]
# If you guessed the single full direction, look at rank one. It takes as many bytes as rank four in 8 bits, and loses more
# than twice as much. Bits are cheaper than directions. The other two cannot be told apart by their intervals, nor query
# by query, and the projection needs about three fifths of the bytes. Here are all formats, for training gradients:


# %%
def row_of(label, use=0):
    i, row = formats.index(label), {"format": label}
    row["bytes, %"] = di.tables.number(shares[i], 2)
    for chosen, (name, asked) in SETS.items():
        change = packed_of[name].arrays[f"{asked}/difference"][i, use]
        row[chosen] = di.tables.percent(
            change[0], change[1:], digits=2, signed=True
        )
    return row


COVERS = (
    "Points of LDS against float32, with 95 % intervals of the paired "
    "difference, by a bootstrap over subsets and queries together."
)
labels = [label for labels in FAMILIES.values() for label in labels]
di.tables.table(
    [row_of(label) for label in labels],
    caption=COVERS,
    source=packed_of["digits"],
)

# %% [markdown]
# Algorithm 1 keeps preconditioned queries, and one may pack both sides. Then both errors count:

# %%
di.tables.table(
    [row_of(label, 2) for label in ("int8", "int4", "svd, rank 4, int8")],
    caption="The same, with training gradients and queries packed.",
    source=packed_of["digits"],
)

# %%
change = {
    label: np.array([
        packed_of[name].arrays[f"{asked}/difference"][i, 0]
        for name, asked in SETS.values()
    ])
    for i, label in enumerate(formats)
}  # fmt: skip
assert all(abs(change["int8"][:, 0]) < 1e-3)
assert all(abs(change["int4"][:, 0]) < 2e-3)
assert all(change["int4, not whitened"][:, 2] < 0)
assert all(change["svd, rank 4"][:, 2] < 0)
assert all(
    change["svd, rank 1"][:, 0] < 2 * change["svd, rank 4, int8"][:, 0]
)
assert all(abs(change["int8 a tensor, not whitened"][:, 0]) < 1e-3)
assert all(abs(change["int8, not whitened"][:, 0]) < 1e-3)
assert all(change["projection to 256"][:, 2] < -0.2)
assert all(change["projection to 1,024"][:, 0] < -0.11)

# %%
four, thousands = "svd, rank 4, int8", "projection to 4,096"
assert (
    0.55
    < np.divide(*(shares[formats.index(x)] for x in (thousands, four)))
    < 0.65
)
for name, asked in SETS.values():
    by_query = packed_of[name].arrays[f"{asked}/lds"][:, 0]
    gap = by_query[formats.index(four)] - by_query[formats.index(thousands)]
    assert abs(gap.mean()) < 2 * gap.std(ddof=1) / len(gap) ** 0.5

# %% [markdown]
# - **Eight bits are free.** The paper packs its queries in eight bits with one scale for a whole matrix
#   ({cite:t}`mlodozeniec2025influence`, appendix F), and here even that loses nothing. So are four bits, if entries are
#   whitened first. Without that, four bits cost points.
# - **Low rank is poor.** That appendix found so too. It costs more still where queries are packed too. But its
#   factors in 8 bits cost no more than in full.
# - **A projection needs thousands of dimensions.** That is the cosine at work. With 256 dimensions more than twenty points
#   are gone, with 16,384 about one. Below one per cent of the bytes, projections are the only format here, and they lose
#   more than eleven points.
#
# ## Do the data disagree?
#
# Within a family, more bytes lose less on both sets. Between families the order differs. Four bits without whitening lose
# more than rank four on held-out digits, and less on generated ones. Do the sizes differ by more than chance?

# %%
for name in ("low rank", "low rank, in 8 bits", "projection"):
    losses = np.array([change[label][:, 0] for label in FAMILIES[name]])
    assert (np.diff(losses, axis=0) > 0).all()  # fewest bytes first
plain_four = change["int4, not whitened"][:, 0] - change["svd, rank 4"][:, 0]
assert plain_four[0] < 0 < plain_four[1]


# %%
def between(label):
    (a, *first), (b, *second) = change[label][:2]
    widths = (first[1] - first[0]) / 2, (second[1] - second[0]) / 2
    half = np.hypot(*widths)  # as if the two sets were independent
    interval = (b - a - half, b - a + half)
    found = di.tables.percent(b - a, interval, digits=2, signed=True)
    return {"format": label, "generated − held-out": found}


some = ("int4", *FAMILIES["low rank"], "projection to 1,024")
di.tables.table(
    [between(label) for label in some],
    caption="Change in LDS on generated digits less that on held-out ones, "
    "in points; negative: more is lost on generated digits. The 95 % "
    "intervals take the two sets as independent, which they are not quite.",
)

# %% [markdown]
# The formats of low rank all lose more on generated digits, but they share their data, and hardly an interval leaves 0
# out. That is a hint and no proof. And digits are not CIFAR-10, where layers are larger, so a given rank or projection is a
# smaller part of the whole. Eight bits a number should carry over, because rounding knows nothing of the size of a
# network. For ranks and projections, measure again: `diffinf launch e07_compression` does so for any preset with a ground
# truth.
#
# ## Pitfalls
#
# - **One purpose for all.** If queries and training images share draws, what you compute is a mixture. In the library the
#   purpose keeps them apart, unless you give both the same one.
# - **Draws for the curvature.** Shared draws help comparisons between images. In a mean over images their errors add up
#   instead of cancelling, so a curvature should not share.
# - **The damping of a packed store is fixed.** Gradients that were packed with $\lambda_0$ can be read at another
#   $\lambda$. Then the score weighs direction $i$ by $(\Lambda_i + \lambda_0)/(\Lambda_i + \lambda)$, where $\Lambda_i$ is its
#   corrected eigenvalue. For small $\Lambda_i$ and $\lambda < \lambda_0$, packing errors grow by up to $\lambda_0/\lambda$.
# - **Preconditioning twice.** One side of the product is divided, once. Whitening both sides by the root is the same thing.
#
# ## What comes next
#
# You can now compute every score of a large model, and you know what it costs. Throughout, "how good" was one number, the LDS.
# We have trusted it to tell a tenth of a point. The next part asks whether it deserves that.
#
# ## Exercises

# %% [markdown]
# :::{exercise} Predict the bias · 10 minutes · ★★
# :label: ex-shared-bias
# Write `my_bias(query_gradients, train_gradients, curvature, draws)`, what shared draws add to a score. It takes the gradients
# of a query and of an image at all possible draws, `[draws, weights]` each, a curvature $F$, and the number of draws $S$.
# Leave out the $1/N$. Check it with `di.checks.shared_draw_bias(my_bias)`, which goes through every choice of draws.
# :::
#
# :::{solution-start} ex-shared-bias
# :label: sol-shared-bias
# :class: dropdown
# :::


# %%
def my_bias(query_gradients, train_gradients, curvature, draws):
    a = query_gradients - query_gradients.mean(0)
    b = train_gradients - train_gradients.mean(0)
    covariance = a.T @ b / len(a)  # of all draws there are: no K - 1
    return torch.linalg.solve(curvature, covariance).trace() / draws


di.checks.shared_draw_bias(my_bias)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Accumulate, then multiply · 10 minutes · ★★
# :label: ex-accumulated
# Write `my_score(query_batches, train_batches, curvature, damping, count)`. The batches are lists of per-draw gradients,
# `[draws, weights]`, of unequal sizes; `count` is $N$. Check it with `di.checks.accumulated_score(my_score)`. One could
# take the mean of all draws, the mean of the batches' means, or the mean of products draw by draw. Which is right, and
# what is wrong with the others?
# :::
#
# :::{solution-start} ex-accumulated
# :label: sol-accumulated
# :class: dropdown
# :::


# %%
def my_score(query_batches, train_batches, curvature, damping, count):
    means = [
        sum(batch.sum(0) for batch in batches) / sum(map(len, batches))
        for batches in (query_batches, train_batches)
    ]
    damped = curvature + damping * torch.eye(len(curvature)).to(curvature)
    return means[0] @ torch.linalg.solve(damped, means[1]) / count


di.checks.accumulated_score(my_score)

# %% [markdown]
# The mean over all draws is right. The mean of the batches' means weighs draws of small batches more. The mean of
# products, draw by draw, is that of {eq}`eq-shared-bias` with $S = 1$.
#
# :::{solution-end}
# :::
#
# :::{exercise} Eight bits a row · 10 minutes · ★
# :label: ex-int8
# Write `my_rows(matrix)`, which returns whole numbers of type `torch.int8` and a scale for each row, `[rows, 1]`. Whole
# numbers times scale are the matrix again, each entry to half a scale. A row of zeros must stay zeros. Check it with `di.checks.int8_rows(my_rows)`.
# :::
#
# :::{solution-start} ex-int8
# :label: sol-int8
# :class: dropdown
# :::


# %%
def my_rows(matrix):
    scale = matrix.abs().amax(1, keepdim=True) / 127
    safe = torch.where(scale > 0, scale, 1.0)
    return (matrix / safe).round().to(torch.int8), scale


di.checks.int8_rows(my_rows)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} The fewest draws · 10 minutes · ★
# :label: ex-fewest
# Take 95 % of the best LDS in the figure as good enough, the best of all rules for each kind of query. For each rule, what
# is the fewest draws that reach it? **Guess first:** the ratio between the worst rule and the best. (`mean[queries, rule,
# draws]`, `COUNTS`, `RULES` and `ASKED` are in the folded cell above the figure.)
# :::
#
# :::{solution-start} ex-fewest
# :label: sol-fewest
# :class: dropdown
# :::

# %%
enough = 0.95 * mean.max((1, 2))


def fewest(rule, place):
    good = mean[place, rule] >= enough[place]
    return COUNTS[int(good.argmax())] if good.any() else None


rows = [
    {"rule": rule}
    | {f"draws, {q}": fewest(i, p) for p, q in enumerate(ASKED)}
    for i, rule in enumerate(RULES)
]
for asked in ASKED:
    worst, best = (rows[i][f"draws, {asked}"] for i in (0, -1))
    assert best == COUNTS[0]
    print(f"{asked}: {worst} / {best} = {worst / best:.0f}")
di.tables.table(rows, caption="For 95 % of the best LDS.", source=bundle)

# %% [markdown]
# As the figure starts at the best rule's number, the ratio may be larger.
#
# :::{solution-end}
# :::
#
# :::{exercise} Bytes, by hand · 5 minutes · ★
# :label: ex-bytes
# The CIFAR-10 network has 38 million weights, and there are 50,000 training images. By hand: how large is the store in float32,
# in 8 bits, and as projections to 4,096 dimensions? Which would you keep on a laptop?
# :::
#
# :::{solution-start} ex-bytes
# :label: sol-bytes
# :class: dropdown
# :::
#
# $38 \cdot 10^6 \cdot 4$ bytes are about 150 MB a gradient, and 50,000 of these are 7.6 TB. Eight bits are a quarter, 1.9 TB. A
# projection has $4 \cdot 4096$ bytes an image whatever the network, 0.8 GB in all. Only the last fits with ease. But on our digits it cost
# points, and on CIFAR-10 what it costs is unknown: measure before you rely on it. The planner knows the layers and counts exactly:

# %%
shapes = list(network.block_shapes.values())
readable = di.planner.plan.readable_bytes
forms = [di.StoreFormat(kind=k) for k in ("float32", "int8", "projection")]
sizes = [50_000 * di.compression.stored_bytes(form, shapes) for form in forms]
print([f"{f.kind}: {readable(s)}" for f, s in zip(forms, sizes, strict=True)])

# %% [markdown]
# :::{solution-end}
# :::
