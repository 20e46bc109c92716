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
# # One formula, many methods
#
# :::{admonition} In this chapter
# :class: tip
# You write a dozen attribution methods as one formula with three blanks. You see why TRAK needs no matrix of weights, which
# damping it shares with influence, and what becomes of its scores when somebody sums a loss instead of averaging it. Then you
# fill the blanks as you like, also as nobody has, and see what each of the three is worth.
#
# *20 minutes to read · two cores: about 45 seconds · builds on {doc}`01_quickstart`, {doc}`05_ggn` and {doc}`08_scale`*
# :::

# %% tags=["hide-input"]
from types import SimpleNamespace

import numpy as np
import torch

import diffinf_lib as di
from diffinf_lib.configuration import Objective

torch.set_num_threads(1)
di.show_versions()
preset = di.get_preset("digits")
run = di.open_run(preset, progress=False)
train, N = run.data.train, len(run.data.train)
curvature = di.runs.curvature_of_run(run)
truth = di.load_ground_truth("digits-ground-truth", "generated")
bundle = di.load_bundle("digits-methods")
task = di.runs.task_of_run(run, truth.queries)

# %% [markdown]
# ## Three blanks
#
# You have a model and wish to know what is behind a picture. One paper says influence, the next TRAK, D-TRAK, TracIn, relative
# influence, a cosine. Each has its own derivation, and its own table in which it comes first. Before you choose one,
# write them in one form. Then you can see in what they differ, and try the parts one by one.
#
# The form is the score of {doc}`01_quickstart` with three blanks:
#
# $$ \text{score}(q, n) = \frac1N\, \frac{\varphi_q^\top\, \Gamma\, \varphi_n}{\nu_n} . $$ (eq-blanks)
#
# - The **feature** $\varphi$ is a vector that stands for an image: a gradient of something in the weights, or just its pixels.
#   $\varphi_q$ is the query's, $\varphi_n$ that of training image $n$ of $N$.
# - The **kernel** $\Gamma$ says how features are compared. For influence it is $(F + \lambda I)^{-1}$, with the curvature $F$
#   and the damping $\lambda$.
# - The **normaliser** $\nu_n$ is a length of the training image's own, or 1.
#
# Influence has gradients of the measurement and of the loss, EK-FAC's inverse, and 1. The dot product of gradients has the
# identity in the second blank. **Guess now, and write it down:** suppose you may improve one blank, and the others stay
# plain. Which is worth most for predicting what retraining does?
#
# ## A kernel by hand
#
# Two training images, three weights. Rows of $\Phi$ are the features of the images:

# %%
features = torch.tensor([[1.0, 0, 1], [0, 1, 1]]).double()  # Φ
query = torch.tensor([2.0, 1, 0]).double()
features @ query

# %% [markdown]
# By dot products, the first image counts twice as much as the second. TRAK {cite}`park2023trak` puts the features of all
# training images into its kernel: $\Gamma = (\Phi^\top \Phi / N + \lambda I)^{-1}$. With gradients of the loss, this
# $\Phi^\top \Phi / N$ is the GGN{sup}`loss` per example of {doc}`05_ggn`. **Guess:** with $\lambda = \tfrac12$, does the
# first image gain or lose against the second?

# %%
damping = 0.5
in_weights = features.T @ features / 2 + damping * torch.eye(3)
scores = features @ torch.linalg.solve(in_weights, query) / 2
torch.testing.assert_close(scores, torch.tensor([5 / 8, 1 / 8]).double())
scores

# %% [markdown]
# It gains: from 2 : 1 to 5 : 1. The images share their third weight, so each can do a part of the other's work. The kernel
# asks what an image has that the other has not. There, in the first two weights, the query agrees with the first image.
# If you guessed a loss, you may have thought that images alike share all their credit. They share only what they have in common.
#
# ## Images by images
#
# The matrix above was 3 × 3, weights by weights. For our network, how large would it be, and how large is a matrix of
# images by images?

# %%
weights = sum(
    layer.eigenvalues("ekfac").numel() for layer in curvature.layers.values()
)
readable = di.planner.plan.readable_bytes
print("weights × weights:", readable(8 * weights**2))
print("images × images:  ", readable(8 * N**2))

# %% [markdown]
# So TRAK's kernel looks hopeless. TRAK's authors first project the features at random to a few thousand numbers. But no
# projection is needed where there are few images, because of one identity. Start from a product that can be read in two
# ways, $\Phi^\top \Phi\, \Phi^\top$, and add $c\, \Phi^\top$ with any $c > 0$:
#
# $$ (\Phi^\top \Phi + c I)\, \Phi^\top = \Phi^\top (\Phi \Phi^\top + c I) . $$ (eq-push)
#
# Multiply by the first inverse from the left and by the second from the right, and the inverse has passed through:
#
# $$ (\Phi^\top \Phi + c I)^{-1}\, \Phi^\top = \Phi^\top (\Phi \Phi^\top + c I)^{-1} . $$ (eq-pushed)
#
# On the right stands the **Gram matrix** $\Phi \Phi^\top$, the inner products of all pairs of images. It is $N \times N$.
# Now put influence on GGN{sup}`loss` into this form. Where do the $1/N$ go?
#
# $$ \begin{aligned}
# \tfrac1N\, \varphi_q^\top \bigl(\tfrac1N \Phi^\top \Phi + \lambda I\bigr)^{-1} \Phi^\top
# &= \varphi_q^\top \bigl(\Phi^\top \Phi + N \lambda I\bigr)^{-1} \Phi^\top \\
# &= (\Phi \varphi_q)^\top \bigl(\Phi \Phi^\top + N \lambda I\bigr)^{-1} .
# \end{aligned} $$ (eq-trak)
#
# The outer $1/N$ cancels the inner one, and $\lambda$ comes out multiplied. TRAK is written with the sum $\Phi^\top \Phi$, so
# its damping is $\lambda_{\text{TRAK}} = N \lambda$. Otherwise, with gradients of the loss, TRAK *is* influence, on another
# curvature: the same sign, and the $1/N$ included.
#
# :::{admonition} Step by step: Woodbury's identity
# :class: dropdown
# {eq}`eq-pushed` needs $\Phi^\top$ beside the inverse. A query's feature alone is in general no combination of training
# features. For it, subtract $c I$ from both brackets. Because $(\Phi^\top\Phi + cI)^{-1}(\Phi^\top \Phi + cI) = I$,
#
# $$ c\, (\Phi^\top \Phi + c I)^{-1} = I - (\Phi^\top \Phi + c I)^{-1} \Phi^\top \Phi . $$
#
# Pass the inverse through by {eq}`eq-pushed` and divide by $c$:
#
# $$ (\Phi^\top \Phi + c I)^{-1} = \tfrac1c \bigl[\, I - \Phi^\top (\Phi \Phi^\top + c I)^{-1}\, \Phi \,\bigr] . $$
#
# This is *Woodbury's identity*. Where the training features say nothing, it divides by $c = N \lambda$ alone.
# :::
#
# Five lines, then, against the library on the real network. `Objective` names the function whose gradient is the feature:


# %%
def rows_of(gradients):
    """One row an image, in the curvature's eigenbasis: a rotation."""
    rows = gradients.whole()
    return torch.cat([rows[name].flatten(1) for name in curvature.layers], 1)


norm = Objective("square_norm")
FEATURES = {
    "loss": (rows_of(task.query_gradients()),
             rows_of(task.train_gradients())),
    "output": (rows_of(task.query_gradients(norm)),
               rows_of(task.train_gradients(norm))),
    "pixels": (truth.queries.images.flatten(1), train.images.flatten(1)),
}  # fmt: skip


# %%
def by_gram(asked, known, damping):
    """Scores [Q, N] by images × images; λ stands beside the mean."""
    asked, known = asked.double(), known.double()
    damped = known @ known.T + len(known) * damping * torch.eye(len(known))
    return torch.linalg.solve(damped, known @ asked.T).T


trak = di.get_method("trak")
found = by_gram(*FEATURES["loss"], trak.default / N)
torch.testing.assert_close(
    found, trak(task)[0], rtol=1e-5, atol=1e-5 * found.std().item()
)

# %% [markdown]
# The library's default is $\lambda_{\text{TRAK}} = 10^{-6}$, as in the comparison of {cite:t}`mlodozeniec2025influence`. How
# large is that? Compare it with the eigenvalues of the Gram matrix.

# %%
asked, known = (part.double() for part in FEATURES["loss"])
beside, gram_matrix = asked @ known.T, known @ known.T
sizes = torch.linalg.eigvalsh(gram_matrix)
damped = gram_matrix + trak.default * torch.eye(N)
leverage = torch.linalg.solve(damped, gram_matrix).diagonal()
assert trak.default < 1e-3 * sizes[0] and leverage.min() > 0.999
print(f"eigenvalues from {sizes[0]:.1e} to {sizes[-1]:.1f}")
print(f"an image's score for itself: {leverage.min():.4f} at least")

# %% [markdown]
# It is thousands of times below the smallest one, so it does nothing. Every image explains itself wholly: its score
# for itself, which is its leverage, is 1 but for some ten-thousandths. There are 300 images for so many weights, and without damping the kernel
# believes whatever tells them apart, noise of the draws included.
#
# ## The unit of a feature
#
# Somebody sums the squared error over the $C = 64$ pixels where we take the mean. So the loss, and the measurement with it, is
# multiplied by $c = 64$. Training ends at the same weights, nearly, for Adam divides a factor out. Removal changes the measurement by 64 times as much as before.
# **Guess:** what do the scores of influence do, and those of TRAK? Both features are multiplied by $c$. The GGN{sup}`model`
# is, too, because it is a second derivative of the loss. The Gram matrix is multiplied by $c^2$:
#
# $$ \begin{aligned}
# \text{influence:} \quad & c\,\varphi_q^\top (c F + \lambda I)^{-1} c\, \varphi_n \\
# & \quad = c\; \varphi_q^\top \bigl(F + \tfrac{\lambda}{c} I\bigr)^{-1} \varphi_n , \\
# \text{TRAK:} \quad & c\, \varphi_q^\top (c^2\, \Phi^\top \Phi + \lambda I)^{-1} c\, \varphi_n \\
# & \quad = \varphi_q^\top \bigl(\Phi^\top \Phi + \tfrac{\lambda}{c^2} I\bigr)^{-1} \varphi_n .
# \end{aligned} $$ (eq-unit)
#
# Influence does what the measurement does. TRAK's scores stay as they are, so they cannot be right in both units: the scale of
# the loss *drops out*. A square of gradients has the size of a curvature only where the loss is minus a
# log-likelihood, and the data are such as the model itself would draw. {doc}`05_ggn` measured how far off that is here.
#
# And $\lambda$ is in a unit, too. A damping that was tuned with the mean is a $c^2$-th of itself with the sum. Here is
# TRAK's LDS (the rank correlation between prediction and retraining, {doc}`01_quickstart`) at its default, and at
# the $\lambda$ that does best on half of the retrained models:


# %%
def stored(name):
    """What the bundle has of a method on generated digits."""
    wanted = name, "generated", "loss", "loss"
    parts = "method", "queries", "measured", "attributed"
    return next(
        row
        for row in bundle.metrics["results"]
        if tuple(row[part] for part in parts) == wanted
    )


TUNED = {
    "loss": stored("trak")["favourite"],
    "output": stored("d-trak")["favourite"],
}
unit_rows = []
for c in (1, 8, 64):
    row = {"loss multiplied by": c}
    for name, value in (("default", trak.default), ("tuned", TUNED["loss"])):
        damped = c**2 * gram_matrix + value * torch.eye(N)
        scores = c**2 * beside @ torch.linalg.inv(damped)
        row[f"λ = {value:g} ({name})"] = di.lds(scores, truth, bootstrap=2)
    unit_rows.append(row)

# %%
default, tuned = list(unit_rows[0])[1:]
at_default = [row[default].mean for row in unit_rows]
at_tuned = [row[tuned].mean for row in unit_rows]
assert max(at_default) - min(at_default) < 0.001
assert at_tuned[0] > at_default[0] + 0.05 and at_tuned[2] < at_tuned[0] - 0.05
di.tables.table(
    [
        {
            name: value if name == "loss multiplied by"
            else di.tables.percent(value.mean)
            for name, value in row.items()
        }
        for row in unit_rows
    ],
    caption="LDS of TRAK on generated digits, %, by the unit of the loss.",
)  # fmt: skip

# %% [markdown]
# At the default the unit drops out, because $\lambda$ does nothing. At the tuned damping, a change of convention costs all that
# tuning had gained. So report a $\lambda$ of TRAK with the loss's convention, or as a share of the mean squared length of the
# features (`damping_kind="relative"`).
#
# D-TRAK {cite}`zheng2024dtrak` goes further. Its feature is the gradient of $\lVert \varepsilon_\theta \rVert^2$, the squared
# length of the network's output, on both sides. There is no loss whose scale could be right, and $c$ is free. More is lost:
# leaving out an image takes its *loss* out of training, and nothing takes out a gradient of
# $\lVert \varepsilon_\theta \rVert^2$. So the score predicts no change, neither its size nor its sign. That is no objection
# to its ranks. It is why its rows in the library's table of methods say `arbitrary`.

# %%
assert di.get_method("trak").scale == "change"
assert di.get_method("d-trak").scale == "arbitrary"

# %% [markdown]
# ## Lengths
#
# Some images have long features and top every query's list. The third blank takes that length out. Write
# $z_n = \tfrac1N \Gamma \varphi_n$ for the *step* that the weights take when image $n$ is left out.
#
# | normaliser | $\nu_n$ | used by |
# |---|---|---|
# | none | $1$ | influence, TRAK |
# | feature's length | $\lVert \varphi_n \rVert$ | renormalised influence {cite}`hammoudeh2022identifying` |
# | step's length | $\lVert z_n \rVert$ | relative influence {cite}`barshan2020relatif` |
# | own score | $\sqrt{\varphi_n^\top z_n}$ | the same paper's other form; the cosine |
#
# A cosine divides by the query's length, too. That is one factor for all scores of a query and moves no rank. With the
# identity for a kernel, $z_n$ is proportional to $\varphi_n$, and the last three coincide.
#
# Pixels are mostly compared by a distance, and that is no quotient. It subtracts lengths:
#
# $$ \tfrac1N\, (\varphi_q - \varphi_n)^\top \Gamma\, (\varphi_q - \varphi_n) = \tfrac1N\, \varphi_q^\top \Gamma \varphi_q + \varphi_n^\top z_n - 2\, \varphi_q^\top z_n . $$ (eq-distance)
#
# Minus the root of it is the pixel distance for pixels and the identity. We list it as a fifth choice. Everything that
# these choices need is products. For a kernel that is diagonal in the eigenbasis:


# %%
def diagonal(asked, known, kernel):
    """Products with a kernel that is one number a direction."""
    steps = kernel * known / N
    return SimpleNamespace(
        score=asked @ steps.T,
        own=(known * steps).sum(1),
        step=steps.norm(dim=1),
        length=known.norm(dim=1),
        of_query=(kernel * asked.square()).sum(1, keepdim=True) / N,
    )


# %%
def gram(asked, known, damping):
    """The same with TRAK's kernel, by images × images."""
    asked, known = asked.double(), known.double()
    products, beside = known @ known.T, asked @ known.T
    inverse = torch.linalg.inv(products + N * damping * torch.eye(N))
    score = beside @ inverse
    rest = asked.square().sum(1) - (score * beside).sum(1)  # Woodbury's
    return SimpleNamespace(
        score=score,
        own=(products @ inverse).diagonal(),
        step=(inverse @ products @ inverse).diagonal().sqrt(),
        length=products.diagonal().sqrt(),
        of_query=rest[:, None] / (N * damping),
    )


# %%
NORMALISERS = {
    "none": lambda p: p.score,
    "feature's length": lambda p: p.score / p.length,
    "step's length": lambda p: p.score / p.step,
    "own score (cosine)": lambda p: p.score / p.own.sqrt(),
    "distance": lambda p: -(p.of_query + p.own - 2 * p.score).sqrt(),
}

# %% [markdown]
# ## Fill the blanks
#
# Now choose. The kernels are the identity, the Gram matrix at its default and at its tuned damping, EK-FAC, K-FAC, and the
# exact GGN, solved by four steps of conjugate gradients ({doc}`../book/ladder`). Features are gradients of the loss,
# gradients of $\lVert \varepsilon_\theta \rVert^2$ (D-TRAK's output function), and pixels. The first buttons are methods that
# have a name, the last is one that has none. **Before you press it:** TRAK and D-TRAK differ in the feature. Influence
# and TRAK differ in the kernel. What would D-TRAK's feature do with influence's kernel?

# %% tags=["hide-input"]
KERNELS = (
    "identity", "Gram", "Gram, tuned", "EK-FAC", "K-FAC", "exact GGN"
)  # fmt: skip
QUERIES = range(4)


def eigenvalues(approximation):
    layers = curvature.layers.values()
    return torch.cat([
        layer.eigenvalues(approximation).flatten() for layer in layers
    ])  # fmt: skip


# %% tags=["hide-input"]
def products(feature, kernel):
    """The products of a feature with a kernel, or None: not run."""
    pair = FEATURES[feature]
    if kernel == "identity":
        return diagonal(*pair, torch.ones(1))
    if feature != "pixels" and kernel in ("EK-FAC", "K-FAC"):
        sizes = eigenvalues(kernel.replace("-", "").lower())
        return diagonal(*pair, 1 / (sizes + preset.damping))
    if feature != "pixels" and kernel.startswith("Gram"):
        tuned = TUNED[feature] if "tuned" in kernel else trak.default
        return gram(*pair, tuned / N)
    return of_pixels(*pair) if kernel == "Gram" else None


def of_pixels(asked, known):
    """Fewer pixels than images: here the other side is smaller."""
    sizes, turn = torch.linalg.eigh(known.double().T @ known.double() / N)
    kernel = 1 / (sizes.clamp(min=0) + trak.default / N)
    return diagonal(asked.double() @ turn, known.double() @ turn, kernel)


# %% tags=["hide-input"]
shape = (len(FEATURES), len(KERNELS), len(NORMALISERS))
ranked = np.full((*shape, len(truth.queries), N), np.nan)
level, low, high = (np.full(shape, np.nan) for _ in range(3))
each = np.full((*shape, len(truth.queries)), np.nan)
for f, feature in enumerate(FEATURES):
    for k, kernel in enumerate(KERNELS):
        parts = products(feature, kernel)
        for m, normalise in enumerate(NORMALISERS.values() if parts else ()):
            ranked[f, k, m] = normalise(parts)
            got = di.lds(torch.tensor(ranked[f, k, m]), truth, bootstrap=200)
            level[f, k, m], each[f, k, m] = got.mean, got.per_query
            low[f, k, m], high[f, k, m] = got.interval

# %% tags=["hide-input"]
few = truth.queries.subset(slice(len(QUERIES)))
solved = di.get_method("cg")(di.runs.task_of_run(run, few))[0]
exact, first = KERNELS.index("exact GGN"), slice(len(QUERIES))
lengths = FEATURES["loss"][1].norm(dim=1).double()
ranked[0, exact, 0, first] = solved
ranked[0, exact, 1, first] = solved / lengths
level[0, exact, 0] = stored("cg")["lds"]
low[0, exact, 0], high[0, exact, 0] = stored("cg")["interval"]
cells = bundle.manifest["configuration"]["cells"]
made = [cell["method"] for cell in cells if cell["queries"] == "generated"]
four_steps = bundle.arrays["generated/loss/lds"][made.index("cg"), 3]
each[0, exact, 0] = four_steps
assert abs(four_steps.mean() - level[0, exact, 0]) < 1e-5

# %% tags=["hide-input"]
by, Preset = di.interactive.by, di.interactive.Preset
CHOICES = (
    di.interactive.Choice("Feature", (
        "gradient of the loss", "gradient of the output's length", "pixels"
    )),
    di.interactive.Choice("Kernel", KERNELS),
    di.interactive.Choice("Normaliser", tuple(NORMALISERS)),
)  # fmt: skip
NAMED = {
    "influence": (0, 3, 0), "TRAK": (0, 1, 0), "D-TRAK": (1, 1, 0),
    "relative influence": (0, 3, 2), "dot product": (0, 0, 0),
    "cosine": (0, 0, 3), "pixels": (2, 0, 4),
    "conjugate gradients": (0, 5, 0), "no name": (1, 3, 0),
}  # fmt: skip
SAID = {
    "influence": "Influence: a gradient of the loss, EK-FAC, no normaliser.",
    "TRAK": "Only the kernel differs from influence.",
    "D-TRAK": "Only the feature differs from TRAK.",
    "no name": "D-TRAK's feature with influence's kernel: nobody's method.",
}

# %% tags=["hide-input"]
rows = {
    "influence": "ekfac", "TRAK": "trak", "D-TRAK": "d-trak",
    "relative influence": "relative", "dot product": "gradient-dot",
    "cosine": "gradient-cosine", "pixels": "pixel",
}  # fmt: skip
for name, method in rows.items():
    assert abs(level[NAMED[name]] - stored(method)["lds"]) < 0.02
buttons = [
    Preset(
        name,
        {c.name: i for c, i in zip(CHOICES, places, strict=True)},
        SAID.get(name, ""),
    )
    for name, places in NAMED.items()
]

# %% tags=["hide-input"]
explorer = di.interactive.Explorer(
    train,
    truth.queries,
    by(ranked, *CHOICES),
    shown=QUERIES,
    images=6,
    missing="not run, or without a meaning.",
)
percents = {
    "LDS over 64 digits, %": by(100 * level, *CHOICES),
    "from": by(100 * low, *CHOICES),
    "to": by(100 * high, *CHOICES),
    "this query's, %": by(
        100 * each[..., list(QUERIES)], *CHOICES, explorer.query
    ),
}
readouts = di.interactive.Readouts(percents, dict.fromkeys(percents, ".1f"))

# %% tags=["hide-input"]
di.interactive.Together(
    [readouts, explorer],
    start=dict(buttons[0].state),
    presets=buttons,
    caption="One formula, three blanks: LDS over all generated digits with "
    "its 95 % interval, and for one of four the training images with the "
    "highest and the lowest scores. A dash: not run. Kernels of weights "
    "mean nothing for pixels; the exact GGN was solved for the four digits "
    "with the loss's gradient, and its LDS is stored.",
)

# %% [markdown]
# What did you write down? Here is each pair of feature and kernel, without a normaliser:

# %%
di.tables.table([
    {"kernel": kernel}
    | {choice: di.tables.percent(
           level[f, k, 0], (low[f, k, 0], high[f, k, 0]))
       for f, choice in enumerate(CHOICES[0].options)
       if np.isfinite(level[f, k, 0])}
    for k, kernel in enumerate(KERNELS)
], caption="LDS, %, on generated digits, with 95 % intervals.",
   source=bundle)  # fmt: skip

# %% [markdown]
# And one blank at a time, in points of LDS. Differences are paired, so what two choices share drops out:


# %%
def change(after, before):
    """Paired difference of two fillings."""
    pair = (torch.tensor(ranked[places]) for places in (after, before))
    return di.paired_difference(*pair, truth)


STEPS = {
    "kernel: tuned Gram → EK-FAC, loss": ((0, 3, 0), (0, 2, 0)),
    "kernel: tuned Gram → EK-FAC, output": ((1, 3, 0), (1, 2, 0)),
    "kernel: identity → EK-FAC, loss": ((0, 3, 0), (0, 0, 0)),
    "feature: output → loss, EK-FAC": ((0, 3, 0), (1, 3, 0)),
    "feature: output → loss, tuned Gram": ((0, 2, 0), (1, 2, 0)),
    "normaliser: none → step's length, loss, EK-FAC": ((0, 3, 2), (0, 3, 0)),
    "normaliser: none → length, loss, identity": ((0, 0, 1), (0, 0, 0)),
    "normaliser: none → length, output, identity": ((1, 0, 1), (1, 0, 0)),
}
worth = {name: change(*pair) for name, pair in STEPS.items()}
di.tables.table([
    {"what changes": name,
     "points": di.tables.percent(*found, signed=True)}
    for name, found in worth.items()
], caption="Change of the LDS, points.")  # fmt: skip

# %%
kernel, other, plain, feature, tuned, relative, short, long = worth.values()
assert plain.value > 0.35 and kernel.value > 0.15
assert other.interval[0] > 0 and other.value < kernel.value
assert tuned.value < 0 < tuned.interval[1] < 0.01
assert feature.interval[0] > 0.1 and abs(relative.value) < 0.01
assert short.value < 0.04 and long.value > 0.15
assert level[1, 3, 0] > level[0, 2, 0] > level[1, 1, 0]
assert stored("trak")["tuned"] < level[0, 3, 0] - 0.1
assert level[0, 3, 4] < level[0, 3, 0] / 2
assert level[0, 3, 0] > 2 * level[0, 0, 0]
assert level[1, 0, 1] > 3 * level[1, 0, 0]
assert abs(level[0, 1, 3] - level[0, 1, 0]) < 0.002
assert level[2, 0, 4] > level[2, 0, 0] > level[2, 0, 4] - 0.2

# %% [markdown]
# - **The kernel is worth most.** With gradients of the loss, EK-FAC more than doubles the LDS of the identity, and TRAK stays far
#   behind even at its best damping. D-TRAK's feature gains too when it is given influence's kernel: this filling without a name
#   beats TRAK, tuned or not.
# - **The feature comes second.** With EK-FAC's kernel, the loss is well ahead of the output's length. With Gram matrices at
#   their tuned dampings it is not: there D-TRAK's feature is level or ahead, as its authors found. Ask which kernel a
#   comparison of features was made with.
# - **A normaliser matters where the kernel is bad.** With the identity, it more than triples the LDS of D-TRAK's feature. With
#   EK-FAC it changes nothing. With the undamped Gram matrix every own score is 1, so a cosine is TRAK again. A distance suits
#   pixels, and takes more than half of its LDS from influence.
#
# The tuned dampings were chosen on half of these very retrained models, so their columns flatter TRAK and D-TRAK. And this is
# one data set. {doc}`../book/methods` has all methods on it, and {doc}`../book/datasets` shows sneakers and bags, on
# which tuning closes the gap.
#
# ## Where a sum stands
#
# What is left are sums: over draws, over steps of sampling, over checkpoints of the training run. Each can stand inside a
# feature, or outside, around whole scores. Take two checkpoints $i$ and features that are one number. At the first
# the query has 1 and the image 2, at the second $-1$ and $-2$. **Guess first:** what is the sum of products, and what the product of sums?

# %%
of_query, of_image = torch.tensor([1.0, -1]), torch.tensor([2.0, -2])
outside = (of_query * of_image).sum()
inside = of_query.sum() * of_image.sum()
assert outside == 4 and inside == 0
print("sum of products:", outside.item(), " product of sums:", inside.item())

# %% [markdown]
# At both checkpoints the image moves the query in the same direction, and the product of sums does not see it. There is one rule:
# a score is linear in each feature. So a sum may move inside *one* of them, if nothing else depends on its index.
#
# - **Checkpoints: outside.** All three parts belong to a checkpoint. TracIn {cite}`pruthi2020tracin` sums
#   $\eta_i\, \varphi_{q,i}^\top \varphi_{n,i}$ with the learning rate $\eta_i$ as kernel. TRAK averages over models, and K-FAC along
#   the run over checkpoints.
# - **Steps of sampling: either.** Journey-TRAK {cite}`georgiev2023journey` scores each step on the query's way from noise and
#   adds up. Only $\varphi_q$ depends on the step, so one mean gradient does the same.
# - **Draws: inside, on both sides.** Each side has its own ({doc}`08_scale`).
# - **DAS: outside, because it squares.** DAS {cite}`lin2025das` asks how far the network's output moves, in whichever direction.
#   Its feature is the gradient of a random direction $u$ of the output, and its score the mean over $u$ and draws of the
#   square, $(\varphi_{q,u}^\top z_n)^2$. So it has no sign.
#
# The whole field in one table. *Row* is the name in `di.METHODS`, where each is a function of a few lines:

# %% tags=["hide-input"]
LOSS, NORM, GRAM = "∇loss · ∇loss", "∇‖ε_θ‖² · same", "Gram"
TABLE = {
    "ekfac": (LOSS, "EK-FAC", "none", "draws inside"),
    "cg": (LOSS, "exact GGN", "none", "draws inside"),
    "trak": (LOSS, GRAM, "none", "draws inside, models outside"),
    "d-trak": (NORM, GRAM, "none", "draws inside, models outside"),
    "journey-trak": ("∇loss along the sampling · ∇loss", GRAM, "none",
                     "steps in the query's feature"),
    "das": ("∇(u · output) · ∇loss", "EK-FAC", "square",
            "draws and u outside"),
    "relative": (LOSS, "EK-FAC", "step's length", "draws inside"),
    "self-relative": (LOSS, "EK-FAC", "own score", "draws inside"),
    "renormalised": (LOSS, "EK-FAC", "feature's length", "draws inside"),
    "kfac-along": (LOSS, "K-FAC of each", "standard deviation",
                   "checkpoints outside"),
    "tracin": (LOSS, "learning rate", "none", "checkpoints outside"),
    "gradient-dot": (LOSS, "identity", "none", "draws inside"),
    "gradient-cosine": (LOSS, "identity", "own score", "draws inside"),
    "clip": ("CLIP embeddings", "identity", "own score", "none"),
    "pixel": ("pixels", "identity", "distance", "none"),
}  # fmt: skip

# %% tags=["hide-input"]
HEADS = "feature, query · image", "kernel", "normaliser", "sums"
di.tables.table([
    {"method": f"{row.label} {di.tables.cite(row.paper)}".strip(),
     "row": f"`{name}`"}
    | dict(zip(HEADS, parts, strict=True))
    | ({} if name == "clip" else
       {"LDS, %": di.tables.percent(stored(name)["lds"])})
    for name, parts in TABLE.items() for row in [di.get_method(name)]
], caption="Methods by what they put into the blanks, with the LDS on "
   "generated digits at their default. Not run: CLIP. D-TRAK has further "
   "rows for other outputs.", source=bundle)  # fmt: skip

# %% [markdown]
# ## Pitfalls
#
# - **λ without N.** A damping of influence and one of TRAK differ by $N$. Taken over unchanged it is wrong by a factor of
#   300 here, and of 50,000 on CIFAR-10.
# - **λ without the loss's unit.** A sum over pixels in place of a mean is $C^2$ in TRAK's damping, and $C$ in influence's.
# - **One method against another.** Two papers' methods differ in several blanks, and in draws. Change one at a time.
# - **Normalised scores predict no change.** After a division by $\nu_n$ they rank, and their sums mean nothing.
# - **Averages of features over checkpoints.** They cancel what a sum outside keeps.
#
# ## What comes next
#
# The formula also shows where to improve: a better kernel, a better feature, more points along the run. {doc}`../book/ladder` takes
# these steps one after another, with the price of each.
#
# ## Exercises

# %% [markdown]
# :::{exercise} Woodbury by hand · 10 minutes · ★
# :label: ex-woodbury-hand
# Three training features are $(1, 0)$, $(1, 0)$ and $(0, 1)$, and the query's is $(1, 1)$. Take $\lambda = \tfrac13$. By
# hand: compute the three scores of {eq}`eq-trak`, once by a 2 × 2 and once by a 3 × 3 matrix. What happens to the two
# copies, and what if $\lambda$ goes to 0?
# :::
#
# :::{solution-start} ex-woodbury-hand
# :label: sol-woodbury-hand
# :class: dropdown
# :::
#
# $N\lambda = 1$. By weights, $\Phi^\top\Phi + I$ has $3$ and $2$ on its diagonal, so the scores are $\tfrac13, \tfrac13,
# \tfrac12$. By images, the copies make a block with $2$ on the diagonal and $1$ beside it, whose row sums are $3$. The inverse
# times $(1, 1)$ is $(\tfrac13, \tfrac13)$. Without damping, $\tfrac12, \tfrac12, 1$: the copies share what one image would
# have alone.

# %%
three = torch.tensor([[1.0, 0], [1, 0], [0, 1]]).double()
both = torch.ones(1, 2).double()
by_hand = torch.tensor([[1 / 3, 1 / 3, 1 / 2]]).double()
torch.testing.assert_close(by_gram(both, three, 1 / 3), by_hand)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Woodbury in code · 10 minutes · ★★
# :label: ex-woodbury
# Write `my_scores(query_feature, features, damping)`: the scores of one query, `[N]`, on the kernel
# $(\Phi^\top\Phi/N + \lambda I)^{-1}$, with no matrix larger than $N \times N$. Check it with
# `di.checks.woodbury(my_scores)`. Try it with $\lambda$ in place of $N\lambda$ as well.
# :::
#
# :::{solution-start} ex-woodbury
# :label: sol-woodbury
# :class: dropdown
# :::


# %%
def my_scores(query_feature, features, damping):
    products = features @ features.T
    damped = products + len(features) * damping * torch.eye(len(features))
    return torch.linalg.solve(damped, features @ query_feature)


di.checks.woodbury(my_scores)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Three rows of the table · 15 minutes · ★★
# :label: ex-rows
# Rebuild `relative`, `gradient-cosine` and `d-trak` of `di.METHODS` from `FEATURES`, each to $10^{-5}$ of its largest score, scale
# included. `di.get_method(name)(task)[0]` gives the library's scores. Where does its scale differ from {eq}`eq-blanks`?
# :::
#
# :::{solution-start} ex-rows
# :label: sol-rows
# :class: dropdown
# :::

# %%
asked, known = (part.double() for part in FEATURES["loss"])
steps = known / (eigenvalues("ekfac").double() + preset.damping)
mine = {
    "relative": asked @ steps.T / N / steps.norm(dim=1),
    "gradient-cosine": (asked / asked.norm(dim=1, keepdim=True))
    @ (known / known.norm(dim=1, keepdim=True)).T,
    "d-trak": by_gram(*FEATURES["output"], trak.default / N),
}
for name, scores in mine.items():
    library = di.get_method(name)(task)[0]
    wrong = (scores - library).abs().max() / library.abs().max()
    assert wrong < 1e-5
    print(f"{name}: {wrong:.0e}")

# %% [markdown]
# The library divides by the length of $\Gamma \varphi_n$, without the $1/N$ of the step, and its cosine by the query's length, too. Both
# are one factor for all images.
#
# :::{solution-end}
# :::
#
# :::{exercise} Whitened pixels · 10 minutes · ★
# :label: ex-whitened
# Give the pixels a Gram kernel with a damping between its two ends, say $\lambda = 10^{-3}, 10^{-2}, \dots, 10^{2}$, without a
# normaliser and with the distance. The second is a distance in which directions of large variance count less. **Guess
# first:** does either find more than the plain distance of the figure? (`diagonal` takes rotated features, as `of_pixels` shows in the folded
# cell above the figure.)
# :::
#
# :::{solution-start} ex-whitened
# :label: sol-whitened
# :class: dropdown
# :::

# %%
asked, known = (part.double() for part in FEATURES["pixels"])
sizes, turn = torch.linalg.eigh(known.T @ known / N)
whitened = []
for damping in 10.0 ** np.arange(-3, 3):
    parts = diagonal(asked @ turn, known @ turn, 1 / (sizes + damping))
    row = {"λ": di.tables.number(damping)}
    for name in ("none", "distance"):
        scores = NORMALISERS[name](parts)
        row[name] = di.tables.percent(di.lds(scores, truth, bootstrap=2).mean)
    whitened.append(row)
best = max(whitened, key=lambda row: row["none"].value)
assert best["none"].value > 100 * level[2, 0, 4] + 3
assert 0.001 < best["λ"].value < 100
farthest = max(row["distance"].value for row in whitened)
assert farthest < 100 * level[2, 0, 4] + 2 < best["none"].value
di.tables.table(whitened, caption="LDS of pixels by damping, %.")

# %% [markdown]
# It is the kernel alone that gains, at a damping near the middle, and the distance gains next to nothing. That is a Gram kernel of the
# pixels' own covariance, and it predicts retraining better than the plain distance. The best $\lambda$ was read off this
# very table, so on other images expect less.
#
# :::{solution-end}
# :::
