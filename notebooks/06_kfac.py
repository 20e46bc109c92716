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
# # K-FAC: one layer's curvature as two small matrices
#
# :::{admonition} In this chapter
# :class: tip
# You build the curvature of one layer by hand and watch it split into two small matrices. You find out when that is
# exact, first for a plain layer, then for one that is used at every pixel. Then you measure on the trained digit
# network how wrong it is elsewhere, and what that does to scores.
#
# *30 minutes to read · two cores: about 35 seconds · builds on {doc}`01_quickstart`, {doc}`02_ddpm`,
# {doc}`04_influence` and {doc}`05_ggn`*
# :::

# %% tags=["hide-input"]
import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

import diffinf_lib as di

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
same = torch.testing.assert_close
di.show_versions()

# %% [markdown]
# ## Why you need it
#
# A score divides by the curvature $F$ of the training loss, as in {eq}`eq-score`. In this book that is the **GGN**, the
# generalised Gauss-Newton matrix $F = \tfrac2C\, \mathbb{E}[J^\top J]$. Here $J$ holds the derivatives of the network's $C$
# outputs in all weights. **Before you run the cell:** how large is that matrix for our digit network, and for the
# CIFAR-2 network of {cite:t}`mlodozeniec2025influence`?


# %%
def gigabytes(name):
    preset = di.get_preset(name)  # shapes without numbers are enough
    model = di.build_model(preset.unet, preset.process, device="meta")
    shapes = [b.shape for b in di.curvature.curvature_blocks(model).values()]
    weights = sum(d_out * d_in for d_out, d_in in shapes)
    numbers = {
        "the whole matrix": weights**2,
        "a block for each layer": sum((o * i) ** 2 for o, i in shapes),
        "two factors for each layer": sum(o * o + i * i for o, i in shapes),
    }
    return {what: 4e-9 * count for what, count in numbers.items()}


# %%
digits, paper = gigabytes("digits"), gigabytes("cifar2")
di.tables.table([
    {"kept": what, "digits, GB": digits[what], "paper, GB": paper[what]}
    for what in digits
], caption="Memory at four bytes a number.")  # fmt: skip

# %% [markdown]
# If you thought of 160 thousand and 38 million, you counted the weights and forgot the square. Already for pictures of
# 8×8 pixels the matrix fits in no ordinary memory. The first step down is easy to state. Forget what the weights of
# different layers have to do with each other, and keep one **block** of $F$ for each layer. Layers are convolutions and
# linear ones. The scales and shifts of normalisations have no block, and no part in scores. For the paper's network
# that is not nearly enough. The last row is what **K-FAC** {cite}`martens2015kfac` keeps: two small matrices a layer.
# This chapter is about the step from the second row to the third.
#
# ## One draw
#
# Start with a layer so small that you can check everything by hand: two inputs $a$, two outputs $Wa$, four weights $W$.
# Send one **draw** through the network, that is one image at one timestep with one noise. On the way back a gradient
# $g$ arrives at the output $Wa$, and the chain rule gives the gradient in the weights, $G = g a^\top$. Write its four
# entries in a row. Their outer product with themselves is this draw's share of the curvature.
#
# **Before you run the cell:** the share has sixteen entries. How many numbers do you need to know to fill them in?

# %%
a, g = torch.tensor([3.0, 1.0]), torch.tensor([1.0, -2.0])
G = torch.outer(g, a).flatten()  # row by row
share = torch.outer(G, G)
same(share, torch.kron(torch.outer(g, g), torch.outer(a, a)))
share

# %% [markdown]
# Four will do, two in $a$ and two in $g$. The share is *exactly* a **Kronecker product**, $gg^\top \otimes aa^\top$: every
# entry of $gg^\top$ multiplies a whole copy of $aa^\top$. Did you say ten? A symmetric 4×4 matrix has ten different
# entries, but these ten are not free. Did you say three? Then you noticed that twice the $a$ and half the $g$ give the same
# share. Keep that in mind; it comes back with the damping.
#
# :::{admonition} Step by step
# :class: dropdown
# Entry $(i, j)$ of $G$ is $g_i a_j$. Its outer product with itself has the entries
# $g_i a_j\, g_{i'} a_{j'} = (g_i g_{i'})(a_j a_{j'})$ at row $(i, j)$ and column $(i', j')$. The first bracket is an entry of $gg^\top$, the
# second one of $aa^\top$. Written row by row, the index of the output is the slow one, so $gg^\top$ stands outside. Texts
# that stack columns write $aa^\top \otimes gg^\top$ for the same matrix.
# :::
#
# *Which* gradient is $g$? The GGN does not look at the loss of a draw, only at the network's outputs. So $g$ runs over
# all $C$ of them:
#
# $$ F = \mathbb{E}\bigl[\operatorname{vec}(G)\operatorname{vec}(G)^\top\bigr], \quad G = g\,a^\top, \quad g = \sqrt2\; \frac{\partial\, \varepsilon_{\theta,c}}{\partial (Wa)} . $$ (eq-block)
#
# Here $\varepsilon_{\theta,c}$ is output $c$ of the network, and $\operatorname{vec}$ writes a matrix in a row.
# $\mathbb{E}$ is the mean over training images, their draws, and the outputs $c$. The mean over $c$ turns the square of
# $\sqrt2$ into $2/C$, so this is $\tfrac2C\,\mathbb{E}[J^\top J]$ for the weights of the layer. All outputs of one draw
# share its $a$. So a single draw's curvature is still exactly a product, $\mathbb{E}_c[gg^\top] \otimes aa^\top$.
#
# ## Two draws
#
# With a second draw, two such products are averaged, and their mean is in general not a Kronecker product any more. K-FAC
# acts as if it were. It takes the mean of each side first, and multiplies after:
#
# $$ F = \mathbb{E}\bigl[gg^\top \otimes aa^\top\bigr] \;\approx\; \underbrace{\mathbb{E}\bigl[gg^\top\bigr]}_{B} \otimes \underbrace{\mathbb{E}\bigl[aa^\top\bigr]}_{A} $$ (eq-kfac)
#
# $A$ and $B$ are the **Kronecker factors** of the layer, of its inputs and of its output gradients. **Guess:** $B
# \otimes A$ is no longer the curvature of our two draws. But it is exactly the curvature of another data set, of four
# draws. Which?

# %%
a = torch.tensor([[3.0, 1.0], [1.0, -1.0]])
g = torch.tensor([[1.0, -2.0], [2.0, 0.0]])


def curvature_of(pairs):
    rows = torch.stack([torch.outer(g[n], a[m]).flatten() for n, m in pairs])
    return rows.T @ rows / len(rows)


# %%
A, B = a.T @ a / 2, g.T @ g / 2
both = curvature_of([(0, 0), (1, 1)])
error = (torch.kron(B, A) - both).norm() / both.norm()
same(torch.kron(B, A), curvature_of([(0, 0), (0, 1), (1, 0), (1, 1)]))
print(f"two draws: {100 * error:.0f}% off; all four pairs: exact")

# %% [markdown]
# The data set of all pairs: every input with every gradient, whichever draw they came from. If inputs and gradients know
# nothing of each other, nothing is lost. The entries of {eq}`eq-kfac` say it exactly,
#
# $$ \begin{aligned}
# \bigl(F - B \otimes A\bigr)_{ij,\,i'j'} &= \mathbb{E}[g_i g_{i'}\, a_j a_{j'}] - \mathbb{E}[g_i g_{i'}]\,\mathbb{E}[a_j a_{j'}] \\
# &= \operatorname{Cov}(g_i g_{i'},\; a_j a_{j'}) ,
# \end{aligned} $$ (eq-error)
#
# so *K-FAC's error is a covariance*, between products of gradients and products of inputs.
#
# ## When it is exact
#
# For a layer that is used once, the covariance vanishes if inputs and gradients are independent. The inputs depend on
# the draw and not on the output $c$. So it is enough that all draws have the same input, or that the gradients depend
# on $c$ only. That gives three cases.
#
# 1. *One draw.* Its $a$ is the only one.
# 2. *The rest of the network is linear.* From this layer on, the network's output is $U\,Wa$ plus a constant, with a fixed
#    matrix $U$. Then $g = \sqrt2\, U_c$, row $c$ of $U$, the same for every draw. In a deep linear network this holds for every
#    layer.
# 3. *The last layer.* What comes after it is $U = I$, however nonlinear the network below. Here $g = \sqrt2\, I_c$, and
#   $B = \tfrac2C I$.
#
# To measure the other layers, we need the $a$ and $g$ of any layer in any network. Hooks note what a layer reads and
# writes. One backward pass for each output brings the gradients back; draws do not mix in the network, so their sum
# can be taken at once.


# %%
def look_inside(layers, forward):
    """Of each layer a [draws, L, d_in] and g [draws, C, L, d_out]."""
    seen = {}

    def remember(layer, inputs, output):
        seen[layer] = inputs[0].detach(), output

    hooks = [layer.register_forward_hook(remember) for layer in layers]
    guess = forward().flatten(1)
    for hook in hooks:
        hook.remove()
    outputs = [seen[layer][1] for layer in layers]
    back = [
        torch.autograd.grad(2**0.5 * one.sum(), outputs, retain_graph=True)
        for one in guess.T
    ]
    return [
        (inputs_at(layer, seen[layer][0]), gradients_at(layer, each))
        for layer, each in zip(layers, zip(*back, strict=True), strict=True)
    ]


# %% [markdown]
# The axis $L$ is for layers that are used at several places; a plain layer has $L = 1$. For a convolution, an input is the
# *patch* of pixels under its kernel. We come to that below. (`inputs_at` takes padding that is alike on all sides, and no
# dilation. A convolution with groups would be one block for each group.)


# %% tags=["hide-input"]
def inputs_at(layer, x):
    """A layer's inputs, [draws, L, d_in]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    mode = layer.padding_mode.replace("zeros", "constant")
    padded = functional.pad(x, [layer.padding[0]] * 4, mode)
    patches = functional.unfold(
        padded, layer.kernel_size, stride=layer.stride
    )
    return patches.transpose(1, 2)


def gradients_at(layer, back):
    """Output gradients [draws, C, L, d_out], from one tensor an output."""
    g = torch.stack(back, dim=1)
    if isinstance(layer, nn.Linear):
        return g.flatten(2, -2) if g.ndim > 3 else g.unsqueeze(2)
    return g.flatten(3).transpose(2, 3)


# %% [markdown]
# From these, K-FAC and the exact block are a line or two each. The block adds up $G$ over the $L$ places before it
# squares. The *relative error* is the Frobenius norm of the difference divided by that of the exact block. (That norm
# is the root of the sum of all squared entries.)


# %%
def kfac(a, g):
    """A [d_in, d_in] and B [d_out, d_out] of one layer."""
    A = torch.einsum("npi,npj->ij", a, a) / (len(a) * a.shape[1])
    B = torch.einsum("ncpi,ncpj->ij", g, g) / (len(g) * g.shape[1])
    return A, B


# %%
def exact_block(a, g):
    """The mean of vec(G) vec(G)ᵀ over draws and outputs."""
    G = torch.einsum("ncpo,npi->ncoi", g, a).flatten(2).flatten(0, 1)
    return G.T @ G / len(G)


def error_of(factors, exact):
    A, B = factors
    return ((torch.kron(B, A) - exact).norm() / exact.norm()).item()


# %% [markdown]
# Our test object is a network of three layers with random weights, for digits shrunk to 2×2 pixels. Between the layers
# stands a *leaky ReLU*: it passes positive numbers and multiplies negative ones by a slope. At slope 1 the network is
# linear, at slope 0 it is an ordinary ReLU network. All else stays: weights, images, timesteps, noise.

# %%
run = di.open_run(di.get_preset("digits"), progress=False)
tiny = functional.avg_pool2d(run.data.train.images.double(), 4)
torch.manual_seed(0)
x_t = run.preset.process.noisy(
    tiny, torch.randint(1000, (len(tiny),)), torch.randn(tiny.shape)
).flatten(1)
weights = [torch.randn(4, 4) / 2**0.5 for _ in range(3)]


# %%
def three_layers(slope):
    layers = [nn.Linear(4, 4, bias=False) for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    bent = nn.LeakyReLU(slope)
    network = nn.Sequential(layers[0], bent, layers[1], bent, layers[2])
    return look_inside(layers, lambda: network(x_t))


# %%
slopes = [i / 10 for i in range(11)]
found = [three_layers(slope) for slope in slopes]
exact = [[exact_block(a, g) for a, g in layers] for layers in found]
factors = [[kfac(a, g) for a, g in layers] for layers in found]
errors = torch.tensor([
    [error_of(*pair) for pair in zip(*both, strict=True)]
    for both in zip(factors, exact, strict=True)
])  # fmt: skip


def percents(values, names=("first", "middle", "last")):
    """Cells of a table, one for each layer."""
    shown = map(di.tables.percent, values.tolist())
    return {f"{n}, %": cell for n, cell in zip(names, shown, strict=True)}


# %% [markdown]
# **Before you turn the dial:** which of the three layers is exact, and at which slopes? Does the error of the others
# grow all the way from slope 1 to slope 0?

# %% tags=["hide-input"]
LAYER = di.interactive.Choice("Layer", ("first", "middle", "last"))
SLOPE = di.interactive.Slider("Slope", slopes)
Preset = di.interactive.Preset
near = [[torch.kron(B, A) for A, B in layers] for layers in factors]
names = [f"W[{i},{j}]" for i in range(4) for j in range(4)]


def by_layer(blocks):
    stacked = torch.stack([torch.stack(layers) for layers in blocks], dim=1)
    return di.interactive.by(stacked, LAYER, SLOPE, bits=16)


maps = di.interactive.Matrices(
    by_layer(exact), by_layer(near), ("exact block", "B ⊗ A", "error"),
    row_names=names, column_names=names, free=True,
    alternative="Heat maps of a layer's exact block, of B ⊗ A and of "
    "their difference",
)  # fmt: skip

# %% tags=["hide-input"]
Line = di.interactive.Line
by_slope = [
    Line(f"{name} layer", slopes, errors[:, i].clone())
    for i, name in enumerate(LAYER.options)
]
axes = "slope of the leaky ReLU", "relative error"
lines = di.interactive.Lines(
    by_slope, *axes, reading=SLOPE, y_form=".1%", height=220
)
di.interactive.Together(
    [maps, lines],
    start={"Layer": "middle", "Slope": 0.0},
    presets=[
        Preset("linear", {"Slope": 1.0},
               "Every layer is exact: no gradient depends on the draw."),
        Preset("ReLU", {"Layer": "middle", "Slope": 0.0},
               "The input decides which units behind the layer are on, and "
               "they decide the gradient."),
        Preset("the last layer", {"Layer": "last", "Slope": 0.0},
               "Exact at every slope: nothing comes after it."),
    ],
    caption="The exactness dial. A layer of 16 weights in a small network, "
    "from linear (slope 1) to ReLU (slope 0).",
)  # fmt: skip

# %% [markdown]
# :::{admonition} Checkpoint
# Exact at slope 1 in every layer, and in the last layer at every slope, to twelve digits. Elsewhere even slope 0.9
# costs more than 1 %.
# :::

# %%
first, middle, last = errors.T
assert errors[-1].max() < 1e-12 and last.max() < 1e-12
assert min(first[0], middle[0]) > 0.3 and min(first[-2], middle[-2]) > 0.01
assert middle[0] < middle[1]
shown = zip(slopes[::5], errors[::5], strict=True)
di.tables.table(
    [{"slope": f"{slope:g}"} | percents(row) for slope, row in shown],
    caption="Relative error of K-FAC's block of each layer.",
)

# %% [markdown]
# Why does the nonlinearity do that? A unit that is off passes back only the slope's share, nothing at slope 0. So the
# gradients of a draw depend on which units are on, and these depend on the inputs. The covariance in {eq}`eq-error` is
# not zero. The last layer has no unit after it. Which of the other two is further off depends on the slope. And the error need not
# grow all along the dial, as the middle layer shows between slopes 0.1 and 0.
#
# ## A layer at many positions
#
# A convolution uses one weight matrix at every pixel, an attention layer at every token. Call these places the
# **positions** of the layer, $L$ of them. At each, it is a plain linear layer: $a_p$ is the patch of pixels under the
# kernel, and $Wa_p$ the output there.

# %%
convolution = nn.Conv2d(2, 3, 3, padding=1, bias=False)
image = torch.randn(1, 2, 5, 5)
patches = inputs_at(convolution, image)  # [1, 25, 18]
outputs = patches @ convolution.weight.flatten(1).T
same(outputs, convolution(image).flatten(2).transpose(1, 2))

# %% [markdown]
# All positions share the weights, so their gradients add up: $G = \sum_p g_p a_p^\top$. Put that into {eq}`eq-block`.
# Now even *one* draw is no Kronecker product but a sum of $L^2$ of them,
#
# $$ F = \mathbb{E}\Bigl[ \sum_p \sum_{p'} g_p g_{p'}^\top \otimes a_p a_{p'}^\top \Bigr]. $$ (eq-positions)
#
# {cite:t}`eschenhagen2023kfac` name two ways to go on.
#
# **Expand** takes every position for a datum of its own. Terms with $p \ne p'$ are dropped, and inputs are shuffled against
# gradients over draws and positions together. **Reduce** takes the positions for one datum. Inputs are averaged over them,
# $\bar a = \tfrac1L \sum_p a_p$, and gradients added up, $g_\Sigma = \sum_p g_p$.
#
# $$ \begin{aligned}
# \text{expand:} \quad A &= \mathbb{E}\Bigl[\tfrac1L \sum_p a_p a_p^\top\Bigr] & B &= \mathbb{E}\Bigl[\sum_p g_p g_p^\top\Bigr] \\
# \text{reduce:} \quad A &= \mathbb{E}\bigl[\bar a\, \bar a^\top\bigr] & B &= \mathbb{E}\bigl[g_\Sigma\, g_\Sigma^\top\bigr]
# \end{aligned} $$ (eq-sharing)
#
# Look where $1/L$ goes: into the mean over inputs, which is $A$ itself in expand and $\bar a$ in reduce. It never goes
# into the gradients. Where draws have weights $w_s$, as those by signal do ({doc}`02_ddpm`), *both* factors take them, for
# each is a mean of its own: the sum of $w_s$ times the square, over the number of draws, not over the sum of the weights.
#
# :::{admonition} Step by step: one mean, one sum
# :class: dropdown
# *Expand.* Without the cross terms, {eq}`eq-positions` is $\mathbb{E}[\sum_p g_p g_p^\top \otimes a_p a_p^\top]$: a *sum* over
# positions. Write it as $L$ times a mean. K-FAC replaces the mean of products by the product of means,
#
# $$ L\;\mathbb{E}\Bigl[\tfrac1L \sum_p g_p g_p^\top\Bigr] \otimes \mathbb{E}\Bigl[\tfrac1L \sum_p a_p a_p^\top\Bigr], $$
#
# and the $L$ in front cancels one of the two $1/L$. The library lets $A$ keep its own, so that the constant input of a bias
# gives a 1 in $A$.
#
# *Reduce.* Suppose all positions of a draw read the same: $a_p = \bar a$. Then $G = \sum_p g_p \bar a^\top = g_\Sigma \bar a^\top$, one
# pair for each draw, and we are back at {eq}`eq-kfac`. If instead all gradients agree, $g_p = g_\Sigma / L$, then
# $G = \tfrac1L g_\Sigma \sum_p a_p^\top = g_\Sigma \bar a^\top$ again.
# :::
#
# The function `kfac` above does expand as it stands. Reduce is the same function for other arguments:


# %%
def reduced(a, g):
    """The mean input and the summed gradient, as if L were 1."""
    return a.mean(1, keepdim=True), g.sum(2, keepdim=True)


def both_errors(a, g):
    """Of expand and of reduce."""
    block = exact_block(a, g)
    return [error_of(kfac(*pair), block) for pair in ((a, g), reduced(a, g))]


# %% [markdown]
# ## When it is exact, with positions
#
# Take stacks of three convolutions with *no* activation between them. Everything is linear, so $g$ does not depend on the
# draw. What is left is the question of positions. In all three the image is closed to a ring in both directions.
# Kernels are 1×1 in the first stack and 3×3 in the second. The third is the second with a mean over all pixels at its
# end. **Before you run the cell:** in which stacks is expand exact, and in which reduce?


# %%
def stack_errors(kernel, pool=False, mode="circular"):
    """Errors of three linear convolutions, by expand and by reduce."""
    torch.manual_seed(0)
    shape = {"padding": kernel // 2, "padding_mode": mode, "bias": False}
    layers = [
        nn.Conv2d(into, out, kernel, **shape)
        for into, out in ((1, 2), (2, 3), (3, 1))
    ]
    end = nn.AdaptiveAvgPool2d(1) if pool else nn.Identity()
    network, images = nn.Sequential(*layers, end), torch.randn(4, 1, 6, 6)
    seen = look_inside(layers, lambda: network(images))
    return torch.tensor([both_errors(*pair) for pair in seen]).T


# %%
stacks = {
    "1×1": stack_errors(1),
    "3×3": stack_errors(3),
    "3×3, mean over pixels": stack_errors(3, pool=True),
}
di.tables.table([
    {"stack": name, "K-FAC": sharing} | percents(values)
    for name, pair in stacks.items()
    for sharing, values in zip(("expand", "reduce"), pair, strict=True)
], caption="Relative error of K-FAC in linear convolutions.")  # fmt: skip

# %% [markdown]
# :::{admonition} Checkpoint
# Every 0.0 in this table is exact to twelve digits, and no other entry is near.
# :::

# %%
ones, threes, pooled = stacks.values()
assert ones[0].max() < 1e-12 and ones[1].min() > 0.9
assert threes[0, 2] < 1e-12 and threes[0, :2].min() > 0.4
assert pooled[1].max() < 1e-12 and pooled[0].min() > 0.5

# %% [markdown]
# Did you expect every linear stack to be exact, as on the dial? With several positions, what decides is how many of them
# each output sees.
#
# - **1×1 kernels:** an output pixel sees its own position only. For each output $c$ just one $g_p$ is not zero, so the terms
#   with $p \ne p'$ were zero anyway. And that one is the same wherever the pixel lies. Expand is exact. Reduce averages
#   the inputs over positions first. Of these random images hardly anything is left, so it is off by nearly everything.
# - **3×3 kernels:** an output pixel sees a neighbourhood in every layer but the last. Its gradients come back to several
#   positions at once, and expand drops what these have to do with each other. *Nothing here is nonlinear, and K-FAC is off
#   all the same.* In the last layer each output has one position again, so there expand is exact. The positions do not
#   agree either, so reduce is off as well.
# - **The mean over pixels, on a ring:** every position counts alike, so all $g_p$ agree. Reduce is exact.
#
# Attention is the same story with tokens. The value layer $W$ reads every token, and token $p$ puts out a weighted mean
# of all $Wa_{p'}$. Let each token give a share of its attention to itself alone. The rest it spreads evenly over all
# eight tokens, itself included.

# %% tags=["hide-input"]
TOKENS = 8
value = nn.Linear(3, 2, bias=False)
read = torch.randn(50, TOKENS, 3) + torch.randn(50, 1, 3)
shares = [i / 10 for i in range(11)]
rows = []
for own in shares:
    alike = torch.full((TOKENS, TOKENS), (1 - own) / TOKENS)
    attention = alike + own * torch.eye(TOKENS)
    (pair,) = look_inside([value], lambda w=attention: w @ value(read))
    rows.append(both_errors(*pair))
by_share = torch.tensor(rows)
assert by_share[-1, 0] < 1e-12 and by_share[0, 1] < 1e-12

# %% tags=["hide-input"]
SHARE = di.interactive.Slider("Share", shares)
di.interactive.Lines(
    [
        Line(name, shares, by_share[:, i].clone())
        for i, name in enumerate(("expand", "reduce"))
    ],
    "share of attention to itself alone",
    "relative error",
    reading=SHARE,
    start={"Share": 0.5},
    presets=[
        Preset("everywhere alike", {"Share": 0.0},
               "All tokens get the same gradient: reduce is exact."),
        Preset("half and half", {"Share": 0.5},
               "Between the two ends, neither is exact."),
        Preset("only itself", {"Share": 1.0},
               "Each output sees one token: expand is exact."),
    ],
    y_form=".1%",
    height=240,
    caption="K-FAC of the value layer of an attention layer, eight tokens.",
    alternative="The error of expand falls to zero as the share grows, "
    "that of reduce grows from zero",
)  # fmt: skip

# %% [markdown]
# In a real network the attention depends on the draw as well, and so does $g$. The layers for queries and keys come
# before the softmax, which is not linear. There neither is exact in general.
#
# ## The bias
#
# A bias $b$ is added to $Wa$ at every position. It is one more weight, whose input is always 1. So append a 1 to $a$ and a
# column to $G$; nothing else changes. The last row of $A$ then holds the mean input, and its corner is
# $\mathbb{E}[1 \cdot 1] = 1$. Some libraries give the bias a block of its own instead, which takes the curvature *between*
# weights and bias for zero. That is `bias="separate"` here; {ref}`the conventions <conv-bias>` compare the libraries.


# %%
def with_bias(a):
    return functional.pad(a, (0, 1), value=1.0)  # a 1 behind the last input


# %% [markdown]
# ## The digit network
#
# Now the digit network of {doc}`01_quickstart`. We take it in float64, on 64 draws. They are 32 images with two draws
# each, both at the same timestep and with opposite noise. We look into five of its 35 layers at once, and into a sixth
# for later.

# %%
model = copy.deepcopy(di.runs.full_model(run).model).double()
data, rule = run.data.train.subset(slice(0, 32)), di.DrawConfig(2)
draws = di.Expectation(rule, "factors", 0)  # as the library draws them
batch = next(draws.batches(model, data, 64))
same(batch.timesteps[::2], batch.timesteps[1::2])
same(batch.noise[::2], -batch.noise[1::2])

# %%
NAMES = {
    "conv_in": "first convolution, 3×3",
    "down_blocks.1.resnets.0.conv_shortcut": "shortcut going down, 1×1",
    "mid_block.resnets.0.time_emb_proj": "timestep layer, linear",
    "up_blocks.1.resnets.1.conv_shortcut": "shortcut going up, 1×1",
    "conv_out": "last convolution, 3×3",
}
LATER = "up_blocks.1.resnets.1.time_emb_proj"
taken = (*NAMES, LATER)
layers = [model.network.get_submodule(name) for name in taken]
seen = look_inside(layers, lambda: model(batch.state, batch.timesteps))
pairs = {
    name: (with_bias(a), g.detach())
    for name, (a, g) in zip(taken, seen, strict=True)
}
later = pairs.pop(LATER)
blocks = {name: exact_block(*pair) for name, pair in pairs.items()}

# %% [markdown]
# :::{admonition} Checkpoint
# The library, asked for exactly this, finds the same matrices. It runs through all outputs (`exact_labels`), takes all
# positions, and `fit_to_draws` gives it our draws. (`di.fit_curvature` would take the same ones.) And the exact block of the
# last layer is that of plain automatic differentiation.
# :::

# %%
config = di.CurvatureConfig(
    "kfac", rule, factor_draws=rule, exact_labels=True, input_positions=None
)
covers = [f"{name}.{part}" for name in NAMES for part in ("weight", "bias")]
fit = di.curvature.fit_to_draws
fitted = fit(model, batch, config, covers=covers)
for name, pair in pairs.items():
    A, B = kfac(*pair)
    same(fitted.layers[name].block("kfac"), torch.kron(B, A))
last = ["conv_out.weight", "conv_out.bias"]
dense = di.curvature.dense_ggn(model, batch, covers=last)
same(blocks["conv_out"], dense)

# %% [markdown]
# By default the library is thriftier: one random combination of the outputs in place of all $C$, and four positions of
# each draw for $A$. Below you see what that does to scores.
#
# **Before you run the cell:** one of these five layers is exact. Which, and with expand or with reduce? And for which layer
# can it not matter which of the two you take?

# %%
found = {n: torch.tensor(both_errors(*pair)) for n, pair in pairs.items()}
di.tables.table([
    {"layer": NAMES[name], "positions": pairs[name][0].shape[1]}
    | percents(error, ("expand", "reduce"))
    for name, error in found.items()
], caption="Relative error of K-FAC's blocks.")  # fmt: skip

# %%
up, linear = "up_blocks.1.resnets.1.conv_shortcut", list(NAMES)[2]
assert found["conv_out"][0] < 1e-12 and found[linear].diff().abs() < 1e-12
assert found[up][1] < 0.6 < 1 < found[up][0]

# %% [markdown]
# The last convolution, with expand. It is case 3 with positions: nothing follows it, so each output sees one position,
# as in the last layer of the 3×3 stack. Here this holds in a real, nonlinear network, to twelve digits. For the layer
# that reads the timestep, $L = 1$, and expand and reduce coincide.
#
# Apart from the last layer, expand is off by more than half of the exact block's size, and in one layer by *more* than
# all of it: a block of zeros would be nearer. Should we stop here?
#
# ## What the error does to scores
#
# A score needs $F^{-1}$, not $F$. With $F$ cut into blocks, {eq}`eq-score` is a sum with a share for each layer,
#
# $$ \tfrac1N\, \operatorname{vec}(G_q)^\top (F + \lambda I)^{-1} \operatorname{vec}(G_n) . $$ (eq-share)
#
# Here $F$ is the layer's block and $N$ the number of training images. $G_q$ and $G_n$ are the gradients in the layer's
# weights, of query $q$'s measurement and of training image $n$'s loss. They are those that {doc}`Quickstart
# <01_quickstart>` kept. So compare a layer's share of every score, once with its exact block, once with expand and once
# with reduce. Look at the shortcut going up, where reduce is *nearer* to the exact block. **Which of the two has the
# scores that are nearer to the exact ones?**

# %%
truth = di.load_ground_truth("digits-ground-truth", "held-out")
curvature = di.runs.curvature_of_run(run)
kept = (
    di.runs.query_gradients(run, truth.queries).whole(),
    di.runs.train_gradients(run).whole(),
)


# %%
def share_of(name, block, damping=1e-8):
    """One layer's share of the scores, [queries, images]."""
    back = curvature.layers[name].from_eigenbasis  # as they were computed
    query, train = (back(of[name]).double().flatten(1) for of in kept)
    damped = block + damping * torch.eye(len(block))
    return query @ torch.linalg.solve(damped, train.T) / len(train)


def agreement(name, block):
    """Mean rank correlation with the exact block's scores; error."""
    exact, near = share_of(name, blocks[name]), share_of(name, block)
    ranks = di.evaluation.spearman(exact.numpy(), near.numpy()).mean()
    return ranks, ((near - exact).norm() / exact.norm()).item()


# %%
of_expand = {name: kfac(*pair) for name, pair in pairs.items()}
of_reduce = {name: kfac(*reduced(*pair)) for name, pair in pairs.items()}


def compared(name):
    row = {"layer": NAMES[name]}
    for kind, of in (("expand", of_expand), ("reduce", of_reduce)):
        A, B = of[name]
        ranks, error = agreement(name, torch.kron(B, A))
        row |= {kind: ranks, f"error, {kind}": round(error, 3)}
    nothing = torch.eye(len(blocks[name]))
    return row | {"no curvature": agreement(name, nothing)[0]}


# %%
results = {name: compared(name) for name in NAMES}
di.tables.table(
    list(results.values()),
    caption="Scores by one layer beside those by its exact block: mean rank "
    "correlation (*no curvature*: $I$ in place of $F$), and relative error "
    "as a ratio (1 is as large as the scores themselves).",
)

# %%
assert results[up]["expand"] > results[up]["reduce"] + 0.1
assert results[up]["error, expand"] < 10
assert results["conv_out"]["expand"] > 1 - 1e-9
for name, row in results.items():
    assert row["expand"] > row["no curvature"] + 0.1
    assert len(pairs[name][0][0]) == 1 or 100 < row["error, reduce"] < 1e8
assert sum(e - r > 1e-9 for e, r in found.values()) == 3

# %% [markdown]
# Expand, by far. The damping is $\lambda = 10^{-8}$, so a direction whose eigenvalue is zero, an *empty* direction, is
# multiplied by $10^8$. With more than one position, the error of reduce is hundreds to tens of millions of times the
# scores, although in three of these layers its block is the nearer one. The relative error of a block is ruled by its few largest eigenvalues, and the inverse by its smallest.
# Where an approximation makes an eigenvalue nearly zero and the curvature does not, its inverse is huge.
#
# For the same reason the library's default fit is no stand-in for the exact one on so few draws. To compare code of your
# own with it, ask for all outputs, all positions and your draws, as we did.

# %%
thrifty = fit(model, batch, di.CurvatureConfig("kfac", rule), covers=covers)
by_default, by_expand = (
    sum(share_of(name, of.layers[name].block("kfac")) for name in NAMES)
    for of in (thrifty, fitted)
)
off = ((by_default - by_expand).norm() / by_expand.norm()).item()
assert 0.2 < off < 2
print(f"default fit on {len(data)} images: scores off by {off:.0%}")

# %% [markdown]
# With hundreds of images little is lost, as {doc}`../book/savings` shows in points of the LDS. Back to the empty
# directions. How many are there?


# %%
def tiny_directions(eigenvalues):
    """Share of the eigenvalues below a millionth of the largest."""
    return (eigenvalues < 1e-6 * eigenvalues.max()).double().mean().item()


def of_product(A, B):
    return torch.outer(*map(torch.linalg.eigvalsh, (B, A)))


# %%
def row_of(name):
    exact = torch.linalg.eigvalsh(blocks[name])
    near = [of_product(*of[name]) for of in (of_expand, of_reduce)]
    values = torch.tensor([tiny_directions(e) for e in (exact, *near)])
    return percents(values, ("exact block", "expand", "reduce"))


di.tables.table(
    [{"layer": NAMES[name]} | row_of(name) for name in NAMES],
    caption="Eigenvalues below a millionth of the largest.",
)

# %%
(A, _), (_, B) = of_reduce["conv_out"], of_reduce[up]
assert tiny_directions(torch.linalg.eigvalsh(A)) > 0.5
assert tiny_directions(torch.linalg.eigvalsh(B)) == 0.5
assert 28 <= len(batch.timesteps.unique()) <= 32  # pairs share one
(A, _), exact = of_expand[up], torch.linalg.eigvalsh(blocks[up])
assert (torch.linalg.eigvalsh(A) < 1e-12).sum() == 16 - 9
assert (exact < 1e-6 * exact.max()).sum() == (16 - 9) * 16 + 16 // 2
for name in (name for name in NAMES if name != linear):
    near = [of_product(*of[name]) for of in (of_expand, of_reduce)]
    assert tiny_directions(near[1]) > tiny_directions(near[0])

# %% [markdown]
# Reduce has many more, in every layer with positions. In the last convolution it averages each image's patches first,
# and what tells the nine places of the kernel apart is mostly gone. In the shortcut going up it adds up the gradients
# of all pixels. The next step, a normalisation, subtracts the mean of two channels over all their pixels. Raising both
# together changes nothing, so in each pair the two summed gradients add to zero. Half of the eigenvalues of $B$ vanish.
#
# Some directions are empty whatever one takes. Half of the inputs of the shortcut going up are the 16 channels of the
# first convolution, made from nine pixels: seven directions are empty in every draw. The exact block has a few more, a
# bias that both channels of a pair have in common: the normalisation subtracts it. In the layer of the timestep, 64 draws have only about 30 timesteps,
# because the two of an image share one. That leaves most of its directions empty.
#
# And on the whole network, judged by retraining? This is the **LDS** of {doc}`Quickstart <01_quickstart>`, the rank
# correlation between predicted and measured change. Beside K-FAC stands the exact GGN, not cut into blocks. It was divided by
# approximately, with the few steps of conjugate gradients that {doc}`../book/methods` describes:

# %%
bundle = di.load_bundle("digits-curvatures")
lds = {
    row["sharing"]: row
    for row in bundle.metrics["results"]
    if (row["queries"], row["partition"], row["approximation"])
    == ("held-out", "model", "kfac")
}
methods = di.load_bundle("digits-methods")
whole = next(
    row for row in methods.metrics["results"]
    if (row["queries"], row["attributed"], row["measured"], row["method"])
    == ("held-out", "loss", "loss", "cg")
)  # fmt: skip

# %%
by = {f"K-FAC, {sharing}": row for sharing, row in lds.items()}
by[f"exact GGN, {whole['default']:.0f} steps"] = whole
rows = [
    {"predicted by": name,
     "LDS, %": di.tables.percent(row["lds"], row["interval"])}
    for name, row in by.items()
]  # fmt: skip
seed = {"LDS, %": di.tables.percent(di.ceiling(truth))}
di.tables.table(
    [*rows, {"predicted by": "one retraining"} | seed],
    caption="LDS on held-out digits, with 95 % intervals; K-FAC at "
    f"λ = {run.preset.damping:.0e}. {di.tables.source_note(methods)}",
    source=bundle,
)

# %%
assert lds["expand"]["interval"][0] > lds["reduce"]["interval"][1] + 0.2
assert whole["interval"][0] > lds["expand"]["interval"][1]
assert 0 < di.ceiling(truth) - lds["expand"]["lds"] < 0.05

# %% [markdown]
# So we need not stop. K-FAC with expand predicts retraining nearly as well as one more retraining does, although its
# blocks are far from exact. Do not judge a curvature by its distance to the exact one alone. With the exact GGN there
# is more to gain. How much of that K-FAC loses, and how much the cut
# into blocks, the table does not say: we did not measure the LDS of the exact blocks.
#
# ## Dividing by it
#
# K-FAC saves time as well as memory. The inverse of a Kronecker product is again one: $(B \otimes A)^{-1}$ turns $G$
# into $B^{-1} G A^{-1}$, so two small inverses do the work of a large one. But a score has damping too, and in
# $(B \otimes A + \lambda I)^{-1}$ the sum with $\lambda I$ is no Kronecker product. The eigenvectors of the factors
# help. With $A = Q_A \operatorname{diag}(e_A)\, Q_A^\top$ and likewise for $B$,
#
# $$ (B \otimes A + \lambda I)^{-1}:\quad G \;\mapsto\; Q_B \Bigl[ \bigl(Q_B^\top G\, Q_A\bigr) \,/\, \bigl(e_B e_A^\top + \lambda\bigr) \Bigr] Q_A^\top , $$ (eq-inverse)
#
# where $\lambda$ is added to every entry and the division goes element by element. In code, set negative entries of $e_A$
# and $e_B$ to zero first: they come from rounding. The cost is that of two small eigendecompositions, once, however many
# $\lambda$ you try.
#
# :::{admonition} Step by step
# :class: dropdown
# By the same bookkeeping of indices as above, written row by row,
#
# $$ \operatorname{vec}(Q_B^\top G\, Q_A) = (Q_B \otimes Q_A)^\top \operatorname{vec}(G) . $$
#
# The columns of $Q_B \otimes Q_A$ are eigenvectors of $B \otimes A$, with
# the products $e_B e_A$ as eigenvalues, and adding $\lambda I$ adds $\lambda$ to each. Rotate, divide, rotate back.
# :::


# %%
def divided(G, A, B, damping, clamp=True):
    """(B ⊗ A + λI)⁻¹ G, for matrices G [..., d_out, d_in]."""
    (e_A, Q_A), (e_B, Q_B) = torch.linalg.eigh(A), torch.linalg.eigh(B)
    if clamp:
        e_A, e_B = e_A.clamp(min=0), e_B.clamp(min=0)
    rotated = (Q_B.T @ G @ Q_A) / (torch.outer(e_B, e_A) + damping)
    return Q_B @ rotated @ Q_A.T


A, B = of_expand["conv_in"]
G, damping = torch.randn(len(B), len(A)), 1e-4
large = torch.kron(B, A) + damping * torch.eye(G.numel())
solved = torch.linalg.solve(large, G.flatten())
same(divided(G, A, B, damping).flatten(), solved)

# %% [markdown]
# Why the clamp? In float32 the zero eigenvalue of an empty direction comes out at about $10^{-7}$ of the largest, above *or
# below* zero. Where it is below, {eq}`eq-inverse` may divide by next to nothing, or by something negative, and nothing
# tells you. Take another layer that reads the timestep. We sum up its factors in float32, in ten orders of the same 64
# draws. **Guess first:** what helps more, eigenvectors in float64, or the clamp?


# %%
def share_by(factors, kind, clamp):
    """The layer's share of the scores, factors decomposed in a type."""
    back = curvature.layers[LATER].from_eigenbasis
    query, train = (back(of[LATER]).to(kind) for of in kept)
    A, B = (factor.to(kind) for factor in factors)
    solved = divided(query, A, B, 1e-8, clamp).flatten(1)
    return solved.double() @ train.double().flatten(1).T / len(train)


# %%
orders = [torch.randperm(len(batch.images)) for _ in range(10)]
rounded = [kfac(*(part[o].float() for part in later)) for o in orders]
right = share_by(kfac(*later), torch.float64, clamp=True)


def missed(kind, clamp):
    """Relative error in each order."""
    found = torch.stack([share_by(of, kind, clamp) for of in rounded])
    return (found - right).flatten(1).norm(dim=1) / right.norm()


def middle(x):
    """The median, with both ends."""
    ends = x.min().item(), x.max().item()
    return di.tables.Number(x.median().item(), None, ends)


# %%
kinds = {"float32": torch.float32, "float64": torch.float64}
errors = {clamp: {n: missed(kind, clamp) for n, kind in kinds.items()}
          for clamp in (False, True)}  # fmt: skip
di.tables.table([
    {"eigenvectors in": name, "as it stands": middle(errors[False][name]),
     "clamped": middle(errors[True][name])}
    for name in kinds
], caption="Relative error (as a ratio) of one layer's share of the scores, "
   "at λ = 1e-08: median of ten orders, lowest and highest.")  # fmt: skip

# %%
for name in kinds:
    assert errors[False][name].max() > 2 * errors[True][name].max()
    assert errors[True][name].max() < 0.3

# %% [markdown]
# The clamp. Without it, the order of the same draws decides whether a score is right. With it, an empty direction is divided
# by $\lambda$, as it should be. What the sums have lost, float64 does not bring back. The library adds up batches and
# decomposes factors (of up to 1,024 rows) in float64, and clamps.
#
# Many implementations do something else. They damp each factor, $(B + \sqrt\lambda\, I) \otimes (A + \sqrt\lambda\,
# I)$, which keeps the product and needs no eigenvectors. It is called **factored damping**, and it is another matrix.
# Multiply out an eigenvalue:
#
# $$ (e_B + \sqrt\lambda)(e_A + \sqrt\lambda) = e_B e_A + \lambda + \sqrt\lambda\,(e_A + e_B) . $$ (eq-factored)
#
# The last term is the trouble. Where $e_B$ is far below $\sqrt\lambda$ and $e_A$ far above, its part
# $\sqrt\lambda\, e_A$ outweighs both $e_B e_A$ and $\lambda$. It also depends on how a common scale is split between
# the two factors, of which $B \otimes A$ keeps no trace: double $A$, halve $B$, and factored damping gives another
# matrix. {cite:t}`martens2015kfac` therefore scale the two first, so that their mean eigenvalues agree. Try all three
# on the digit network. **Guess first:** at $\lambda = 10^{-8}$, $\sqrt\lambda$ is ten thousand times larger. What does
# that do to the LDS?
#
# The library keeps the products $e_B e_A$ only, but the 1 in the corner of $A$ tells how to split them. The mean of the
# products over $e_B$ is $\bar e_B\, e_A$, with one number $\bar e_B$. Turned back by $Q_A$, its corner is $\bar e_B
# \cdot 1$, and dividing by it leaves $e_A$.


# %%
def split(layer):
    """The eigenvalues of B and of A, from their products."""
    products = layer.kfac_eigenvalues.double()
    e_A = products.mean(0)  # times the mean of e_B
    corner = (layer.input_eigenvectors[-1].square() * e_A).sum()
    return products.mean(1) / (e_A.mean() / corner), e_A / corner


# %%
def factored(layer, damping, balanced):
    """The layer with √λ added to the eigenvalues of each factor."""
    e_B, e_A = split(layer)
    if balanced:  # the same mean eigenvalue in both
        ratio = (e_B.mean() / e_A.mean()).sqrt()
        e_B, e_A = e_B / ratio, e_A * ratio
    values = torch.outer(e_B + damping**0.5, e_A + damping**0.5)
    return replace(layer, kfac_eigenvalues=values.float())


# %% tags=["hide-input"]
queries, train = (
    di.runs.query_gradients(run, truth.queries),
    di.runs.train_gradients(run),
)


def scores_by(of_run, damping):
    return di.scores_from_gradients(
        queries, train, of_run, damping=[damping], approximation="kfac"
    )[0]


def scores_factored(damping, balanced=False):
    """λ is in the eigenvalues already, so none is added."""
    damped = {
        name: factored(layer, damping, balanced)
        for name, layer in curvature.layers.items()
    }
    return scores_by(replace(curvature, layers=damped), 0.0)


# %%
e_B = torch.cat([split(layer)[0] for layer in curvature.layers.values()])


def row_of(damping):
    plain = scores_by(curvature, damping)
    row = {
        "λ": f"{damping:.0e}",
        "LDS, %": di.tables.percent(di.lds(plain, truth).mean),
    }
    for kind in ("factored", "balanced"):
        scores = scores_factored(damping, balanced=kind == "balanced")
        change = di.paired_difference(scores, plain, truth)
        row[f"{kind}, points"] = di.tables.percent(*change, signed=True)
    below = (e_B < damping**0.5).double().mean()
    return row | {"e_B below √λ, %": di.tables.percent(below)}


# %%
of_damping = [row_of(damping) for damping in (1e-8, 1e-6, 1e-4)]
small, middling, _ = (row["factored, points"] for row in of_damping)
assert small.value > -0.5 and middling.interval[1] < -0.5
assert 40 < of_damping[1]["e_B below √λ, %"].value < 50
for row in of_damping:
    assert row["balanced, points"].value < row["factored, points"].value
assert of_damping[0]["LDS, %"].value - of_damping[2]["LDS, %"].value > 5
di.tables.table(
    of_damping,
    caption="K-FAC on held-out digits: LDS with the product damped, the "
    "paired difference when each factor is damped, as it is or balanced, "
    "and the share of $B$'s eigenvalues below $\\sqrt\\lambda$.",
)

# %% [markdown]
# At the default $\lambda = 10^{-8}$ the two kinds
# of damping hardly differ. At $10^{-6}$ factored damping costs points that damping the product does not, and balancing
# does not win them back. The last column suggests why: nearly half of $B$'s eigenvalues are below the $\sqrt\lambda$
# that is added to them. At $10^{-4}$ even damping the product is too much
# and costs more than five points. So a $\lambda$ from a code with factored damping cannot be carried over.
#
# ## Pitfalls
#
# - **The order.** For gradients flattened row by row the block is $B \otimes A$. The other order has the same
#   shape and runs without complaint. With $B^{-1} G A^{-1}$ a swap raises an error, unless the layer is square.
# - **1/L twice, or not at all.** One factor is a mean over positions, the other a sum. kronfluence takes the mean in both,
#   so its $B \otimes A$ is $L$ times smaller than that of expand in {eq}`eq-sharing`. {ref}`The page on conventions
#   <conv-factors>` checks this against kronfluence itself.
# - **Covariances.** The factors are called covariances in many codes, and they are not: no mean is subtracted.
# - **Averaging too early.** $\mathbb{E}[aa^\top]$ is not $\mathbb{E}[a]\,\mathbb{E}[a]^\top$. A draw is a datum of its own; take the
#   outer product before the mean over draws.
#
# ## What comes next
#
# K-FAC gives two things: directions, the eigenvectors of $A$ and $B$, and a size for each direction, $e_B e_A$. Our
# tables do not say which of the two is to blame. But the sizes are cheap to repair. The next chapter keeps the
# directions and measures the sizes anew. That is **EK-FAC**.
#
# ## Exercises

# %% [markdown]
# :::{exercise} The same λ in another library · 10 minutes · ★
# :label: ex-kronfluence
# kronfluence divides $B$ by the number of positions $L$ as well. By hand: which damping there gives the same *ranking* of
# images by one layer as $\lambda$ here, and how do the scores of that layer compare? Why does no single damping do it for a
# whole network?
# :::
#
# :::{solution-start} ex-kronfluence
# :label: sol-kronfluence
# :class: dropdown
# :::
#
# Its block is $\tfrac1L B \otimes A$, and
#
# $$ \bigl(\tfrac1L B \otimes A + \lambda' I\bigr)^{-1} = L\, \bigl(B \otimes A + L\lambda' I\bigr)^{-1} . $$
#
# So $\lambda' = \lambda / L$, and the scores of the layer are $L$ times ours. (kronfluence's scores also lack the $1/N$;
# that changes no ranking.) A network has layers with different $L$: in ours 64, 16 and 1, among others. Each would need
# its own $\lambda'$, and the layers' scores are added with different weights. Its EK-FAC measures the eigenvalues anew
# and is free of this.

# %%
A, B = of_expand["conv_in"]
L, eye = 64, torch.eye(160)
ours = torch.linalg.inv(torch.kron(B, A) + 1e-3 * eye)
theirs = torch.linalg.inv(torch.kron(B / L, A) + 1e-3 / L * eye)
same(theirs, L * ours)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Write it yourself · 15 minutes · ★★
# :label: ex-kfac
# Write `my_kfac(inputs, output_gradients)` for a layer *with bias*. It takes `[draws, positions, d_in]`, without the 1,
# and `[draws, positions, d_out]`. It returns expand's $A$, `[d_in + 1, d_in + 1]` with the bias last, and $B$, `[d_out,
# d_out]`. Each row is one pair of a draw and an output: inputs are repeated for each output, and $\sqrt2$ is in the
# gradients already. Check it with `di.checks.kfac(my_kfac, bias=True)`, on four layers where K-FAC is exact. Then write
# reduce, and pass `sharing="reduce"` too.
# :::
#
# :::{solution-start} ex-kfac
# :label: sol-kfac
# :class: dropdown
# :::


# %%
def my_kfac(inputs, output_gradients):
    a = functional.pad(inputs, (0, 1), value=1.0)
    draws, positions, _ = a.shape
    A = torch.einsum("npi,npj->ij", a, a) / (draws * positions)
    B = torch.einsum("npi,npj->ij", output_gradients, output_gradients)
    return A, B / draws


di.checks.kfac(my_kfac, bias=True)


# %%
def my_reduce(inputs, output_gradients):
    mean = inputs.mean(1, keepdim=True)
    return my_kfac(mean, output_gradients.sum(1, keepdim=True))


di.checks.kfac(my_reduce, sharing="reduce", bias=True)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} From factors to scores · 15 minutes · ★★
# :label: ex-kfac-score
# Write `my_score(query_gradient, train_gradients, A, B, damping)`, the scores of one layer by {eq}`eq-share` and
# {eq}`eq-inverse`. `query_gradient` is `[d_out, d_in]`, `train_gradients` `[N, d_out, d_in]`, and the scores are `[N]`.
# No matrix in it may be larger than $A$, $B$ or a gradient. Check it with `di.checks.kfac_score(my_score)`. Then write it
# for factored damping, with `di.checks.kfac_score(my_factored_score, damped="factors")`.
# :::
#
# :::{solution-start} ex-kfac-score
# :label: sol-kfac-score
# :class: dropdown
# :::


# %%
def my_score(query_gradient, train_gradients, A, B, damping):
    (e_A, Q_A), (e_B, Q_B) = torch.linalg.eigh(A), torch.linalg.eigh(B)
    e_A, e_B = e_A.clamp(min=0), e_B.clamp(min=0)  # below 0: rounding
    eigenvalues = torch.outer(e_B, e_A) + damping
    query = (Q_B.T @ query_gradient @ Q_A) / eigenvalues
    train = Q_B.T @ train_gradients @ Q_A
    return (train * query).sum((1, 2)) / len(train)


di.checks.kfac_score(my_score)


# %%
def my_factored_score(query_gradient, train_gradients, A, B, damping):
    A = A + damping**0.5 * torch.eye(len(A))
    B = B + damping**0.5 * torch.eye(len(B))
    query = torch.linalg.solve(B, query_gradient) @ torch.linalg.inv(A)
    return (train_gradients * query).sum((1, 2)) / len(train_gradients)


di.checks.kfac_score(my_factored_score, damped="factors")

# %% [markdown]
# Factored damping needs no eigenvectors, which is why so many codes have it.
#
# :::{solution-end}
# :::
#
# :::{exercise} A border around the ring · 10 minutes · ★★
# :label: ex-padding
# Reduce was exact for the 3×3 stack with a mean over pixels, on a ring. Ordinary convolutions pad the image with zeros
# instead. **Guess first:** which of the three layers stay exact? Then run `stack_errors(3, pool=True, mode="zeros")` and explain it.
# :::
#
# :::{solution-start} ex-padding
# :label: sol-padding
# :class: dropdown
# :::

# %%
_, reduce = stack_errors(3, pool=True, mode="zeros")
assert reduce[2] < 1e-12 and reduce[:2].min() > 0.1
di.tables.table([percents(reduce)], caption="Error of reduce.")

# %% [markdown]
# Only the last. Its output is averaged at once, so every position counts alike, border or not. In the two layers before
# it, a position at the border is read by fewer positions of the next layer than one inside. So the $g_p$ no longer agree.
#
# :::{solution-end}
# :::
#
# :::{exercise} The whole of it · 40 minutes · ★★★
# :label: ex-kfac-influence
# Write `my_influence(network, factor_draws, train_draws, query_draws, damping)`, which returns the scores `[Q, N]` of a whole
# network. Each of the draws is a tuple `(x_t, t, target, w)` with two axes in front, images and their draws: `x_t` and
# `target` are `[N, S, 1, H, W]`, `t` and the weights `w` are `[N, S]`. The steps:
#
# 1. *Layers.* Take every `Conv2d` and `Linear` of `network.modules()`, and nothing else.
# 2. *Factors.* From `factor_draws`, by `look_inside` and `kfac`. Where does `w` go, and which layers get a 1?
# 3. *Gradients.* Of each image and each query: of the mean over its draws of `w` times the squared error, itself a mean over
#    pixels. As one matrix a layer, the bias last.
# 4. *Scores.* Add up your `my_score` over the layers.
#
# `di.checks.kfac_influence(my_influence)` tries a denoiser with all of this in it. Then take three images and hold your scores
# against `di.influence`, with the very draws that the library takes.
# :::
#
# :::{solution-start} ex-kfac-influence
# :label: sol-kfac-influence
# :class: dropdown
# :::
#
# A factor is a mean of $w_s$ times a square, so $\sqrt{w_s}$ may stand before $a$ and before $g$.


# %%
def my_factors(network, layers, draws):
    x_t, t, _, w = (part.flatten(0, 1) for part in draws)
    seen = look_inside(layers, lambda: network(x_t, t))
    root, factors = w.sqrt(), []
    for layer, (a, g) in zip(layers, seen, strict=True):
        a = a if layer.bias is None else with_bias(a)
        a = root[:, None, None] * a
        factors.append(kfac(a, root[:, None, None, None] * g))
    return factors


# %%
def my_gradients(network, layers, draws):
    """Of each layer [N, d_out, d_in]."""
    rows = []
    for x_t, t, target, w in zip(*draws, strict=True):
        error = network(x_t, t) - target
        network.zero_grad()
        (w * error.square().flatten(1).mean(1)).mean().backward()
        rows.append([joined(layer) for layer in layers])
    return [torch.stack(of) for of in zip(*rows, strict=True)]


def joined(layer):
    """The gradient as one matrix; a bias is a column [d_out, 1]."""
    parts = [p.grad.reshape(len(p), -1) for p in layer.parameters()]
    return torch.cat(parts, dim=1)


# %%
def my_influence(
    network,
    factor_draws,
    train_draws,
    query_draws,
    damping,
):
    kinds = nn.Conv2d, nn.Linear
    layers = [m for m in network.modules() if isinstance(m, kinds)]
    factors = my_factors(network, layers, factor_draws)
    train = my_gradients(network, layers, train_draws)
    queries = my_gradients(network, layers, query_draws)
    scores = 0
    for (A, B), G_q, G_n in zip(factors, queries, train, strict=True):
        shares = [my_score(q, G_n, A, B, damping) for q in G_q]
        scores = scores + torch.stack(shares)
    return scores


di.checks.kfac_influence(my_influence)

# %% [markdown]
# The library has a *purpose* for each kind of draws, a name that goes into their key ({ref}`here are all
# <conv-draws>`). Training draws are by signal, so they have weights.


# %%
def given(images, rule, purpose):
    expectation = di.Expectation(rule, purpose, 0)
    found = next(expectation.batches(model, images, 1_000))
    parts = found.state, found.timesteps, found.target
    axes = len(images), rule.count
    parts = (*parts, found.draw_weights)
    return tuple(part.unflatten(0, axes) for part in parts)


# %%
some = data.subset(slice(0, 3))
asked = truth.queries.subset(slice(0, 2))
signal = di.DrawConfig(4, timestep_rule="signal", shared=True)
mine = my_influence(
    model,
    given(some, rule, "factors"),
    given(some, signal, "train-gradients"),
    given(asked, rule, "measurement"),
    damping=1e-6,
)

# %%
theirs = di.influence(
    model, di.fit_curvature(model, some, config), some, asked,
    draws=signal, measurement=di.MeasurementConfig(draws=rule),
    damping=1e-6, approximation="kfac",
)  # fmt: skip
same(mine, theirs, rtol=1e-6, atol=0)

# %% [markdown]
# :::{solution-end}
# :::
