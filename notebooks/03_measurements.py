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
# # What to ask: measurements
#
# :::{admonition} In this chapter
# :class: tip
# You let two models disagree about a digit, and find out how many draws it takes to believe them. You work out how much
# of a loss no model can remove, turn losses into bits of likelihood, and follow a digit through the flow that gives its
# likelihood exactly. At the end you know which question each measurement answers, and which one to ask.
#
# *25 minutes to read · two cores: about a minute · builds on {doc}`02_ddpm`*
# :::

# %% tags=["hide-input"]
import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import diffinf_lib as di
from diffinf_lib.configuration import LikelihoodConfig
from diffinf_lib.diffusion.draws import elbo_weights, timestep_probabilities
from diffinf_lib.diffusion.elbo import kl_weights, nearest_levels
from diffinf_lib.likelihood import angle_grid, log_likelihood, timesteps_at

torch.set_num_threads(1)
di.show_versions()

# %% [markdown]
# ## Why you need it
#
# Attribution answers one question: what happens to a number if a training image is left out? So far that number was the
# loss of a digit. We took it without asking, and the answer can be no better than the question.
#
# A good **measurement**, a number $m(\theta)$ that a model gives for a query, should do three things. It should *mean*
# something, and preferably "how likely is this picture". It should be *known* well enough that two models can be told
# apart. And it should have a *gradient*, because influence functions need one. No measurement is best at all three. This
# chapter shows what each gives, starting with how well it is known.
#
# ## Two models and one digit
#
# The ground truth of {doc}`01_quickstart` comes from models retrained on random halves of the training images. We take the
# first two of them, and two held-out digits: the one on which they differ most, and the one on which they differ least.

# %% mystnb={"image": {"alt": "Two handwritten digits of eight by eight pixels"}, "figure": {"caption": "Left, the digit on which the two models differ most; right, the one on which they differ least.", "name": "fig-two-digits"}}
truth = di.load_ground_truth("digits-ground-truth", "held-out")
shipped = truth.measurements[:2, 0]  # the first two halves, one seed
gaps = (shipped[0] - shipped[1]).abs()
chosen = torch.tensor([int(gaps.argmax()), int(gaps.argmin())])
asked = truth.queries.subset(chosen)
di.figures.image_grid(asked.images, columns=2)

# %% [markdown]
# The models are trained again on the spot, and give the shipped measurements again. The tolerance is a tenth, because another
# processor rounds differently, and training lets the difference grow.

# %%
preset = di.get_preset("digits")
run = di.open_run(preset, progress=False)
halves = [di.runs.retrained_model(run, half, 0) for half in (0, 1)]
again = torch.stack([di.measure(half, asked) for half in halves])
torch.testing.assert_close(again, shipped[:, chosen], rtol=0.1, atol=0)

# %% [markdown]
# Which of the two models finds the left digit likelier? Measure its loss with 64 draws, timesteps at random, subtract, and
# do it six times. In the first column of numbers each model gets draws of its own; in the second both get the same.
# **Before you run the cell:** how often will the six differences agree in sign?

# %%
plain = di.DrawConfig(64, timestep_rule="uniform", noise_rule="independent")
digit = asked.subset(slice(0, 1))


def measured(half, draws, seed):
    config = di.MeasurementConfig(draws=draws)
    return di.measure(halves[half], digit, config, seed=seed).item()


rows = []
for seed in range(6):
    first = measured(0, plain, seed)
    own, shared = measured(1, plain, seed + 100), measured(1, plain, seed)
    row = {"try": seed, "own draws": first - own}
    rows.append(row | {"the same draws": first - shared})
di.tables.table(rows, caption="Loss of the first half less the second's.")

# %% [markdown]
# With draws of their own, the models seem to change their minds. With the same draws they do not. If you expected 64
# draws to settle it, think of how much the loss of a single draw varies. A draw below $t = 50$ costs some seventy times
# what a draw above $t = 500$ does.
#
# ### Why the same draws help
#
# Let $\ell_s$ and $\ell'_s$ be the losses of the two models on draw $s$ of $S$. Over draws they have standard deviations
# $\sigma$ and $\sigma'$, and on the same draw a correlation $\rho$. The difference of their means over independent draws has
#
# $$ \operatorname{Var}\bigl(\bar\ell - \bar\ell'\bigr) = \frac{\sigma^2 + \sigma'^2 - 2\rho\,\sigma\sigma'}{S} \;\overset{\sigma' = \sigma}{=}\; \frac{2\sigma^2 (1 - \rho)}{S}. $$ (eq-paired)
#
# :::{admonition} Step by step
# :class: dropdown
# The difference of the means is the mean of the differences $\ell_s - \ell'_s$. The draws are independent of each other, so
# its variance is $\tfrac1S \operatorname{Var}(\ell_s - \ell'_s)$. One difference has the variance
# $\operatorname{Var}(\ell_s) + \operatorname{Var}(\ell'_s) - 2\operatorname{Cov}(\ell_s, \ell'_s)$, and the covariance is
# $\rho$ times the two standard deviations. With draws of their own $\ell_s$ and $\ell'_s$ are independent, and $\rho = 0$.
# :::
#
# Draws of their own leave the full $2\sigma^2/S$. If $\sigma' = \sigma$, sharing them multiplies it by $1 - \rho$. It
# costs nothing, and is known as **common random numbers**. Does the formula hold on the digit?


# %%
def losses(model, image, t, noise):
    with torch.no_grad():
        each = image.expand_as(noise)
        return di.per_draw_loss(model, each, t, noise).double()


def fresh(name, *shape):
    return torch.randn(
        *shape, *digit.shape, generator=di.keyed_generator(name)
    )


count = 2048
t = torch.randint(1000, (count,), generator=di.keyed_generator("t"))
noise = fresh("noise", count)
a, b = (losses(half, digit.images, t, noise) for half in halves)
assert 60 < a[t < 50].mean() / a[t > 500].mean() < 90  # some seventy

# %%
rho = torch.corrcoef(torch.stack([a, b]))[0, 1]
by_64 = [values.view(-1, 64).mean(1) for values in (a, b)]  # 32 means
found = (by_64[0] - by_64[1].roll(1)).std(), (by_64[0] - by_64[1]).std()
rows = []
for name, r, tries in zip(
    ("own", "the same"), (0 * rho, rho), found, strict=True
):
    unequal = a.var() + b.var() - 2 * r * a.std() * b.std()
    equal = (a.var() + b.var()) * (1 - r)
    row = {"draws": name, "ρ": r.item(), "in 32 tries": tries.item()}
    row["formula"] = (unequal / 64).sqrt().item()
    rows.append(row | {"taking σ as equal": (equal / 64).sqrt().item()})
    assert 0.6 < row["in 32 tries"] / row["formula"] < 1.6
assert a.std() > b.std()  # the worse model spreads further
di.tables.table(
    rows, caption="Standard deviation of the difference of two mean losses."
)

# %% [markdown]
# The formula holds, and the table has a surprise in it. With $\rho$ so close to one, the two $\sigma$ may not be taken as
# equal: a model that is a little worse is worse by more on hard draws, so its losses spread further. The full formula is
# $(\sigma - \sigma')^2 + 2\sigma\sigma'(1 - \rho)$, and here the first term counts.
#
# The correlation is so high because a hard draw is hard for both models, and most of that is the timestep. So what is left
# to gain if timesteps are spread evenly, as the library does it? Turn the slider. At each of twenty timesteps both models
# get 1 to 64 draws.

# %% tags=["hide-input"]
COUNTS, TIMES = (1, 2, 4, 8, 16, 32, 64), torch.arange(25, 1000, 50)
t = TIMES.repeat(128)
pools = []
for place, query in enumerate(asked.images):
    noise = fresh(f"device {place}", len(t))
    a = losses(halves[0], query, t[:1280], noise[:1280]).view(64, -1)
    b = losses(halves[1], query, t, noise).view(128, -1)
    pools.append(torch.stack([a, b[64:], b[:64]]))
first, own, same = torch.stack(pools, dim=1)  # digits × noises × timesteps


def after(pool):
    """Means over the first noises, for every position of the slider."""
    return torch.stack([pool[:, :n].mean(1) for n in COUNTS], dim=1)


# %% tags=["hide-input"]
kit = di.interactive
which = kit.Choice("Digit", ("where they differ", "where they agree"))
slider = kit.Slider("Draws at each t", COUNTS)


def by(values):
    return kit.by(values, which, slider)


bands, numbers, spreads = [], {}, []
counts = torch.tensor(COUNTS).view(1, -1, 1)
for name, other in {"own draws": own, "the same draws": same}.items():
    apart = first.var(1) + own.var(1)
    variance = apart if other is own else (first - same).var(1)
    variance = variance.unsqueeze(1) / counts
    gap, spread = after(first) - after(other), variance.sqrt()
    spreads.append(variance[0].sum(1).sqrt())  # of the left digit
    ends = by(gap - spread), by(gap + spread)
    bands.append(kit.Line(name, TIMES, by(gap), *ends))
    numbers[f"{name}, mean difference"] = by(gap.mean(2))
    numbers[f"{name}, standard deviation"] = by(
        variance.sum(2).sqrt() / len(TIMES)
    )
ratio = spreads[0] / spreads[1]  # about three
assert ratio.min() > 2.5 and ratio.max() < 3.5

# %% tags=["hide-input"]
shown = {"second, own draws": own, "second, the same draws": same}
shown["first half"] = first
curves = [kit.Line(name, TIMES, by(after(p))) for name, p in shown.items()]
apart, alike = which.options
states = [
    ("two draws", apart, 2, "On the same draws both lines shake together."),
    ("many", apart, 64, "Both are known better, but one still far better."),
    ("a small gap", alike, 64, "Draws of their own leave open who is ahead."),
]

# %% tags=["hide-input"]
across = (0, 1000)
kit.Together(
    [
        kit.Lines(
            curves, "timestep t", "loss", log_y=True, limits=(across, None)
        ),
        kit.Lines(
            bands,
            "timestep t",
            "first less second",
            limits=(across, (-0.2, 0.3)),
        ),
        kit.Readouts(numbers, dict.fromkeys(numbers, ".4f")),
    ],
    start={slider.name: 2},
    presets=[
        kit.Preset(name, {which.name: of, slider.name: noises}, note)
        for name, of, noises, note in states
    ],
    caption="Loss of two retrained models on one digit, and their "
    "difference. Bands: one standard deviation to each side.",
)

# %% [markdown]
# The two standard deviations fall together, as $1/\sqrt S$, but with the same draws it is a third. Evenly spread timesteps
# have taken away what the timestep explains; what remains for sharing is the noise.
#
# Here is how both savings add up, with $S = 64$ draws in all. *Stratified* draws take one timestep from each of $S$ equal
# slices of all $T$. A pair $\pm\varepsilon$ shares its timestep, so there are half as many slices.

# %%
rules = {
    "random t": plain,
    "stratified t": di.DrawConfig(64, noise_rule="independent"),
    "stratified t, pairs ±ε": di.DrawConfig(64),
}
rows = []
for name, rule in rules.items():
    one, other = (
        torch.tensor([measured(half, rule, seed) for seed in range(16)])
        for half in (0, 1)
    )
    row = {"draws": name, "own": (one - other.roll(1)).std().item()}
    rows.append(row | {"the same": (one - other).std().item()})
assert rows[0]["own"] > 5 * rows[2]["the same"]
assert rows[2]["the same"] < rows[1]["the same"]
assert 25 < rows[0]["own"] / rows[2]["the same"] < 40  # squared: a thousand
di.tables.table(rows, caption="Standard deviation of the difference.")

# %% [markdown]
# From the first entry to the last the standard deviation falls some thirty-fold, as it would with a thousand times the
# draws.
#
# Look at the last row. In {doc}`02_ddpm` pairs $\pm\varepsilon$ halved a gradient's error and did a loss no good. With draws
# of their own they do no good here either: half as many timesteps are seen. With the same draws they help. Both
# trainings start from the same weights, so the two models are close, and $\ell(\theta') - \ell(\theta) \approx
# \nabla\ell(\theta)^\top(\theta' - \theta)$ is a gradient times a step. It has a large part that is odd in $\varepsilon$,
# and a pair cancels it.
#
# `di.measure` keys the draws of a query by its id and the seed, never by the model. So every model, today or next year,
# gets the same ones. From scratch, on the library's draws, whose weights $w_s$ are 1 unless a rule prefers some
# timesteps:


# %%
def measure_from_scratch(model, images, config, seed=0):
    total = torch.zeros(len(images), dtype=torch.float64)
    for batch in config.expectation(seed).batches(model, images):
        with torch.no_grad():
            guess = model(batch.state, batch.timesteps)
        error = (batch.target - guess).square().flatten(1).mean(1)  # over C
        weighted = (batch.draw_weights * error).double()
        total.index_add_(0, batch.example, weighted)
    return total / config.draws.count


scratch = measure_from_scratch(halves[0], asked, preset.measurement)
torch.testing.assert_close(scratch, di.measure(halves[0], asked))

# %% [markdown]
# ## What no model can remove
#
# A second look at the losses above: at small timesteps they are far larger than at large ones. **A guess:** is the
# model bad at small timesteps, where hardly any noise has been added, or is the task hard there?
#
# For the toy of {doc}`02_ddpm` we can tell. Data are numbers $x \sim \mathcal{N}(\mu, v)$, and the best guess of the noise is
# the conditional mean $\mathbb{E}[\varepsilon \mid x_t]$. It leaves the loss
#
# $$ \mathbb{E}\,\bigl(\varepsilon - \mathbb{E}[\varepsilon \mid x_t]\bigr)^2 = \frac{\bar\alpha_t v}{\bar\alpha_t v + 1 - \bar\alpha_t}, $$ (eq-floor)
#
# the share of the variance of $x_t$ that comes from the image.
#
# :::{admonition} Step by step
# :class: dropdown
# $\varepsilon$ and $x_t$ are jointly Gaussian. So the best guess is a line, and what it leaves is
# $\operatorname{Var}(\varepsilon) - \operatorname{Cov}(\varepsilon, x_t)^2 / \operatorname{Var}(x_t)$. Now
# $\operatorname{Var}(\varepsilon) = 1$. In $x_t = \sqrt{\bar\alpha_t}\,x + \sqrt{1-\bar\alpha_t}\,\varepsilon$ image and noise are
# independent, so $\operatorname{Var}(x_t) = \bar\alpha_t v + 1 - \bar\alpha_t$ and $\operatorname{Cov}(\varepsilon, x_t) =
# \sqrt{1-\bar\alpha_t}$. Hence $1 - (1 - \bar\alpha_t) / (\bar\alpha_t v + 1 - \bar\alpha_t)$, which is {eq}`eq-floor`.
# :::
#
# For $t \to 0$ this tends to one: a little noise drowns in the image, and nobody can tell it from the image's own
# detail. For large $t$ nearly all of $x_t$ is noise, and guessing it is easy. The task is hard, not the model bad.
# Fifty thousand numbers agree:

# %%
process = halves[0].process
kept = process.alphas_cumprod
mu, v = 0.5, 0.04
x, eps = torch.randn(
    2, 50_000, generator=di.keyed_generator("toy"), dtype=torch.float64
)
rows = []
for t in (10, 100, 300, 900):
    state = kept[t].sqrt() * (mu + v**0.5 * x) + (1 - kept[t]).sqrt() * eps
    floor = kept[t] * v / (kept[t] * v + 1 - kept[t])
    w = (1 - kept[t]).sqrt() / (kept[t] * v + 1 - kept[t])
    left = (eps - w * (state - kept[t].sqrt() * mu)).square().mean()
    torch.testing.assert_close(left, floor, rtol=0.03, atol=0)
    rows.append({"t": t, "formula": floor.item(), "found": left.item()})
di.tables.table(rows, caption="Loss of the best denoiser of the toy.")

# %% [markdown]
# Digits are not Gaussian, but they have a covariance. The noise is alike in all directions, so along each eigenvector of the
# covariance {eq}`eq-floor` gives the loss of the best *line*, with the eigenvalue for $v$. The mean over all 64 is what the
# best straight-line denoiser leaves. The network should do better, for it need not be linear.

# %%
pixels = run.data.train.images.flatten(1).double()
spectrum = torch.linalg.eigvalsh(torch.cov(pixels.T)).clamp(min=0)
straight = [
    (kept[t] * spectrum / (kept[t] * spectrum + 1 - kept[t])).mean().item()
    for t in TIMES
]
model = di.runs.full_model(run).model
some = run.data.train.images[:100]
network = [
    losses(model, some, t.expand(100), fresh(f"{t}", 100)).mean().item()
    for t in TIMES
]

# %% mystnb={"image": {"alt": "Loss against timestep on a logarithmic scale for the network and for the best straight line. The network is lower at small timesteps and higher at large ones"}, "figure": {"caption": "Loss on training images at each timestep: the network, and the best straight line.", "name": "fig-floor"}} tags=["hide-input"]
figure, axes = di.figures.subplots(figsize=(5.5, 2.8))
axes.semilogy(TIMES, network, label="network")
axes.semilogy(TIMES, straight, "--", label="best straight line")
axes.set(xlabel="timestep t", ylabel="loss")
axes.legend()
figure

# %% [markdown]
# The network beats the line at small timesteps, by a little. This line is no floor for digits: a
# denoiser that knows their levels goes far below it, as the last exercise shows. At large ones it does *worse* than a line,
# by a factor that grows to hundreds. The best answer there is almost $x_t$ itself, and a short training does not reach it
# exactly. In the mean loss these timesteps hardly count.

# %%
assert network[0] < straight[0] and network[-1] > 100 * straight[-1]

# %% [markdown]
# So a loss of 0.1 says nothing by itself. The part that no model can remove, whatever its size, drops out of the
# difference of two. That is why measurements are only ever compared between models, query by query.
#
# ## What "likely" means: bits and levels
#
# "How likely is this picture?" asks for a probability. A digit here has 64 pixels, and each takes one of 17 **levels**, 0
# to 16. A model that gives all levels the same chance gives every picture the probability $17^{-64}$. One takes the
# logarithm to base 2 and divides by the $C = 64$ pixels: $-\log_2 17$, about minus four **bits per dimension**. This is the
# number to beat. Higher is likelier, and zero would be certainty. Papers mostly give the negative, so that lower is better;
# here the number keeps the sign of a log-probability.
#
# A diffusion model, though, has a **density**, a probability for each unit of volume, and densities know no upper bound. Let
# a model place a narrow bump on each of the 17 levels. As the bumps shrink, the density at the levels grows beyond all
# bounds, and the model has learnt nothing:

# %%
di.tables.table(
    [
        {
            "width": f"{width:g}",
            "bits": -math.log2(17 * width * (2 * math.pi) ** 0.5),
        }
        for width in (0.03, 1e-3, 1e-5)
    ],
    caption="log₂ of the density at a level, of 17 equal Gaussian "
    "bumps on [−1, 1]. Width: their standard deviation.",
)

# %% [markdown]
# The remedy is **dequantisation**. Spread each level evenly over its *bin*, the interval of width $\eta$ around it, with
# noise $u$. Our pixels run from $-1$ to $1$, so 17 levels have $\eta = 1/8$. The bin's probability is a true probability
# again, and a mean of log-densities bounds it from below:
#
# $$ \log_2 P(x) \;\ge\; \mathbb{E}_u \log_2 p(x + u) + C \log_2 \eta. $$ (eq-dequantised)
#
# :::{admonition} Step by step
# :class: dropdown
# The probability that the density $p$ gives to the bin is $P(x) = \int p(x + u)\,du$ over the bin. With $u$ uniform, this is
# the bin's volume $\eta^C$ times $\mathbb{E}_u\, p(x + u)$. A logarithm of a mean is at least the mean of the logarithms
# (Jensen), so $\log_2 P(x) \ge C\log_2\eta + \mathbb{E}_u \log_2 p(x + u)$. Equality holds if $p$ is constant on the
# bin. See {cite:t}`theis2016note`.
# :::
#
# By hand: a pixel that is black ($-1$) or white ($1$) has bins of width 2. A model that knows nothing spreads its
# density, $\tfrac14$, over $[-2, 2]$. Then $\log_2 \tfrac14 + \log_2 2 = -1$, one bit for a coin. The density alone would
# say minus two.
#
# ## A bound from all timesteps: the ELBO
#
# How likely does a diffusion model find an image? It would have to add up all the ways from noise to the image. The
# **ELBO** (evidence lower bound) {cite}`ho2020ddpm` avoids the sum. It takes noised versions of the image and asks, at
# each step back, how far the model's step is from the right one. Timesteps count from 0, so $x_0$ is already noised once
# and $x$ is the image. $\mathrm{KL}_t$ is the divergence of the right step $q(x_{t-1} \mid x_t, x)$, which knows the
# image, from the model's $p(x_{t-1} \mid x_t)$:
#
# $$ \begin{aligned}
# \log p(x) \;\ge\; {} & \underbrace{\mathbb{E} \log p(x \mid x_0)}_{\text{last step}} - \sum_{t=1}^{T-1} \mathbb{E}\,\mathrm{KL}_t \\
# & - \underbrace{\mathrm{KL}\bigl(q(x_{T-1} \mid x) \,\|\, \mathcal{N}(0, I)\bigr)}_{\text{no model changes it}} .
# \end{aligned} $$ (eq-elbo)
#
# :::{admonition} Step by step
# :class: dropdown
# Let $q$ be the distribution of the states $x_0, \dots, x_{T-1}$ of a noised $x$. By Jensen, $\log p(x) = \log \mathbb{E}_q \frac{p(x, x_0, \dots, x_{T-1})}{q(x_0, \dots, x_{T-1} \mid x)} \ge
# \mathbb{E}_q \log \frac{p(x, x_0, \dots, x_{T-1})}{q(x_0, \dots, x_{T-1} \mid x)}$.
#
# Both split into steps backwards: $p = p(x_{T-1})\, p(x \mid x_0) \prod_{t \ge 1} p(x_{t-1} \mid x_t)$, and by Bayes' rule
# $q = q(x_{T-1} \mid x) \prod_{t \ge 1} q(x_{t-1} \mid x_t, x)$. Collect factors of one step. Each quotient of a $p$ and a
# $q$ is, in the mean, minus a Kullback–Leibler divergence, $\mathrm{KL}(q \,\|\, p) = \mathbb{E}_q \log (q/p)$.
# :::
#
# Both of a step's distributions are Gaussians of the variance $\tilde\beta_t$. So $\mathrm{KL}_t$ is the squared distance
# of their means over twice that variance, and with the posterior mean {eq}`eq-posterior` it becomes a *weighted loss*:
#
# $$ \mathrm{KL}_t = w_t\, \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2, \qquad w_t = \frac{\beta_t}{2\,(1 - \beta_t)\,(1 - \bar\alpha_{t-1})}. $$ (eq-weights)
#
# :::{admonition} Step by step
# :class: dropdown
# The means are {eq}`eq-posterior` with the image $x$, and with the guess $\hat x$. They differ by
# $\frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}(x - \hat x)$. Solve $x_t = \sqrt{\bar\alpha_t}\,\hat x +
# \sqrt{1-\bar\alpha_t}\,\varepsilon_\theta$ for the guess: $x - \hat x = -\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}\,(\varepsilon -
# \varepsilon_\theta)$. Two Gaussians of variance $\tilde\beta_t$ have a $\mathrm{KL}$ of the
# squared distance of their means over $2\tilde\beta_t$. Put together,
#
# $$ w_t = \frac{\bar\alpha_{t-1}\beta_t^2}{(1-\bar\alpha_t)^2} \cdot \frac{1-\bar\alpha_t}{\bar\alpha_t} \cdot \frac{1-\bar\alpha_t}{2\,\beta_t\,(1-\bar\alpha_{t-1})}, $$
#
# and $\bar\alpha_t = \bar\alpha_{t-1}(1-\beta_t)$ leaves {eq}`eq-weights`. A model with steps of variance $\beta_t$ has
# $1-\bar\alpha_t$ in place of $1-\bar\alpha_{t-1}$. The library calls the sum with that weight `simplified_elbo`. (The
# "simple" loss of {cite:t}`ho2020ddpm` drops the weight altogether.)
# :::
#
# Mind the sums. $\lVert\cdot\rVert^2$ is a sum over $C$, while our loss is a mean; {eq}`eq-elbo` is a sum over $t$, while a
# measurement is a mean over draws. In bits per dimension the two factors $C$ cancel: timestep $t$ costs
# $w_t\,\ell_t / \ln 2$ bits, with $\ell_t$ the loss at $t$.
#
# Levels enter in the last step: each pixel contributes the log-probability of its bin.
#
# :::{admonition} The two ends, step by step
# :class: dropdown
# The last step is a Gaussian around the guessed image $\hat x$. Its $\tilde\beta_0$ is zero, so it takes the variance
# $\tilde\beta_1$. The noised image and pure noise are two more Gaussians. So
#
# $$ \begin{aligned}
# & \log p(x \mid x_0) = \sum_i \log \int_{-\eta/2}^{\eta/2} \mathcal{N}(x_i + u;\, \hat x_i, \tilde\beta_1)\, du, \\
# & \mathrm{KL}\bigl(q(x_{T-1} \mid x) \,\|\, \mathcal{N}(0, I)\bigr) \\
# & \quad = \tfrac12 \sum_i \bigl(\bar\alpha_{T-1} (x_i^2 - 1) - \ln(1 - \bar\alpha_{T-1})\bigr).
# \end{aligned} $$ (eq-ends)
#
# The bins of black and white reach to infinity, so that the masses of all levels add up to one.
# :::
#
# All terms, one draw a timestep:

# %%
every_t = di.DrawConfig(1000, timestep_rule="grid", noise_rule="independent")
elbo = di.MeasurementConfig("elbo", draws=every_t, levels=17)
(batch,) = elbo.expectation().batches(model, digit, 1000)
with torch.no_grad():
    guess = model(batch.state, batch.timesteps)
error = (batch.noise - guess).double()
kl = kl_weights(process) * error.square().flatten(1).sum(1)  # nats; 0 at 0

# %%
miss = ((1 - kept[0]) / kept[0]).sqrt() * error[0]  # of the guessed image
beta = 1 - kept[1] / kept[0]
scale = (beta * (1 - kept[0]) / (1 - kept[1])).sqrt()  # root of β̃ at 1
low, high = ((side - miss) / scale for side in (-1 / 16, 1 / 16))
normal, pixel = torch.distributions.Normal(0.0, 1.0), digit.images[0]
below = torch.where(pixel == -1, 0, normal.cdf(low))  # open outwards
above = torch.where(pixel == 1, 1, normal.cdf(high))
last = (above - below).log().sum()

# %%
end = kept[-1]
prior = (end * (pixel.double() ** 2 - 1) - (1 - end).log()).sum() / 2
nats = last - kl.sum() - prior
bits = nats / (64 * math.log(2))
torch.testing.assert_close(
    bits, di.measure(model, digit, elbo)[0], rtol=1e-4, atol=0
)

# %% [markdown]
# Where does the bound come from? **A guess:** of a thousand timesteps, how many carry half of its divergences?

# %%
each_t = [
    losses(model, image, torch.arange(1000), fresh(f"elbo {i}", 1000))
    for i, image in enumerate(truth.queries.images[:8])
]
loss_at = torch.stack(each_t).mean(0)
cost = kl_weights(process) * loss_at / math.log(2)  # bits per dimension
shares, rows = {}, []
for name, terms in {"loss": loss_at, "ELBO": cost}.items():
    shares[name] = terms.cumsum(0) / terms.sum()
    carry = int((shares[name] < 0.5).sum()) + 1
    rows.append({"half of the": name, "lies in the first": carry})
few, many = (rows[place]["lies in the first"] for place in (1, 0))
assert few <= 10 and 7 < many / few < 14
di.tables.table(rows, caption="Timesteps that carry half of each.")

# %% mystnb={"image": {"alt": "Two rising curves over the timesteps on a logarithmic axis: the ELBO has half of its divergences within the first ten timesteps, the loss needs about ten times as many for half of its sum"}, "figure": {"caption": "Share of the loss, and of the ELBO's divergences, from timesteps up to t.", "name": "fig-shares"}} tags=["hide-input"]
figure, axes = di.figures.subplots(figsize=(5.5, 2.6))
for name, share in shares.items():
    axes.semilogx(torch.arange(1, 1001), 100 * share, label=name)
axes.set(xlabel="timesteps, from 0 on", ylabel="share, %")
axes.legend()
figure

# %% [markdown]
# A handful. Two things follow. Training draws all timesteps alike, so it hardly ever sees the ones on which the ELBO
# depends; so the ELBO of a small model can be poor. And an ELBO from a few draws at random timesteps is mostly noise.
# Draw the heavy timesteps more often instead, and divide each term by $T$ times its probability. This is **importance
# sampling**, and `DrawConfig(timestep_rule="elbo")` does it, its weights included. Nine tenths of its probability go by
# the simplified ELBO's weights, one tenth is spread over all timesteps alike.

# %%
rows = []
for rule in ("uniform", "stratified", "elbo"):
    draws = di.DrawConfig(64, timestep_rule=rule)
    config = di.MeasurementConfig("elbo", draws=draws, levels=17)
    tries = [di.measure(model, digit, config, seed=s) for s in range(16)]
    tries = torch.cat(tries)
    row = {"timesteps": rule, "mean": tries.mean().item()}
    rows.append(row | {"standard deviation": tries.std().item()})
assert rows[2]["standard deviation"] < rows[0]["standard deviation"] / 2
likely = 0.9 * elbo_weights(process) / elbo_weights(process).sum()
torch.testing.assert_close(
    timestep_probabilities(draws, process), likely + 0.1 / 1000
)
di.tables.table(
    rows, caption="ELBO of one digit, bits per dimension, sixteen tries."
)

# %% [markdown]
# ## The likelihood itself: the probability-flow ODE
#
# The ELBO is a bound, and we do not see how loose it is. There is a way to the likelihood itself {cite}`song2021score`.
# Noising moves a *cloud* of images, their distribution, into a cloud of noise. Many motions of single points move the cloud
# in the same way. One of them has no randomness: every point follows a fixed velocity. Follow an image along it, keep
# account of how the flow stretches space, and its density can be read off at the end, where the cloud is a standard
# Gaussian.
#
# It is simplest with an angle in place of the timestep, $\cos\phi = \sqrt{\bar\alpha_t}$. Then $x_\phi = \cos\phi\; x +
# \sin\phi\; \varepsilon$ moves at $-\sin\phi\; x + \cos\phi\; \varepsilon$. The fixed velocity is the mean of that over
# all images and noises that pass through a point, and this is what the network guesses:
#
# $$ h(x_\phi, \phi) = \cos\phi\; \hat\varepsilon - \sin\phi\; \hat x, $$ (eq-flow)
#
# with $\hat\varepsilon$ the guess of the noise and $\hat x = (x_\phi - \sin\phi\; \hat\varepsilon) / \cos\phi$ the image
# that goes with it. Along the flow,
#
# $$ \log p(x) = \log \mathcal{N}(x_{\text{end}};\, 0, I) + \int \operatorname{tr}\frac{\partial h}{\partial x}\, d\phi . $$ (eq-trace)
#
# :::{admonition} Step by step
# :class: dropdown
# *The cloud is the same.* Take any smooth function $\psi$. By the chain rule
# $\frac{d}{d\phi}\mathbb{E}\,\psi(x_\phi) = \mathbb{E}\,[\nabla\psi(x_\phi)^\top \dot x_\phi]$, with $\dot x_\phi = -\sin\phi\, x +
# \cos\phi\,\varepsilon$. Average first over all $(x, \varepsilon)$ that lead to one point: it is $\mathbb{E}\,[\nabla\psi(x_\phi)^\top
# h(x_\phi, \phi)]$ with $h = \mathbb{E}[\dot x_\phi \mid x_\phi]$. Points that move with $h$ give the same rate for every $\psi$, so
# their distribution stays that of $x_\phi$.
#
# *The density along the way.* In a step $d\phi$ a small volume around the point grows by the factor $1 +
# \operatorname{tr}(\partial h/\partial x)\, d\phi$, to first order the determinant of
# $I + \frac{\partial h}{\partial x} d\phi$. The probability in it
# stays, so the log-density falls by $\operatorname{tr}(\partial h/\partial x)\, d\phi$. Add up from the image to the end, and
# solve for the density at the image: hence the plus.
# :::
#
# The angle runs from that of $\bar\alpha_0$, just above 0, to that of $\bar\alpha_{T-1}$, just short of a right angle.
# `angle_grid` spaces its steps evenly in $\log(\sin\phi / \cos\phi)$. Between two timesteps $\log\bar\alpha$ is interpolated,
# and `timesteps_at` gives the fractional timestep at which the network is asked.
#
# Try it where the answer is known. Data are four pixels with a Gaussian distribution, and the "network" is their best
# denoiser. The flow starts at $t = 0$, where the cloud has one step of noise.


# %%
class BestDenoiser(torch.nn.Module):
    """E[ε | x_t] for data N(μ, Σ), at times between the steps as well."""

    def __init__(self, mean, covariance):
        super().__init__()
        self.mean = torch.nn.Parameter(mean)
        self.covariance, self.known = covariance, kept.log().numpy()

    def forward(self, state, time):
        logs = np.interp(time.numpy(), np.arange(1000), self.known)
        left = torch.from_numpy(logs).exp().view(-1, 1, 1)
        of_state = left * self.covariance + (1 - left) * torch.eye(4)
        centred = state.flatten(1) - left[:, 0].sqrt() * self.mean
        solved = torch.linalg.solve(of_state, centred.unsqueeze(2))
        return ((1 - left).sqrt() * solved).view_as(state)


# %%
root = 0.4 * fresh("root", 4).double().flatten(1)[:, :4]
covariance = root @ root.T + 0.02 * torch.eye(4).double()
mean = torch.tensor([0.3, -0.2, 0.1, 0.0]).double()
best = di.Denoiser(BestDenoiser(mean, covariance), di.Process())
cloud = torch.distributions.MultivariateNormal(
    kept[0].sqrt() * mean,
    kept[0] * covariance + (1 - kept[0]) * torch.eye(4),
)
torch.manual_seed(0)
points = cloud.sample((64,))
index = torch.arange(64)
blocks = di.ImageSet(points.view(-1, 1, 2, 2), 0 * index, index)


# %% [markdown]
# The flow from scratch, by the midpoint rule: half a step to see the velocity there, then the whole step with it.


# %%
def velocity(point, angle):
    time = timesteps_at(angle, best.process).view(1)
    guess = best.at_times(point.view(1, 1, 2, 2), time).flatten()
    image = (point - angle.sin() * guess) / angle.cos()
    return angle.cos() * guess - angle.sin() * image


def jacobian(point, angle):
    at_this_angle = partial(velocity, angle=angle)
    return torch.autograd.functional.jacobian(at_this_angle, point)


def log_density(point, steps):
    angles, stretched = angle_grid(steps, best.process), 0.0
    for here, there in zip(angles, angles[1:], strict=False):
        step, middle = there - here, (here + there) / 2
        halfway = point + step / 2 * velocity(point, here)
        stretched += step * jacobian(halfway, middle).trace()
        point = point + step * velocity(halfway, middle)
    ends = torch.distributions.Normal(0.0, 1.0).log_prob(point).sum()
    return (ends + stretched).detach()


# %%
exactly = LikelihoodConfig(method="midpoint", steps=8, divergence="exact")
bits_of = 4 * math.log(2)
library = log_likelihood(best, blocks, exactly, levels=None) * bits_of
scratch = torch.stack([log_density(point, 8) for point in points[:4]])
torch.testing.assert_close(scratch, library[:4])

# %% [markdown]
# And against the truth: more steps, a better solver, and the ELBO of the same denoiser.

# %%
wanted = cloud.log_prob(points) / bits_of
rows = []
for method, steps in (("midpoint", 8), ("midpoint", 32), ("rk4", 8)):
    config = replace(exactly, method=method, steps=steps)
    off = log_likelihood(best, blocks, config, levels=None) - wanted
    name = f"{method}, {steps} steps"
    row = {"by": name, "mean error": off.mean().item()}
    rows.append(row | {"largest": off.abs().max().item()})
draws = di.DrawConfig(4096, timestep_rule="elbo")
bound = di.measure(best, blocks, di.MeasurementConfig("elbo", draws=draws))
loose = (bound - wanted).mean()
rows.append({"by": "ELBO", "mean error": loose.item()})
assert rows[2]["largest"] < 1e-2 and loose < -0.5
di.tables.table(rows, caption="Bits per dimension, less the true ones.")

# %% [markdown]
# The flow gives the true value, to as many digits as its steps allow. The ELBO of the very same denoiser misses it by
# most of a bit, though the denoiser is perfect. Here, with Gaussian data, the bound is loose for one reason only. Its
# steps back have the variance $\tilde\beta_t$, which is right if the image is known. From $x_t$ alone the step is wider.
# What this costs is the whole gap:
#
# :::{admonition} Step by step
# :class: dropdown
# Averaged over the data, what Jensen loses is the divergence of $q(x_{t-1} \mid x_t)$, without the image, from the model's
# step, summed over the steps. The two have one mean, because the denoiser is perfect. By Bayes' rule the former has the
# variance $\kappa_t\tilde\beta_t$, where, in each direction and with $v$ for the variance of the data,
#
# $$ \kappa_t = \frac{\beta_t}{\tilde\beta_t} \cdot \frac{\bar\alpha_{t-1} v + 1 - \bar\alpha_{t-1}}{\bar\alpha_t v + 1 - \bar\alpha_t} . $$ (eq-gap)
#
# Two Gaussians of one mean whose variances have the ratio $\kappa_t$ are $\tfrac12(\kappa_t - 1 - \ln\kappa_t)$ nats apart.
# :::

# %%
spread = torch.linalg.eigvalsh(covariance)  # v, one a direction
before = torch.cat([torch.ones(1).double(), kept[:-1]])
noises = [
    left * spread + 1 - left for left in (before[:, None], kept[:, None])
]
step = 1 - kept / before  # β
allowed = step * (1 - before) / (1 - kept)  # the posterior's
allowed[0] = allowed[1]
ratio = step[:, None] * noises[0] / noises[1] / allowed[:, None]
lost = (ratio - 1 - ratio.log()).mean(1) / 2 / math.log(2)  # κ is the ratio
torch.testing.assert_close(-loose, lost.sum(), rtol=0.05, atol=0)
assert 0.85 < lost[:10].sum() / lost.sum() < 0.95

# %% [markdown]
# Nine tenths of the gap come from the first ten steps.
#
# ### A trace from random signs
#
# The trace costs a backward pass for each of the $C$ dimensions, so for pictures it is estimated. Take random signs
# $\xi$, each $\pm 1$ with equal chance, and let $V = \partial h / \partial x$. Then $\xi^\top V \xi$ has the mean
# $\operatorname{tr} V$, for one backward pass {cite}`hutchinson1990`:
#
# $$ \begin{aligned}
# \mathbb{E}\,\xi^\top V \xi &= \sum_{i,j} V_{ij}\, \mathbb{E}[\xi_i \xi_j] = \sum_i V_{ii}, \\
# \operatorname{Var}\bigl(\xi^\top V \xi\bigr) &= \sum_{i<j} (V_{ij} + V_{ji})^2 .
# \end{aligned} $$ (eq-hutchinson)
#
# The diagonal counts exactly, because $\xi_i^2 = 1$. The products $\xi_i\xi_j$ with $i < j$ are uncorrelated, each with
# variance 1, and carry the coefficients $V_{ij} + V_{ji}$. Four pixels have sixteen sign patterns, so both statements can
# be checked by trying them all:

# %%
angle = angle_grid(8, best.process)[4]
matrix = jacobian(points[0], angle)
signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)
guesses = torch.einsum("si,ij,sj->s", signs, matrix, signs)  # all sixteen
torch.testing.assert_close(guesses.mean(), matrix.trace())
beside = torch.triu(matrix + matrix.T, diagonal=1)
torch.testing.assert_close(guesses.var(correction=0), beside.square().sum())

# %% [markdown]
# The library draws new signs each time it asks the network, so errors average out along the way. On the four pixels, over
# forty seeds:

# %%
randomly = replace(exactly, method="rk4", divergence="hutchinson")
ones = blocks.subset(slice(0, 8))
tries = torch.stack([
    log_likelihood(best, ones, randomly, levels=None, seed=seed)
    for seed in range(40)
])  # fmt: skip
config = replace(randomly, divergence="exact")
sure = log_likelihood(best, ones, config, levels=None)
off = (tries - sure).mean(0) / (tries.std(0) / 40**0.5)  # standard errors
assert off.abs().max() < 4
print(f"one estimate strays by {tries.std(0).mean():.3f} bits per dimension")

# %% [markdown]
# ### A digit's likelihood, and how to get it wrong
#
# Now the digits: eight of them, with the model of {doc}`01_quickstart`. **Before you run the cell:** the pixels have 17
# levels. What will come out if you leave the library at its default of 256, or ask for the bare density?

# %%
eight = truth.queries.subset(slice(0, 8))
draws = di.DrawConfig(256, timestep_rule="elbo")


def ode(levels, steps=6):
    solver = LikelihoodConfig(steps=steps, draws=2)
    return di.MeasurementConfig(
        "log_likelihood", levels=levels, likelihood=solver
    )


ways = {
    "ELBO, 17 levels": di.MeasurementConfig("elbo", draws=draws, levels=17),
    "ODE, 17 levels": ode(17),
    "ODE, 17 levels, 12 steps": ode(17, steps=12),
    "ODE, 256 levels": ode(256),
    "ODE, density, no levels": ode(None),
}

# %%
bits = {"every level alike": torch.tensor([-math.log2(17)])}
for name, config in ways.items():
    tries = [
        di.measure(model, eight, config, seed=s).mean() for s in range(4)
    ]
    bits[name] = torch.stack(tries)
chance, bound, flow, finer, narrow, bare = (b.mean() for b in bits.values())
assert bound < flow - 1 and abs(bound - chance) < 0.5 and flow > chance + 1
assert abs(finer - flow) < 0.1 and bits["ODE, 17 levels"].std() < 0.1
assert -3.7 < narrow - flow < -3.3 and abs(math.log2(255 / 16) - 4) < 0.01
assert bare > 0

# %% tags=["hide-input"]
rows = [
    {"": name, "bits per dimension": tries.mean().item()}
    | ({"over seeds": tries.std().item()} if len(tries) > 1 else {})
    for name, tries in bits.items()
]
di.tables.table(
    rows,
    caption="Held-out digits, mean of eight, and the standard deviation "
    "of this mean over four seeds of the draws.",
)

# %% [markdown]
# The last rows are one model and one set of digits, several bits apart. With 256 levels the bins are sixteen times
# narrower, which takes four bits. The smaller $u$ leaves the picture cleaner, and its density is half a bit higher: so
# three and a half bits fewer. The digits were not made less likely; a different question was asked. The log-density is
# positive, which no log-probability can be.
#
# And among the right ones: the flow finds the digits far likelier than chance, and neither other seeds nor twice the
# steps change that by as much as a tenth of a bit. (By {eq}`eq-dequantised` its number is a bound as well.) The ELBO is
# no better than giving every level the same chance. It leans on timesteps whose noise is far narrower than a bin. A
# denoiser that knew of the 17 levels would see through it. Ours does not; the last exercise tells it.
#
# ## Which question does each answer?
#
# Now the two digits once more, by three measurements and eight seeds of the draws. Which signs do you expect?

# %%
options = {
    "loss": di.MeasurementConfig("loss"),
    "elbo": ways["ELBO, 17 levels"],
    "log_likelihood": ways["ODE, 17 levels"],
}
rows = []
for name, config in options.items():
    one, other = (
        torch.stack(
            [di.measure(half, asked, config, seed=s) for s in range(8)]
        )
        for half in halves
    )
    gap = one - other  # seeds × digits
    for place, label in enumerate(which.options):
        row = {"first less second": name, "digit": label}
        row["mean"] = gap[:, place].mean().item()
        rows.append(row | {"standard deviation": gap[:, place].std().item()})
di.tables.table(rows, caption="The same two models, asked in three ways.")

# %% [markdown]
# The loss is higher and the other two are lower: all three say that the first model finds the left digit less likely. **Loss
# up means likelihood down.** For the right digit the means agree in this too, but they are so small beside the standard
# deviations that a single seed may say the opposite.
#
# The library states the direction of every measurement and never turns a sign behind your back. Here is all that it
# measures, beginning with the ceiling of {doc}`01_quickstart`: how well one retraining predicts the others. It is the
# rank correlation over the halves, times 100, of one seed with the mean of the others. It tells how well a measurement is
# *known*, once its draws are shared.

# %% tags=["hide-input"]
sizes = [row["mean"] / row["standard deviation"] for row in rows]
assert sizes[0] > 5 and max(sizes[2], sizes[4]) < -5
assert sizes[1] > 0 > max(sizes[3], sizes[5])
assert max(abs(size) for size in sizes[1::2]) < 3

known = {config.name: config for config in preset.measurements}
halved = di.MeasurementConfig("weighted_loss", loss_weights=(1.0, 0.0))
known["weighted_loss"] = halved
one_t = known["loss_at_time"].timestep
questions = {
    "loss": "is the noise guessed well, at all t alike?",
    "loss_at_time": f"the same at one t, here {one_t}: shape, or detail?",
    "weighted_loss": "the same, with weights of your own",
    "simplified_elbo": "the same, with the ELBO's weights",
    "elbo": "how likely is the picture, at least?",
    "square_norm": r"how large is the guess, "
    r"$\lVert\varepsilon_\theta\rVert^2 / C$? {cite}`zheng2024dtrak`",
    "trajectory_log_prob": "how likely were the steps that drew it?",
    "log_likelihood": "how likely is the picture?",
}


# %% tags=["hide-input"]
def generated(config):
    return di.load_ground_truth(
        "digits-ground-truth", "generated", config.label
    )


rows, heights = [], {}
for name, question in questions.items():
    config = known[name]
    if config is not halved:
        heights[name] = di.ceiling(generated(config))
    row = {"measurement": name}
    row["ceiling, %"] = di.tables.percent(heights.get(name, math.nan))
    row |= {"its question": question, "higher means": config.direction}
    passes = di.measurements.forward_passes([config])
    rows.append(row | {"passes": passes})
di.tables.table(
    rows,
    caption="What can be measured, at what price, on generated digits. "
    "No ground truth is kept of weighted losses.",
    source=di.load_bundle("digits-ground-truth"),
)

# %% [markdown]
# The order is nearly the reverse of what one would like. The log-likelihood means most and is known least. Its ceiling of
# a quarter says that trainings with different seeds hardly agree on which halves make a digit likelier. For the loss, at
# three quarters, they mostly do. The log-likelihood is also the only one without a gradient that influence could use. It
# would have to pass back through every step of the solver and through the trace. All the others are means of a smooth
# function of the network's output, and autograd gives their gradients. The loss means least and is known best.
#
# Apart from the noise of retraining, however, loss, ELBO and log-likelihood rank the halves of the data much alike. So
# scores of the loss can stand for the others, with the sign turned. They even predict both better than scores of the ELBO
# itself do:


# %% tags=["hide-input"]
def across(first, second):
    """Mean rank correlation over the halves, of one seed with another."""
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    a, b = (one.measurements.numpy() for one in (first, second))
    of = di.evaluation.spearman
    return np.mean([of(a[:, i].T, b[:, j].T).mean() for i, j in pairs])


found, rows = di.load_bundle("digits-methods"), []
loss = generated(known["loss"])
for name in ("elbo", "log_likelihood"):
    own = generated(known[name])
    noisy = (across(loss, loss) * across(own, own)) ** 0.5
    row = {"measured": name, "with the loss": across(loss, own) / noisy}
    for result in found.metrics["results"]:
        said = (result["queries"], result["measured"], result["method"])
        if said == ("generated", name, "ekfac"):
            by = f"from the {result['attributed']}, %"
            row[by] = di.tables.percent(result["lds"], result["interval"])
    rows.append(row)

# %% tags=["hide-input"]
assert max(heights, key=heights.get) == "loss"
assert min(heights, key=heights.get) == "log_likelihood"
assert abs(heights["loss"] - 0.75) < 0.03  # three quarters
assert abs(heights["log_likelihood"] - 0.25) < 0.03  # a quarter
without = [name for name in questions if not known[name].attributable]
assert without == ["log_likelihood"]  # no gradient for influence
loss_says, elbo_says = (f"from the {n}, %" for n in ("loss", "elbo"))
assert all(row["with the loss"] < -0.75 for row in rows)
assert all(row[loss_says].value > row[elbo_says].value for row in rows)
di.tables.table(
    rows,
    caption="Generated digits: rank correlation with the loss over the "
    "halves, freed of the noise of retraining, and the LDS of scores "
    "from gradients of the loss and of the ELBO.",
    source=found,
)

# %% [markdown]
# {cite:t}`mlodozeniec2025influence` report the same of the ELBO for larger models, and {doc}`../book/measurements` tells
# how the noise is taken out. This book therefore attributes the loss unless it says otherwise.
#
# The **trajectory log-probability** is a question of its own. A sample has a history, the states that it went through on
# its way from noise. The mean of $\log_2 p(x_{t-1} \mid x_t) / C$ over these steps is a fact about how *this* picture was
# drawn, not about how likely it is.
#
# ## Pitfalls
#
# - **Signs.** A loss goes up when a query becomes less likely, a likelihood goes down. Scores of a loss are turned before
#   they stand for a likelihood's.
# - **Draws of its own for each model.** Their noise hides what retraining changed. Averaging it away takes many more draws;
#   sharing takes none.
# - **Weights applied twice.** A rule such as `"elbo"` draws the heavy timesteps more often. Each draw needs a weight
#   that undoes this, or they count twice: by the drawing, and by multiplying with $w_t$. `DrawConfig` brings that
#   weight along.
# - **Levels.** A density is not a probability, and bits per dimension for 17 levels and for 256 answer different
#   questions.
#
# ## Exercises

# %% [markdown]
# :::{exercise} The loss that is left · 5 minutes · ★
# :label: ex-floor
# Write `my_floor(variance, kept)`, {eq}`eq-floor` for all $\bar\alpha_t$ at once, and run
# `di.checks.irreducible_loss(my_floor)`. For which $\bar\alpha_t$ is it one half?
# :::
#
# :::{solution-start} ex-floor
# :label: sol-floor
# :class: dropdown
# :::


# %%
def my_floor(variance, kept):
    return kept * variance / (kept * variance + 1 - kept)


di.checks.irreducible_loss(my_floor)
below = int((my_floor(v, kept) > 0.5).sum())
print(f"v = {v}: below one half from t = {below} on")

# %% [markdown]
# It is one half where $x_t$ has as much variance from the image as from the noise: $\bar\alpha_t v = 1 - \bar\alpha_t$, so
# $\bar\alpha_t = 1/(1 + v)$. The narrower the data, the earlier the timestep at which that happens.
#
# :::{solution-end}
# :::
#
# :::{exercise} Gaussians are the hardest · 10 minutes · ★★
# :label: ex-hardest
# Show by hand: among all data of variance $v$, Gaussian ones leave the *largest* loss. (Which guess is there for any data,
# and what does its loss depend on?) Then check it on a coin, $x = \pm 1$, whose best guess of the image is
# $\tanh(\sqrt{\bar\alpha_t}\, x_t / (1 - \bar\alpha_t))$.
# :::
#
# :::{solution-start} ex-hardest
# :label: sol-hardest
# :class: dropdown
# :::
#
# The straight line of the Gaussian case is a guess for any data. Its loss depends on means, variances and covariances only,
# so it is {eq}`eq-floor` for all data of variance $v$. The best guess leaves no more than this one, and for Gaussian data it
# *is* this one.

# %%
coin = torch.where(x > 0, 1.0, -1.0)  # of variance 1; x from the toy
rows = []
for left in (0.9, 0.5, 0.1):
    state = left**0.5 * coin + (1 - left) ** 0.5 * eps
    guess = torch.tanh(left**0.5 * state / (1 - left))
    noise = (state - left**0.5 * guess) / (1 - left) ** 0.5
    found = (eps - noise).square().mean().item()
    assert found < left
    rows.append({"ᾱ": left, "coin": found, "Gaussian": left})
di.tables.table(rows)

# %% [markdown]
# With little noise the coin leaves next to nothing: one sees on which side it lies. This is what a denoiser gains that
# knows its data have levels.
#
# :::{solution-end}
# :::
#
# :::{exercise} How many draws? · 10 minutes · ★★
# :label: ex-draws
# By hand first: two losses have $\sigma = \sigma' = 0.2$ and $\rho = 0.99$. How many independent draws bring the standard
# deviation of their difference to $0.0021$, own and shared? Then write `my_draws(deviation, correlation, error)`, which
# returns both numbers, and run `di.checks.draws_needed(my_draws)`.
# :::
#
# :::{solution-start} ex-draws
# :label: sol-draws
# :class: dropdown
# :::
#
# Solve {eq}`eq-paired` for $S$: $S = 2 \cdot 0.2^2 / 0.0021^2$ with draws of their own, and one hundredth of
# it with the same. Round up.


# %%
def my_draws(deviation, correlation, error):
    each = 2 * deviation**2 / error**2
    return math.ceil(each), math.ceil(each * (1 - correlation))


print(my_draws(0.2, 0.99, 0.0021))
di.checks.draws_needed(my_draws)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} The ELBO's weights · 10 minutes · ★★
# :label: ex-weights
# Write `my_weights(betas)`: {eq}`eq-weights` for all timesteps, with 0 for the first, which has no divergence. Run
# `di.checks.elbo_weights(my_weights)`. By what factor do they differ from the simplified ELBO's,
# $\beta_t / (2 (1 - \beta_t)(1 - \bar\alpha_t))$, and where does it matter?
# :::
#
# :::{solution-start} ex-weights
# :label: sol-weights
# :class: dropdown
# :::


# %%
def my_weights(betas):
    kept = torch.cumprod(1 - betas, 0)
    weights = torch.zeros_like(betas)
    weights[1:] = betas[1:] / (2 * (1 - betas[1:]) * (1 - kept[:-1]))
    return weights


di.checks.elbo_weights(my_weights)
factor = (1 - kept[1:]) / (1 - kept[:-1])  # of t = 1, 2, …
print(*(f"t = {t}: {factor[t - 1]:.2f}" for t in (1, 9, 50)), sep=", ")

# %% [markdown]
# By $(1 - \bar\alpha_t)/(1 - \bar\alpha_{t-1})$, which is the ratio of $\beta_t$ to $\tilde\beta_t$ from
# {ref}`ex-variance`. It matters in the first few timesteps only, as the printed factors show. These carry much of the
# ELBO.
#
# :::{solution-end}
# :::
#
# :::{exercise} Weights, once · 10 minutes · ★★
# :label: ex-once
# You draw timesteps with probabilities $p_t$ and want the mean over *uniform* timesteps. Write
# `my_mean(values, timesteps, probabilities)`, where `probabilities` holds $p_t$ of all $T$ timesteps. Divide by the
# number of draws, not by the sum of the weights. Run `di.checks.importance_mean(my_mean)`. What do you get if you leave
# the weights out, and the probabilities are proportional to $w_t$?
# :::
#
# :::{solution-start} ex-once
# :label: sol-once
# :class: dropdown
# :::


# %%
def my_mean(values, timesteps, probabilities):
    weights = 1 / (len(probabilities) * probabilities[timesteps])
    return (weights * values).mean()


di.checks.importance_mean(my_mean)

# %% [markdown]
# Each draw counts $\frac{1/T}{p_t}$ times: the chance it should have had, over the chance it had. Leave that out with
# $p_t \propto w_t$, and the mean of the plain losses is already a $w_t$-weighted one. Multiply by $w_t$ then, and the weights
# are in twice.
#
# :::{solution-end}
# :::
#
# :::{exercise} Tell it the levels · 15 minutes · ★★★
# :label: ex-levels
# Where $t < 10$, the standard deviation of the noise is about a third of the gap between two levels, or less. Wrap the
# network: at these timesteps, move its guess of the image to the nearest of the 17 levels, and turn that into a guess
# of the noise. (`model.network(state, time).sample` guesses the noise, `nearest_levels(image, 17)` rounds, and
# `di.Denoiser(network, process)` takes a module whose `forward(state, time)` returns the noise.) **Guess first:** what
# becomes of the ELBO, of the loss, and of the log-likelihood by the ODE?
# :::
#
# :::{solution-start} ex-levels
# :label: sol-levels
# :class: dropdown
# :::


# %%
class KnowsLevels(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, state, time):
        noise = self.network(state, time).sample
        left = kept[time].to(state).view(-1, 1, 1, 1)
        image = (state - (1 - left).sqrt() * noise) / left.sqrt()
        levels = nearest_levels(image, 17)
        sure = (state - left.sqrt() * levels) / (1 - left).sqrt()
        return torch.where(time.view(-1, 1, 1, 1) < 10, sure, noise)


# %%
knowing = di.Denoiser(KnowsLevels(model.network), process)
assert 0.3 < (1 - kept[9]).sqrt() / (1 / 8) < 0.36  # about a third
rows = []
for name in ("loss", "elbo"):
    config = options[name]
    row = {"measurement": name}
    for label, asked_of in (("before", model), ("after", knowing)):
        row[label] = di.measure(asked_of, eight, config).mean().item()
    rows.append(row)
assert rows[0]["after"] > 0.9 * rows[0]["before"]
assert rows[1]["after"] > rows[1]["before"] + 1
di.tables.table(rows, caption="Mean of eight held-out digits.")

# %% [markdown]
# The ELBO rises by more than a bit for each pixel, with not one weight changed, and comes close to what the flow gave.
# The loss moves by less than a tenth, for ten timesteps of a thousand are few. The ODE cannot be asked any more: the
# wrapped guess jumps from level to level, and its derivative, which the trace is made of, does not see the jumps.
#
# :::{solution-end}
# :::
#
# ## Where this leads
#
# You know what to ask: the loss of a query, on the draws that every model gets. It has a direction, draws that make it
# sharp, and a gradient. The next chapters take that gradient, and predict what retraining without an image would do to
# it.
