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
# # DDPM: learning to remove noise
#
# :::{admonition} In this chapter
# :class: tip
# - how an image turns into noise, step by step and in one jump, and why the two agree;
# - the best possible denoiser for a toy, found by hand and by gradient descent;
# - the loss, the training loop and the sampler from scratch, each checked against diffusers and the library;
# - which draws an average over noise should use, a choice that attribution lives on.
#
# *Two cores: about one minute · builds on {doc}`01_quickstart`*
# :::

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()

# %% [markdown]
# ## Noise, a little at a time
#
# A denoising diffusion model {cite}`ho2020ddpm` destroys an image in $T$ small steps and learns to undo them. One step
# shrinks what is there and adds a little Gaussian noise,
#
# $$ x_{t} = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; \varepsilon_t, \qquad \varepsilon_t \sim \mathcal{N}(0, I), $$ (eq-step)
#
# with small variances $\beta_t$ that grow along the way. The shrinking keeps the total variance from growing. Follow a
# single number, $x = 1$, through all thousand steps, twenty thousand times:

# %%
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
generator = torch.Generator().manual_seed(0)
numbers = torch.ones(20_000, dtype=torch.float64)
followed, paths = {}, []
for t, beta in enumerate(betas):
    numbers = (1 - beta).sqrt() * numbers + beta.sqrt() * torch.randn(
        numbers.shape, generator=generator, dtype=torch.float64
    )
    paths.append(numbers[:50])
    if t in (0, 99, 299, 999):
        followed[t] = (numbers.mean().item(), numbers.std().item())

# %% [markdown]
# Sums of independent Gaussians are Gaussian, so the thousand steps can be taken in one. With $\bar\alpha_t = \prod_{s \le t}
# (1 - \beta_s)$,
#
# $$ x_t = \sqrt{\bar\alpha_t}\; x + \sqrt{1 - \bar\alpha_t}\; \varepsilon . $$ (eq-jump)

# %%
kept = torch.cumprod(1 - betas, 0)
rows = []
for t, (mean, std) in followed.items():
    jump, spread = kept[t].sqrt().item(), (1 - kept[t]).sqrt().item()
    assert abs(mean - jump) < 0.03 and abs(std - spread) < 0.03
    row = {"t": t, "mean, by steps": mean, "in one jump": jump}
    rows.append(row | {"spread, by steps": std, "in one jump ": spread})
di.tables.table(rows, caption="Twenty thousand numbers after $t$ steps.")

# %% [markdown]
# Here are fifty of those paths. All begin at 1, and nothing tells at the end where they began: the mean has gone to 0 and
# the spread to 1.

# %% mystnb={"image": {"alt": "Fifty jagged paths that start at one and fan out; their mean falls to zero, and a band of one standard deviation on either side of it widens to plus and minus one"}, "figure": {"caption": "Fifty numbers on their way into noise, with the mean $\\sqrt{\\bar\\alpha_t}$ (line) and one standard deviation $\\sqrt{1 - \\bar\\alpha_t}$ on either side (band).", "name": "fig-fan"}} tags=["hide-input"]
figure, axes = di.figures.subplots(figsize=(5.5, 2.8))
every = range(0, 1000, 12)  # all thousand points would weigh a megabyte
axes.plot(every, torch.stack(paths)[::12], color="0.6", linewidth=0.5)
middle, spread = kept.sqrt(), (1 - kept).sqrt()
band = {"color": di.figures.BLUE, "alpha": 0.25, "linewidth": 0}
axes.fill_between(range(1000), middle - spread, middle + spread, **band)
axes.plot(middle, color=di.figures.BLUE)
axes.set(xlabel="timestep t", ylabel="$x_t$")
figure

# %% [markdown]
# diffusers computes the same schedule, and the library takes it from there; timesteps are counted from 0.

# %% mystnb={"image": {"alt": "Two curves over the timesteps: the share of the image falls from one to nearly zero while the share of the noise rises to one"}, "figure": {"caption": "How much image and how much noise there is in $x_t$.", "name": "fig-schedule"}}
torch.testing.assert_close(
    di.Process().alphas_cumprod, kept, rtol=1e-4, atol=1e-8
)
di.figures.schedule_curves()

# %% [markdown]
# Move the slider to watch a digit disappear. Near the end nothing of it is left, so sampling may start from pure noise.

# %% tags=["hide-input"]
preset = di.get_preset("digits")
run = di.open_run(preset, progress=False)
data = run.data
noise = torch.randn(
    data.train.shape, generator=torch.Generator().manual_seed(1)
)
di.interactive.Scrubber.noising(
    data.train.images[0],
    noise,
    timesteps=range(0, 1000, 37),
    start={"Timestep": 259},
    presets=[
        di.interactive.Preset(
            "hardly noisy",
            {"Timestep": 37},
            "Almost all of it is still there.",
        ),
        di.interactive.Preset(
            "half and half",
            {"Timestep": 259},
            "Squared, image and noise have about equal shares.",
        ),
        di.interactive.Preset(
            "nothing left",
            {"Timestep": 999},
            "Whatever the image was, this is what its end looks like.",
        ),
    ],
    caption="One training image on its way into noise.",
)

# %% [markdown]
# ## A denoiser with two weights
#
# The network is asked for the noise: given $x_t$ and $t$, guess $\varepsilon$. Before any network, take the smallest case in
# which everything can be worked out. Data are single numbers $x \sim \mathcal{N}(\mu, v)$, the timestep is fixed, and the
# guess is a straight line, $\hat\varepsilon = w x_t + b$. Noise and $x_t$ are jointly Gaussian, so the best guess in the
# mean-square sense *is* a line, the conditional mean
#
# $$ \mathbb{E}[\varepsilon \mid x_t] = \frac{\sqrt{1 - \bar\alpha_t}\,\bigl(x_t - \sqrt{\bar\alpha_t}\,\mu\bigr)}{\bar\alpha_t v + 1 - \bar\alpha_t}. $$ (eq-optimal)
#
# Gradient descent on the squared error must find these two weights.

# %%
mu, v, t = 0.5, 0.04, 300
weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # w, b
descent = torch.optim.SGD([weights], lr=0.1)
for _ in range(2000):
    x = mu + v**0.5 * torch.randn(
        512, generator=generator, dtype=torch.float64
    )
    eps = torch.randn(512, generator=generator, dtype=torch.float64)
    x_t = kept[t].sqrt() * x + (1 - kept[t]).sqrt() * eps
    error = (eps - (weights[0] * x_t + weights[1])).square().mean()
    descent.zero_grad()
    error.backward()
    descent.step()

# %%
w = (1 - kept[t]).sqrt() / (kept[t] * v + 1 - kept[t])
best = torch.stack([w, -w * kept[t].sqrt() * mu])
rows = [
    {"weight": name, "found": found.item(), "best": wanted.item()}
    for name, found, wanted in zip("wb", weights, best, strict=True)
]
torch.testing.assert_close(weights.detach(), best, rtol=0, atol=0.05)
di.tables.table(rows)

# %% [markdown]
# The error does not go to zero: part of the noise cannot be told from the data. For images the same holds, and the loss of
# a perfect model is positive. Only *differences* of losses mean something, which is why a measurement is always compared
# between models on the same noise.
#
# ## The loss
#
# For an image the guess is a network's, $\varepsilon_\theta(x_t, t)$, and the error is averaged over timesteps and noise:
#
# $$ \ell(\theta, x) = \mathbb{E}_{t, \varepsilon}\; \tfrac{1}{C}\, \lVert \varepsilon - \varepsilon_\theta(\sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \varepsilon,\; t) \rVert^2 . $$ (eq-loss)
#
# $C$ is the number of pixels. Dividing by it follows the code of the paper rather than its formula. It carries over to
# every gradient and curvature in this book. In four lines, next to the library's:


# %%
def loss_from_scratch(network, x, t, eps):
    share = kept[t].float().view(-1, 1, 1, 1)
    noisy = share.sqrt() * x + (1 - share).sqrt() * eps
    guess = network(noisy, t).sample
    return (eps - guess).square().mean(dim=(1, 2, 3))


network = di.build_unet(preset.unet, seed=0)
model = di.Denoiser(
    network, preset.process
)  # the network, and what its output means
batch = data.train.images[:8]
steps, eps = (
    torch.arange(100, 900, 100),
    torch.randn(batch.shape, generator=generator),
)
torch.testing.assert_close(
    loss_from_scratch(network, batch, steps, eps),
    di.per_draw_loss(model, batch, steps, eps),
)

# %% [markdown]
# ## The training loop
#
# Draw images, timesteps and noise; compute the loss; take a step. Beside the weights, keep their running average: noisy
# steps average out, and samples from the averaged weights are far better. Early on the average must forget quickly, so its
# decay at step $s$ is $1 - (1 + s)^{-3/4}$.

# %%
config = di.with_options(preset, {"training.steps": 30}).training
optimizer = torch.optim.AdamW(
    network.parameters(),
    config.learning_rate,
    weight_decay=config.weight_decay,
)
average = [weight.detach().clone() for weight in network.parameters()]
losses = []


def rows_of(step):
    images = len(data.train)
    return di.training.batch_indices(step, images, config.batch_size, seed=0)


# %%
for step in range(config.steps):
    x = data.train.images[rows_of(step)]
    draw = di.keyed_generator("training", 0, step)
    t = torch.randint(1000, (len(x),), generator=draw)
    noise = torch.randn(x.shape, generator=draw)
    loss = loss_from_scratch(network, x, t, noise).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
    factor = di.training.learning_rate_factor(step, config)
    optimizer.param_groups[0]["lr"] = config.learning_rate * factor
    optimizer.step()
    decay = min(config.ema_max_decay, 1 - (1 + step) ** -config.ema_power)
    for mean, weight in zip(average, network.parameters(), strict=True):
        mean.lerp_(weight.detach(), 1 - decay)
    losses.append(loss.item())

# %% [markdown]
# :::{admonition} Checkpoint
# Everything random in step $s$ is keyed by $s$. So the library's training takes the same thirty steps. It adds
# checkpoints, exact resume and lower precision on a GPU.
# :::

# %%
library = di.train(
    di.build_model(preset.unet, preset.process, seed=0),
    data.train,
    config,
    seed=0,
    progress=False,
)
torch.testing.assert_close(
    torch.tensor(losses), torch.from_numpy(library.losses), rtol=1e-3, atol=0
)
for ours, theirs in zip(average, library.model.parameters(), strict=True):
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2e-3)
print(f"after {config.steps} steps: loss {losses[-1]:.4f} from scratch,")
print(f"{library.losses[-1]:.4f} by the library")

# %% [markdown]
# ## Sampling
#
# Going back from $t$ to $t - 1$, the guess of the noise gives a guess $\hat x$ of the image. Given $x_t$ and
# $\hat x$, the state one step earlier is Gaussian with a mean between the two and variance $\tilde\beta_t = \beta_t
# (1 - \bar\alpha_{t-1}) / (1 - \bar\alpha_t)$:
#
# $$ x_{t-1} = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t}\,\hat x + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t + \sqrt{\tilde\beta_t}\; z, $$ (eq-posterior)
#
# with standard normal noise $z$.
#
# :::{admonition} Step by step: where this mean comes from
# :class: dropdown
# What would $x_{t-1}$ be if we knew the image $x$ *and* the next state $x_t$? Bayes' rule multiplies two Gaussian densities,
# the jump {eq}`eq-jump` to $t - 1$ and the step {eq}`eq-step` from there to $t$. Write $\bar\alpha$ for $\bar\alpha_{t-1}$
# and $u$ for $x_{t-1}$. Up to a constant, minus twice the logarithm of the product is
#
# $$ \frac{(u - \sqrt{\bar\alpha}\, x)^2}{1 - \bar\alpha} + \frac{(x_t - \sqrt{1 - \beta_t}\, u)^2}{\beta_t} . $$
#
# 1. Collect what stands before $u^2$: $\frac{1}{1 - \bar\alpha} + \frac{1 - \beta_t}{\beta_t}$. Over one denominator the
#    numerator is $\beta_t + (1 - \beta_t)(1 - \bar\alpha) = 1 - (1 - \beta_t)\,\bar\alpha = 1 - \bar\alpha_t$. So this
#    factor is $(1 - \bar\alpha_t) / (\beta_t (1 - \bar\alpha))$, which is $1 / \tilde\beta_t$.
# 2. Collect what stands before $-2u$: $\frac{\sqrt{\bar\alpha}\, x}{1 - \bar\alpha} + \frac{\sqrt{1 - \beta_t}\,
#    x_t}{\beta_t}$.
# 3. Call this sum $c$ and complete the square: $u^2 / \tilde\beta_t - 2 c\,u = (u - \tilde\beta_t c)^2 / \tilde\beta_t +
#    \text{constant}$. So $u$ is Gaussian with variance $\tilde\beta_t$ and mean $\tilde\beta_t c$. Multiply out:
#
# $$ \begin{aligned} \tilde\beta_t c &= \tilde\beta_t \frac{\sqrt{\bar\alpha}}{1 - \bar\alpha}\, x + \tilde\beta_t \frac{\sqrt{1 - \beta_t}}{\beta_t}\, x_t \\ &= \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t . \end{aligned} $$
#
# The sampler does not know $x$ and puts its guess $\hat x$ there.
# :::


# %%
def step_back(x_t, t, guess, z):
    before = kept[t - 1] if t > 0 else torch.ones((), dtype=torch.float64)
    clean = ((x_t - (1 - kept[t]).sqrt() * guess) / kept[t].sqrt()).clamp(
        -1, 1
    )
    mean = before.sqrt() * betas[t] / (1 - kept[t]) * clean
    mean = mean + (1 - betas[t]).sqrt() * (1 - before) / (1 - kept[t]) * x_t
    variance = betas[t] * (1 - before) / (1 - kept[t])
    return mean + variance.sqrt() * z


# %% [markdown]
# From pure noise through all thousand steps, with the trained model of the previous chapter, beside diffusers' sampler with
# the same noise:

# %%
model = di.runs.full_model(run).model
draws = [di.keyed_generator("sample", seed) for seed in range(4)]
x = torch.stack(
    [torch.randn(data.train.shape, generator=draw) for draw in draws]
)
with torch.no_grad():
    for t in reversed(range(1000)):
        guess = model(x, torch.full((4,), t))
        z = (
            torch.stack(
                [
                    torch.randn(data.train.shape, generator=draw)
                    for draw in draws
                ]
            )
            if t > 0
            else 0
        )
        x = step_back(x, t, guess, z).float()
trajectories = di.sampling.sample_states(
    model, 4, data.train.shape, keep=[0, 500, 700, 800, 900, 950, 1000]
)
torch.testing.assert_close(x, trajectories[:, -1], rtol=0, atol=0.05)

# %% mystnb={"image": {"alt": "Four rows of seven pictures: pure noise on the left turns into a clean digit on the right"}, "figure": {"caption": "Four samples on their way from noise to digit, after 0, 500, 700, 800, 900, 950 and 1,000 steps.", "name": "fig-trajectories"}} tags=["hide-input"]
di.figures.image_grid(trajectories.flatten(0, 1), columns=7, size=0.8)

# %% [markdown]
# ## Which draws to average over
#
# The loss of one image is an average over $(t, \varepsilon)$, and so is every gradient that attribution needs. Timesteps
# differ wildly in how hard they are:

# %% mystnb={"image": {"alt": "Loss against timestep on a logarithmic scale: near one at the smallest timesteps, falling by two orders of magnitude towards the largest"}, "figure": {"caption": "The trained model's loss at each of 50 timesteps, on held-out digits.", "name": "fig-loss-by-time"}} tags=["hide-input"]
queries = data.queries
grid = torch.arange(10, 1000, 20)
with torch.no_grad():
    by_time = [
        di.per_draw_loss(
            model,
            queries.images,
            torch.full((len(queries),), t),
            torch.randn(queries.images.shape, generator=generator),
        ).mean()
        for t in grid.tolist()
    ]
figure, axes = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
axes.semilogy(grid, by_time, color=di.figures.BLUE)
axes.set(xlabel="timestep t", ylabel="loss")
plt.close(figure)
figure

# %% [markdown]
# If timesteps are drawn at random, an average of a few says more about which were drawn than about the image. Better:
# cut 0…999 into equal slices and draw one timestep from each (**stratified**), and use each twice, with noise
# $\varepsilon$ and $-\varepsilon$ (**antithetic**). Neither changes the expectation. How far do the loss and the gradient of
# one image, averaged over 64 draws, stray from those averaged over 4,096?


# %%
image = data.train.subset(slice(0, 1))


def loss_and_gradient(count, seed, **rule):
    draws = di.DrawConfig(count, **rule)
    loss = di.measure(
        model, image, di.MeasurementConfig(draws=draws), seed=seed
    )
    matrices = di.gradients.example_gradient(
        model, image, di.Expectation(draws, seed=seed)
    )
    return loss, torch.cat([matrix.flatten() for matrix in matrices.values()])


def stray(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


# %%
references = loss_and_gradient(4096, seed=99)
rows = []
for name, rule in {
    "uniform": {"timestep_rule": "uniform", "noise_rule": "independent"},
    "stratified": {"noise_rule": "independent"},
    "stratified, antithetic": {},
    "signal, antithetic": {"timestep_rule": "signal"},
}.items():
    tries = [loss_and_gradient(64, seed, **rule) for seed in range(8)]
    errors = [
        sum(map(stray, found, [wanted] * 8)) / 8
        for found, wanted in zip(
            zip(*tries, strict=True), references, strict=True
        )
    ]
    rows.append({"draws": name, "loss": errors[0], "gradient": errors[1]})
assert rows[2]["gradient"] < 0.8 * rows[0]["gradient"]
di.tables.table(rows, caption="Relative error with 64 draws, mean of eight.")

# %% [markdown]
# Stratifying helps the loss, whose size depends on the timestep above all. Pairs make the loss *worse* and the gradient
# much better. Before you read on: what could a gradient have that a loss lacks?
#
# Split any function of the noise into the part that keeps its sign when $\varepsilon$ turns into $-\varepsilon$ and the part
# that changes it:
#
# $$ h(\varepsilon) = \underbrace{\tfrac{1}{2}\bigl(h(\varepsilon) + h(-\varepsilon)\bigr)}_{\text{even}} + \underbrace{\tfrac{1}{2}\bigl(h(\varepsilon) - h(-\varepsilon)\bigr)}_{\text{odd}} . $$ (eq-even-odd)
#
# $\varepsilon$ and $-\varepsilon$ are equally likely, so the odd part has mean zero, and the mean of a pair is its even part.
# That is why pairs change no expectation. With independent noise, $S$ draws have the variance
# $(V_\text{even} + V_\text{odd}) / S$. In pairs the odd part is gone, but only $S / 2$ values of the even part are left:
# $2 V_\text{even} / S$. So a pair pays where the odd part is the larger one. Measure both, at eight timesteps:


# %%
def pair(t, eps):
    """Loss and gradient with the noise and with its opposite."""
    for noise in (eps, -eps):
        loss = di.per_draw_loss(model, image.images, torch.tensor([t]), noise)
        gradient = torch.autograd.grad(loss.sum(), model.parameters())
        yield loss.detach(), torch.cat([part.flatten() for part in gradient])


def variances(pairs):
    """Of the even part and of the odd part, summed over the entries."""
    first, second = map(torch.stack, zip(*pairs, strict=True))
    even, odd = (first + second) / 2, (first - second) / 2
    return torch.stack([even.var(0).sum(), odd.square().mean(0).sum()])


# %%
noises = torch.randn(8, *image.images.shape, generator=generator)
totals = {"loss": 0, "gradient": 0}
for t in range(62, 1000, 124):
    found = [list(pair(t, eps)) for eps in noises]
    for place, name in enumerate(totals):
        totals[name] += variances(
            [(first[place], second[place]) for first, second in found]
        )
rows = [
    {
        "of the": name,
        "even part": even,
        "odd part": odd,
        "pairs / no pairs": 2 * even,
    }
    for name, total in totals.items()
    for even, odd in [(total / total.sum()).tolist()]
]
assert rows[0]["pairs / no pairs"] > 1 > rows[1]["pairs / no pairs"]
di.tables.table(
    rows,
    caption="Shares of the variance at a timestep.",
)

# %% [markdown]
# The loss is a square, so it is mostly even, and pairs waste half of its draws. Most of the gradient's noise is odd, and a
# pair cancels it at once. Attribution needs gradients, so the library takes pairs.
#
# Every average in the library uses such draws unless told otherwise. They are keyed by the image's id, so that a number
# does not depend on batch size, order or restarts. The last row draws timesteps in proportion to $\bar\alpha_t$, the
# share of the image
# that is left, and weighs them to undo it. What counts for attribution is how gradients of different images differ, and
# there it does far better than this table lets one hope: {doc}`../book/engine` has the figures.
#
# ## Pitfalls
#
# - **Counting timesteps.** Papers count from 1, diffusers from 0; $\bar\alpha$ before the first step is 1.
# - **Mean or sum.** Dividing the squared error by $C$ scales gradients and curvature by $1/C$. A damping chosen for one
#   convention is wrong by a factor $C$ for the other.
# - **Raw weights.** Samples, measurements and attribution all use the averaged weights; mixing the two attributes another
#   model.
#
# ## Exercises

# %% [markdown]
# :::{exercise} Write it yourself · 5 minutes · ★
# :label: ex-posterior
# Write `my_posterior_mean(image, state, t, betas)`: the mean in {eq}`eq-posterior`, given the image and the state at $t$. Take
# care of $t = 0$, before which stands the image itself. Then run `di.checks.posterior_mean(my_posterior_mean)`.
# :::
#
# :::{solution-start} ex-posterior
# :label: sol-posterior
# :class: dropdown
# :::


# %%
def my_posterior_mean(image, state, t, betas):
    kept = torch.cumprod(1 - betas, 0)
    before = kept[t - 1] if t > 0 else torch.ones_like(kept[t])
    of_image = before.sqrt() * betas[t] / (1 - kept[t])
    of_state = (1 - betas[t]).sqrt() * (1 - before) / (1 - kept[t])
    return of_image * image + of_state * state


di.checks.posterior_mean(my_posterior_mean)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} The same image in fewer steps · 5 minutes · ★
# :label: ex-ddim
# DDIM {cite}`song2021ddim` follows a deterministic path and can skip timesteps. Draw the samples with seeds 0 to 3 by
# `method="ddim"` in 200, 50 and 10 steps. How far do the images move as steps are saved?
# :::
#
# :::{solution-start} ex-ddim
# :label: sol-ddim
# :class: dropdown
# :::

# %%
by_steps = {
    count: di.sample(model, 4, data.train.shape, method="ddim", steps=count)
    for count in (200, 50, 10)
}
di.tables.table([
    {"steps": count, "mean absolute change": change.abs().mean().item()}
    for count, images in by_steps.items()
    for change in [images - by_steps[200]]
])  # fmt: skip

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Two choices of variance · 5 minutes · ★
# :label: ex-variance
# Ho et al. report that $\beta_t$ works as well as $\tilde\beta_t$ in {eq}`eq-posterior`. Compute the ratio of the two at
# $t = 1, 10, 100, 999$. Where do they differ?
# :::
#
# :::{solution-start} ex-variance
# :label: sol-variance
# :class: dropdown
# :::

# %%
ratio = (1 - kept[:-1]) / (1 - kept[1:])
di.tables.table([
    {"t": t, "posterior variance / β": ratio[t - 1].item()}
    for t in (1, 10, 100, 999)
])  # fmt: skip

# %% [markdown]
# Only in the last few steps of sampling, where little noise is left.
#
# :::{solution-end}
# :::
