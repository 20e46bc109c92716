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
# # Influence functions: one image fewer, without retraining
#
# :::{admonition} In this chapter
# :class: tip
# You turn the weight of one training image up and down and watch what a model answers. You derive the formula that
# predicts it from the one model you have, see it hold, see it break, and learn which question it really answers.
#
# *25 minutes to read · two cores: one minute · needs {doc}`02_ddpm`*
# :::

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
from torch import nn

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()

# %% [markdown]
# ## Why you need it
#
# You have one trained model, one picture that it drew, and 300 training images. You would like to know what each image
# did for the picture. The direct way is to train 300 more models, each without one image. For the paper's CIFAR-10 model
# this would be 50,000 trainings of a day each.
#
# An influence function answers all 300 questions from the model you already have. It does so by asking a slightly
# different question: not "what if the image were gone?" but "which way does the model move if the image counts a little
# less?". This chapter is about the step from the second question to the first.
#
# ## A model small enough to solve
#
# Take the denoiser of {doc}`02_ddpm` again. It has two weights, its data are single numbers $x$, and the timestep is
# fixed: it guesses the noise in $x_t = s x + n\varepsilon$ by a line, $w x_t + b$. Here $s = \sqrt{\bar\alpha_t}$ and
# $n = \sqrt{1 - \bar\alpha_t}$. The average over the noise can be done by hand,
#
# $$ \ell(\theta, x) = \mathbb{E}_\varepsilon\,(\varepsilon - w x_t - b)^2 = (1 - w n)^2 + (w s x + b)^2, \qquad \theta = (w, b). $$ (eq-toy-loss)
#
# :::{dropdown} The same, step by step
# Put $x_t$ in: the error is $\varepsilon - w(sx + n\varepsilon) - b = (1 - wn)\,\varepsilon - (wsx + b)$. Square it. The
# cross term has a factor $\mathbb{E}[\varepsilon] = 0$, and $\mathbb{E}[\varepsilon^2] = 1$ leaves the two squares.
# :::
#
# This is a parabola in two dimensions. So the minimum of any weighted sum of such losses is one solve of two equations,
# and "train without image 7" costs nothing.

# %%
share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)


def toy_loss(theta, x, t=300):
    s, n = share[t].sqrt(), (1 - share[t]).sqrt()
    w, b = theta[..., 0], theta[..., 1]
    return (1 - w * n) ** 2 + (w * s * x + b) ** 2


def toy_hessian(x, t=300):
    s, n = share[t].sqrt(), (1 - share[t]).sqrt()
    rows = [n**2 + (s * x) ** 2, s * x, s * x, torch.ones_like(x)]
    return 2 * torch.stack(rows, -1).unflatten(-1, (2, 2))


def toy_gradient(theta, x, t=300):
    constant = torch.stack([-2 * (1 - share[t]).sqrt() * torch.ones_like(x), 0 * x], -1)
    return toy_hessian(x, t) @ theta + constant


# %% [markdown]
# Training minimises $\sum_n p_n\,\ell(\theta, x_n)$, where image $n$ has weight $p_n$. Normally all weights are $1/N$.


# %%
def trained(weights, x, t=300):
    hessian = torch.einsum("n,nij->ij", weights, toy_hessian(x, t))
    return torch.linalg.solve(hessian, -weights @ toy_gradient(torch.zeros(2).double(), x, t))


generator = torch.Generator().manual_seed(0)
x = 0.5 + 0.2 * torch.randn(30, generator=generator, dtype=torch.float64)
equal = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
theta = trained(equal, x)
query = torch.tensor(0.6, dtype=torch.float64)
measurement = toy_loss(theta, query)
print(f"w = {theta[0]:.4f}, b = {theta[1]:.4f}, loss of the query {measurement:.4f}")

# %% [markdown]
# The **measurement** $m$ is what we want to explain: here the model's loss on a query, $x_q = 0.6$.
#
# **Before you go on:** the training data scatter around 0.5. If you leave out an image at 0.9, will the query's loss go up
# or down? And an image at 0.1?
#
# ## Turning one weight
#
# Give image $n$ the weight $1/N + \epsilon$ and leave the others alone. The trained weights become a function of
# $\epsilon$, and so does the measurement. At $\epsilon = 0$ it is the model you have. At $\epsilon = -1/N$ the image is
# gone. At $\epsilon = 1/N$ the image is there twice.


# %%
def turned(n, epsilon, x=x):
    weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    weights[n] += epsilon
    return trained(weights, x)


farthest = int(x.argmax())
print(f"image {farthest}: x = {x[farthest]:.3f}")
for epsilon in (-1 / 30, -1 / 60, 0, 1 / 60, 1 / 30):
    value = toy_loss(turned(farthest, epsilon), query)
    print(f"weight {1 / 30 + epsilon:.4f}: loss of the query {value:.5f}")

# %% [markdown]
# A smooth curve through the model you have. We know only one point of it, but we can compute its slope there, and follow
# the tangent to the end.
#
# ## The slope, derived
#
# At every $\epsilon$ the trained weights are a minimum, so the gradient of what is minimised is zero there:
#
# $$ \nabla L(\theta(\epsilon)) + \epsilon\, \nabla \ell_n(\theta(\epsilon)) = 0, \qquad L(\theta) = \frac{1}{N}\sum_{j=1}^{N} \ell_j(\theta). $$ (eq-stationary)
#
# Differentiate in $\epsilon$ at $\epsilon = 0$. The first term gives $H\,\theta'(0)$ with the Hessian $H = \nabla^2 L$. The
# second gives $\nabla \ell_n$, because its other part still has the factor $\epsilon$. So
#
# $$ \frac{d\theta}{d\epsilon}\bigg|_{\epsilon = 0} = -H^{-1}\, \nabla \ell_n(\theta). $$ (eq-implicit)
#
# This is the implicit function theorem {cite}`koh2017understanding`. It says that the curve $\theta(\epsilon)$ exists near
# $\epsilon = 0$ if $H$ can be inverted. By the chain rule the measurement moves at the rate
# $-\nabla m^\top H^{-1}\nabla\ell_n$.
#
# **Removing** the image is the step $\epsilon = -1/N$. Two minus signs meet, and the score is
#
# $$ \text{score}(q, n) = -\tfrac{1}{N} \cdot \bigl(-\nabla m_q^\top H^{-1} \nabla \ell_n\bigr) = +\frac{1}{N}\, \nabla m_q^\top H^{-1}\, \nabla\ell_n . $$ (eq-influence)
#
# A positive score says: without image $n$ the measurement goes *up*. If the measurement is a loss, the query becomes less
# likely, so the image helped it.


# %%
def influence(x, query, t=300):
    theta = trained(torch.full((len(x),), 1 / len(x)).double(), x, t)
    hessian = toy_hessian(x, t).mean(0)
    step = torch.linalg.solve(hessian, toy_gradient(theta, x, t).T)
    return toy_gradient(theta, query, t) @ step / len(x)


def leave_one_out(x, query, t=300):
    theta = trained(torch.full((len(x),), 1 / len(x)).double(), x, t)
    kept = (1 - torch.eye(len(x)).double()) / len(x)
    without = torch.stack([trained(weights, x, t) for weights in kept])
    return toy_loss(without, query, t) - toy_loss(theta, query, t)


scores, truth = influence(x, query), leave_one_out(x, query)
print(f"image {farthest}: predicted {scores[farthest]:+.6f}, true {truth[farthest]:+.6f}")

# %% [markdown]
# Now play with it. The curve is the truth, the tangent is what influence knows, the secant is what removal does.

# %% tags=["device"]
pass  # the device: Curve over ε with tangent and secant; N, t, λ and an outlier as controls

# %% [markdown]
# Try three things.
#
# - *Typical data.* The tangent and the curve part only a little at the left end. The inset shows all images at once:
#   predicted and true changes lie on a line.
# - *More images.* With $N = 100$ the step $1/N$ is shorter, and so is the error: it falls like $1/N^2$, the score itself
#   like $1/N$.
# - *The outlier.* With $N = 10$, drag the first image to 2.0. The tangent points down and the curve ends up: influence has the
#   wrong *sign*. The outlier has bent the whole problem. Removing it changes the Hessian itself, and the tangent
#   cannot know.

# %%
for count, outlier in ((10, None), (30, None), (100, None), (10, 2.0), (30, 2.0)):
    generator = torch.Generator().manual_seed(0)
    data = 0.5 + 0.2 * torch.randn(count, generator=generator, dtype=torch.float64)
    data[0] = data[0] if outlier is None else outlier
    scores, truth = influence(data, query), leave_one_out(data, query)
    correlation = torch.corrcoef(torch.stack([scores, truth]))[0, 1]
    slope = (scores @ truth) / (scores @ scores)
    print(f"N = {count:3}, outlier {outlier}: correlation {correlation:.3f}, slope {slope:.2f}, "
          f"signs wrong {int((scores * truth < 0).sum())}")  # fmt: skip

# %% [markdown]
# ## When the answer is exact
#
# How far off is the tangent, exactly? For one family of models the answer fits on a line. Take **one draw an image**, so that
# each image is one equation: inputs $\varphi_n = (x_t, 1)$, target $\varepsilon_n$, squared error, and a weight decay
# $\tfrac{\lambda}{2}\lVert\theta\rVert^2$. This is ridge regression. Its Hessian is $H = \tfrac{2}{N}\Phi^\top\Phi + \lambda I$,
# and leaving out image $n$ takes the rank-one piece $\tfrac{2}{N}\varphi_n\varphi_n^\top$ out of it. With the **leverage**
# $h_n = \tfrac{2}{N}\varphi_n^\top H^{-1} \varphi_n$, the true step is
#
# $$ \theta_{-n} - \theta = \frac{1}{1 - h_n} \cdot \frac{1}{N} H^{-1}\nabla\ell_n . $$ (eq-leverage)
#
# So the step has the right *direction* and is too short, by a factor that you can compute. A typical image among $N$ has
# a leverage of about $P/N$ for $P$ weights. An outlier has a leverage near one: alone it decides what the line does there.
#
# :::{dropdown} Proof
# Without image $n$ the objective is $L - \tfrac1N \ell_n$, again a parabola, with Hessian
# $H_{-n} = H - \tfrac2N\varphi_n\varphi_n^\top$. Its gradient at the old minimum is $-\tfrac1N\nabla\ell_n$, so one Newton step
# is exact: $\theta_{-n} - \theta = \tfrac1N H_{-n}^{-1}\nabla\ell_n$. Now $\nabla\ell_n = -2 r_n\varphi_n$ with the residual $r_n$ is
# a multiple of $\varphi_n$, and the formula of Sherman and Morrison gives
# $H_{-n}^{-1}\varphi_n = H^{-1}\varphi_n / (1 - h_n)$.
# :::

# %%
t, decay = 300, 1e-3
generator = torch.Generator().manual_seed(2)
noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
inputs = share[t].sqrt() * x + (1 - share[t]).sqrt() * noise
features = torch.stack([inputs, torch.ones_like(inputs)], 1)


def ridge(weights):
    hessian = 2 * (features.T * weights) @ features + decay * torch.eye(2).double()
    return torch.linalg.solve(hessian, 2 * features.T @ (weights * noise))


hessian = 2 * features.T @ features / len(x) + decay * torch.eye(2).double()
gradients = -2 * (noise - features @ ridge(equal)).unsqueeze(1) * features
steps = torch.linalg.solve(hessian, gradients.T).T / len(x)
leverage = 2 / len(x) * (features * torch.linalg.solve(hessian, features.T).T).sum(1)
without = torch.stack([ridge(equal * (torch.arange(len(x)) != n)) for n in range(len(x))])
exact = steps / (1 - leverage).unsqueeze(1)
torch.testing.assert_close(without - ridge(equal), exact, rtol=0, atol=1e-12)
print(f"leverages from {leverage.min():.3f} to {leverage.max():.3f}, mean {leverage.mean():.3f}")

# %% [markdown]
# :::{admonition} Checkpoint
# Leave-one-out of ridge regression is influence divided by $1 - h_n$, to $10^{-12}$. The mean leverage is a little below
# $P/N = 2/30$.
# :::
#
# ## What the theorem assumes, and training does not give
#
# Equation {eq}`eq-influence` stands on four legs. Look at each with a trained diffusion model in mind.
#
# - **A stationary point.** The gradient of $L$ is zero. A network is trained for a fixed number of steps and stops
#   somewhere on its way.
# - **An invertible Hessian.** A network has many directions in which the loss hardly changes, and some in which it curves
#   down.
# - **One minimum.** Train again with another seed, and you arrive elsewhere. The formula follows one minimum as it moves. It
#   knows nothing of the others.
# - **The loss that was minimised.** The weights we attribute are a running average (EMA). Weight decay, dropout and early
#   stopping change what training aims at.
#
# So what does the formula answer, if its assumptions fail? There is a question to which it is nearly the exact answer
# {cite}`bae2022influence`. Stay near the model you have. Keep its answers to all images, keep its weights, and then make
# image $n$ a little worse:
#
# $$ \theta_{-n} = \arg\min_\theta\; \underbrace{\frac1N\sum_j D_j(\theta)}_{\text{answers as before}} \;-\; \frac1N\,\ell_n(\theta) \;+\; \underbrace{\frac{\lambda}{2}\,\lVert\theta - \theta^*\rVert^2}_{\text{weights as before}} . $$ (eq-proximal)
#
# For a squared error, $D_j$ is the mean squared distance between the network's outputs at $\theta$ and at $\theta^*$. The first
# term has its minimum at $\theta^*$ whether or not training ended there. Its Hessian at $\theta^*$ is the
# Gauss-Newton matrix of the next chapter, which never curves down, and $\lambda$ makes it invertible. One Newton step on
# {eq}`eq-proximal` is exactly the damped influence function. Let us see how far one step is from the minimum.
#
# ## A real network, small enough to check
#
# The network has 288 weights and sees digits of 4×4 pixels. It is trained on 48 of them with a fixed set of draws, and we stop
# it early on purpose.


# %%
class TinyNet(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.first, self.second = nn.Linear(17, hidden), nn.Linear(hidden, 16)

    def forward(self, images, timesteps):
        time = (timesteps.to(images) / 500 - 1).unsqueeze(1)
        hidden = torch.tanh(self.first(torch.cat([images.flatten(1), time], 1)))
        return self.second(hidden).view_as(images)


def small(images, count):
    pictures = nn.functional.avg_pool2d(images.images[:count], 2).double()
    return di.ImageSet(pictures, images.labels[:count], images.ids[:count])


data = di.load_dataset(di.get_preset("digits").dataset)
train, queries = small(data.train, 48), small(data.queries, 12)

# %% [markdown]
# Everything that is random is fixed beforehand: 16 draws of each image, the same in every training. So two trainings
# differ by their images and by nothing else.

# %%
torch.manual_seed(0)
model = di.Denoiser(TinyNet().double(), di.Process())
batch, query_batch = (
    next(di.diffusion.objective_batches(
        model, images, di.DrawConfig(draws), seed=0, stage="one-less", batch_size=len(images) * draws
    ))
    for images, draws in ((train, 16), (queries, 64))
)  # fmt: skip


def losses(weights, batch):
    outputs = torch.func.functional_call(model.network, weights, (batch.state, batch.timesteps))
    per_draw = (outputs - batch.target).square().mean((1, 2, 3))
    return per_draw.view(int(batch.example.max()) + 1, -1).mean(1)


# %% [markdown]
# Forty-nine models train side by side, by Adam on all images at once: one with all images, and one without each. `vmap`
# makes one computation of them.


# %%
def train_all(shares, start, steps=600, rate=1e-2):
    weights = {name: value.expand(len(shares), *value.shape).clone() for name, value in start.items()}
    gradient = torch.func.vmap(torch.func.grad(lambda w, share: share @ losses(w, batch)))
    optimizer = torch.optim.Adam(list(weights.values()), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        for name, value in gradient(weights, shares).items():
            weights[name].grad = value
        optimizer.step()
        schedule.step()
    return {name: value.detach() for name, value in weights.items()}


def changes(weights):
    measured = torch.func.vmap(lambda w: losses(w, query_batch))(weights)
    return (measured[1:] - measured[0]).T  # queries × images left out


start = {name: value.detach() for name, value in model.network.named_parameters()}
shares = torch.cat([torch.ones(1, 48), 1 - torch.eye(48)]).double()
shares = shares / shares.sum(1, keepdim=True)
models = train_all(shares, start)
theta = {name: value[0] for name, value in models.items()}
print(f"loss {losses(theta, batch).mean():.3f} after {losses(start, batch).mean():.3f}")

# %% [markdown]
# The score, in ten lines. The Gauss-Newton matrix comes from the library's slow and exact version; the next chapter builds it.


# %%
def flat(gradients):
    layers = [torch.cat([gradients[f"{name}.weight"], gradients[f"{name}.bias"].unsqueeze(-1)], -1)
              for name in ("first", "second")]  # fmt: skip
    return torch.cat([layer.flatten(-2) for layer in layers], -1)


for name, parameter in model.network.named_parameters():
    parameter.data.copy_(theta[name])
of_images = flat(torch.func.jacrev(lambda w: losses(w, batch))(theta))
of_queries = flat(torch.func.jacrev(lambda w: losses(w, query_batch))(theta))
ggn = di.curvature.dense_ggn(model, batch)
damping = 1e-3
damped = ggn + damping * torch.eye(len(ggn)).double()
scores = of_queries @ torch.linalg.solve(damped, of_images.T) / len(train)

# %% [markdown]
# Four answers to compare it with. First the proximal question {eq}`eq-proximal`, solved by taking the step again and again.

# %%
inverse, outputs = torch.linalg.inv(damped), model.network(batch.state, batch.timesteps).detach()
positions = {name: value.clone() for name, value in theta.items()}


def proximal(weights, n):
    found = torch.func.functional_call(model.network, weights, (batch.state, batch.timesteps))
    near = sum((weights[name] - theta[name]).square().sum() for name in theta)
    return (found - outputs).square().mean() - losses(weights, batch)[n] / len(train) + damping / 2 * near


def unflat(step):
    layers = step.split([8 * 18, 16 * 9])
    first, second = layers[0].view(8, 18), layers[1].view(16, 9)
    return {"first.weight": first[:, :-1], "first.bias": first[:, -1],
            "second.weight": second[:, :-1], "second.bias": second[:, -1]}  # fmt: skip


solved = [theta]
for n in range(len(train)):
    weights = dict(theta)
    for _ in range(10):
        step = unflat(inverse @ flat(torch.func.grad(proximal)(weights, n)))
        weights = {name: weights[name] - step[name] for name in theta}
    solved.append(weights)
stacked = {name: torch.stack([weights[name] for weights in solved]) for name in theta}

# %% [markdown]
# Then three kinds of retraining: going on from the trained model without the image (*warm start*), training anew from the
# same initial weights, and training anew from others. **Guess first:** which of the four will agree with the scores?

# %%
torch.manual_seed(1)
others = {name: value.detach() for name, value in TinyNet().double().named_parameters()}
answers = {
    "proximal question": changes(stacked),
    "warm start": changes(train_all(shares, theta, 300, 1e-3)),
    "retrained, same start": changes(models),
    "retrained, other start": changes(train_all(shares, others)),
}


def agreement(left, right):
    pairs = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(left, right)]
    return torch.stack(pairs).mean()


for name, measured in answers.items():
    print(f"{name:24} correlation with the scores {agreement(scores, measured):.3f}")
same, other = list(answers.values())[2:]
print(f"the two retrainings with each other: {agreement(same, other):.3f}")

# %% [markdown]
# :::{admonition} Checkpoint
# The scores agree with the proximal question almost perfectly. They agree with each of the two retrainings better than the
# two retrainings agree with each other.
# :::

# %%
assert agreement(scores, answers["proximal question"]) > 0.99
assert min(agreement(scores, same), agreement(scores, other)) > agreement(same, other)

# %% [markdown]
# Read the four lines from the top. One step solves the proximal question. The linearisation, which looked like the bold part, costs
# next to nothing here. What is lost is lost later: a real training without the image does not stay near, and where it goes
# depends on where it began.
#
# The last line should make you pause. Leave one image out, train from two starting points, and the two answers have little in
# common. So what *is* the effect of an image? What the two have in common is its effect on average over trainings, and
# the rest is chance. A single image in a single retraining says little. This is why {doc}`01_quickstart` judged
# scores by removing *half* of the images and by averaging three trainings: the effect grows with the number of images, the chance
# does not.
#
# :::{dropdown} Why does the proximal question have the Gauss-Newton matrix as its Hessian?
# $D_j(\theta)$ is a mean of squares of $f_j(\theta) - f_j(\theta^*)$. Its second derivative is
# $\tfrac{2}{C}\,\mathbb{E}[J^\top J]$ plus a term with the difference itself as a factor, which is zero at $\theta^*$. The
# term $-\tfrac1N \ell_n$ adds its own Hessian, divided by $N$. That is what the slope of a little more than one is about,
# and what the outlier of the toy made large.
# :::
#
# ## At full size
#
# For 288 weights we could write the curvature down and solve. The digits model has 159,697 weights and the
# paper's 38 million. Everything else stays as it is: the same gradients, the same $1/N$, the same sign. Chapters
# 05 to 07 are about one thing only, a curvature that can be inverted.
#
# ## Pitfalls
#
# - **Two minus signs.** Removal is a *negative* step in the image's weight. Code that gives $-\nabla m^\top H^{-1} \nabla\ell_n$
#   answers "what if the image counted more".
# - **The factor $1/N$.** It changes no ranking. It decides whether a predicted change can be compared with a measured one.
# - **A sum is not a mean.** If $L$ is a sum over images, its Hessian is $N$ times as large and the $1/N$ is in it already.
#   Damping must then be $N\lambda$.
# - **Strong words.** "The influence of image 7" sounds like a fact about the image. It is a statement about one model's
#   neighbourhood.
#
# ## Exercises

# %% [markdown]
# :::{exercise} The longer step · 10 minutes · ★
# :label: ex-leverage
# Write `loo_predictions(features, targets, decay)`. It returns, for each training row, the change of its *own* prediction
# when that row is left out of the ridge regression of this chapter. Use one solve, no loop. Then run
# `di.checks.leave_one_out(loo_predictions)`.
# :::
#
# :::{solution-start} ex-leverage
# :label: sol-leverage
# :class: dropdown
# :::

# %%
pass

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Write it yourself · 15 minutes · ★★
# :label: ex-influence
# Write `my_influence(query_gradients, image_gradients, curvature, damping)`. It takes `[Q, P]`, `[N, P]`, `[P, P]` and a number, and
# returns scores `[Q, N]`. Then run `di.checks.influence(my_influence)`.
# :::
#
# :::{solution-start} ex-influence
# :label: sol-influence
# :class: dropdown
# :::

# %%
pass

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} $1/N$ or $1/(N-1)$? · 15 minutes · ★★
# :label: ex-count
# If you leave out an image, do you minimise $\tfrac1N\sum_{j\neq n}\ell_j$ or $\tfrac{1}{N-1}\sum_{j\neq n}\ell_j$? (i) Show
# that for the toy it makes no difference. (ii) Take one Newton step from a point that is *not* a minimum, with the gradient of
# either. What do the two steps differ by, and why does it change no ranking of images? (iii) When does it make a difference
# even at the minimum?
# :::
#
# :::{solution-start} ex-count
# :label: sol-count
# :class: dropdown
# :::

# %% [markdown]
# (i) The two objectives are multiples of each other, so they have the same minimum.
#
# (ii) Away from a minimum $\nabla L \neq 0$. With $1/N$ the gradient of what is left is $\nabla L - \tfrac1N\nabla\ell_n$. With
# $1/(N-1)$ it is $\tfrac{N}{N-1}$ times that. In both a part $\nabla L$ is the same for every image: it is the training going on, and it
# adds the same number to all scores of a query. What is left differs by the factor $\tfrac{N}{N-1}$, the same for all images.
#
# (iii) With weight decay. Dividing by $N-1$ makes the data count more against the decay, by one part in $N$.

# %%
point = theta_toy = trained(equal, x) + 0.1
hessian, mean_gradient = toy_hessian(x).mean(0), toy_gradient(point, x).mean(0)
each = toy_gradient(point, x)
rate = toy_gradient(point, query)
with_n = -torch.linalg.solve(hessian, (mean_gradient - each / len(x)).T).T @ rate
with_less = -torch.linalg.solve(hessian, ((len(x) * mean_gradient - each) / (len(x) - 1)).T).T @ rate
spread = (with_less - with_less.mean()) / (with_n - with_n.mean())
print(f"after the common part is taken off, the ratio is {spread.min():.6f} to {spread.max():.6f}: N/(N-1) = {30 / 29:.6f}")
torch.testing.assert_close(spread, torch.full_like(spread, 30 / 29))

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Influence functions for networks: {cite}`koh2017understanding`. The proximal question: {cite}`bae2022influence`. For diffusion
# models: {cite}`mlodozeniec2025influence`.
