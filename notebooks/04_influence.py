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
# You turn one training image's share of the loss up and down and watch what a model answers. You derive the formula that
# predicts it from the one model you have. You see it hold, see it break, and find out which of its two approximations
# failed.
# Then you ask a real network which question the formula answers there.
#
# *25 minutes to read · two cores: about 45 seconds · builds on {doc}`01_quickstart` and {doc}`02_ddpm`*
# :::

# %% tags=["hide-input"]
import warnings

import torch
from torch import nn

import diffinf_lib as di

torch.set_num_threads(1)
warnings.filterwarnings("ignore", ".*jit.script")  # torch's own
di.show_versions()

# %% [markdown]
# ## Why you need it
#
# You have one trained model, one picture that it drew, and 300 training images. What did each image do for the picture? The
# direct way is to train 300 more models, each without one image. For the CIFAR-10 model of {cite:t}`mlodozeniec2025influence`
# that is 50,000 trainings of 160,000 steps.
#
# An **influence function** answers all 300 questions from the model you already have. It asks a slightly different
# question: not "what if the image were gone?", but "which way does the answer move if the image counts a little
# less?". This chapter is about the step from the second question to the first.
#
# ## A model small enough to solve
#
# Take the denoiser of {doc}`02_ddpm` again. It has two weights, its data are single numbers $x$, and the timestep is
# fixed. It guesses the noise in $x_t = \sqrt{\bar\alpha_t}\,x + \sqrt{1 - \bar\alpha_t}\,\varepsilon$ by a line, $w x_t + b$.
# The average of its squared error over the noise can be worked out, for any weights $\theta = (w, b)$:
#
# $$ \begin{aligned}
# \ell(\theta, x) &= \mathbb{E}_\varepsilon\,(\varepsilon - w x_t - b)^2 \\
# &= \bigl(1 - w\sqrt{1 - \bar\alpha_t}\bigr)^2 \\
# &\quad + \bigl(w\sqrt{\bar\alpha_t}\,x + b\bigr)^2 .
# \end{aligned} $$ (eq-toy-loss)
#
# :::{admonition} Step by step
# :class: dropdown
# Put $x_t$ in. The error is $\varepsilon - w x_t - b = (1 - w\sqrt{1 - \bar\alpha_t})\,\varepsilon - (w\sqrt{\bar\alpha_t}\,x + b)$.
# Square it and take the mean. The cross term has the factor $\mathbb{E}[\varepsilon] = 0$, and $\mathbb{E}[\varepsilon^2] = 1$
# leaves the two squares.
# :::
#
# So each image is two linear equations for $w$ and $b$, solved as well as they can be: $w\sqrt{1 - \bar\alpha_t} = 1$, and
# $w\sqrt{\bar\alpha_t}\,x + b = 0$. The loss is quadratic in $\theta$: its **Hessian**, the matrix of its second
# derivatives, is the same for every $\theta$.

# %%
# ᾱ_t of DDPM
kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)


def equations(x, t=300):
    """Two rows per image; rows @ theta should be (1, 0)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    first = torch.stack([(1 - kept[t]).sqrt() * one, zero], -1)
    second = torch.stack([kept[t].sqrt() * x, one], -1)
    return torch.stack([first, second], -2)


def errors(theta, x, t=300):
    found = (equations(x, t) @ theta.unsqueeze(-1)).squeeze(-1)
    return found - torch.tensor([1.0, 0.0]).double()


# %%
def loss(theta, x, t=300):
    return errors(theta, x, t).square().sum(-1)


def gradient(theta, x, t=300):
    return (
        2 * (equations(x, t).mT @ errors(theta, x, t).unsqueeze(-1))[..., 0]
    )


def hessian(x, t=300):
    return 2 * equations(x, t).mT @ equations(x, t)


# %% [markdown]
# Training minimises a sum of such losses, in which each image has a *share*. Normally all shares are $1/N$. (*Weights* are
# always those of the model, $\theta$.) The minimum of any such sum is one solve of two equations, so "train without image 7"
# costs nothing here.


# %%
def trained(shares, x, t=300):
    """Weights θ at the minimum of the sum of shares times losses."""
    curvature = (shares[..., None, None] * hessian(x, t)).sum(-3)
    pull = 2 * (shares[..., None] * equations(x, t)[..., 0, :]).sum(-2)
    return torch.linalg.solve(curvature, pull)


def equal(x):
    return torch.ones_like(x) / x.shape[-1]


# %%
generator = torch.Generator().manual_seed(0)
pool = 0.5 + 0.2 * torch.randn(100, generator=generator).double()
x, query = pool[:30], torch.tensor(0.6).double()
theta = trained(equal(x), x)
print(f"w = {theta[0]:.3f}, b = {theta[1]:.3f}")
print(f"loss of the query: {loss(theta, query):.4f}")

# %% [markdown]
# The **measurement** $m(\theta)$ is what we want to explain ({doc}`03_measurements`). Here it is the model's loss on a query,
# $x_q = 0.6$. The 30 training images scatter around 0.5.
#
# **Before you go on:** which training image matters most to the query, the one nearest to it or one farther out? And in which
# direction does the query's loss go when an image from the other side of the data is left out?
#
# ## Turning one share
#
# Give the loss of image $n$ the share $1/N + \delta$ in the sum, and leave the other shares alone. The weights $\theta$
# that training ends with become a function of $\delta$, and so does the measurement. At $\delta = 0$ it is the model you
# have. At $\delta = -1/N$ the image is gone. At $\delta = +1/N$ it is there twice. (Papers often write $\varepsilon$ for
# $\delta$; here that is the noise.)


# %%
def turned(x, n, turns, t=300):
    """Trained weights for extra shares δ = turns / N of image n."""
    one = torch.zeros_like(x)
    one[n] = 1
    return trained((1 + turns[..., None] * one) / len(x), x, t)


lowest = int(x.argmin())
turns = torch.linspace(-1, 1, 5).double()
values = loss(turned(x, lowest, turns), query)
di.tables.table(
    [
        {"Nδ": turn.item(), "loss of the query": di.tables.number(value, 5)}
        for turn, value in zip(turns, values, strict=True)
    ],
    caption="The lowest of the 30 images, from gone to there twice.",
)

# %% [markdown]
# A smooth curve, of which you have one point. But a *slope* can be computed there, and the tangent followed to the end.
#
# ## The slope, derived
#
# Write $\mathcal{L}(\theta) = \frac1N\sum_{j} \ell_j(\theta)$ for the mean loss of all images. At every $\delta$ the
# trained weights are a minimum of $\mathcal{L} + \delta\,\ell_n$, so its gradient is zero there:
#
# $$ \nabla \mathcal{L}(\theta(\delta)) + \delta\, \nabla \ell_n(\theta(\delta)) = 0. $$ (eq-stationary)
#
# Differentiate in $\delta$. The first term gives $\nabla^2 \mathcal{L}\;\theta'$. The second gives $\nabla \ell_n$ and a
# part that still has the factor $\delta$, which is gone at $\delta = 0$. With the Hessian $H = \nabla^2
# \mathcal{L}(\theta)$ of the *mean* loss,
#
# $$ \theta'(0) = -H^{-1}\, \nabla \ell_n(\theta). $$ (eq-implicit)
#
# This is the **implicit function theorem**: if $H$ can be inverted, the curve $\theta(\delta)$ exists near $\delta = 0$ and
# has this slope {cite}`koh2017understanding`. By the chain rule the measurement moves at the rate
# $-\nabla m^\top H^{-1}\,\nabla\ell_n$.
#
# *Removing* the image is the step $\delta = -1/N$ at this rate. The two minus signs cancel, and the **score** of image $n$
# for query $q$ is
#
# $$ \text{score}(q, n) = \frac{1}{N}\, \nabla m_q^\top H^{-1}\, \nabla\ell_n . $$ (eq-influence)
#
# A positive score says: without image $n$ the measurement goes *up*. If the measurement is a loss, without it the model
# fits the query worse, so the image helped. Below is the formula, beside **leave-one-out**, which trains again without
# each image. An assertion checks the score a third way: by differentiating through the training, which is one solve
# here.


# %%
def influence(x, query, t=300, damping=0.0):
    theta = trained(equal(x), x, t)
    curvature = hessian(x, t).mean(0) + damping * torch.eye(2).double()
    steps = torch.linalg.solve(curvature, gradient(theta, x, t).T) / len(x)
    return gradient(theta, query, t) @ steps


def leave_one_out(x, query, t=300):
    everything = torch.ones(len(x), len(x)).double()
    without = trained((everything - torch.eye(len(x))) / len(x), x, t)
    return loss(without, query, t) - loss(trained(equal(x), x, t), query, t)


# %%
scores, truth = influence(x, query), leave_one_out(x, query)
rate = torch.func.jacrev(lambda d: loss(turned(x, lowest, d), query))
slope = rate(torch.zeros(()).double())  # in units of 1/N, through the solve
torch.testing.assert_close(scores[lowest], -slope)
near = int((x - query).abs().argmin())
which = {"lowest": lowest, "nearest": near, "highest": int(x.argmax())}
di.tables.table([
    {"image": name, "x": x[n].item(),
     "score": di.tables.number(scores[n], 5, signed=True),
     "left out": di.tables.number(truth[n], 5, signed=True)}
    for name, n in which.items()
], caption="Predicted and true change of the query's loss.")  # fmt: skip

# %% [markdown]
# The scores are right to about a tenth. Their signs are what you may have guessed: images above the mean pull the model
# towards this query, images below pull it away. If you guessed that the *nearest* image matters most, distance misled you.
# An image pulls by its gradient. That is small for images near the mean, and grows with the distance from it, not with
# the distance from the query.
#
# ## The curve, its tangent and what removal does
#
# Now turn the share yourself. The first drawing has the curve, the *tangent* that influence knows, and the *secant*, the
# straight line to where you are. At the left end the image is gone, at the right end it is there twice. The second drawing
# shows all images at once. In the third you can drag image 1 along the data. The curve belongs to it.
#
# The code is folded. First, what can be set and what depends on it:

# %% tags=["hide-input"]
Slider, computed = di.interactive.Slider, di.interactive.computed
COUNT = Slider("Images N", (10, 20, 30))
TIME = Slider("Timestep t", (100, 300, 600))
PLACE = Slider("Image 1 at x", [k / 4 for k in range(-2, 9)])
DAMPING = Slider("Damping λ", (0, 0.1, 1))
WHERE, most = (COUNT, TIME, PLACE), int(COUNT.values[-1])
steps = torch.linspace(-1, 1, 21).double()


def moved(count, place):
    """The first images, with image 1 somewhere else."""
    return torch.cat([torch.tensor([place]).double(), pool[1 : int(count)]])


def by_share(count, t, place):
    thetas = turned(moved(count, place), 0, steps, int(t))
    return loss(thetas, query, int(t))


def predicted(damping, count, t, place):
    return influence(moved(count, place), query, int(t), damping)


# %% [markdown]
# Then the first two drawings:

# %% tags=["hide-input"]
one_image = di.interactive.Curve(
    steps, computed(by_share, *WHERE),
    computed(lambda *at: -predicted(*at)[0], DAMPING, *WHERE),
    "Nδ, extra share of image 1", "loss of the query",
    point="Nδ", anchor=10, free=True, y_form=".5f", height=260,
    names=("trained again", "tangent: influence", "secant"),
)  # fmt: skip


def filled(values):
    """One number per image; none where there are fewer images."""
    return nn.functional.pad(values, (0, most - len(values)), value=torch.nan)


def measured(count, t, place):
    return filled(leave_one_out(moved(count, place), query, int(t)))


all_images = di.interactive.Points(
    computed(lambda *at: filled(predicted(*at)), DAMPING, *WHERE),
    computed(measured, *WHERE),
    "score of each image", "true change when left out",
    labels=[f"image {n + 1}" for n in range(most)], marked=[0],
    slope=False, identity=True, free=True, height=240,
)  # fmt: skip

# %% [markdown]
# The third, where image 1 is as high as its share:

# %% tags=["hide-input"]
stems = pool[1:most].repeat_interleave(3)
heights = torch.tensor([0, 1, torch.nan]).repeat(most - 1)
belongs_to = torch.arange(1, most).repeat_interleave(3)
turn, Line = one_image.moving, di.interactive.Line


def in_use(count):
    return heights.where(belongs_to < count, torch.nan)


across = computed(lambda place: [place, place], PLACE)
upward = computed(lambda extra: [0, 1 + extra], turn)
lines = [
    Line("other images", stems, computed(in_use, COUNT)),
    Line("image 1", across, upward),
    Line("query, not trained on", query.repeat(2), [0, 2]),
]
tops = computed(lambda extra: [1 + extra] * len(PLACE.values), turn)
knob = di.interactive.Handle(PLACE, PLACE.values, tops, series=1)
the_data = di.interactive.Lines(
    lines, "x", "share in training, times N", handle=knob, height=200
)

# %% [markdown]
# And the three together:

# %% tags=["hide-input"]
Preset = di.interactive.Preset
usual = {"Images N": 20, "Timestep t": 300, "Damping λ": 0, "Nδ": -1}
ordinary = usual | {"Image 1 at x": 0.75}
outlier = usual | {"Image 1 at x": 2}
notes = (
    "Tangent and curve part a little. Points lie near the dashed line.",
    "To the left the tangent falls, and the curve comes up: wrong sign.",
    "A damping as large as the smaller eigenvalue of the Hessian, "
    "about 1, makes every step too short.",
)
di.interactive.Together(
    [one_image, all_images, the_data],
    start=ordinary,
    presets=[
        Preset("an ordinary image", ordinary, notes[0]),
        Preset("an outlier", outlier | {"Images N": 10}, notes[1]),
        Preset("λ too large", ordinary | {"Damping λ": 1}, notes[2]),
    ],
    caption="The share of image 1 and the query's loss; every image's score "
    "and true change, on the dashed line where they are equal; the data. "
    "Image 1 is orange: the diamond among the points, and the knob that "
    "can be dragged along the data.",
)

# %% [markdown]
# Try three things.
#
# - *More images.* The step $1/N$ is shorter, and curve and tangent have less room to part.
# - *The outlier.* Drag image 1 to 2. The curve dips to the left and comes up again.
# - *Damping.* Real curvatures are inverted as $(H + \lambda I)^{-1}$, with a small number $\lambda$. It leaves the curve
#   alone and turns the tangent: towards flat, because the step gets shorter.
#
# **Guess before the table:** from 10 images to 100, by how much do scores shrink, and by how much their errors?


# %%
def compared(count, place=None):
    x = pool[:count] if place is None else moved(count, place)
    scores, truth = influence(x, query), leave_one_out(x, query)
    pair = torch.stack([scores, truth])
    return {
        "N": count, "image 1": "as drawn" if place is None else place,
        "score": di.tables.number(1e6 * scores.abs().mean(), 1),
        "error": di.tables.number(1e6 * (scores - truth).abs().mean(), 1),
        "correlation": torch.corrcoef(pair)[0, 1].item(),
        "slope": ((scores @ truth) / (scores @ scores)).item(),
    }  # fmt: skip


# %%
rows = [compared(10), compared(30), compared(100)]
rows += [compared(10, 2.0), compared(30, 2.0), compared(100, 2.0)]
assert all(row["correlation"] > 0.99 for row in rows[:3])
assert rows[0]["score"].value > 15 * rows[2]["score"].value
assert rows[0]["error"].value > 100 * rows[2]["error"].value
assert max(row["correlation"] for row in rows[3:5]) < 0.8
ten, thirty = moved(10, 2.0), pool[:30]
assert influence(ten, query).argsort()[0] == 0  # image 1
assert leave_one_out(ten, query).argsort()[1] == 0
few, more = (trained(equal(some), some) for some in (pool[:10], thirty))
assert loss(few, query) > 3 * loss(more, query)
di.tables.table(
    rows,
    caption="Scores and their errors, mean absolute values in millionths. "
    "Slope: true change for each unit of score, by least squares.",
)

# %% [markdown]
# From 10 images to 100, scores shrink about twentyfold and their errors more than a hundredfold. From 30 to 100 it is nearly
# $1/N$ and $1/N^2$, because the step is $1/N$ and a tangent errs by the square of it. From 10 to 30 both shrink more, since
# the query's own loss falls to less than a third, and its gradient with it. The order is right even with ten images, and the
# true changes are a little larger than predicted.
#
# The score of an outlier among ten or thirty images is wrong, sign included, and this one point spoils the correlation. The
# *rank* correlation under the drawing hardly notices it among ten images: the outlier has the lowest score and the second
# lowest true change.
#
# Is that one unlucky data set? Draw many, and put an image at 2 in each.


# %%
def outliers(count, sets=1000):
    """Of one in each data set: score, true change, and that by squares."""
    noise = torch.randn(sets, count, generator=generator).double()
    x = 0.5 + 0.2 * noise
    x[:, 0] = 2.0
    theta, alone = trained(equal(x), x), torch.zeros_like(x)
    alone[:, 0] = 1 / count
    without = trained(equal(x) - alone, x)
    squares = [errors(each, query).square() for each in (theta, without)]
    step = torch.linalg.solve(hessian(x).mean(1), gradient(theta, x[:, 0]))
    score = (gradient(theta, query) * step).sum(-1) / count
    return score, loss(without, query) - loss(theta, query), squares


def told(score, truth, squares):
    percent, number = di.tables.percent, di.tables.number
    first, second = 1e3 * (squares[1] - squares[0]).mean(0)
    return {
        "sign wrong, %": percent((score * truth < 0).double().mean()),
        "score < 0, %": percent((score < 0).double().mean()),
        "change < 0, %": percent((truth < 0).double().mean()),
        "size ratio": number((score / truth).abs().median(), 1),
        "first square": number(first, 1, signed=True),
        "second square": number(second, 1, signed=True),
    }


# %%
found = {f"N = {count}": told(*outliers(count)) for count in (10, 30, 100)}
rows = [
    {"": name} | {count: column[name] for count, column in found.items()}
    for name in found["N = 10"]
]
assert pool[1:10].mean() < 0.45  # our other nine
di.tables.table(
    rows,
    caption="The outlier in 1,000 data sets: how often its score has the "
    "wrong sign, how often score and true change are negative, how many "
    "times larger the score is (median), and the mean changes of the two "
    "squares in the query's loss when it is left out, in thousandths.",
)

# %% [markdown]
# For ten images our data set is an unlucky one, whose other nine lie low. In most sets of ten the score has the right sign
# and is typically twice too large. With thirty images the sign is wrong half of the time, with a hundred hardly ever.
#
# Two effects compete, one for each square in {eq}`eq-toy-loss`. The outlier flattens the line, which costs the query in the
# first square. And it pulls the line's zero towards the query, which helps in the second, on average. Among ten images the
# first effect is larger, so removal mostly lowers the query's loss. Among a hundred the second is. As images are added, the
# true sign turns first and the score's later.
#
# ## Two straight lines
#
# The formula replaces two curves by straight lines. One is the path of the weights $\theta(\delta)$, the other is the
# measurement $m$ around the weights you have. Which of them fails for the outlier? Here both can be looked at one by one:
# take the *true* step of the weights, and put it into the straight line for $m$ first, then into $m$ itself.

# %%
rows = []
for count, place in ((30, None), (10, 2.0), (30, 2.0)):
    x = pool[:count] if place is None else moved(count, place)
    theta = trained(equal(x), x)
    step = turned(x, 0, -torch.ones(()).double()) - theta
    score = influence(x, query)[0]
    straight = gradient(theta, query) @ step
    full = loss(theta + step, query) - loss(theta, query)
    named = {"straight": score, "true step": straight, "all true": full}
    rows.append({"N": count, "image 1": x[0].item()} | {
        name: di.tables.number(1e3 * change, 2, signed=True)
        for name, change in named.items()
    })  # fmt: skip
di.tables.table(
    rows,
    caption="Change of the query's loss without image 1, in thousandths: by "
    "two straight lines, by the true step and a straight line for the "
    "measurement, and in truth.",
)

# %% [markdown]
# In the first row nothing much happens from left to right. For the outlier, the true step alone makes the score worse.
# The sign turns in the last column, with the measurement. Without the outlier the weights move far, and along a long step
# $m$, a parabola, goes down and comes up again.
#
# ## The first line, exactly
#
# How far off is the step of the weights? For one family of models the answer fits on a line. Take *one draw for each
# image*, so that each image is one equation: inputs $\varphi_n = (x_t, 1)$, target $\varepsilon_n$, squared error. Add a
# **weight decay** $\tfrac{\lambda}{2}\lVert\theta\rVert^2$, which pulls the weights towards 0. This is **ridge
# regression**. To the end of the section $\mathcal{L}$ includes the decay. With $\Phi$ for all inputs as rows, its Hessian
# is $H = \tfrac{2}{N}\Phi^\top\Phi + \lambda I$. Leaving out image $n$ takes the piece
# $\tfrac{2}{N}\varphi_n\varphi_n^\top$ out of it. With the **leverage** $h_n = \tfrac{2}{N}\varphi_n^\top H^{-1}
# \varphi_n$, the true step is
#
# $$ \theta_{-n} - \theta = \frac{1}{1 - h_n} \cdot \frac{1}{N} H^{-1}\nabla\ell_n . $$ (eq-leverage)
#
# So influence has the right *direction* and is too short, by a factor that you can compute. A leverage lies between 0 and
# 1, because $\tfrac2N\varphi_n\varphi_n^\top$ is only a part of $H$. Without decay the leverages add up to the number of
# weights: $\sum_n h_n = \operatorname{tr}\bigl(H^{-1}\,\tfrac2N\Phi^\top\Phi\bigr) = \operatorname{tr} I = 2$. So with many
# images a typical one has little. An image far from the others has more: the line has to pass near it.
#
# :::{admonition} Step by step
# :class: dropdown
# Without image $n$ we minimise $\mathcal{L} - \tfrac1N \ell_n$, again quadratic, with the Hessian $H_{-n} = H -
# \tfrac2N\varphi_n\varphi_n^\top$. Its gradient at the old minimum is $-\tfrac1N\nabla\ell_n$, so one Newton step
# is exact: $\theta_{-n} - \theta = +\tfrac1N H_{-n}^{-1}\nabla\ell_n$.
#
# Now $\nabla\ell_n = -2 e_n\varphi_n$, with the residual $e_n = \varepsilon_n - \varphi_n^\top\theta$, is a multiple of
# $\varphi_n$. With $u = \sqrt{2/N}\,\varphi_n$, the formula of Sherman and Morrison
#
# $$ (H - u u^\top)^{-1} u = \frac{H^{-1} u}{1 - u^\top H^{-1} u} $$
#
# gives $H_{-n}^{-1}\varphi_n = H^{-1}\varphi_n / (1 - h_n)$.
# :::

# %%
x, t, decay = pool[:30], 300, 1e-3
noise = torch.randn(len(x), generator=generator).double()
inputs = kept[t].sqrt() * x + (1 - kept[t]).sqrt() * noise
features = torch.stack([inputs, torch.ones_like(inputs)], 1)
eye = torch.eye(2).double()


def ridge(shares):
    curvature = 2 * (features.T * shares) @ features + decay * eye
    return torch.linalg.solve(curvature, 2 * features.T @ (shares * noise))


# %%
theta = ridge(equal(x))
curvature = 2 * features.T @ features / len(x) + decay * eye
inverse = torch.linalg.inv(curvature)
gradients = -2 * (noise - features @ theta).unsqueeze(1) * features
steps = gradients @ inverse / len(x)
leverage = 2 / len(x) * ((features @ inverse) * features).sum(1)
keep = (1 - torch.eye(len(x)).double()) / len(x)
without = torch.stack([ridge(shares) for shares in keep])
exact = steps / (1 - leverage).unsqueeze(1)
torch.testing.assert_close(without - theta, exact, rtol=0, atol=1e-12)
print(f"leverages {leverage.min():.3f} to {leverage.max():.3f},")
print(f"their sum {leverage.sum():.3f}")

# %% [markdown]
# :::{admonition} Checkpoint
# The leave-one-out *step* of ridge regression is that of influence divided by $1 - h_n$, to $10^{-12}$. The leverages add up to a little less than
# the two weights, because of the decay.
# :::
#
# ## What the theorem assumes, and training does not give
#
# Equation {eq}`eq-influence` rests on four assumptions. Look at each with a trained diffusion model in mind.
#
# - **A stationary point.** The gradient of $\mathcal{L}$ is zero. A network is trained for a fixed number of steps and stopped on its
#   way, perhaps earlier than it could (*early stopping*).
# - **A Hessian that can be inverted.** A network has many directions in which the loss hardly changes, and some in which it
#   curves down.
# - **One minimum.** Train again with another seed and you arrive elsewhere. The formula follows one minimum as it moves and
#   knows nothing of others.
# - **The loss that was minimised.** The weights that we explain are a running average over training (EMA). Weight decay and
#   dropout change what training aims at, too.
#
# So what does the formula answer, if its assumptions fail? There is a question to which it is nearly the exact answer
# {cite}`bae2022influence`. Call the weights that you have $\theta^*$. Raise the loss of image $n$ a little, while outputs and weights stay close to those of $\theta^*$:
#
# $$ \begin{aligned}
# \tilde\theta_{-n} = \arg\min_\theta\;& \underbrace{\frac1N\sum_j D_j(\theta)}_{\text{answers as before}} \\
# &- \frac1N\,\ell_n(\theta) \\
# &+ \underbrace{\frac{\lambda}{2}\,\lVert\theta - \theta^*\rVert^2}_{\text{weights as before}} .
# \end{aligned} $$ (eq-proximal)
#
# This is the **proximal Bregman** question. For a squared error, $D_j$ is the mean squared distance between the network's
# outputs at $\theta$ and at $\theta^*$. The first term has its minimum at $\theta^*$ whether or not training ended there.
# Its Hessian there is the **Gauss-Newton matrix** (GGN) $F = \tfrac2C\,\mathbb{E}[J^\top J]$. Here $J$ is the $C \times P$
# matrix of derivatives of the $C$ outputs, one for each pixel, with respect to the $P$ weights, and $\mathbb{E}$ averages
# over images, timesteps and noise. $F$ has no negative eigenvalue, because $v^\top J^\top J v = \lVert Jv \rVert^2 \ge 0$,
# and $\lambda$ makes it invertible. One step with $F + \lambda I$ solves {eq}`eq-proximal` to first order in the factor
# $\tfrac1N$ before $\ell_n$, and that step is the damped influence function. How far is one step from the solution?
#
# :::{admonition} Step by step
# :class: dropdown
# $D_j(\theta)$ is a mean of squares of $f(\theta) - f(\theta^*)$, with $f$ the outputs. Its second derivative is
# $\tfrac{2}{C}\,\mathbb{E}[J^\top J]$ plus a term that has the difference $f(\theta) - f(\theta^*)$ as a factor, and at
# $\theta^*$ this is zero. The gradient of {eq}`eq-proximal` at $\theta^*$ is $-\tfrac1N\nabla\ell_n$. Dividing by
# the matrix and changing the sign gives $+\tfrac1N(F + \lambda I)^{-1}\nabla\ell_n$. What one step leaves out is the curvature of $\tfrac1N\ell_n$, which was the $1 - h_n$ of {eq}`eq-leverage`, and how $F$ itself
# changes on the way.
# :::
#
# ## A real network, small enough to check
#
# The network has 288 weights and sees digits of 4×4 pixels. It is one function of one vector of weights: a layer, a
# $\tanh$, a layer. We train it on 48 digits and stop it early, on purpose.


# %%
def network(theta, states, timesteps):
    first, second = theta[:144].view(8, 18), theta[144:].view(16, 9)
    time = (timesteps.to(states) / 500 - 1).unsqueeze(1)
    one = torch.ones_like(time)
    inputs = torch.cat([states.flatten(1), time, one], 1)
    hidden = torch.cat([torch.tanh(inputs @ first.T), one], 1)
    return (hidden @ second.T).view_as(states)


def draws_of(images, each):
    """The same draws in every training: 4×4 pixels, float64."""
    small = nn.functional.avg_pool2d(images.images, 2).double()
    keys = {"seed": 0, "purpose": "one-less", "process": di.Process()}
    count = di.DrawConfig(each)
    return next(di.diffusion.iterate_draws(
        small, images.ids, count, batch_size=len(images) * each, **keys
    ))  # fmt: skip


data = di.load_dataset(di.get_preset("digits").dataset)
train, queries = data.train.subset(slice(48)), data.queries.subset(slice(12))
train_draws, query_draws = draws_of(train, 16), draws_of(queries, 64)

# %% [markdown]
# Everything random is fixed beforehand, so two trainings from the same initial weights differ by their images and by nothing
# else. Forty-nine models train side by side, by Adam on all draws at once: one with all images, and one without each.


# %%
def losses(theta, draws):
    found = network(theta, draws.state, draws.timesteps)
    each = (found - draws.target).square().mean((1, 2, 3))
    return each.view(int(draws.example.max()) + 1, -1).mean(1)


def train_all(start, steps=600, rate=1e-2):
    """One model for each row of `shares`, from one start."""
    models = start.expand(len(shares), -1).clone()
    slopes = torch.func.vmap(torch.func.grad(
        lambda theta, share: share @ losses(theta, train_draws)
    ))  # fmt: skip
    adam = torch.optim.Adam([models], lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        models.grad = slopes(models, shares)
        adam.step()
        falling.step()
    return models


def new_start(seed):
    return torch.randn(288, generator=di.keyed_generator("start", seed)) / 4


# %%
everyone, without_each = torch.ones(1, 48), 1 - torch.eye(48)
shares = torch.cat([everyone / 48, without_each / 47]).double()
start = new_start(0).double()
models = train_all(start)
theta = models[0]


def mean_loss(theta):
    return losses(theta, train_draws).mean()


slope, damping = torch.func.grad(mean_loss), 1e-3
bent = torch.linalg.eigvalsh(torch.func.hessian(mean_loss)(theta))
assert slope(theta).norm() > 1e-3 and -damping < bent[0] < 0
print(f"loss {mean_loss(start):.3f} before, {mean_loss(theta):.3f} after")
lengths = [slope(weights).norm() for weights in (start, theta)]
print(f"gradient's length {lengths[0]:.1e} before, {lengths[1]:.1e} after")
print(f"eigenvalues of the Hessian {bent[0]:.1e} to {bent[-1]:.1e}")
print(f"with damping, the lowest inverted: {1 / (bent[0] + damping):,.0f}")

# %% [markdown]
# Two of the four assumptions fail: the gradient is not zero, and along some directions the loss curves down. A damping of
# $10^{-3}$, as below, would just lift the lowest eigenvalue above zero. But then the inverse of $H + \lambda I$ would be
# largest along this very direction, as the last line says. Here are the scores all the same, with the Gauss-Newton matrix. It
# *is* the Hessian of "answers as before", as an assertion shows.


# %%
def outputs(theta):
    return network(theta, train_draws.state, train_draws.timesteps)


before = outputs(theta)


def distance(theta):
    return (outputs(theta) - before).square().mean()


jacobian = torch.func.jacfwd(lambda w: outputs(w).flatten())(theta)
ggn = 2 * jacobian.T @ jacobian / len(jacobian)  # over draws and pixels
torch.testing.assert_close(torch.func.hessian(distance)(theta), ggn)

# %%
of_images = torch.func.jacrev(losses)(theta, train_draws)  # [N, 288]
of_queries = torch.func.jacrev(losses)(theta, query_draws)  # [Q, 288]


def inverted(damping):
    return torch.linalg.inv(ggn + damping * torch.eye(288).double())


inverse = inverted(damping)
scores = of_queries @ inverse @ of_images.T / len(train)

# %% [markdown]
# :::{admonition} Checkpoint
# The library gives the same, sign and size. It divides by eigenvalues plus damping, in the eigenbasis of the matrix
# ({doc}`07_ekfac`). You may skip the folded cell: it asserts just this.
# :::

# %% tags=["hide-input"]
values, vectors = torch.linalg.eigh(ggn)
layer = di.curvature.LayerCurvature(
    vectors,
    torch.ones(1, 1).double(),
    corrected_eigenvalues=values.view(1, -1),
)
by_library = di.scores_from_gradients(
    di.GradientSet.of({"all": layer.to_eigenbasis(of_queries.unsqueeze(1))}),
    di.GradientSet.of({"all": layer.to_eigenbasis(of_images.unsqueeze(1))}),
    di.curvature.Curvature({"all": layer}),
    damping=damping,
)[0]
torch.testing.assert_close(by_library, scores)

# %% [markdown]
# ## Five answers
#
# What should the scores be compared with? First the step itself, put into the queries' true losses: only the second straight
# line is gone. Then the proximal question {eq}`eq-proximal`, solved by ten such steps: the next one would be less than a
# hundredth of the way. Here the first line is gone, too.


# %%
def proximal(theta, leave):
    near = (theta - models[0]).square().sum()
    worse = leave @ losses(theta, train_draws) / len(train)
    return distance(theta) - worse + damping / 2 * near


downhill = torch.func.vmap(torch.func.grad(proximal))
one_step = theta + of_images @ inverse / len(train)
solved, each = theta.expand(48, -1), torch.eye(48).double()
for step in range(10):
    solved = solved - downhill(solved, each) @ inverse
    if step == 0:
        torch.testing.assert_close(solved, one_step)
last = (downhill(solved, each) @ inverse).norm(dim=1).max()
assert last < 0.01 * (solved - theta).norm(dim=1).mean()

# %% [markdown]
# The assertion inside says that the first of these steps is the damped influence function.
#
# Then three kinds of retraining without the image: going on from the trained model for 300 steps (**warm start**), training
# anew from the same initial weights, and training anew from others. Each is compared with a model that was trained in the
# same way *with* all images. So the reference of the warm start has trained on, too. **Guess first:** which of the five
# will agree with the scores, and how well do the last two agree with each other?


# %%
def changes(models):
    """Queries × images; the first model has all images."""
    found = torch.func.vmap(lambda w: losses(w, query_draws))(models)
    return (found[1:] - found[0]).T


def beside(weights):
    return torch.cat([theta.unsqueeze(0), weights])


retrained = {
    "the step itself": beside(one_step),
    "proximal question": beside(solved),
    "warm start": train_all(theta, 300, 1e-3),
    "retrained, same start": models,
    "retrained, other start": train_all(new_start(1).double()),
}
answers = {name: changes(each) for name, each in retrained.items()}


# %%
def agreement(left, right):
    """Correlation over images, mean over queries."""
    pairs = zip(left, right, strict=True)
    each = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]
    return torch.stack(each).mean().item()


def unit(scores, answer):
    return ((scores * answer).sum() / scores.square().sum()).item()


# %%
same, other = list(answers.values())[3:]
rows = [
    {"answer": name, "correlation": agreement(scores, answers[name]),
     "slope": unit(scores, answers[name]),
     "moved": (each[1:] - each[0]).norm(dim=1).mean().item()}
    for name, each in retrained.items()
]  # fmt: skip
apart = {"answer": "one and the other"}
rows.append(apart | {"correlation": agreement(same, other)})
di.tables.table(
    rows,
    caption="Agreement with the scores, true change for each unit of score, "
    "and mean distance between the weights without and with an image. Last: "
    "the two retrainings with each other.",
)

# %% mystnb={"image": {"alt": "Four scatter plots of true change against score. For the proximal question the points lie on a straight line a little above the dashed one; for the warm start they scatter around a steeper one; for the two retrainings they are clouds with little slope to be seen"}, "figure": {"caption": "Scores against four of the answers: one point for each image and each of the first three queries. Dashed: prediction and answer are the same. The vertical scales differ.", "name": "fig-four-answers"}} tags=["hide-input"]
figure, axes = di.figures.subplots(1, 4, figsize=(9, 2.7))
for place, name in zip(axes, list(answers)[1:], strict=True):
    shown = 1e3 * torch.stack([scores, answers[name]])[:, :3]
    place.plot(*shown.flatten(1), ".", ms=4)
    place.axline((0, 0), slope=1, color=di.figures.GREY, linestyle="--")
    place.set(title=name, xlabel="score, thousandths")
axes[0].set(ylabel="true change, thousandths")
figure

# %% [markdown]
# :::{admonition} Checkpoint
# Scores and proximal question agree almost perfectly, a warm start less so, and retraining from the beginning far less. And
# the scores agree better with either retraining than the two retrainings agree with each other.
# :::

# %%
found = [row["correlation"] for row in rows]
assert min(found[:2]) > 0.99 and found[2] > max(found[3:])
assert min(found[3:5]) > found[5]
far = [row["moved"] for row in rows[:5]]
assert far[2] > 3 * far[0] and min(far[3:]) > 7 * far[0]

# %%
above = 1e3 * (answers["the step itself"] - scores)
beyond = 1e3 * (answers["proximal question"] - scores)
assert (above > 0).all() and above.mean() > beyond.mean() / 2 > 0
print(f"the step itself minus scores: {above.mean():.2f} thousandths")
for value in (damping / 10, damping * 10):
    damped = of_queries @ inverted(value) @ of_images.T / len(train)
    alike, size = agreement(damped, same), unit(damped, same)
    assert abs(alike - found[3]) < 0.02
    print(f"λ = {value:g}, same start: correlation", end=" ")
    print(f"{alike:.3f}, slope {size:.2f}")
print(f"ceiling for one retraining: {found[5] ** 0.5:.2f}")

# %% [markdown]
# The two straight lines cost almost no order here. They do cost an offset, printed first: *every* step gives a little more
# than its score, because $m$ curves up along it. This is most of why the points of the first panel of
# {numref}`fig-four-answers` lie above the dashed line. Damping hardly matters for the order of the scores, but it does for
# their size, as the next lines show.
#
# A warm start keeps most of the order and moves farther than predicted. There may be three reasons: training has
# no pull towards the old weights, it does not start at a minimum, and its loss curves down in some directions.
# {doc}`11_challenges` takes such answers apart, one reason at a time. A training from
# the beginning does not stay near. Its weights end up some ten times as far away as the step, and where they go depends on
# where they began.
#
# The last row of the table should make you pause. Leave one image out, train from two starting points, and the two answers
# agree only loosely. So what *is* the effect of an image? What is common to many trainings is its effect on average, and the
# rest is chance. The scores can win because they do not contain the chance of a second training.
#
# Chance also sets a ceiling. Suppose that the two answers have one part in common, and that the rest of each is independent
# and equally large. Then their correlation is the common fraction of their variance. The common part correlates with either
# by its square root, and nothing that knows only this part can do better. Against that, printed last, the scores do well.
# Still, a single image in a single retraining says little. This is why {doc}`01_quickstart` judged scores by removing *half*
# of the images and by averaging over several seeds.
#
# ## At full size
#
# For 288 weights we could write the curvature down and invert it. The digits model has 159,697 weights, and the CIFAR-10
# model of {cite:t}`mlodozeniec2025influence` 38 million. Everything else stays as it is: the same gradients, the same
# $1/N$, the same sign. What is missing is a curvature that can be inverted at that size, and this is what the next chapters
# build. They begin with the matrix that appeared here by itself, the one without negative eigenvalues.
#
# ## Pitfalls
#
# - **Two minus signs.** Removal is a *negative* step in the image's share. Code that gives $-\nabla m^\top H^{-1}
#   \nabla\ell_n$ answers "what if the image counted more?".
# - **The factor $1/N$.** It changes no ranking. It decides whether a predicted change can be compared with a measured one.
# - **A sum is not a mean.** If the loss is a sum over images, its Hessian is $N$ times as large and has the $1/N$ in it. The
#   damping must then be $N\lambda$: $(NH + N\lambda I)^{-1} = \tfrac1N (H + \lambda I)^{-1}$.
# - **A wrong score, a wrong suspect.** The outlier's sign failed by the measurement, not by the curvature. Test the two
#   straight lines separately before you repair either.
# - **Averaged weights.** Take gradients and curvature at the weights at which you measure, the EMA weights of a diffusion
#   model. They need not be the minimum of any training loss.
#
# ## Exercises

# %% [markdown]
# :::{exercise} Write it yourself · 10 minutes · ★
# :label: ex-influence
# Write `my_influence(query_gradient, train_gradients, hessian, damping)`. It takes `[P]`, `[N, P]`, `[P, P]` and a number, for
# $P$ weights, and returns the scores `[N]`. Then run `di.checks.influence(my_influence)`. It knows the usual mistakes.
# :::
#
# :::{solution-start} ex-influence
# :label: sol-influence
# :class: dropdown
# :::


# %%
def my_influence(query_gradient, train_gradients, hessian, damping):
    damped = hessian + damping * torch.eye(len(hessian)).to(hessian)
    step = torch.linalg.solve(damped, query_gradient)
    return train_gradients @ step / len(train_gradients)


mine = my_influence(of_queries[0], of_images, ggn, damping)
torch.testing.assert_close(mine, scores[0])
di.checks.influence(my_influence)

# %% [markdown]
# The query's side is solved once and serves all images. That is also how it is done at full size.
#
# :::{solution-end}
# :::
#
# :::{exercise} The longer step · 15 minutes · ★★
# :label: ex-leverage
# Write `my_leave_one_out(features, targets, ridge)`. It returns the weights `[N, P]` of $N$ fits, each without one row,
# from one fit to all rows. No loop, no second fit. Here a fit minimises the *sum* $\sum_n (y_n - \varphi_n^\top\theta)^2 +
# \rho\,\lVert\theta\rVert^2$, with `ridge` for $\rho$. What is $\rho$ for the data above, where $\tfrac{\lambda}{2}$ stood beside
# a mean? Then run `di.checks.leave_one_out(my_leave_one_out)`.
# :::
#
# :::{solution-start} ex-leverage
# :label: sol-leverage
# :class: dropdown
# :::


# %%
def my_leave_one_out(features, targets, ridge):
    curvature = features.T @ features
    curvature = curvature + ridge * torch.eye(len(curvature)).to(features)
    solved = torch.linalg.solve(curvature, features.T).T  # [N, P]
    weights = solved.T @ targets
    leverage = (features * solved).sum(1)
    length = (targets - features @ weights) / (1 - leverage)
    return weights - solved * length.unsqueeze(1)


as_sum = decay * len(features) / 2
again = my_leave_one_out(features, noise, as_sum)
torch.testing.assert_close(again, without, rtol=0, atol=1e-12)
di.checks.leave_one_out(my_leave_one_out)

# %% [markdown]
# Multiply the mean and its decay by $N$: then $\rho = N\lambda/2$.
#
# :::{solution-end}
# :::
#
# :::{exercise} $1/N$ or $1/(N-1)$? · 15 minutes · ★★
# :label: ex-count
# Without image $n$, do you minimise $\tfrac1N\sum_{j\neq n}\ell_j$ or $\tfrac{1}{N-1}\sum_{j\neq n}\ell_j$? (i) Show that for
# the toy it makes no difference. (ii) Take one Newton step from a point that is *not* a minimum, with the Hessian $H$ and
# the gradient of either. By what do the two steps differ, and why does it change no ranking of images? (iii) When does it
# make a difference even at the minimum?
# :::
#
# :::{solution-start} ex-count
# :label: sol-count
# :class: dropdown
# :::
#
# (i) The two objectives are multiples of each other, so they have the same minimum.
#
# (ii) Away from a minimum $\nabla \mathcal{L} \neq 0$. With $1/N$, the gradient of what is left is $\nabla \mathcal{L} -
# \tfrac1N\nabla\ell_n$. With $1/(N-1)$, it is $\tfrac{N}{N-1}$ times that. In both, the part with $\nabla \mathcal{L}$ is
# the same for every image. It is training that goes on, and it adds the same number to all scores of a query. What is left
# differs by the factor $\tfrac{N}{N-1}$, the same for all images.
#
# (iii) With weight decay, if $\lambda$ stays as it is. Dividing by $N - 1$ makes the data count more against the decay, by
# one part in $N$.

# %%
count, elsewhere = len(x), trained(equal(x), x) + 0.1
each, curvature = gradient(elsewhere, x), hessian(x).mean(0)
left = each.mean(0) - each / count  # with 1/N
by_step = torch.linalg.solve(curvature, gradient(elsewhere, query))
with_n = -left @ by_step
with_one_less = -(count / (count - 1) * left) @ by_step
ratio = (with_one_less - with_one_less.mean()) / (with_n - with_n.mean())
torch.testing.assert_close(ratio, torch.full_like(ratio, count / (count - 1)))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} What many trainings have in common · 15 minutes · ★★
# :label: ex-starts
# Retrain from two more starts, `new_start(2)` and `new_start(3)`: 98 more trainings, about 20 seconds. **Guess first:** if
# two answers correlate as in the last row of the table, how well can scores agree with one answer at most, and how well with
# the mean of four?
# :::
#
# :::{solution-start} ex-starts
# :label: sol-starts
# :class: dropdown
# :::
#
# Let $c$ be the common fraction of one answer's variance. The mean of four answers keeps the common part and has a quarter
# of the rest's variance, so there the fraction is $c / (c + \tfrac{1 - c}{4}) = 4c / (1 + 3c)$. The ceilings are the square
# roots.

# %%
more = [changes(train_all(new_start(k).double())) for k in (2, 3)]
all_starts = torch.stack([same, other, *more])
alone = [agreement(scores, answer) for answer in all_starts]
common = [
    agreement(all_starts[i], all_starts[j])
    for i in range(4)
    for j in range(i)
]
together, c = agreement(scores, all_starts.mean(0)), sum(common) / 6
ceilings = c**0.5, (4 * c / (1 + 3 * c)) ** 0.5
assert c < sum(alone) / 4 < ceilings[0] and together < ceilings[1]
assert together > sum(alone) / 4
key = "correlation"
di.tables.table([
    {"pair": "two starts", key: c},
    {"pair": "scores, one start", key: sum(alone) / 4,
     "at most": ceilings[0]},
    {"pair": "scores, mean start", key: together, "at most": ceilings[1]},
], caption="Mean correlations, and what chance leaves.")  # fmt: skip

# %% [markdown]
# The mean does better: chance differs from start to start and averages out. The scores stay below both ceilings, and what
# they lack there is more than chance.
#
# :::{solution-end}
# :::
#
# ## References
#
# Influence functions for networks: {cite:t}`koh2017understanding`. The proximal question: {cite:t}`bae2022influence`. For
# diffusion models: {cite:t}`mlodozeniec2025influence`, whose appendix A draws the curve with its tangent, too.
