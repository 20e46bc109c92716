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
# fill the blanks yourself, also in ways that we found in no paper, and see what each of the three is worth.
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
# influence, a cosine. Each has its own derivation, and its own table in which it comes first. Write them in one form, and you
# can try the parts one by one.
#
# The form is the score of {doc}`01_quickstart` with three blanks:
#
# $$ \text{score}(q, n) = \frac1N\, \frac{\varphi_q^\top\, \Gamma\, \varphi_n}{\nu_n} . $$ (eq-blanks)
#
# - The **feature** $\varphi$ is a vector that stands for an image: a gradient of something in the weights, or just its pixels.
#   $\varphi_q$ is the query's, $\varphi_n$ that of training image $n$ of $N$. Here $N = 300$.
# - The **kernel** $\Gamma$ says how features are compared. For influence it is $(F + \lambda I)^{-1}$, with the curvature $F$
#   and the damping $\lambda$.
# - The **normaliser** $\nu_n$ is a length that depends on the training image alone, or 1.
#
# Influence has gradients of the measurement and of the loss, EK-FAC's inverse, and 1. The measurement is here the query's own
# loss, and gradients are means over *draws*, random pairs of a timestep and a noise. The plain dot product of gradients has the
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
# $\Phi^\top \Phi / N$ is the mean of $\varphi_n \varphi_n^\top$, the GGN{sup}`loss` per example of {doc}`05_ggn`. Influence has
# GGN{sup}`model` there, made of the network's Jacobians. **Guess:** with $\lambda = \tfrac12$, does the
# first image gain or lose against the second?

# %%
damping = 0.5
in_weights = features.T @ features / 2 + damping * torch.eye(3)
scores = features @ torch.linalg.solve(in_weights, query) / 2
torch.testing.assert_close(scores, torch.tensor([5 / 8, 1 / 8]).double())
scores

# %% [markdown]
# It gains: from 2 : 1 to 5 : 1. The images share their third weight, so each can do a part of the other's work. Each image has
# 3 times its own dot product, less the other's: $3\cdot2-1=5$ and $3\cdot1-2=1$, over 8. (The next section shows why.) What is
# subtracted is the other's, so the one with the larger product loses less. If you guessed that it loses, you may have thought
# that similar images share all their credit. They share only what they have in common.
#
# ## Images by images
#
# The matrix above was 3 × 3, weights by weights. For our network, how large would it be, and how large is a matrix of
# images by images?


# %%
def eigenvalues(approximation):
    layers = curvature.layers.values()
    return torch.cat([
        layer.eigenvalues(approximation).flatten() for layer in layers
    ])  # fmt: skip


weights = eigenvalues("ekfac").numel()
readable = di.planner.plan.readable_bytes
print(f"{weights:,} weights, {N} images")
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
#
# Now put influence on GGN{sup}`loss` into this form. **Guess:** where do the $1/N$ go?
#
# $$ \begin{aligned}
# & \tfrac1N\, \varphi_q^\top \bigl(\tfrac1N \Phi^\top \Phi + \lambda I\bigr)^{-1} \Phi^\top \\
# & \quad = \varphi_q^\top \bigl(\Phi^\top \Phi + N \lambda I\bigr)^{-1} \Phi^\top \\
# & \quad = (\Phi \varphi_q)^\top \bigl(\Phi \Phi^\top + N \lambda I\bigr)^{-1} .
# \end{aligned} $$ (eq-trak)
#
# The outer $1/N$ cancels the inner one, and $\lambda$ comes out multiplied. TRAK is written with the sum $\Phi^\top \Phi$, so
# its damping is $\lambda_{\text{TRAK}} = N \lambda$. Apart from that, TRAK with gradients of the loss *is* influence with
# GGN{sup}`loss` as its curvature, sign and $1/N$ included.
#
# Check it on the example. There $N\lambda = 1$, so $\Phi\Phi^\top + I$ has 3 on its diagonal and 1 beside it, and its inverse is
# $\tfrac18\begin{pmatrix}3&-1\\-1&3\end{pmatrix}$. With $\Phi\varphi_q=(2,1)$ the scores are $(6-1,\,3-2)/8=(5,1)/8$, as before.
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
# This is *Woodbury's identity*. In directions that no training feature has, $(\Phi^\top\Phi+cI)^{-1}$ is $1/c$.
# :::
#
# Five lines, then, against the library on the real network. `Objective` names the function whose gradient is the feature. The
# rows are turned into the curvature's eigenbasis. That changes no inner product, and it makes EK-FAC diagonal.


# %%
def rows_of(gradients):
    """One row per image, in the curvature's eigenbasis."""
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


torch.testing.assert_close(by_gram(query[None], features, 0.5)[0], scores)
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
# The damping is thousands of times smaller than the smallest eigenvalue, so it does nothing. Every image explains itself wholly:
# its score for itself, its leverage, is 1 but for some ten-thousandths. With far fewer images than weights and no damping, the
# kernel believes whatever tells images apart, noise of the draws included.
#
# ## The unit of a feature
#
# Somebody sums the squared error over the $C = 64$ pixels where we take the mean. So the loss, and the measurement with it, is
# multiplied by $c = 64$. (By chance there are also 64 queries and 64 halves.) Training ends at nearly the same weights, for Adam
# divides a factor out. So removal changes the measurement 64 times as much as before. **Guess:** what do the scores of influence
# do, and those of TRAK?
#
# Both features are multiplied by $c$. The GGN{sup}`model` is, too, because it is linear in the loss. The Gram matrix is multiplied
# by $c^2$. Leave out the common $1/N$ of influence; TRAK's $\lambda_{\text{TRAK}} = N\lambda$ stands beside the sum:
#
# $$ \begin{aligned}
# \text{influence:} \quad & c\,\varphi_q^\top (c F + \lambda I)^{-1} c\, \varphi_n \\
# & \quad = c\; \varphi_q^\top \bigl(F + \tfrac{\lambda}{c} I\bigr)^{-1} \varphi_n , \\
# \text{TRAK:} \quad & c\, \varphi_q^\top (c^2\, \Phi^\top \Phi + \lambda_{\text{TRAK}} I)^{-1} c\, \varphi_n \\
# & \quad = \varphi_q^\top \bigl(\Phi^\top \Phi + \tfrac{\lambda_{\text{TRAK}}}{c^2} I\bigr)^{-1} \varphi_n .
# \end{aligned} $$ (eq-unit)
#
# Influence is multiplied by $c$ like the measurement, if $\lambda$ is, too. TRAK's scores stay as they are, if
# $\lambda_{\text{TRAK}}$ is multiplied by $c^2$ or is too small to matter. So they cannot be right in both units: the scale of the
# loss *drops out*. A square of gradients has the size of a curvature only where the loss is minus a log-likelihood, and the data
# are such as the model itself would draw. (Then it is a Fisher, {doc}`05_ggn`.) That is not so here, and means over draws shrink
# the squares further. Compare the traces:

# %%
of_model = eigenvalues("ekfac").sum().item()
of_loss = gram_matrix.trace().item() / N
assert of_model > 1000 * of_loss
print(f"trace of GGN_model: {of_model:.0f}, of GGN_loss: {of_loss:.2f}")

# %% [markdown]
# And $\lambda$ is in a unit, too. With the sum, a $\lambda_{\text{TRAK}}$ tuned for the mean acts like
# $\lambda_{\text{TRAK}} / c^2$. Here is TRAK's LDS, the rank correlation of prediction and retraining over random halves of the data
# ({doc}`01_quickstart`). The table has it at the default damping, and at the power of ten that is best most often when it is
# chosen on 32 of the 64 halves:


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
print("tuned λ of TRAK:", TUNED["loss"], "· of D-TRAK:", TUNED["output"])

# %%
halves, seeds = truth.measurements.shape[:2]
assert halves == 64
print(f"retrained: {halves} halves of the data, {seeds} seeds each")
unit_rows = []
for c in (1, 8, 64):
    row = {"loss times": c}
    for name, value in (("default", trak.default), ("tuned", TUNED["loss"])):
        damped = c**2 * gram_matrix + value * torch.eye(N)
        scores = c**2 * beside @ torch.linalg.inv(damped)
        power = f"$10^{{{np.log10(value):.0f}}}$ ({name})"
        row[power] = di.lds(scores, truth, bootstrap=2)
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
            name: value if name == "loss times"
            else di.tables.percent(value.mean)
            for name, value in row.items()
        }
        for row in unit_rows
    ],
    caption="LDS of TRAK on generated digits, %, by the unit of the loss "
    "and $\\lambda_{\\text{TRAK}}$.",
)  # fmt: skip

# %% [markdown]
# At the default the unit drops out, because $\lambda$ does nothing. At the tuned damping, a change of convention costs all that
# tuning had gained. So report a $\lambda$ of TRAK with the loss's convention, or as a share of the mean squared length of the
# features (`di.attribution.trak_scores(..., damping_kind="relative")`).
#
# D-TRAK {cite}`zheng2024dtrak` goes further. Its feature is the gradient of $\lVert \varepsilon_\theta \rVert^2$, the squared
# length of the noise $\varepsilon_\theta$ that the network predicts, on both sides. Its scale is arbitrary, and its sign as well:
# leaving out an image removes the gradient of its *loss* from training, never one of $\lVert \varepsilon_\theta \rVert^2$. So the
# score predicts no change, and the library calls its scale `arbitrary`. Its ranks may be good all the same. TRAK's scale is called
# `change`: that is what the formula claims, and {eq}`eq-unit` says how far to trust it.

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
# | own score | $\sqrt{\varphi_n^\top z_n}$ | self-relative influence {cite}`barshan2020relatif`; the cosine |
#
# A cosine divides by the query's length, too, and by no $\sqrt N$. That is one factor for all scores of a query and moves no rank. With the
# identity for a kernel, $z_n$ is proportional to $\varphi_n$, and the last three give the same ranks.
#
# Pixels are mostly compared by a distance, and that is no quotient. Its square is two lengths less twice the product:
#
# $$ \begin{aligned}
# & \tfrac1N\, (\varphi_q - \varphi_n)^\top \Gamma\, (\varphi_q - \varphi_n) \\
# & \quad = \tfrac1N\, \varphi_q^\top \Gamma \varphi_q + \varphi_n^\top z_n \\
# & \qquad - 2\, \varphi_q^\top z_n .
# \end{aligned} $$ (eq-distance)
#
# With pixels and the identity, minus the root of this is minus the pixel distance, up to a factor. So an image with a long feature
# loses by subtraction. We list it as a fifth choice. All that these choices need is products. For a kernel that is diagonal in the eigenbasis:


# %%
def diagonal(asked, known, kernel):
    """Products with a kernel that is one number per direction."""
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
# exact GGN. Its inverse is approached by four steps of conjugate gradients with EK-FAC as preconditioner ({doc}`10_removal`).
# Features are gradients of the loss, gradients of $\lVert \varepsilon_\theta \rVert^2$, and pixels. All buttons but the last are
# named methods. **Before you press that one:** TRAK and D-TRAK differ in the feature. Influence and TRAK differ in the kernel. What
# would D-TRAK's feature do with influence's kernel?

# %% tags=["hide-input"]
KERNELS = (
    "identity", "Gram", "Gram, tuned", "EK-FAC", "K-FAC", "exact GGN"
)  # fmt: skip
QUERIES = range(4)


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
    "TRAK": "Only the kernel differs from influence. Its unit is that of a "
    "change, its size is not: the scale of the loss drops out.",
    "D-TRAK": "Only the feature differs from TRAK.",
    "cosine": "A cosine, up to one factor for all images.",
    "no name": "D-TRAK's feature with influence's kernel: we know no paper "
    "that uses it.",
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
CHANGE = "A score predicts how much the query's loss rises without the image."
UNIT = "A score has the unit of a change, but not its size."
ORDER = "Sums of these scores may rank; their size predicts no change."
says = dict.fromkeys([(0, k, 0) for k in (3, 4, 5)], CHANGE)
says |= dict.fromkeys([(0, k, 0) for k in (1, 2)], UNIT)
hints = [
    [[says.get((f, k, m), ORDER) for m in range(shape[2])]
     for k in range(shape[1])]
    for f in range(shape[0])
]  # fmt: skip

# %% tags=["hide-input"]
explorer = di.interactive.Explorer(
    train,
    truth.queries,
    by(ranked, *CHOICES),
    shown=QUERIES,
    images=6,
    hint=di.interactive.texts_by(hints, *CHOICES),
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
    "highest and the lowest scores. Images are numbered as in the full set "
    "of 1,797 digits. A dash: no LDS. Kernels of weights mean nothing for "
    "pixels, and pixels with a tuned Gram are left to the last exercise. "
    "The exact GGN was solved for the four digits with the loss's "
    "gradient, and its LDS is stored.",
)

# %% [markdown]
# What did you write down? Here is each pair of feature and kernel, without a normaliser. The damping $\lambda$ stands beside a
# mean over images, as in influence:

# %%
of_ggn = di.attribution.methods.GGN_DAMPING
small, *two = (
    di.tables.number(x / N) for x in (trak.default, *TUNED.values())
)
ours, of_exact = map(di.tables.number, (preset.damping, of_ggn))
dampings = None, small, None, ours, ours, of_exact
di.tables.table([
    {"kernel": kernel, "λ": dampings[k]}
    | {choice: di.tables.percent(
           level[f, k, 0], (low[f, k, 0], high[f, k, 0]))
       for f, choice in enumerate(("loss", "output", "pixels"))
       if np.isfinite(level[f, k, 0])}
    for k, kernel in enumerate(KERNELS)
], caption="LDS, %, on generated digits, with 95 % intervals, by feature: "
   "gradient of the loss; of the output's squared length; pixels. The "
   f"tuned λ is {two[0]} for the loss and {two[1]} for the output.",
   source=bundle)  # fmt: skip

# %% [markdown]
# The exact GGN is ahead, but it is damped a hundred times more than EK-FAC. Is it the matrix, or the damping? The figure shows another
# oddity: EK-FAC's scores are some thirty times as large, and both claim the same change. Each half of the data leaves images
# out, so sum their scores, and fit the measured changes by a multiple of the sums:

# %%
same = diagonal(*FEATURES["loss"], 1 / (eigenvalues("ekfac") + of_ggn))
left_out = 1 - truth.masks.double()
moved = truth.measurements.mean(1)[:, first]


def multiple(scores):
    """Least squares with a constant: measured over predicted."""
    sums = left_out @ torch.as_tensor(scores[first]).double().T
    sums, change = sums - sums.mean(0), moved - moved.mean(0)
    return ((sums * change).sum(0) / sums.square().sum(0)).numpy()


trio = {
    "EK-FAC": (preset.damping, ranked[0, 3, 0]),
    "EK-FAC, damped as the GGN": (of_ggn, same.score),
    "exact GGN": (of_ggn, ranked[0, exact, 0]),
}
found = {name: multiple(scores) for name, (_, scores) in trio.items()}

# %%
plain, damped, of_exact = found.values()
assert (1 / plain > 15).all() and (1 / damped > 15).all()
assert (of_exact > 0.8).all() and (of_exact < 1.7).all()
at_same = di.lds(same.score, truth, bootstrap=2).mean
assert abs(at_same - level[0, 3, 0]) < 0.003
reached = level[0, 3, 0], at_same, level[0, exact, 0]
di.tables.table([
    {"kernel": name, "λ": di.tables.number(damping),
     "LDS, %": di.tables.percent(lds),
     "measured / predicted": f"{times.min():.2f} to {times.max():.2f}"}
    for (name, times), (damping, _), lds in
    zip(found.items(), trio.values(), reached, strict=True)
], caption="LDS over all digits; measured over predicted change of the four "
   "in the figure.")  # fmt: skip

# %% [markdown]
# So the damping is not the reason. What is left is the matrix, and the stop after four steps. EK-FAC treats directions as
# independent where the exact GGN couples them. The right size proves less still: a solve that is stopped early gives small
# scores, and {doc}`10_removal` shows them grow with more steps.
#
# Now one blank at a time, in points (hundredths of LDS). Differences are paired ({doc}`09_lds`), so what two choices share drops
# out. In brackets stands what is held fixed:


# %%
def change(after, before):
    """Paired difference of two fillings."""
    pair = (torch.tensor(ranked[places]) for places in (after, before))
    return di.paired_difference(*pair, truth)


# %%
STEPS = {
    "kernel: identity → EK-FAC (loss)": ((0, 3, 0), (0, 0, 0)),
    "feature: loss → pixels (identity)": ((2, 0, 0), (0, 0, 0)),
    "normaliser: none → feature's length (loss, identity)":
        ((0, 0, 1), (0, 0, 0)),
    "kernel: tuned Gram → EK-FAC (loss)": ((0, 3, 0), (0, 2, 0)),
    "kernel: tuned Gram → EK-FAC (output)": ((1, 3, 0), (1, 2, 0)),
    "feature: output → loss (EK-FAC)": ((0, 3, 0), (1, 3, 0)),
    "feature: output → loss (tuned Gram)": ((0, 2, 0), (1, 2, 0)),
    "normaliser: none → feature's length (output, identity)":
        ((1, 0, 1), (1, 0, 0)),
    "normaliser: none → feature's length (loss, EK-FAC)":
        ((0, 3, 1), (0, 3, 0)),
    "normaliser: none → step's length (loss, EK-FAC)":
        ((0, 3, 2), (0, 3, 0)),
    "normaliser: none → distance (pixels, identity)":
        ((2, 0, 4), (2, 0, 0)),
    "normaliser: none → distance (loss, EK-FAC)":
        ((0, 3, 4), (0, 3, 0)),
}  # fmt: skip

# %%
worth = {name: change(*pair) for name, pair in STEPS.items()}
cg = stored("cg")
rows = {name: tuple(found) for name, found in worth.items()}
rows["kernel: EK-FAC → exact GGN (loss)"] = (
    cg["difference"],
    cg["difference_interval"],
)
di.tables.table([
    {"what changes": name, "points": di.tables.percent(*pair, signed=True)}
    for name, pair in rows.items()
], caption="Change of the LDS, points.")  # fmt: skip

# %%
gained = [step.value for step in worth.values()]
kernel, pixels, length = gained[:3]
assert 3.5 < kernel / pixels < 4.5 and 0.01 < length < 0.025
assert level[0, 3, 0] > 2 * level[0, 0, 0] > 4 * level[1, 0, 0]
assert 2.8 < level[0, exact, 0] / level[0, 0, 0] < 3.2
assert gained[3] > 0.15 and 0.03 < gained[4] < 0.1
assert worth["kernel: tuned Gram → EK-FAC (output)"].interval[0] > 0
assert level[1, 3, 0] > level[0, 2, 0] > level[1, 1, 0]
assert (
    gained[6] < 0 < worth["feature: output → loss (tuned Gram)"].interval[1]
)
assert level[0, 1, 0] - level[1, 1, 0] > 0.1
assert gained[7] > 0.2 and 0.1 < gained[5] < gained[7] / 1.5
assert abs(gained[9]) < 0.01 and -0.02 < gained[8] < -0.005
assert level[1, 0, 1] > 3 * level[1, 0, 0]
assert abs(level[0, 1, 3] - level[0, 1, 0]) < 0.002
assert level[0, 3, 4] < level[0, 3, 0] / 3 and 0.05 < gained[10] < 0.15

# %%
long = FEATURES["output"][1].norm(dim=1).numpy()
by_length = di.evaluation.spearman(
    ranked[1, 0, 0], np.broadcast_to(long, ranked[1, 0, 0].shape)
)
assert long.std() < 0.02 * long.mean() and by_length.mean() > 0.85
fashion = {(row["method"], row["queries"]): row["tuned"]
           for row in di.load_bundle("fashion-methods").metrics["results"]
           if row["method"] in ("ekfac", "d-trak")}  # fmt: skip
gap = [fashion["d-trak", q] - fashion["ekfac", q]
       for q in ("held-out", "generated")]  # fmt: skip
assert -0.03 < gap[0] < 0 < gap[1]
print(f"lengths vary by {100 * long.std() / long.mean():.1f} %")
print(f"ranks of lengths and dot products: {by_length.mean():.2f}")

# %% [markdown]
# - **From the plain dot product, the kernel is worth most.** EK-FAC more than doubles the LDS, and the exact GGN triples it. Pixels
#   in place of gradients gain a quarter of what EK-FAC does. A normaliser brings a point or two. EK-FAC also lifts
#   D-TRAK's feature: the filling without a name beats TRAK, tuned or not, and D-TRAK tuned by a few points.
# - **The order of the other two depends on where you start.** With EK-FAC the loss is far ahead of the output's length, and no
#   quotient helps. With the identity and D-TRAK's feature, a normaliser is worth more than any step between features above.
#   With tuned Gram matrices, D-TRAK's feature is level or ahead, as its authors found, and at the default it is far behind. Ask which
#   kernel and which damping a comparison of features was made with.
# - **A normaliser matters where dot products are nearly alike.** With D-TRAK's feature and the identity they are: lengths vary by
#   less than 2 %, and decide most of the ranks. With EK-FAC and the loss, the step's length changes nothing, and the feature's loses
#   a point. With the undamped Gram matrix every own score is 1, so a cosine is TRAK again. A distance suits pixels, and takes more
#   than two thirds of its LDS from influence.
#
# The tuned dampings were chosen on half of these very retrained models, so the row *Gram, tuned* flatters both features. EK-FAC's
# and K-FAC's $10^{-8}$ is the paper's. The exact GGN's damping is the library's, but its four steps were found on held-out
# digits of these models. And this is one data set. {doc}`../book/methods` has all methods on it, and {doc}`../book/datasets` shows
# sneakers and bags. There D-TRAK with a tuned damping comes close to EK-FAC on held-out images, and is ahead on generated ones. Before you trust a gradient anywhere, do the
# last exercise.
#
# ## Where a sum stands
#
# Sums are left: over draws, over steps of sampling, over checkpoints of the training run. Each can stand inside a
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
# with $\Gamma$ and $\nu_n$ held fixed, a score is linear in $\varphi_q$ and in $\varphi_n$. So a sum may move inside *one* of them, if
# nothing else depends on its index. Mind that $\varphi_n$ enters $\nu_n$ and a Gram kernel, too.
#
# - **Checkpoints: outside.** All three parts belong to a checkpoint. TracIn {cite}`pruthi2020tracin` sums
#   $\eta_i\, \varphi_{q,i}^\top \varphi_{n,i}$ with the learning rate $\eta_i$ as kernel. TRAK averages over models. K-FAC along
#   the run adds up influence scores at several checkpoints, each with its own gradients and its own K-FAC ({doc}`13_better_scores`).
# - **Steps of sampling: either.** Journey-TRAK {cite}`georgiev2023journey` scores each step on the query's way from noise and
#   adds up. Only $\varphi_q$ depends on the step, because $\Phi$ is taken at the final weights with its own draws. So one mean
#   gradient does the same.
# - **Draws: inside, on both sides.** Each side has its own ({doc}`08_scale`).
# - **DAS: outside, because it squares.** DAS {cite}`lin2025das` asks how far the network's output moves, in whichever direction.
#   Its feature is the gradient of $u^\top \varepsilon_\theta$, the output along a random direction $u$. Its score is the mean over
#   $u$ and draws of $(\varphi_{q,u}^\top z_n)^2$, so it has no sign. Like the distance, it is no quotient.
#
# The whole field in one table. The name in italics is that in `di.METHODS`, where
# each is a function of a few lines:

# %% tags=["hide-input"]
LOSS, NORM, GRAM = "∇loss, ∇loss", "∇‖ε‖², same", "Gram"
TABLE = {
    "ekfac": (LOSS, "EK-FAC", "none", "draws inside"),
    "cg": (LOSS, "exact GGN", "none", "draws inside"),
    "trak": (LOSS, GRAM, "none", "draws inside, models outside"),
    "d-trak": (NORM, GRAM, "none", "draws inside, models outside"),
    "journey-trak": ("∇loss along the sampling, ∇loss", GRAM, "none",
                     "steps in the query's feature"),
    "das": ("∇(u · output), ∇loss", "EK-FAC", "(squared)",
            "draws and u outside"),
    "relative": (LOSS, "EK-FAC", "step's length", "draws inside"),
    "self-relative": (LOSS, "EK-FAC", "own score", "draws inside"),
    "renormalised": (LOSS, "EK-FAC", "feature's length", "draws inside"),
    "kfac-along": (LOSS, "K-FAC of each", "none",
                   "checkpoints outside, at equal spread"),
    "tracin": (LOSS, "learning rate", "none", "checkpoints outside"),
    "gradient-dot": (LOSS, "identity", "none", "draws inside"),
    "gradient-cosine": (LOSS, "identity", "own score", "draws inside"),
    "clip": ("CLIP embeddings", "identity", "own score", "none"),
    "pixel": ("pixels", "identity", "distance", "none"),
}  # fmt: skip

# %% tags=["hide-input"]
HEADS = "features", "kernel", "$\\nu_n$", "sums"
di.tables.table([
    {"method": f"{row.label}, *{name}* {di.tables.cite(row.paper)}".strip(),
     "LDS": None if name == "clip" else
            di.tables.percent(stored(name)["lds"])}
    | dict(zip(HEADS, parts, strict=True))
    for name, parts in TABLE.items() for row in [di.get_method(name)]
], caption="Methods by their LDS (%) on generated digits at their default, "
   "and what they put into the blanks: features of query and image, "
   "kernel, normaliser, and where sums stand. Not run: CLIP.",
   source=bundle)  # fmt: skip

# %% [markdown]
# Kernels are the library's. The row `trak-projected` projects, as TRAK's authors do, and `d-trak-l1-norm` is one of D-TRAK's other
# outputs. *At equal spread*: each checkpoint's scores of a query are divided by their standard deviation.

# %% [markdown]
# ## Pitfalls
#
# - **λ without N.** Influence's damping and TRAK's differ by $N$: a factor of 300 here, and of 50,000 on CIFAR-10.
# - **λ without the loss's unit.** A sum over pixels in place of a mean is $C^2$ in TRAK's damping, and $C$ in influence's.
# - **One method against another.** Two papers' methods differ in several blanks, and in draws. Change one at a time.
# - **Sums of normalised scores.** After a division by $\nu_n$, sums of scores may still rank the halves (that is all the LDS asks),
#   but their size predicts no change.
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
# copies, and what if $\lambda$ goes to 0? (By images that is a limit: the matrix is singular there.)
# :::
#
# :::{solution-start} ex-woodbury-hand
# :label: sol-woodbury-hand
# :class: dropdown
# :::
#
# $N\lambda = 1$. By weights, $\Phi^\top\Phi + I$ has $3$ and $2$ on its diagonal, so the scores are $\tfrac13, \tfrac13,
# \tfrac12$. By images, the copies make a block with $2$ on the diagonal and $1$ beside it, whose row sums are $3$. The inverse
# times $(1, 1)$ is $(\tfrac13, \tfrac13)$. The third image has 2 alone, so $\tfrac12$. Without damping, $\tfrac12, \tfrac12, 1$: the copies share what one image would
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
# $(\Phi^\top\Phi/N + \lambda I)^{-1}$ and with the $1/N$ of {eq}`eq-blanks`, with no matrix larger than $N \times N$. Check it with
# `di.checks.woodbury(my_scores)`. Try $\lambda$ in place of $N\lambda$ as well, and read what it says.
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
# With $\lambda$ alone, the check says that beside the sum it is $N\lambda$.
#
# :::{solution-end}
# :::
#
# :::{exercise} Three rows of the table · 15 minutes · ★★
# :label: ex-rows
# Rebuild `relative`, `gradient-cosine` and `d-trak` of `di.METHODS` from `FEATURES`, each to $10^{-5}$ of its largest score, scale
# included. `di.get_method(name)(task)[0]` gives the library's scores. You need `eigenvalues("ekfac")` (in the order of the rows of
# `FEATURES`), `preset.damping` for influence, and TRAK's default damping, which is D-TRAK's too. Where does its scale differ from {eq}`eq-blanks`?
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
# The library divides by the length of $\Gamma \varphi_n$, without the $1/N$ of the step. Its cosine is {eq}`eq-blanks` times
# $\sqrt N / \lVert \varphi_q \rVert$. Neither factor depends on the image.
#
# :::{solution-end}
# :::
#
# The last exercise needs to know how large the pixels' kernel is. Its eigenvalues are the mean squares of the pixels along its own
# directions:

# %%
of_pixels_mean = FEATURES["pixels"][1].T @ FEATURES["pixels"][1] / N
sizes = torch.linalg.eigvalsh(of_pixels_mean.double())
print(f"{len(sizes)} mean squares, the largest {sizes[-1]:.0f}, "
      f"half of them below {sizes.median():.2f}")  # fmt: skip

# %% [markdown]
# :::{exercise} Whitened pixels · 10 minutes · ★
# :label: ex-whitened
# Give the pixels a Gram kernel with a damping between next to nothing (the Gram kernel of the figure) and $\infty$ (the
# identity). Take $\lambda = 10^{-3}, 10^{-2}, \dots, 10^{2}$, without a normaliser and with the distance. Do not centre the pixels.
# The second is a distance in which directions count less in which pixels are large. **Guess first:** does either find more than
# the plain distance of the figure? (`diagonal` takes rotated features, as `of_pixels` shows in the folded cell above the figure.)
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
for power in range(-3, 3):
    parts = diagonal(asked @ turn, known @ turn, 1 / (sizes + 10.0**power))
    row = {"λ": f"$10^{{{power}}}$"}
    for name in ("none", "distance"):
        scores = NORMALISERS[name](parts)
        row[name] = di.tables.percent(di.lds(scores, truth, bootstrap=2).mean)
    whitened.append(row)
best = max(whitened, key=lambda row: row["none"].value)
assert best["none"].value > 100 * level[2, 0, 4] + 3
assert 15.5 < best["none"].value - 100 * level[2, 0, 0] < 17
assert 0 < whitened.index(best) < len(whitened) - 1
farthest = max(row["distance"].value for row in whitened)
assert farthest < 100 * level[2, 0, 4] + 2 < best["none"].value
assert best["none"].value > 100 * np.nanmax(level[:2, 2]) + 1
di.tables.table(whitened, caption="LDS of pixels by damping, %.")

# %% [markdown]
# The kernel gains without a normaliser, at a damping near the middle: some sixteen points over the identity. The distance gains
# next to nothing. This is a kernel of the pixels' own second moments (a covariance without the mean taken off), and it predicts
# retraining better than the plain distance. It even passes TRAK and D-TRAK at their tuned dampings, without a single gradient. The
# best $\lambda$ was read off this very table, so on other images expect less.
#
# :::{solution-end}
# :::
