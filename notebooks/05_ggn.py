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
# # The GGN two ways
#
# :::{admonition} In this chapter
# :class: tip
# An influence function divides by a Hessian. You see why nobody wants the true one, and take it apart into a piece to
# keep and a piece to drop. You do so twice, for there are two places to cut. You build both matrices from scratch, watch
# them along a training run, and learn how far a damping can be carried from one to the other.
#
# *30 minutes to read · two cores: about 55 seconds · builds on {doc}`04_influence`*
# :::

# %% tags=["hide-input"]
import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()

# %% [markdown]
# ## Why you need it
#
# {doc}`04_influence` left you with a formula that divides by $H$, the matrix of second derivatives of the training loss.
# Dividing is safe as long as all its eigenvalues are positive, as they are at the bottom of a bowl. There every direction
# leads up. A trained network stops *near* a minimum at best.
#
# Take the smallest network with two layers: $f = b\,w\,x$, one weight after the other, with $x = 1$. The weights are
# $w = 1$ and $b = 2$, so it says 2. Its loss is $(f - y)^2$ for some target $y$. **Before you run the cell:** the loss is a
# square. Can its second derivatives have a negative eigenvalue?


# %%
def product(weights):
    w, b = weights
    return w * b


# %%
at = torch.tensor([1.0, 2.0])
rows = []
for y in (2.0, 3.0, 6.0, 8.0):
    H = hessian(lambda weights, y=y: (product(weights) - y).square())(at)
    least, largest = torch.linalg.eigvalsh(H).tolist()
    row = {"target y": y, "y − f": y - product(at).item()}
    rows.append(row | {"least": least, "largest": largest})
di.tables.table(
    rows, caption="The two eigenvalues of the Hessian in $(w, b)$."
)

# %% [markdown]
# It can. If you said no, you thought of the square as a function of $f$. In $f$ it is a bowl; in the weights it is
# whatever $f$ makes of it. With a target of 8 one direction curves *down*. Dividing by a negative eigenvalue turns that part
# of every score around. With a target of 2 or 6 an eigenvalue is zero, and there is nothing to divide by.
#
# The table shows a second fault: the Hessian follows the target. Targets of a diffusion model are random noise, so part of
# what you invert is chance. And there is a third, for the next chapters: it is far too large. This chapter removes the first two.
#
# ## Keep what the first derivatives explain
#
# Write the loss of one draw as two functions, one after the other. The network turns weights into an output $f$ of $C$
# numbers. The squared error turns the output into a loss, $\ell = \tfrac1C \lVert f - y \rVert^2$, where $y$ is the target.
# The chain rule, used twice, gives two terms:
#
# $$ \begin{aligned} \nabla^2 \ell \;=\; {}& \underbrace{J^\top\, (\nabla_f^2 \ell)\; J}_{\text{Gauss-Newton}} \\ &+\; \underbrace{\sum_{c=1}^{C} \frac{\partial \ell}{\partial f_c}\, \nabla^2 f_c}_{\text{remainder}} \end{aligned} $$ (eq-split)
#
# $J$ is the **Jacobian**: one row for each output, one column for each weight. The first term is the curvature of the
# *loss*, seen through first derivatives of the network. The second is the curvature of the *network*, weighted by
# how wrong each output is.
#
# :::{admonition} Step by step
# :class: dropdown
# The gradient in weight $i$ is $\partial_i \ell = \sum_c \frac{\partial \ell}{\partial f_c}\, \partial_i f_c$, which is
# $J^\top \nabla_f \ell$. Differentiate in weight $j$. The product rule gives
#
# $$ \partial_j \partial_i \ell = \sum_{c, d} \frac{\partial^2 \ell}{\partial f_c \partial f_d}\, \partial_j f_d\, \partial_i f_c + \sum_c \frac{\partial \ell}{\partial f_c}\, \partial_j \partial_i f_c . $$
#
# The first sum is entry $(i, j)$ of $J^\top (\nabla_f^2 \ell) J$, the second that of the remainder. Nothing was dropped.
# :::
#
# For our loss $\nabla_f \ell = -\tfrac2C\, e$ with the **residual** $e = y - f$, and $\nabla_f^2 \ell = \tfrac2C I$. Keep the first
# term, average over examples and draws, and you have the **generalised Gauss-Newton matrix**,
# or GGN {cite}`martens2020natural`. Mlodozeniec et al. {cite}`mlodozeniec2025influence`, *the paper* from here on, call it
# GGN{sup}`model`:
#
# $$ F = \frac2C\; \mathbb{E}\bigl[ J^\top J \bigr] $$ (eq-ggn)
#
# $\mathbb{E}$ is the mean over all $N$ training images and the $S$ draws of each. Draws count alike here; where a rule gives
# them weights, each counts by its own. Back to the two weights. Here $C = 1$, $J = (b, w) = (2, 1)$, and the output's own second derivative is 1 off the diagonal and 0 on it.

# %%
J = torch.tensor([[2.0, 1.0]])
ggn = 2 * J.T @ J
crossed = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
for y in (2.0, 3.0, 6.0, 8.0):
    H = hessian(lambda weights, y=y: (product(weights) - y).square())(at)
    torch.testing.assert_close(ggn - 2 * (y - 2) * crossed, H)
print("kept for every target:", ggn.tolist())

# %% [markdown]
# Both faults are gone from what we kept. It holds no $y$. And $v^\top F v$ is $\tfrac2C$ times the mean of
# $\lVert Jv \rVert^2$, which is never negative. (A single draw with one output has rank 1, so one eigenvalue is 0 here.
# More draws raise the rank, not always to the full, and damping does the rest.)
#
# ## When is nothing lost?
#
# The remainder vanishes in three cases.
#
# 1. **The network is linear in its weights.** Then $\nabla^2 f_c = 0$. The denoiser $wx_t + b$ of {doc}`02_ddpm` is of this kind.
# 2. **Every residual is zero.** A denoiser never gets there, for part of the noise cannot be told from the data.
# 3. **The network is the best possible denoiser.** Its residuals are not zero, but their *mean* is, for each $x_t$.
#
# The third case is the reason to hope. It works because the gradient of a squared error is linear in the target. The best guess of $y$ is its conditional mean,
# $f = \mathbb{E}[y \mid x_t]$, so $\mathbb{E}[e \mid x_t] = 0$. In the remainder $\nabla^2 f_c$ depends on $x_t$ and the weights but not on
# $y$. Average over $y$ first, and every term is zero.
#
# Here is a nonlinear denoiser for which that can be checked. Data are $x = \pm 1$, equally often. With
# $x_t = s_t\,x + n_t\,\varepsilon$ and $s_t^2 + n_t^2 = 1$, here at $t = 300$, the best guess of the *image* is $\tanh(s_t\,x_t / n_t^2)$, because the log-odds of $+1$ against
# $-1$ are $2 s_t\,x_t / n_t^2$. So $f = b \tanh(w x_t)$ is exactly right at $w = s_t/n_t^2$, $b = 1$. (Guessing the image is as good as
# guessing the noise: one follows from the other.)


# %%
def line(weights, state):
    return weights[0] * state + weights[1]


def tanh(weights, state):
    return weights[1] * torch.tanh(weights[0] * state)


# %%
kept = di.Process().alphas_cumprod[300]
s, n = kept.sqrt(), (1 - kept).sqrt()
nodes, mass = np.polynomial.hermite_e.hermegauss(80)
eps = torch.from_numpy(nodes)  # integrates to rounding
mass = torch.from_numpy(mass / mass.sum()).repeat(2) / 2
x = torch.ones(80, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])
state, target = (s * x + n * eps).flatten(), x.flatten()

# %%
best = torch.stack([s / n**2, torch.ones_like(s)]).double()


def loss(weights):
    return (mass * (tanh(weights, state) - target).square()).sum()


J = jacrev(tanh)(best, state)
ggn = 2 * J.T @ (mass.unsqueeze(1) * J)
torch.testing.assert_close(grad(loss)(best), torch.zeros(2).double())
torch.testing.assert_close(hessian(loss)(best), ggn)
print(f"loss of the best denoiser: {loss(best):.3f}")
print("GGN, and Hessian:", ggn.numpy().round(4).tolist())

# %% [markdown]
# The loss is far from zero and the network far from linear, and the two matrices agree to float64 accuracy: the
# assertions passed. For a real network this is an ideal. It holds for the best denoiser of the true distribution of
# images, with the mean taken over that distribution and not over 300 images. You will see below how near a training run comes.
#
# ## From scratch, on a network
#
# A U-Net with five convolutions keeps everything exact and quick. It sees the noisy digit and the time, goes down to 4×4
# pixels, and comes back up.


# %%
class TinyUNet(nn.Module):
    def __init__(self, act=nn.functional.silu, wide=3, deep=4):
        super().__init__()
        self.act = act
        self.first = nn.Conv2d(2, wide, 3, padding=1)
        self.down = nn.Conv2d(wide, deep, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(deep, deep, 3, padding=1)
        self.up = nn.Conv2d(deep + wide, wide, 3, padding=1)
        self.last = nn.Conv2d(wide, 1, 3, padding=1)

    def forward(self, noisy, timesteps):
        time = timesteps.view(-1, 1, 1, 1) / 500 - 1
        both = torch.cat([noisy, time.to(noisy).expand_as(noisy)], 1)
        fine = self.act(self.first(both))
        coarse = self.act(self.middle(self.act(self.down(fine))))
        wider = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.last(self.act(self.up(torch.cat([fine, wider], 1))))


# %%
preset = di.with_options(
    di.get_preset("digits"),
    {"training.learning_rate": 1e-2, "training.lr_schedule": "constant"},
)
data = di.load_dataset(preset.dataset)


# %%
def trained(steps, act=nn.functional.silu):
    torch.manual_seed(0)
    model = di.Denoiser(TinyUNet(act), preset.process)
    if steps == 0:
        return model
    config = di.with_options(preset, {"training.steps": steps}).training
    return di.train(model, data.train, config, progress=False).model


# %%
def draws_of(model, images, count, purpose):
    expectation = di.Expectation(di.DrawConfig(count), purpose)
    return next(iter(expectation.batches(model, images, 10_000)))


model = trained(300)
few = draws_of(model, data.train.subset(slice(0, 16)), 4, "curvature")
weights = sum(weight.numel() for weight in model.network.parameters())
print(f"{weights} weights; {len(few.images)} draws of 16 digits")

# %% [markdown]
# A digit has 8×8 pixels. For every draw we want all of $J$: 64 outputs, one row each. `torch.func` gives it in one call. The rest of the cell only
# puts the columns in the library's order, where a bias is the last column of its layer. Then the GGN is one line.


# %%
def jacobians(model, batch):
    """J of every draw, [draws, C, weights]."""
    given = {k: v.detach() for k, v in model.network.named_parameters()}

    def output(given, state, t):
        one = (state.unsqueeze(0), t.unsqueeze(0))
        return functional_call(model.network, given, one).flatten()

    found = vmap(jacrev(output), (None, 0, 0))(
        given, batch.state, batch.timesteps
    )
    layers = [name for name, _ in model.network.named_children()]
    return torch.cat(
        [torch.cat([found[f"{name}.weight"].flatten(3),
                    found[f"{name}.bias"].unsqueeze(-1)], -1).flatten(2)
         for name in layers], -1,
    )  # fmt: skip


# %%
def ggn_model(J):
    draws, C, _ = J.shape
    return 2 / C * torch.einsum("dcp,dcq->pq", J, J) / draws


# %% [markdown]
# :::{admonition} Checkpoint
# Our one line passes the check, and equals the library's matrix, which curvlinops computes without ever storing $J$.
# :::

# %%
J = jacobians(model, few)
F = ggn_model(J)
operator = di.curvature.ggn_operator(model, few)
torch.testing.assert_close(
    F, di.curvature.to_dense(operator), rtol=1e-3, atol=1e-4
)
di.checks.ggn(ggn_model)

# %% [markdown]
# ## Labels instead of outputs
#
# $J$ costs one backward pass for each output: 64 here, 3,072 on CIFAR. There is a cheaper way in, and it explains why
# people also call this matrix a Fisher.
#
# Backpropagation gives $J^\top v$ for any one vector $v$ in one pass. If $v$ is random with
# $\mathbb{E}[v v^\top] = \tfrac2C I$, then $\mathbb{E}[J^\top v\, v^\top J]$ is exactly {eq}`eq-ggn`. Where could such a $v$ come from? From the model itself.
# Read the loss as minus a log-probability of the target, $p(y \mid f) \propto \exp(-\tfrac1C \lVert f - y \rVert^2)$. That is a
# Gaussian around $f$. **Guess before you read on:** what is its variance?
#
# A Gaussian with variance $\sigma^2$ has the exponent $-\tfrac{1}{2\sigma^2} \lVert f - y \rVert^2$. So $2\sigma^2 = C$, and
#
# $$ y \sim \mathcal{N}\bigl(f,\; \tfrac C2 I\bigr). $$ (eq-labels)
#
# If you said 1, you thought of standard noise. If ½, you thought of a sum: that is the paper's formula, whose
# loss has no $1/C$. With 64 pixels the variance is 32, so such a **label** is nothing like real noise. It is only a
# means to
# the matrix. Write $y = f + \sqrt{C/2}\; z$ with $z$ standard normal. The loss gradient at this label is
#
# $$ \nabla \ell = \tfrac2C\, J^\top (f - y) = -\sqrt{\tfrac2C}\; J^\top z , $$ (eq-label-gradient)
#
# and the mean of its outer products is $\tfrac2C \mathbb{E}[J^\top J]$. The mean outer product of gradients at the model's *own* labels is
# called the **Fisher**; for squared errors it *is* the GGN {cite}`martens2020natural`.
#
# How many labels does that take? One label gives one outer product, and their mean has an error like any mean.
# For normal gradients with covariance $F$ the squared error of one is $\lVert F \rVert^2 + (\operatorname{tr} F)^2$ in
# the Frobenius norm, and
# the mean over labels divides it by their number. Relative to $\lVert F \rVert^2$ that is one more than $(\operatorname{tr} F)^2 / \lVert F \rVert^2$, the *effective
# number of directions* of $F$. So you need many more labels than directions that matter, which can be far fewer than weights.
#
# :::{admonition} Step by step
# :class: dropdown
# Let $g \sim \mathcal{N}(0, F)$. One outer product $gg^\top$ has mean $F$, so its squared error is
# $\mathbb{E}\lVert gg^\top \rVert^2 - \lVert F \rVert^2$. The first term is $\mathbb{E}\bigl[(g^\top g)^2\bigr]$: mean of $g^\top g$
# squared, $(\operatorname{tr} F)^2$, plus its variance, $2 \lVert F \rVert^2$. Together
# $\lVert F \rVert^2 + (\operatorname{tr} F)^2$, and independent labels divide it by their number. With one label for each draw the gradients
# are a mixture of Gaussians, so for us it is a rule of thumb.
# :::

# %%
effective = (F.trace() / F.norm()).square().item()
generator = torch.Generator().manual_seed(0)
rows = []
for labels in (1, 4, 16, 64):
    z = torch.randn(labels, *J.shape[:2], generator=generator)
    g = (2 / J.shape[1]) ** 0.5 * torch.einsum("dcp,ldc->ldp", J, z)
    g = g.flatten(0, 1)  # one gradient for each draw and label
    error = (g.T @ g / len(g) - F).norm() / F.norm()
    rule = ((1 + effective) / len(g)) ** 0.5
    rows.append({"labels a draw": labels, "gradients": len(g),
                 "error, %": di.tables.percent(error),
                 "by the rule, %": di.tables.percent(rule)})  # fmt: skip
    assert 0.5 < error / rule < 2
print(f"{effective:.0f} effective directions of {len(F)}")
di.tables.table(rows)

# %% [markdown]
# Gradients count, whether they come from more labels or more draws. More draws are the better buy, since they
# average over images and noise too. The library therefore takes one label a draw by default. `sampled_labels` and
# `exact_labels` of `di.CurvatureConfig` change that.
#
# ## The same loss, cut elsewhere
#
# Equation {eq}`eq-split` needs an inner and an outer function. Nothing says that the cut must be at the network's output.
# The paper's appendix G compares with a cut at another place: the inner function is the probability $p = e^{-\ell}$, a single number, and
# the outer one is $-\log p$. The chain rule is as valid here. The inner Jacobian is $-p\,\nabla\ell^\top$, the second
# derivative of $-\log p$ is $1/p^2$, and the first term becomes
#
# $$ \mathbb{E}\bigl[\nabla\ell\; \nabla\ell^\top\bigr]. $$ (eq-ggn-loss)
#
# The paper calls it GGN{sup}`loss`. It is the Fisher's formula with *real* targets in place of the model's labels, hence its
# common name **empirical Fisher**. It costs one backward pass for each draw, as the Fisher does with one label,
# and needs no labels. So is it a good stand-in for the Hessian? Both splits start from an identity. What matters is what they drop. Here it is
# $\nabla^2\ell - \nabla\ell\,\nabla\ell^\top$, and nothing makes that small.
#
# A sign of trouble: take $p = e^{-7\ell}$ and $-\tfrac17 \log p$. That is the same loss, but now the first term is
# $7\,\nabla\ell\,\nabla\ell^\top$, and any other number would have done. **GGN{sup}`loss` has no scale of its own.** How large is it
# beside GGN{sup}`model`? Put in $\nabla\ell = -\tfrac2C J^\top e$:
#
# $$ \nabla\ell\;\nabla\ell^\top = \tfrac{4}{C^2}\; J^\top e\, e^\top J . $$ (eq-residuals)
#
# Suppose that residuals had mean zero, were independent of each other and of $J$, and all had one variance. That
# variance would be their mean square, which is the loss ($\ell$ is now the mean over all draws). Then
# $\mathbb{E}[ee^\top] = \ell\, I$, and
#
# $$ \text{GGN}^{\text{loss}} = \kappa\; \text{GGN}^{\text{model}}, \qquad \kappa = \frac{2\,\ell}{C} . $$ (eq-kappa)
#
# The two agree where $\ell = C/2$, that is, where real targets scatter as widely around $f$ as the model's own labels do. A
# trained denoiser scatters far less.
#
# **Two matrices go under this name.** *Per draw* takes an outer product for each draw, as in {eq}`eq-ggn-loss`. *Per
# example* averages an image's gradient over its draws first, $\bar g_n$, and takes the outer product after that. TRAK's Gram
# matrix is of this kind {cite}`park2023trak`. They differ by what averaging removes, the scatter of an image's
# gradients over its own draws:
#
# $$ \underbrace{\tfrac{1}{NS} \sum_{n,s} g_{ns}\, g_{ns}^\top}_{\text{per draw}} = \underbrace{\tfrac1N \sum_n \bar g_n \bar g_n^\top}_{\text{per example}} + \tfrac{1}{NS} \sum_{n,s} (g_{ns} - \bar g_n)(g_{ns} - \bar g_n)^\top $$ (eq-total)


# %%
def curvatures(J, residuals, example):
    draws, C, _ = J.shape
    g = -2 / C * torch.einsum("dcp,dc->dp", J, residuals)
    of = [g[example == n].mean(0) for n in example.unique()]
    means = torch.stack(of)
    return {
        "model": ggn_model(J),
        "loss per draw": g.T @ g / draws,
        "loss per example": means.T @ means / len(means),
    }


# %%
def residuals(model, batch):
    with torch.no_grad():
        return (batch.target - model.predict(batch)).flatten(1)


def shown(name):
    kind, _, per = name.partition(" ")
    return f"GGN{{sup}}`{kind}` {per}".strip()


found = curvatures(J, residuals(model, few), few.example)
for per, name in (("draw", "per draw"), ("example", "per example")):
    torch.testing.assert_close(
        found[f"loss {name}"],
        di.curvature.dense_empirical_fisher(model, few, per=per),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip
scatter = found["loss per draw"] - found["loss per example"]
assert torch.linalg.eigvalsh(scatter.double()).min() > -1e-6


# %%
di.tables.table([
    {"matrix": shown(name), "trace": matrix.trace().item(),
     "rank": int(torch.linalg.matrix_rank(matrix, hermitian=True)),
     "rank at most": min(weights, limit)}
    for (name, matrix), limit in zip(
        found.items(), (64 * 64, 64, 16), strict=True)
], caption="Three matrices of the same 64 draws.")  # fmt: skip

# %% [markdown]
# The rank counts the eigenvalues above float32's rounding, so in the first two rows it falls short of what is possible. A
# draw adds up to $C$ directions to GGN{sup}`model`, one to GGN{sup}`loss` per draw, and none of its own per example. The digits'
# training set has 300 images, so there GGN{sup}`loss` per example has at most 300 directions. In all others it is zero, and only
# the damping is left.
#
# **Per example depends on the number of draws.** Each mean still holds part of the scatter, $1/S$ of it where draws are
# independent. So fewer draws make a larger matrix. Here are the same 16 digits with more:


# %%
def mean_gradients(images, count, purpose="curvature"):
    """Each the mean over an image's draws, [weights, images]."""
    batch = draws_of(model, images, count, purpose)
    found = di.curvature.example_gradients(model, batch)
    return di.curvature.flatten_layers(found)


traces = {}
for count in (4, 8, 32, 128):
    g = mean_gradients(data.train.subset(slice(0, 16)), count)
    traces[count] = g.square().sum(0).mean().item()
di.tables.table(
    [{"draws S": count, "trace": trace} for count, trace in traces.items()],
    caption="GGN{sup}`loss` per example.",
)

# %%
torch.testing.assert_close(
    traces[4], found["loss per example"].trace().item(), rtol=1e-3, atol=0
)
assert 0.3 < traces[128] / traces[4] < 0.4
assert traces[32] / traces[8] < 0.7 < 0.85 < traces[128] / traces[32]

# %% [markdown]
# It falls to about a third, mostly within 32 draws. The other two matrices do not depend on $S$, but for chance.
#
# ## Five bowls
#
# Now look at all of them. Take a step $u$ from the present weights. A matrix $F$ says that curvature adds
# $\tfrac12 u^\top F u$ to the loss; the gradient's part is left out. Each curve joins the steps for which this is 0.1, so
# a wide ellipse is a matrix that thinks the bowl is flat. The line of {doc}`02_ddpm` guesses the noise, the tanh guesses
# the image. Data are 30 numbers with $S = 64$ draws each.

# %% tags=["hide-input"]
spread = torch.Generator().manual_seed(0)
normal = torch.randn(30, 33, generator=spread, dtype=torch.float64)
of_pairs = torch.cat([normal[:, 1:], -normal[:, 1:]], 1)  # antithetic
sides = torch.tensor([1.0, -1.0]).repeat(15).unsqueeze(1)
toys = {}
for network, points in (
    (line, 0.5 + 0.2 * normal[:, :1]),
    (tanh, sides + 0.3 * normal[:, :1]),
):
    state = (s * points + n * of_pairs).flatten()
    images = points.expand(30, 64).flatten()
    target = of_pairs.flatten() if network is line else images
    toys[network.__name__] = (network, state, target)


def loss_of(toy):
    network, state, target = toys[toy]
    return lambda weights: (network(weights, state) - target).square().mean()


# %% tags=["hide-input"]
def optimum(of):
    weights = torch.full((2,), 0.9, dtype=torch.float64)
    for _ in range(50):  # Newton
        step = torch.linalg.solve(hessian(of)(weights), grad(of)(weights))
        weights = weights - step
    return weights


optima = {toy: optimum(loss_of(toy)) for toy in toys}
from_image = torch.arange(30).repeat_interleave(64)
labelled = torch.randperm(1920, generator=spread)
z = torch.randn(1920, 1, generator=spread, dtype=torch.float64)
counts = (4, 16, 64, 256, 1024)
distances = [tenth / 10 for tenth in range(9)]


# %% tags=["hide-input"]
def bowls(toy, distance):
    network, state, target = toys[toy]
    weights = (1 - distance) * optima[toy]
    J = vmap(jacrev(network), (None, 0))(weights, state).unsqueeze(1)
    e = (target - network(weights, state)).unsqueeze(1)
    g = 2**0.5 * (z * J.squeeze(1))[labelled]
    fishers = [g[:count].T @ g[:count] / count for count in counts]
    own = curvatures(J, e, from_image).values()
    kappa = 2 * e.square().mean()
    H = hessian(loss_of(toy))(weights)
    return H, *own, torch.stack(fishers), kappa


grid = [[bowls(toy, away) for away in distances] for toy in toys]
H, model_bowl, per_draw, per_example, fishers, kappa = (
    torch.stack([torch.stack([cell[i] for cell in row]) for row in grid])
    for i in range(6)
)

# %% tags=["hide-input"]
MODEL, LOSS = "GGNᵐᵒᵈᵉˡ", "GGNˡᵒˢˢ"
angles = torch.linspace(0, 2 * torch.pi, 81, dtype=torch.float64)
ring = torch.stack([angles.sin(), angles.cos()])
along = torch.linspace(-4, 4, 40, dtype=torch.float64)
branch = torch.stack([along.sinh(), along.cosh()])
gap = torch.full((2, 1), torch.nan)
branches = torch.cat([branch, gap, -branch], 1)


def rim(name, matrices, *controls, bits=16):
    """Where half of u'Fu is 0.1: an ellipse, or a hyperbola."""
    bends, axes = torch.linalg.eigh(matrices)
    closed = (bends[..., :1] > 0).unsqueeze(-1)
    # beyond the frame the length of an axis is not seen
    radius = (0.2 / bends.abs().clamp(min=1e-4)).sqrt().unsqueeze(-1)
    places = axes @ (radius * torch.where(closed, ring, branches))
    x, y = (
        di.interactive.by(places[..., i, :], *controls, bits=bits)
        for i in range(2)
    )
    return di.interactive.Line(name, x, y)


# %% tags=["hide-input"]
def sizes_of(matrices):
    """As they are, over κ, and with the trace of GGN^model."""
    trace = torch.einsum("...ii", matrices)
    as_model = trace / torch.einsum("...ii", model_bowl)
    divisors = torch.stack([torch.ones_like(kappa), kappa, as_model], -1)
    return matrices.unsqueeze(2) / divisors[..., None, None]


by = di.interactive.by
toy = di.interactive.Choice("Network", ("line", "tanh"))
away = di.interactive.Slider("Distance from the optimum", distances)
asked = di.interactive.Slider("Labels", counts)
size = di.interactive.Choice(
    f"Scale of {LOSS}", ("its own", "over κ", f"trace of {MODEL}")
)

# %% tags=["hide-input"]
lines = [
    rim("Hessian", H, toy, away, bits=32),
    rim(MODEL, model_bowl, toy, away),
    rim("Fisher, sampled labels", fishers, toy, away, asked),
    rim(f"{LOSS} per draw", sizes_of(per_draw), toy, away, size),
    rim(f"{LOSS} per example", sizes_of(per_example), toy, away, size),
]
least = {"Hessian": H, MODEL: model_bowl}
numbers = di.interactive.Readouts(
    {"loss": by(kappa / 2, toy, away), "κ = 2ℓ/C": by(kappa, toy, away)}
    | {f"least eigenvalue, {name}":
       by(torch.linalg.eigvalsh(matrices)[..., 0], toy, away)
       for name, matrices in least.items()}
)  # fmt: skip

# %% [markdown]
# The slider for the distance shrinks both weights from the optimum towards $w = b = 0$, up to four fifths of the way. **Guess first:** which of the five curves will change along the way when the network is a line?

# %% tags=["hide-input"]
at_best = {"Network": "line", "Distance from the optimum": 0.0,
           "Labels": 256, size.name: "its own"}  # fmt: skip
points = {
    "at the optimum": (
        {}, f"Hessian and {MODEL} are one curve. Both {LOSS} are far too "
        "wide: residuals are small, and gradients with them."),
    "over κ": (
        {size.name: "over κ"}, "Divided by κ, per draw falls onto the "
        "others. Per example is still too wide, and of another shape."),
    "equal traces": (
        {size.name: size.options[2]}, f"With the trace of {MODEL} per "
        "example is too narrow one way and too wide the other."),
    "few labels": (
        {"Labels": 4}, "Four labels make a rough guess. Move the slider."),
    "far away": (
        {"Network": "tanh", "Distance from the optimum": 0.6},
        "The Hessian opens: in some directions its quadratic curves down. "
        f"{MODEL} never does; its ellipse is only long."),
}  # fmt: skip

# %% tags=["hide-input"]
drawing = di.interactive.Lines(
    lines, x_label="change of w", y_label="change of b", equal=True,
    height=380, limits=((-1.8, 1.8), (-1.4, 1.4)),
    alternative="Curves of equal curvature around the present weights: "
    "Hessian, GGN of the model, sampled Fisher, GGN of the loss per draw "
    "and per example",
)  # fmt: skip
di.interactive.Together(
    [drawing, numbers],
    start=at_best,
    presets=[
        di.interactive.Preset(name, at_best | changed, note)
        for name, (changed, note) in points.items()
    ],
    caption="Where the quadratic part of five matrices reaches 0.1.",
)

# %% [markdown]
# For the line, Hessian and GGN{sup}`model` do not move at all, for neither knows the weights or the targets. Both
# GGN{sup}`loss` matrices grow with the residuals, so their curves shrink. If you expected the Fisher to move, note that its
# labels come from the model and always scatter alike.
#
# For the tanh the Hessian turns away from GGN{sup}`model` with the distance, until an eigenvalue falls below zero and the ellipse
# breaks open. At the optimum the two nearly agree: our tanh is almost the best denoiser of these numbers.

# %%
torch.testing.assert_close(H[0], model_bowl[0])  # the line, all along
scaled = per_draw[0, 0] / kappa[0, 0]
apart = [(other - H[0, 0]).norm() / H[0, 0].norm()
         for other in (scaled, per_example[0, 0] / kappa[0, 0])]  # fmt: skip
assert apart[0] < 0.1 < 0.4 < apart[1]
off = (model_bowl[1] - H[1]).norm(dim=(1, 2)) / H[1].norm(dim=(1, 2))
assert off[0] < 0.01 and H[1, 6].det() < 0 < H[1, 5].det()
di.tables.table([
    {"distance": distances[d], "GGN off, %": di.tables.percent(off[d])}
    for d in (0, 1, 2, 4, 6)
], caption="Tanh: relative distance of GGN{sup}`model` from the Hessian."
)  # fmt: skip

# %% [markdown]
# ## Along a training run
#
# Two weights are not a network. So take the small U-Net, before training and after 10, 30, 100 and 300 steps, and compute
# both matrices in full. The **negative mass** is the share that negative eigenvalues have in the sum of all absolute ones: 0 for
# a bowl, ½ for a perfect saddle. **Guess:** how much of it is there before training, and how much is left at the end?

# %%
shares, ratios, spectra = [], {}, {}
for steps in (0, 10, 30, 100, 300):
    model = trained(steps)
    J, e = jacobians(model, few), residuals(model, few)
    F, per_draw, _ = curvatures(J, e, few.example).values()
    H = di.curvature.dense_hessian(model, few)
    bends = torch.linalg.eigvalsh(H.double())
    spectra[steps] = {
        "Hessian": bends,
        MODEL: torch.linalg.eigvalsh(F.double()),
    }
    loss = e.square().mean().item()
    down = -bends.clamp(max=0).sum() / bends.abs().sum()
    shares.append({
        "steps": steps, "loss": loss, "tr H": H.trace().item(),
        "tr GGN": F.trace().item(),
        "‖GGN‖": F.norm().item(), "‖H − GGN‖": (H - F).norm().item(),
        "negative, %": di.tables.percent(down, digits=2),
    })  # fmt: skip
    ratios[steps] = (per_draw.trace() / F.trace()).item()
di.tables.table(
    shares, caption="Hessian and GGN{sup}`model`; last, the negative mass."
)

# %% mystnb={"image": {"alt": "Two panels of eigenvalues by rank. Before training the Hessian has as much below zero as above, and the GGN only positive ones; after 300 steps the two curves lie on each other but for a short tail below zero"}, "figure": {"caption": "All eigenvalues by rank. Linear within a thousandth of the largest, logarithmic beyond.", "name": "fig-spectra"}} tags=["hide-input"]
figure, panels = di.figures.subplots(1, 2, figsize=(7, 2.8))
for panel, steps in zip(panels, (0, 300), strict=True):
    for (name, values), colour in zip(
        spectra[steps].items(),
        (di.figures.BLUE, di.figures.VERMILION),
        strict=True,
    ):
        panel.plot(
            values.flip(0),
            "--" if name == "Hessian" else "-",
            color=colour,
            label=name,
        )
    panel.set_yscale(
        "symlog", linthresh=values.max().item() / 1000, linscale=1.5
    )
    panel.set(title=f"{steps} steps", xlabel="rank")
panels[0].set_ylabel("eigenvalue")
panels[1].legend()
figure

# %% [markdown]
# Before training the Hessian is nearly a saddle, and the remainder is almost as large as the GGN. After 300 steps all but a sliver of
# its mass is positive. If you guessed that the remainder goes away, look at the norms: it only halves, while the GGN grows
# twelvefold. As the network learns, its outputs become more sensitive to its weights, and that is what $J^\top J$
# measures.
#
# Some of what is left is chance. For the best denoiser the remainder is zero *on average*, and 64 draws are few. Here is the last
# row again with 256 draws of 64 digits, the first 16 among them. How far the four quarters scatter around their mean tells
# what endless draws would leave: from the mean's squared norm take a twelfth of the sum of their squared distances.

# %%
more = draws_of(model, data.train.subset(slice(0, 64)), 4, "curvature")
parts = [more.rows(slice(k, k + 64)) for k in range(0, 256, 64)]
torch.testing.assert_close(parts[0].state, few.state)  # H is known
hessians = [H] + [di.curvature.dense_hessian(model, p) for p in parts[1:]]
Js = jacobians(model, more).split(64)
rests = [H - ggn_model(J) for H, J in zip(hessians, Js, strict=True)]

# %%
H, rest = sum(hessians) / 4, sum(rests) / 4
chance = sum((one - rest).square().sum() for one in rests) / 12
stays = (rest.square().sum() - chance).sqrt().item()
bends = torch.linalg.eigvalsh(H.double())
down = -bends.clamp(max=0).sum() / bends.abs().sum()
left = {
    "draws": "256",
    "‖GGN‖": (H - rest).norm().item(),
    "‖H − GGN‖": rest.norm().item(),
    "negative, %": di.tables.percent(down, digits=2),
}
before = {"draws": "64"} | {name: shares[-1][name] for name in list(left)[1:]}
di.tables.table(
    [before, left, {"draws": "endless, estimated", "‖H − GGN‖": stays}],
    caption="After 300 steps.",
)

# %% [markdown]
# The remainder and the negative mass shrink with more draws, and the GGN stays. Pure chance would have halved the
# remainder. It lost a fifth, and by the estimate most of it would stay, for this network is not the best denoiser. Still,
# the Hessian of a few draws looks worse than the one that you want.
#
# Look at the traces, though. They agree *from the first row on*, when the matrices have little to do with each other.
# Had you judged the GGN by its trace, you would have been fooled: what the remainder adds in one direction it takes
# away in another. {ref}`ex-relu` shows why.
#
# And GGN{sup}`loss`? Equation {eq}`eq-kappa` says that its trace is $\kappa$ times that of GGN{sup}`model`:

# %%
scales = [
    {"steps": row["steps"], "κ, %": 100 * 2 * row["loss"] / 64,
     "ratio of traces, %": 100 * ratios[row["steps"]]}
    for row in shares
]  # fmt: skip
di.tables.table(
    scales, caption="GGN{sup}`loss` per draw over GGN{sup}`model`."
)

# %% [markdown]
# After the first steps the ratio falls with the loss, as $\kappa$ does, but less evenly, and it stays above. The assumptions
# behind $\kappa$ are wrong, and {ref}`ex-own` finds out which.
#
# These matrices are small enough to write down. For a large network one multiplies with them instead, and Lanczos'
# method finds the ends of the spectrum, or all of its outline (`di.curvature.eigenvalue_density`), from a few dozen
# products:

# %%
ends = {
    which: di.curvature.extreme_eigenvalues(
        di.curvature.hessian_operator(model, few), which=which, tolerance=1e-3
    ).item()
    for which in ("smallest", "largest")
}
wanted = spectra[300]["Hessian"][[0, -1]]
torch.testing.assert_close(
    torch.tensor(list(ends.values())).double(), wanted, rtol=1e-2, atol=1e-3
)
print({which: round(value, 3) for which, value in ends.items()})

# %% [markdown]
# ## One damping, two scales
#
# A score needs $(F + \lambda I)^{-1}$. If one matrix is $\kappa$ times another, the same scores up to a factor need a
# damping that is $\kappa$ times as large: $(\kappa F + \kappa\lambda I)^{-1} = \tfrac1\kappa (F + \lambda I)^{-1}$. So if you
# copy a $\lambda$ from GGN{sup}`model` to GGN{sup}`loss`, you damp $1/\kappa$ times more.
#
# Does the rule survive on a network, where {eq}`eq-kappa` holds only roughly? It speaks of per draw. For per example we have no
# formula, and only the ratio of traces to go by. Fix $\lambda$ at the mean eigenvalue of GGN{sup}`model`. Score the held-out
# digits with it, and again with each GGN{sup}`loss` at many dampings. Compare the orders. Per example comes twice, with
# $S = 8$ draws as the other two, and with 32.

# %%
train = data.train.subset(slice(0, 64))
batch = draws_of(model, train, 8, "curvature")
e = residuals(model, batch)
matrices = curvatures(jacobians(model, batch), e, batch.example)
g_train = mean_gradients(train, 32, "train").double()
g_query = mean_gradients(data.queries, 32, "queries").double()
means = mean_gradients(train, 32)  # other draws than those of the scores


# %%
def scores(F, damping):
    damped = F.double() + damping * torch.eye(len(F)).double()
    return g_query.T @ torch.linalg.solve(damped, g_train)


# %%
def agreement(first, second):
    """Spearman's correlation, mean over queries."""
    ranks = [m.argsort(1).argsort(1).double() for m in (first, second)]
    a, b = (nn.functional.normalize(r - r.mean(), dim=1) for r in ranks)
    return (a * b).sum(1).mean().item()


# %%
damping = matrices["model"].trace().item() / weights
reference = scores(matrices["model"], damping)
tried = damping * np.logspace(-5, 1, 25)
compared = {
    "per draw": matrices["loss per draw"],
    "per example, S = 8": matrices["loss per example"],
    "per example, S = 32": means @ means.T / len(train.images),
}
curves = {
    name: [agreement(reference, scores(F, one)) for one in tried]
    for name, F in compared.items()
}
dot_product = agreement(reference, g_query.T @ g_train)


# %%
def reached(name, place):
    """The agreement at a damping, between those tried."""
    return np.interp(np.log(place), np.log(tried), curves[name])


kappa_net = 2 * e.square().mean().item() / 64
by_kappa, rows, peaks, by_trace = kappa_net * damping, [], {}, {}
for name, F in compared.items():
    by_trace[name] = F.trace().item() / weights
    peaks[name] = tried[int(np.argmax(curves[name]))]
    rows.append({
        "GGN{sup}`loss`": name,
        "best": max(curves[name]), "at κλ": reached(name, by_kappa),
        "by traces": reached(name, by_trace[name]),
        "at λ": reached(name, damping),
        "best damping over κλ": peaks[name] / by_kappa,
        "over that by traces": peaks[name] / by_trace[name],
    })  # fmt: skip
di.tables.table(rows, caption="Agreement with GGN{sup}`model` at λ.")

# %% mystnb={"image": {"alt": "Three curves of rank correlation against the damping of GGN loss. All peak at a few times kappa lambda and are much lower at lambda itself, near the line of the plain dot product; dots at the damping by traces lie near the peak for per draw and far left of it for per example"}, "figure": {"caption": "Agreement of the scores with those of GGN$^{\\text{model}}$ at λ, against the damping of GGN$^{\\text{loss}}$. Dots: λ times the ratio of traces.", "name": "fig-matched"}} tags=["hide-input"]
figure, axes = di.figures.subplots(figsize=(5.5, 2.8))
colours = {
    "model": di.figures.VERMILION,
    "loss per draw": di.figures.PURPLE,
    "loss per example": di.figures.ORANGE,
}
for name, style in zip(curves, ("-", "-", "--"), strict=True):
    colour = colours["loss " + name.partition(",")[0]]
    axes.semilogx(tried, curves[name], style, color=colour, label=name)
    dot = by_trace[name]
    axes.plot(dot, reached(name, dot), "o", color=colour)
for place, name in ((by_kappa, "κλ "), (damping, "λ ")):
    axes.axvline(place, color=di.figures.GREY, linestyle=":")
    axes.text(place, 0.4, name, ha="right", color=di.figures.GREY)
axes.axhline(dot_product, color=di.figures.GREY, linewidth=1)
axes.text(tried[0], dot_product + 0.01, "dot product", color=di.figures.GREY)
axes.set(xlabel=f"damping of {LOSS}", ylabel="Spearman")
figure.legend(loc="outside upper center", ncols=3)
figure

# %% [markdown]
# For per draw it does. Both $\kappa\lambda$ and the damping by traces come within two hundredths of the peak. At $\lambda$ itself
# the agreement has fallen two thirds of the way to that of the plain dot product of gradients, and for per example nearly all
# the way. The peaks stay below 1, though. A factor mends the scale of GGN{sup}`loss`, not its shape.
#
# Per example is another matter. Its trace shrinks with $S$, but the best damping does not. So the damping by traces is ten to
# forty times too small here. A few $\kappa\lambda$ would be right, though no formula says so.
#
# :::{admonition} Checkpoint
# What this chapter says of its own numbers, as assertions.
# :::

# %% tags=["hide-input"]
first, *_, last = shares
assert first["negative, %"].value > 40 and last["negative, %"].value < 3
grown, shrunk = (last[name] / first[name] for name in list(left)[1:3])
assert 10 < grown < 15 and 0.3 < shrunk < 0.7
assert 0.75 < left["‖H − GGN‖"] / last["‖H − GGN‖"] < 0.85
assert 0.6 < stays / last["‖H − GGN‖"] < 0.8
assert left["negative, %"].value < 0.9 * last["negative, %"].value
for row, scale in zip(shares, scales, strict=True):
    assert abs(row["tr H"] / row["tr GGN"] - 1) < 0.1
    assert 1 < scale["ratio of traces, %"] / scale["κ, %"] < 3
later = [scale["ratio of traces, %"] for scale in scales[1:]]
assert later == sorted(later, reverse=True)

# %% tags=["hide-input"]
for name, values in curves.items():
    best, low = max(values), reached(name, damping)
    assert low + 0.15 < reached(name, by_kappa) and best < 0.95
    assert 1 < peaks[name] / by_kappa < 6
    lost = (best - low) / (best - dot_product)
    if name == "per draw":
        assert 0.6 < lost < 0.75
        assert (
            min(reached(name, by_kappa), reached(name, by_trace[name]))
            > best - 0.02
        )
    else:
        assert lost > 0.85 and reached(name, by_trace[name]) < best - 0.1
        assert 10 < peaks[name] / by_trace[name] < 40
few_draws, many_draws = list(curves)[1:]
assert by_trace[many_draws] < by_trace[few_draws]
assert peaks[many_draws] >= peaks[few_draws]

# %% [markdown]
# ## What retrained models say
#
# Does the choice matter for the question of this book, which images an answer comes from? The models of
# {doc}`01_quickstart` that were really retrained can tell. The **LDS** is the rank correlation of predicted with measured
# changes, averaged over queries; higher is better. Here are the scores of EK-FAC, the stand-in of the coming chapters, made
# for each of the three matrices, per example with $S = 30$. *LDS* and *difference* are at $\lambda = 10^{-8}$ for all. *Tuned*
# takes the damping that is best on one half of the retrained models and judges it on the other, so it can come out lower.
# Brackets hold 95 % intervals. **Guess:** is the order of the three the same in the columns *LDS* and *tuned*?

# %% tags=["hide-input"]
bundle = di.load_bundle("digits-curvatures")
partitions = {"model": "model", "loss_per_draw": "loss per draw",
              "loss_per_example": "loss per example"}  # fmt: skip
results = {
    (row["queries"], row["partition"]): row
    for row in bundle.metrics["results"]
    if (row["approximation"], row["sharing"]) == ("ekfac", "expand")
}


def gap(row):
    if "difference" not in row:
        return None
    ends = row["difference_interval"]
    return di.tables.percent(row["difference"], ends, signed=True)


# %% tags=["hide-input"]
percent = di.tables.percent
di.tables.table([
    {"queries": queries, "matrix": shown(partitions[partition]),
     "LDS, %": percent(row["lds"]),
     "difference": gap(row),
     "tuned, %": percent(row["tuned"], row["tuned_interval"])}
    for (queries, partition), row in results.items()
], source=bundle, caption="LDS on digits; the paired difference is that of "
   "the LDS to GGN{sup}`model`.")  # fmt: skip

# %% [markdown]
# It is not. At one $\lambda$ GGN{sup}`model` is ahead, as in the paper's appendix G. With a damping for each, per example passes it,
# for queries of both kinds, and per draw stays behind. (The intervals overlap, and the bundle holds no paired one for tuned values.
# Per example was best at the smallest damping tried, so it may not even be at its best.)
#
# Scale explains part of this: per example is still rising at $\lambda = 10^{-8}$. Per draw is flat there and stays
# lower; that is its shape. The digits' network has its own three traces. That of GGN{sup}`model` comes from the curvature of
# {doc}`01_quickstart`, those of the others from 64 of its images with 30 draws each, every gradient squared alone:

# %%
run = di.open_run(di.get_preset("digits"), progress=False)
digits, digit_images = di.runs.full_model(run).model, run.data.train


def trace_of(curvature):
    """Of all layers."""
    layers = curvature.layers.values()
    return sum(layer.corrected_eigenvalues.sum().item() for layer in layers)


whole, sizes = trace_of(di.runs.curvature_of_run(run)), {"model": 1.0}
for key, name in list(partitions.items())[1:]:
    config = di.with_options(run.preset, {
        "curvature.partition": key, "curvature.correction": "per_draw",
    }).curvature  # fmt: skip
    assert config.draws.count == 30
    some = digit_images.subset(slice(0, 64))
    sizes[name] = trace_of(di.fit_curvature(digits, some, config)) / whole

# %% tags=["hide-input"]
of_digits = di.measure(digits, digit_images, di.MeasurementConfig(
    draws=di.DrawConfig(4))).mean().item()  # fmt: skip
kappa_digits = 2 * of_digits / 64
rows = [{"matrix": shown(name), "trace over GGN{sup}`model`": ratio}
        for name, ratio in sizes.items()]  # fmt: skip
rows.append({"matrix": "κ", "trace over GGN{sup}`model`": kappa_digits})
di.tables.table(rows, caption="The network of 3s and 8s.")

# %% [markdown]
# ($\kappa$ is what the loss alone predicts for the second row; its trace is two to three times that.) So one $\lambda$ for all is
# three different dampings. Draw every curve against $\lambda$, and then against $\lambda$ over its matrix's trace:

# %% mystnb={"image": {"alt": "Two panels of LDS against damping for three matrices. On the left the curves of GGN loss fall at far smaller dampings than that of GGN model; on the right, against damping over trace, the three fall together, per draw a little lower"}, "figure": {"caption": "LDS of EK-FAC on held-out digits. Left, against the damping; right, against the damping divided by the trace relative to that of GGN$^{\\text{model}}$.", "name": "fig-collapse"}} tags=["hide-input"]
kinds = [(row["partition"], row["sharing"], row["approximation"])
         for row in bundle.metrics["results"]
         if row["queries"] == "held-out"]  # fmt: skip
by_kind = bundle.arrays["held-out/lds"].mean(-1).reshape(len(kinds), -1)
dampings = bundle.arrays["dampings"]
lds_of = {name: by_kind[kinds.index((key, "expand", "ekfac"))]
          for key, name in partitions.items()}  # fmt: skip
figure, panels = di.figures.subplots(1, 2, figsize=(7, 2.8), sharey=True)
for name, curve in lds_of.items():
    label = MODEL if name == "model" else name.replace("loss", LOSS)
    for panel, over in zip(panels, (1, sizes[name]), strict=True):
        panel.semilogx(
            dampings / over, 100 * curve, color=colours[name], label=label
        )
panels[0].set(xlabel="λ", ylabel="LDS, %")
panels[1].set(xlabel="λ over relative trace")
panels[0].legend(fontsize=8)
figure


# %%
def apart(name, factor):
    """Largest distance of the curves, where both are known."""
    own, of_model = np.log(dampings / factor), np.log(dampings)
    places = np.union1d(own, of_model)
    places = places[(places >= own[0]) & (places <= of_model[-1])]
    first = np.interp(places, own, lds_of[name])
    return np.abs(first - np.interp(places, of_model, lds_of["model"])).max()


di.tables.table([
    {"matrix": shown(name)} | {
        f"{what}, points": 100 * apart(name, factor) for what, factor in
        (("at λ", 1), ("over κ", kappa_digits), ("over trace", sizes[name]))
    } for name in list(sizes)[1:]
], caption="Largest distance in LDS from GGN{sup}`model`, held-out digits."
)  # fmt: skip

# %% [markdown]
# Divided by the trace, per example comes within two points of GGN{sup}`model`, and per draw within four. For per draw
# $\kappa$, made of the loss alone, does a little better. For per example it does not: there it is six times the trace.
#
# So either rule serves per draw on both networks. Per example obeys the traces here and came nearer to $\kappa\lambda$ on the
# U-Net, and we do not know why. (The question was not quite the same: there, the order of scores beside one
# $\lambda$; here, the LDS at many.) **In practice:** start at $\kappa\lambda$ for per draw. For per example try everything
# from $\lambda$ times the ratio of traces to a few $\kappa\lambda$.
#
# A comparison at one damping compares dampings too, not matrices alone. {doc}`../book/curvatures` has every choice at every
# damping.
#
# :::{admonition} Checkpoint
# The order of the table, and how near the curves come to each other.
# :::

# %% tags=["hide-input"]
for queries in ("held-out", "generated"):
    of = {name: results[queries, name] for name in partitions}
    assert all(row["difference"] < 0 for row in list(of.values())[1:])
    tuned = {name: row["tuned"] for name, row in of.items()}
    assert tuned["loss_per_example"] > tuned["model"]
    assert tuned["model"] > tuned["loss_per_draw"]

assert 2 < sizes["loss per draw"] / kappa_digits < 3
assert 5 < kappa_digits / sizes["loss per example"] < 7.5
for name in ("loss per draw", "loss per example"):
    assert apart(name, sizes[name]) < 0.04 < 0.2 < apart(name, 1)
assert apart("loss per example", sizes["loss per example"]) < 0.02
of_kappa = apart("loss per draw", kappa_digits)
assert of_kappa < apart("loss per draw", sizes["loss per draw"])
assert apart("loss per example", kappa_digits) > 0.05

# %% [markdown]
# ## Pitfalls
#
# - **"The Fisher" without saying whose labels.** With the model's own it is the GGN. With the data's it is another
#   matrix, which follows the residuals.
# - **"Empirical Fisher" without saying of what.** Per draw and per example differ in rank and shape, and share the name.
# - **Labels of variance 1.** For a mean over $C$ the matrix comes out $C/2$ times too small, and every damping $C/2$ times too large.
# - **A damping carried over.** It belongs to one matrix in one scale. GGN{sup}`loss` shrinks as residuals shrink, so the
#   $\lambda$ that suits it must shrink during training too. Per example also shrinks with more draws.
# - **Judging by traces.** They can agree where the matrices do not.
#
# ## Exercises

# %% [markdown]
# :::{exercise} The damping that goes along · by hand · 5 minutes · ★
# :label: ex-along
# A score is $\tfrac1N \nabla m^\top (F + \lambda I)^{-1} \nabla \ell$. (i) Replace $F$ by $\kappa F$. Which damping keeps the order of all scores, and by which factor do they change? (ii) A colleague's loss
# is the *sum* over the $C$ outputs, for training and for the measurement. What is the variance of the model's labels, how large
# is the GGN, and which damping keeps the order?
# :::
#
# :::{solution-start} ex-along
# :label: sol-along
# :class: dropdown
# :::
#
# (i) $\kappa\lambda$; scores become $1/\kappa$ times as large. (ii) The exponent is $-\lVert f - y \rVert^2$, so the variance is ½. The GGN is
# $2\,\mathbb{E}[J^\top J]$, $C$ times ours, and so is the damping. Both gradients grow by $C$ and the inverse shrinks by $C$, so scores are $C$ times as large.

# %%
F, g = matrices["model"].double(), 0.005
torch.testing.assert_close(scores(g * F, g * 0.1), scores(F, 0.1) / g)
C = 64
of_sums = C * C * scores(C * F, C * 0.1)  # both gradients C times
torch.testing.assert_close(of_sums, C * scores(F, 0.1))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} The scale of the labels · 10 minutes · ★★
# :label: ex-labels
# Write `my_fisher(jacobians, noise)`. It takes $J$ `[draws, C, weights]` and standard normal numbers `[labels, draws, C]`,
# makes labels of them as in {eq}`eq-labels`, and returns the mean outer product of the loss gradients at these. Then run
# `di.checks.sampled_fisher(my_fisher)`. It knows the usual mistakes; try one on purpose.
# :::
#
# :::{solution-start} ex-labels
# :label: sol-labels
# :class: dropdown
# :::


# %%
def my_fisher(jacobians, noise):
    C = jacobians.shape[1]
    f_minus_y = -((C / 2) ** 0.5) * noise
    gradients = 2 / C * torch.einsum("dcp,ldc->ldp", jacobians, f_minus_y)
    outer = torch.einsum("ldp,ldq->pq", gradients, gradients)
    return outer / (len(noise) * len(jacobians))


di.checks.sampled_fisher(my_fisher)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} A trace that sees nothing · 10 minutes · ★★
# :label: ex-relu
# Exchange the U-Net's activation for a ReLU and do not train it. (i) Hold all weights but one. What does $f$ look like as a function of that one?
# Conclude what stands on the diagonal of the remainder in {eq}`eq-split`. (ii) Guess the trace and the negative mass of the Hessian; then compute them.
# :::
#
# :::{solution-start} ex-relu
# :label: sol-relu
# :class: dropdown
# :::
#
# (i) Pieces of straight lines: a weight only multiplies, a bias only adds, and a ReLU only switches. (Each path through the network
# passes a layer once, so this holds for the shared weight of a convolution too.) On a piece the second derivative in
# that weight is zero, so the remainder has a zero diagonal. Hence $\operatorname{tr} H = \operatorname{tr} F$, and the remainder's
# eigenvalues add up to zero. It must have negative ones unless it vanishes.

# %%
rectified = trained(0, nn.functional.relu)
H = di.curvature.dense_hessian(rectified, few)
F = ggn_model(jacobians(rectified, few))
torch.testing.assert_close(H.diagonal(), F.diagonal(), rtol=1e-4, atol=1e-6)
bends = torch.linalg.eigvalsh(H.double())
down = (-bends.clamp(max=0).sum() / bends.abs().sum()).item()
assert down > 0.3
print(f"tr H {H.trace():.4f}, tr GGN {F.trace():.4f}; down: {down:.0%}")

# %% [markdown]
# The SiLU of the chapter is smooth, so there the traces are only nearly equal.
#
# :::{solution-end}
# :::
#
# :::{exercise} What is wrong with κ? · 15 minutes · ★★★
# :label: ex-own
# Equation {eq}`eq-kappa` assumes that residuals have one variance *for all draws*, and that *within* a draw they are independent of
# each other and of $J$. Take `model`, `batch`, `e`, `matrices`, `damping`, `scores` and `agreement` from above. (i) Divide every
# draw's outer product by its own $\kappa$, made of that draw's loss. If the variances were the trouble, the trace becomes that of
# GGN{sup}`model`. Does it? And do the scores come nearer? (ii) Leave out what a draw's residuals know of its own
# $J$, then the correlation between pixels too. What does the trace become?
# :::
#
# :::{solution-start} ex-own
# :label: sol-own
# :class: dropdown
# :::

# %%
J, F, rows = jacobians(model, batch), matrices["model"], []
per_draw_loss = e.square().mean(1, keepdim=True)
for name, own in (
    ("one κ for all", per_draw_loss.mean()),
    ("each draw's own κ", per_draw_loss),
):
    g = -2 / 64 * torch.einsum("dcp,dc->dp", J, e / (2 * own / 64).sqrt())
    M = g.T @ g / len(g)
    pair = scores(F, damping), scores(M, damping)
    rows.append({"divided by": name, "agreement": agreement(*pair),
                 "trace ratio": (M.trace() / F.trace()).item()}
                )  # fmt: skip
assert rows[1]["agreement"] > rows[0]["agreement"] + 0.02
assert min(row["trace ratio"] for row in rows) > 1.2
di.tables.table(rows)

# %% [markdown]
# (i) The trace hardly moves, so the excess comes from *within* draws. The scores do come nearer, now that no draw with a large
# loss outweighs the others. (ii) The trace is the mean of $\tfrac{4}{C^2} e^\top J J^\top e$. In place of a draw's own $ee^\top$
# put its mean over all draws, then only the diagonal of that:

# %%
own_scale = e / (2 * per_draw_loss / 64).sqrt()
outer = torch.einsum("dc,de->dce", own_scale, own_scale)
shared = outer.mean(0, keepdim=True)
rows = []
for name, ee in (
    ("of the draw itself", outer),
    ("mean of all draws", shared),
    ("its diagonal", shared * torch.eye(64)),
):
    JJ = torch.einsum("dcp,dep->dce", J, J)
    trace = 4 / 64**2 * (JJ * ee).sum((1, 2)).mean() / F.trace()
    rows.append({"residuals": name, "trace ratio": trace.item()})
of_itself, of_all, diagonal = (row["trace ratio"] for row in rows)
assert abs(diagonal - 1) < 0.05
assert 1.5 < (of_all - diagonal) / (of_itself - of_all) < 3
di.tables.table(rows)

# %% [markdown]
# Without correlation the excess is gone. About two thirds of it come from correlation between pixels: residuals lie in the
# directions in which the network moves easily. The rest is what a draw's residuals know of their own $J$. So all the
# assumptions are wrong, and they do different harm.
#
# :::{solution-end}
# :::
#
# ## Where this leads
#
# You have a matrix without negative eigenvalues and without targets. You can multiply with it, sample it, and carry a damping into
# it. What you cannot do is store it, let alone invert it: for the digits' network it has more than twenty billion entries.
# The next chapter looks at a single layer, and finds its share in two small matrices.
