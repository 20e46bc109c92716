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
# - the best possible denoiser for a toy, found by hand and by gradient descent, and the error that even it makes;
# - the loss, the training loop and the sampler from scratch, each checked against the library, which takes schedule and
#   sampler from diffusers;
# - which draws an average over noise should use, a choice that decides how noisy attribution is.
#
# *15 minutes to read · two cores: about 55 seconds · builds on {doc}`01_quickstart`*
# :::

# %% tags=["hide-input"]
import math

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
# with small variances $\beta_t$ that grow along the way, here linearly from $10^{-4}$ to 0.02. Timesteps count from 0, as
# in diffusers, while papers often count from 1: $x_0$ has taken one step, $x_{999}$ all $T = 1000$, and before $x_0$
# comes the image $x$ itself.
#
# The shrinking pulls the variance towards 1: data of variance 1 keep it, and a fixed number acquires it. Follow a single
# number, $x = 1$, through all thousand steps, twenty thousand times:

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
# Sums of independent Gaussians are Gaussian, so the thousand steps can be taken in one, with the right mean and variance. The
# means multiply to $\sqrt{\bar\alpha_t}$, where $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$. Suppose that the variance is $1 -
# \bar\alpha_{t-1}$ before a step, which multiplies it by $1 - \beta_t$ and adds $\beta_t$:
#
# $$ (1 - \beta_t)(1 - \bar\alpha_{t-1}) + \beta_t = 1 - (1 - \beta_t)\,\bar\alpha_{t-1} = 1 - \bar\alpha_t . $$
#
# The image itself has $\bar\alpha = 1$ and variance 0, so it begins right. With one standard normal $\varepsilon$ the image
# $x$ becomes
#
# $$ x_t = \sqrt{\bar\alpha_t}\; x + \sqrt{1 - \bar\alpha_t}\; \varepsilon . $$ (eq-jump)

# %%
kept = torch.cumprod(1 - betas, 0)
rows = []
for t, (mean, std) in followed.items():
    jump, spread = kept[t].sqrt().item(), (1 - kept[t]).sqrt().item()
    assert abs(mean - jump) < 3 * spread / len(numbers) ** 0.5
    assert abs(std / spread - 1) < 3 / (2 * len(numbers)) ** 0.5
    row = {"t": t, "mean, by steps": mean, "mean, by jump": jump}
    rows.append(row | {"std, by steps": std, "std, by jump": spread})
di.tables.table(
    rows,
    caption="Mean and standard deviation of twenty thousand numbers at "
    "timestep $t$, after $t + 1$ steps.",
)

# %% [markdown]
# They agree within chance: a mean of 20,000 numbers with standard deviation 1 is itself uncertain by $1/\sqrt{20{,}000}$,
# about 0.007. The cell allows three times that.
#
# Here are fifty of those paths. All begin at 1, and at the end nothing shows where they began: the mean has gone to 0 and
# the standard deviation to 1.

# %% mystnb={"image": {"alt": "Fifty jagged paths that start at one and fan out; their mean falls to zero, and a band of one standard deviation on either side of it widens to plus and minus one"}, "figure": {"caption": "Fifty numbers on their way into noise, with the mean $\\sqrt{\\bar\\alpha_t}$ (line) and one standard deviation $\\sqrt{1 - \\bar\\alpha_t}$ on either side (band).", "name": "fig-fan"}} tags=["hide-input"]
figure, axes = di.figures.subplots(figsize=(5.5, 2.8))
every = range(0, 1000, 12)
axes.plot(every, torch.stack(paths)[::12], color="0.6", linewidth=0.5)
middle, spread = kept.sqrt(), (1 - kept).sqrt()
band = {"color": di.figures.BLUE, "alpha": 0.25, "linewidth": 0}
axes.fill_between(range(1000), middle - spread, middle + spread, **band)
axes.plot(middle, color=di.figures.BLUE)
axes.set(xlabel="timestep t", ylabel="$x_t$")
figure

# %% [markdown]
# diffusers computes the same schedule, and the library takes this one from there:

# %% mystnb={"image": {"alt": "Two curves over the timesteps: the factor of the image falls from one to nearly zero while the factor of the noise rises to one"}, "figure": {"caption": "The factors of image and noise in $x_t$.", "name": "fig-schedule"}}
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
        di.interactive.Preset(name, {"Timestep": at}, note)
        for name, at, note in (
            ("hardly noisy", 37, "Almost all of it is still there."),
            ("half and half", 259,
             "Image and noise have about equal shares of the variance."),
            ("nothing left", 999,
             "Whatever the image was, this is what its end looks like."),
        )
    ],
    caption="One training image on its way into noise.",
)  # fmt: skip

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
# :::{admonition} Step by step: why this line
# :class: dropdown
# 1. In $x_t = \sqrt{\bar\alpha_t}\,x + \sqrt{1 - \bar\alpha_t}\,\varepsilon$ data and noise are independent. So $x_t$ has mean
#    $\sqrt{\bar\alpha_t}\,\mu$ and variance $\bar\alpha_t v + 1 - \bar\alpha_t$, and its covariance with $\varepsilon$ is
#    $\sqrt{1 - \bar\alpha_t}$.
# 2. Take the line through both means whose slope is the covariance over the variance of $x_t$. What it leaves of
#    $\varepsilon$ has mean 0 and no covariance with $x_t$.
# 3. Gaussians without covariance are independent. So $x_t$ says nothing about what is left, and the line is the conditional
#    mean.
# 4. The variance of what is left is that of $\varepsilon$, which is 1, less the covariance squared over the variance of
#    $x_t$:
#
# $$ 1 - \frac{1 - \bar\alpha_t}{\bar\alpha_t v + 1 - \bar\alpha_t} = \frac{\bar\alpha_t v}{\bar\alpha_t v + 1 - \bar\alpha_t} . $$
# :::
#
# Gradient descent on the squared error must find these two weights. **Before you run it:** how small will the error get?

# %%
mu, v, t = 0.5, 0.04, 300


def toy_error(weights, count):
    x, eps = torch.randn(2, count, generator=generator, dtype=torch.float64)
    x_t = kept[t].sqrt() * (mu + v**0.5 * x) + (1 - kept[t]).sqrt() * eps
    return (eps - (weights[0] * x_t + weights[1])).square().mean()


weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # w, b
descent = torch.optim.SGD([weights], lr=0.1)
for _ in range(2000):
    descent.zero_grad()
    toy_error(weights, 512).backward()
    descent.step()

# %%
variance = kept[t] * v + 1 - kept[t]
w = (1 - kept[t]).sqrt() / variance
best = torch.stack([w, -w * kept[t].sqrt() * mu, kept[t] * v / variance])
found = torch.stack([*weights, toy_error(weights, 200_000)]).detach()
torch.testing.assert_close(found[:2], best[:2], rtol=0, atol=0.05)
torch.testing.assert_close(found[2], best[2], rtol=0.05, atol=0)
names = "w", "b", "error"
di.tables.table(
    [
        {"": name, "found": one.item(), "best": other.item()}
        for name, one, other in zip(names, found, best, strict=True)
    ],
    caption="The toy's weights and mean squared error.",
)

# %% [markdown]
# If you guessed zero: it stops at $\bar\alpha_t v / (\bar\alpha_t v + 1 - \bar\alpha_t)$, the last row, because part of the noise
# cannot be told from the data. For images the same holds, and the loss of a perfect model is positive. Only *differences*
# of losses mean something, so losses are compared between models on the same noise.
#
# ## The loss
#
# For an image the guess is a network's, $\varepsilon_\theta(x_t, t)$, and the error is averaged over timesteps and noise:
#
# $$ \ell(\theta, x) = \mathbb{E}_{t, \varepsilon}\; \tfrac{1}{C}\, \lVert \varepsilon - \varepsilon_\theta(\sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \varepsilon,\; t) \rVert^2 . $$ (eq-loss)
#
# $C$ is the number of values in an image, pixels times channels. Dividing by it follows the code of the paper rather than its
# formula. The factor $1/C$ carries over to every gradient and curvature in this book. In code:


# %%
def loss_from_scratch(network, x, t, eps):
    share = kept[t].float().view(-1, 1, 1, 1)
    noisy = share.sqrt() * x + (1 - share).sqrt() * eps
    guess = network(noisy, t).sample
    return (eps - guess).square().mean(dim=(1, 2, 3))


network = di.build_unet(preset.unet, seed=0)
# the network and its process; calling it gives the guess, without .sample
model = di.Denoiser(network, preset.process)
batch = data.train.images[:8]
steps = torch.arange(100, 900, 100)
eps = torch.randn(batch.shape, generator=generator)
torch.testing.assert_close(
    loss_from_scratch(network, batch, steps, eps),
    di.per_draw_loss(model, batch, steps, eps),
)

# %% [markdown]
# ## The training loop
#
# Draw images, timesteps and noise; compute the loss; take a step. A batch is 64 images, a piece of a shuffle that is new in
# every epoch. The optimizer is AdamW with learning rate 0.001, which falls to 0 along half a cosine, and gradients are
# clipped to norm 1.
#
# Beside the weights, keep their running average, in which noisy steps average out. Early on it must forget quickly. So
# its decay is $1 - (1 + \text{step})^{-3/4}$, and never above 0.9999.

# %%
config = di.with_options(preset, {"training.steps": 30}).training
assert (config.batch_size, config.learning_rate) == (64, 0.001)
assert (config.max_grad_norm, config.ema_max_decay) == (1, 0.9999)
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
    cosine = math.cos(math.pi * step / config.steps)
    optimizer.param_groups[0]["lr"] = config.learning_rate * (1 + cosine) / 2
    optimizer.step()
    decay = min(config.ema_max_decay, 1 - (1 + step) ** -config.ema_power)
    for mean, weight in zip(average, network.parameters(), strict=True):
        mean.lerp_(weight.detach(), 1 - decay)
    losses.append(loss.item())

# %% [markdown]
# :::{admonition} Checkpoint
# Everything random in a step is keyed by the step's number. So the library's training takes the same thirty steps. It adds
# saved states, exact resume and lower precision on a GPU.
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
# Going back from $t$ to $t - 1$, the guess of the noise gives a guess of the image. Solve {eq}`eq-jump` for it,
#
# $$ \hat x = \bigl(x_t - \sqrt{1 - \bar\alpha_t}\;\hat\varepsilon\bigr) / \sqrt{\bar\alpha_t} , $$ (eq-clean)
#
# and cut it to the pixels' range $[-1, 1]$, beyond which it is surely wrong. Given $x_t$ and $\hat x$, the state one step
# earlier is Gaussian. Its mean is a weighted sum of the two, its variance $\tilde\beta_t = \beta_t (1 - \bar\alpha_{t-1}) / (1 -
# \bar\alpha_t)$:
#
# $$ x_{t-1} = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t}\,\hat x + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t + \sqrt{\tilde\beta_t}\; z, $$ (eq-posterior)
#
# with standard normal noise $z$. This mean and variance are called the posterior mean and variance. At $t = 0$ the image
# comes next, with $\bar\alpha = 1$: the mean is $\hat x$, and no noise is added.
#
# :::{admonition} Step by step: where this mean comes from
# :class: dropdown
# What would $x_{t-1}$ be if we knew the image $x$ *and* the next state $x_t$? Bayes' rule multiplies two Gaussian densities,
# the jump {eq}`eq-jump` to $t - 1$ and the step {eq}`eq-step` from there to $t$. Write $\bar\alpha$ for $\bar\alpha_{t-1}$
# and $u$ for $x_{t-1}$. Up to a constant, minus twice the logarithm of the product is
#
# $$ \frac{(u - \sqrt{\bar\alpha}\, x)^2}{1 - \bar\alpha} + \frac{(x_t - \sqrt{1 - \beta_t}\, u)^2}{\beta_t} . $$
#
# 1. Collect what stands before $u^2$, over one denominator:
#
#    $$ \frac{1}{1 - \bar\alpha} + \frac{1 - \beta_t}{\beta_t} = \frac{\beta_t + (1 - \beta_t)(1 - \bar\alpha)}{\beta_t (1 - \bar\alpha)} = \frac{1 - \bar\alpha_t}{\beta_t (1 - \bar\alpha)} = \frac{1}{\tilde\beta_t} . $$
#
# 2. Collect what stands before $-2u$, and call it $c$:
#
#    $$ c = \frac{\sqrt{\bar\alpha}\, x}{1 - \bar\alpha} + \frac{\sqrt{1 - \beta_t}\, x_t}{\beta_t} . $$
#
# 3. Complete the square:
#
#    $$ u^2 / \tilde\beta_t - 2 c\,u = (u - \tilde\beta_t c)^2 / \tilde\beta_t + \text{constant} . $$
#
#    So $u$ is Gaussian with variance $\tilde\beta_t$ and mean $\tilde\beta_t c$. Multiply out:
#
# $$ \begin{aligned} \tilde\beta_t c &= \tilde\beta_t \frac{\sqrt{\bar\alpha}}{1 - \bar\alpha}\, x + \tilde\beta_t \frac{\sqrt{1 - \beta_t}}{\beta_t}\, x_t \\ &= \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}\, x + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, x_t . \end{aligned} $$
#
# The sampler does not know $x$ and puts its guess $\hat x$ there.
# :::


# %%
def step_back(x_t, t, guess, z):
    before = kept[t - 1] if t > 0 else torch.ones((), dtype=torch.float64)
    clean = (x_t - (1 - kept[t]).sqrt() * guess) / kept[t].sqrt()
    clean = clean.clamp(-1, 1)
    mean = before.sqrt() * betas[t] / (1 - kept[t]) * clean
    mean = mean + (1 - betas[t]).sqrt() * (1 - before) / (1 - kept[t]) * x_t
    variance = betas[t] * (1 - before) / (1 - kept[t])
    return mean + variance.sqrt() * z


# %% [markdown]
# From pure noise through all thousand steps, with the trained model of the previous chapter, beside the library's sampler. That
# one takes diffusers' steps with the same noise, in float32, hence a small tolerance:

# %%
model = di.runs.full_model(run).model
draws = [di.keyed_generator("sample", seed) for seed in range(4)]


def normal():
    return torch.stack(
        [torch.randn(data.train.shape, generator=draw) for draw in draws]
    )


x = normal()
with torch.no_grad():
    for t in reversed(range(1000)):
        guess = model(x, torch.full((4,), t))
        x = step_back(x, t, guess, normal() if t > 0 else 0).float()
trajectories = di.sampling.sample_states(
    model, 4, data.train.shape, keep=[0, 500, 700, 800, 900, 950, 1000]
)
torch.testing.assert_close(x, trajectories[:, -1], rtol=0, atol=1e-3)

# %% mystnb={"image": {"alt": "Four rows of seven pictures: pure noise on the left turns into a clean digit on the right"}, "figure": {"caption": "Four samples on their way from noise to digit, after 0, 500, 700, 800, 900, 950 and 1,000 steps.", "name": "fig-trajectories"}} tags=["hide-input"]
di.figures.image_grid(trajectories.flatten(0, 1), columns=7, size=0.8)

# %% [markdown]
# ## Which draws to average over
#
# The loss of one image is an average over $(t, \varepsilon)$, and so is every gradient that attribution needs. Timesteps
# differ wildly in how hard they are:

# %% mystnb={"image": {"alt": "Loss against timestep on a logarithmic scale: near one at the smallest timesteps, falling by two orders of magnitude towards the largest"}, "figure": {"caption": "The trained model's loss of one training image at each timestep, mean over 16 noises and their opposites.", "name": "fig-loss-by-time"}} tags=["hide-input"]
image = data.train.subset(slice(0, 1))
every, curve = torch.arange(1000), torch.zeros(1000)
with torch.no_grad():
    for eps in torch.randn(16, *image.images.shape, generator=generator):
        for noise in (eps, -eps):
            rows = [
                each.expand(1000, -1, -1, -1)
                for each in (image.images, noise)
            ]
            curve += di.per_draw_loss(model, rows[0], every, rows[1]) / 32
figure, axes = di.figures.subplots(figsize=(5.5, 2.6))
axes.semilogy(curve, color=di.figures.BLUE)
axes.set(xlabel="timestep t", ylabel="loss")
figure

# %% [markdown]
# If timesteps are drawn at random, an average of a few says more about which were drawn than about the image. Better:
# cut 0…999 into equal slices and draw one timestep from each (**stratified**), and use each twice, with noise
# $\varepsilon$ and $-\varepsilon$ (**antithetic**). With pairs, 64 draws are 32 timesteps, without them 64. Neither
# changes the expectation: slices are equal, and $-\varepsilon$ is as likely as $\varepsilon$. How far do the loss and the
# gradient of one image stray from those averaged over 4,096 draws?


# %%
def loss_and_gradient(draws, seed):
    total, weights = 0, list(model.parameters())
    for batch in di.Expectation(draws, seed=seed).batches(model, image):
        error = batch.target - model(batch.state, batch.timesteps)
        each = error.square().flatten(1).mean(1)
        loss = (batch.draw_weights * each).sum() / draws.count
        gradient = torch.autograd.grad(loss, weights)
        parts = (loss.detach(), *gradient)
        total = total + torch.cat([part.flatten() for part in parts])
    return total[:1], total[1:]


alone = {"noise_rule": "independent"}
rules = {
    "uniform": di.DrawConfig(64, timestep_rule="uniform", **alone),
    "stratified": di.DrawConfig(64, **alone),
    "stratified, 32 draws": di.DrawConfig(32, **alone),
    "stratified, antithetic": di.DrawConfig(64),
    "signal, antithetic": di.DrawConfig(64, timestep_rule="signal"),
}

# %%
TRIES = 80
wanted = loss_and_gradient(di.DrawConfig(4096), seed=99)
squares = torch.zeros(len(rules), TRIES, 2)  # of the relative errors
for row, draws in zip(squares, rules.values(), strict=True):
    for seed in range(TRIES):
        found = loss_and_gradient(draws, seed)
        for place, (one, sure) in enumerate(zip(found, wanted, strict=True)):
            row[seed, place] = ((one - sure).norm() / sure.norm()) ** 2
errors = squares.mean(1).sqrt()  # [rules, loss or gradient]
within = squares.std(1) / TRIES**0.5 / errors  # two standard errors


# %% tags=["hide-input"]
def measured(value, half):
    value, half = float(value), float(half)
    return di.tables.Number(value, 3, (value - half, value + half))


rows = [
    {"draws": name, "loss": measured(error[0], half[0])}
    | {"gradient": measured(error[1], half[1])}
    for name, error, half in zip(rules, errors, within, strict=True)
]
uniform, slices, fewer, pairs, _ = errors
assert slices[0] < 0.45 * uniform[0] and slices[1] > 0.85 * uniform[1]
assert pairs[1] < 0.6 * slices[1] and pairs[0] > slices[0]
assert fewer[0] > slices[0]
di.tables.table(
    rows,
    caption="Relative error with 64 draws, or half as many where it says so: "
    "root mean square of 80 tries, with two standard errors to each side.",
)

# %% [markdown]
# **Signal**, in the last row, draws timesteps in proportion to $\bar\alpha_t$, the image's share of the variance, but for one
# tenth that it draws evenly. Its slices have equal probability instead of equal length. Each draw is weighted by $1/T$ over
# the probability of its timestep, so that the expectation stays the same.
#
# Slices help the loss, whose size depends on the timestep above all, and the gradient hardly. Pairs halve the gradient's
# error and do the loss no good. **Before you read on:** what could a gradient have that a loss lacks?
#
# Split any function of the noise into the part that keeps its sign when $\varepsilon$ turns into $-\varepsilon$ and the part
# that changes it:
#
# $$ h(\varepsilon) = \underbrace{\tfrac{1}{2}\bigl(h(\varepsilon) + h(-\varepsilon)\bigr)}_{\text{even}} + \underbrace{\tfrac{1}{2}\bigl(h(\varepsilon) - h(-\varepsilon)\bigr)}_{\text{odd}} . $$ (eq-even-odd)
#
# The odd part has mean zero, and the mean of a pair is its even part. Take the toy: its error $\varepsilon - w x_t - b$ is
# linear in $\varepsilon$, so all of it but a constant is odd. The gradient in $b$ is minus twice the error, and stays odd. The
# loss is the error's square. That of the odd part is even, and only its product with the constant stays odd. A network's
# gradient is likewise its error times a Jacobian, which changes less with the sign of the noise. So much for the
# explanation; the evidence must come from the network.
#
# At one timestep, $S$ independent draws have the variance $(V_\text{even} + V_\text{odd}) / S$. In pairs the odd part is
# gone, but only $S / 2$ values of the even part are left: $2 V_\text{even} / S$. So parity alone changes the error by the
# factor $\sqrt{2 V_\text{even} / (V_\text{even} + V_\text{odd})}$, and a pair pays where the odd part is the larger one.
# We measure both at 32 timesteps, with 12 noises each:


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
noises = torch.randn(12, *image.images.shape, generator=generator)
parts = torch.zeros(2, 2)  # [loss or gradient, even or odd]
for t in range(15, 1000, 31):
    both = [list(pair(t, eps)) for eps in noises]
    for place in (0, 1):
        each = [(one[place], other[place]) for one, other in both]
        parts[place] += variances(each) / 32

# %% [markdown]
# Pairs also visit half as many timesteps. Slices leave the loss's variance inside a slice, which we can read off the curve in
# {numref}`fig-loss-by-time`. Add it, and compare with what was measured above:


# %%
def inside(slices):
    """Variance of the mean of a draw from each slice of the curve."""
    pieces = curve.tensor_split(slices)
    return sum(piece.var(correction=0) for piece in pieces) / slices**2


even, total = parts[:, 0], parts.sum(1)
parity = (2 * even / total).sqrt()
of_pairs = inside(32) + 2 * even[0] / 64
with_slices = (of_pairs / (inside(64) + total[0] / 64)).sqrt().item()
factor = pairs / slices
within_factor = factor * (within / errors)[[1, 3]].norm(dim=0)

# %% tags=["hide-input"]
rows = [
    {
        "of the": name,
        "even": di.tables.percent(even[i] / total[i], digits=0, unit=" %"),
        "parity": parity[i].item(),
        "and slices": (with_slices, None)[i],
        "measured": measured(factor[i], within_factor[i]),
    }
    for i, name in enumerate(("loss", "gradient"))
]
assert abs(parity[0] - 1) < 0.25 and parity[0] < with_slices
assert even[1] / total[1] < 0.2
assert abs(with_slices - factor[0]) < within_factor[0]
assert abs(parity[1] - factor[1]) < 0.06
di.tables.table(
    rows,
    caption="The even part's share of the variance, and the factor that "
    "pairs put on the error with 64 draws: from parity alone, with the lost "
    "slices, and measured, with two standard errors to each side.",
)

# %% [markdown]
# Most of the gradient's noise is odd, and a pair cancels it. Parity alone predicts nearly the factor that was measured. The
# loss is even and odd in about equal parts, so by parity its error hardly changes. What pairs cost it are the slices that
# they give up. Look at the row *stratified, 32 draws*: half the timesteps cost more than the partners bring back.
#
# Attribution needs gradients, so the library takes pairs unless told otherwise. A single loss pays a little for that, while
# *differences* of losses gain ({doc}`03_measurements`). Draws are keyed by the image's id, so that a number does not
# depend on batch size, order or restarts. What counts in the end is how gradients of different images differ, and
# {doc}`08_scale` measures what each rule buys there.
#
# ## Pitfalls
#
# - **Mean or sum.** Dividing the squared error by $C$ scales gradients and curvature by $1/C$. The damping of
#   {doc}`01_quickstart`, chosen for one convention, is wrong by a factor $C$ for the other.
# - **Raw weights.** Samples, measurements and attribution all use the averaged weights. Mix them with the raw ones, and you
#   attribute a model that drew none of the samples.
#
# ## What comes next
#
# You have a trained model, its loss, and draws to average over. A score says how such a number would change without a
# training image. {doc}`03_measurements` asks which number that should be.
#
# ## Exercises

# %% [markdown]
# :::{exercise} Write it yourself · 10 minutes · ★
# :label: ex-posterior
# `step_back` has the mean of {eq}`eq-posterior` multiplied out. Write it the other way, as `my_posterior_mean(image, state, t,
# betas)` straight from the two Gaussians in its derivation: from the image, and from the state at $t$. Each gives a guess
# of $x_{t-1}$, and a guess counts by one over its variance. Take care of $t = 0$. Then run
# `di.checks.posterior_mean(my_posterior_mean)`.
# :::
#
# :::{solution-start} ex-posterior
# :label: sol-posterior
# :class: dropdown
# :::


# %%
def my_posterior_mean(image, state, t, betas):
    if t == 0:
        return image  # nothing is left to guess
    before = torch.cumprod(1 - betas, 0)[t - 1]
    from_image = 1 / (1 - before), before.sqrt() * image
    shrunk = (1 - betas[t]).sqrt()
    from_state = shrunk**2 / betas[t], state / shrunk
    total = from_image[0] + from_state[0]
    return sum(one * guess for one, guess in (from_image, from_state)) / total


di.checks.posterior_mean(my_posterior_mean)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} The same image in fewer steps · 5 minutes · ★
# :label: ex-ddim
# DDIM {cite}`song2021ddim` adds no noise. It keeps the guess $\hat\varepsilon$, and goes to any earlier timestep $s$ by $x_s =
# \sqrt{\bar\alpha_s}\,\hat x + \sqrt{1 - \bar\alpha_s}\,\hat\varepsilon$, so it can skip timesteps. Draw four samples with
# `di.sample(model, 4, data.train.shape, method="ddim", steps=200)`, and again in 50 and in 10 steps. How much does a pixel
# change on average, against 200 steps? **Guess first:** which part of the pixels' range of 2?
# :::
#
# :::{solution-start} ex-ddim
# :label: sol-ddim
# :class: dropdown
# :::

# %%
shape, by_steps = data.train.shape, {}
for count in (200, 50, 10):
    images = di.sample(model, 4, shape, method="ddim", steps=count)
    by_steps[count] = images
changes = {
    count: (by_steps[count] - by_steps[200]).abs().mean().item()
    for count in (50, 10)
}
assert changes[50] < 0.02 and 0.06 < changes[10] < 0.1
di.tables.table(
    [{"steps": n, "change": change} for n, change in changes.items()],
    caption="Mean absolute change of a pixel against 200 steps.",
)

# %% [markdown]
# On a range of 2, fifty steps move a pixel by less than 1 %, and ten steps by about 4 %. A twentieth of the work gives
# nearly the same digits.
#
# :::{solution-end}
# :::
#
# :::{exercise} Two choices of variance · 5 minutes · ★
# :label: ex-variance
# Ho et al. report that $\beta_t$ works as well as $\tilde\beta_t$ in {eq}`eq-posterior`. Compute $\tilde\beta_t / \beta_t$ at
# $t = 1, 5, 10, 100, 999$. Where do the two differ?
# :::
#
# :::{solution-start} ex-variance
# :label: sol-variance
# :class: dropdown
# :::

# %%
ratio = (1 - kept[:-1]) / (1 - kept[1:])
assert ratio[9] < 0.9 < ratio[19]
di.tables.table(
    [{"t": t, "ratio": ratio[t - 1].item()} for t in (1, 5, 10, 100, 999)],
    caption="$\\tilde\\beta_t / \\beta_t$",
)

# %% [markdown]
# By more than a tenth only in the last ten or so steps of sampling, where little noise is left.
#
# :::{solution-end}
# :::
