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
# # The linear datamodelling score
#
# :::{admonition} In this chapter
# :class: tip
# You put a number on "the scores are right", first with six models on paper, then with 192 real ones. You derive what this
# number sees and what it is blind to, how high noise lets it go, and how far luck moves it. At the end you know what to buy
# for a check of your own: more subsets, more seeds or more queries.
#
# *20 minutes to read · two cores: about 20 seconds · builds on {doc}`01_quickstart`*
# :::

# %% tags=["hide-input"]
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata

import diffinf_lib as di

torch.set_num_threads(1)
di.show_versions()
run = di.open_run(di.get_preset("digits"), progress=False)
truth = di.load_ground_truth("digits-ground-truth", "held-out")
scores = di.influence_scores(run, truth.queries)[0]  # [queries, images]
spearman, percent = di.evaluation.spearman, di.tables.percent

# %% [markdown]
# ## Six halves on paper
#
# The chapters before this one compared methods by one number, the LDS of {doc}`01_quickstart`, and sometimes by a single point of
# it. Is a point much? To answer that, we start where every number can be checked by hand.
#
# Four training images have scores for one query: 4, 1, −2 and 0. There are six ways to leave two of them out. For each you
# train a model on the other two and measure its loss on the query. The scores predict a change too: a score says what happens
# without its image, so add up the scores of the two left out.

# %%
pairs = list(combinations(range(4), 2))
left_out = np.array([[n in pair for n in range(4)] for pair in pairs])
four = np.array([4.0, 1, -2, 0])
loss = np.array([5.2, 4.1, 6.0, 2.9, 3.3, 3.6])
predicted = left_out @ four
ranks = rankdata(predicted), rankdata(loss)  # from 1, the lowest
di.tables.table([
    {"left out": f"{a + 1} and {b + 1}", "predicted": int(sums),
     "its rank": int(p), "loss": di.tables.number(m, 1), "rank": int(r)}
    for (a, b), sums, p, m, r in zip(pairs, predicted, ranks[0], loss,
                                     ranks[1], strict=True)
])  # fmt: skip

# %% [markdown]
# Predictions are sums of first-order effects, so we trust their order more than their size. Hence a *rank correlation*:
# replace each value by its rank, and take the usual (Pearson's) correlation of the ranks. This is Spearman's. Here one rank is
# right, four are off by 1, and one by 2. The shortcut for ranks without ties gives $1 - 6 \cdot (1 + 1 + 1 + 1 + 4) / (6^3 - 6)$.
#
# **Before you run the next cell:** which of these changes move the result? Add 10 to each score; triple it; set the
# negative one to zero; take absolute values; add up the images that were *kept*.

# %%
assert np.isclose(spearman(predicted, loss), 1 - 6 * 8 / (6**3 - 6))
changes = {
    "as they are": predicted,
    "plus 10": left_out @ (four + 10),
    "times 3": left_out @ (3 * four),
    "negative ones set to 0": left_out @ four.clip(0),
    "absolute values": left_out @ abs(four),
    "kept images added up": ~left_out @ four,
}
di.tables.table([
    {"scores": name, "Spearman": float(spearman(sums, loss))}
    for name, sums in changes.items()
])  # fmt: skip

# %% [markdown]
# The first two change nothing, and the last one turns the sign. If you expected a constant to matter, note that every half
# leaves out two images: all six predictions grow by 20.
#
# ## The definition
#
# With $M$ subsets, $K$ seeds and $Q$ queries, the model trained on subset $k$ with seed $r$ has the measurement $m_{krq}$
# on query $q$. Write $z_{kn} = 1$ where subset $k$ leaves out image $n$, and 0 where it keeps it. Then
#
# $$ P_{kq} = \sum_{n=1}^{N} z_{kn}\, \text{score}(q, n), \qquad \bar m_{kq} = \frac1K \sum_{r=1}^{K} m_{krq} , $$ (eq-predicted)
#
# $$ \text{LDS} = \frac1Q \sum_{q=1}^{Q} \operatorname{Spearman}_k\bigl(P_{kq},\, \bar m_{kq}\bigr) . $$ (eq-lds)
#
# This is the **linear datamodelling score** of {cite:t}`park2023trak`. A *datamodel* is anything that predicts a measurement
# from the list of images trained on. A linear one adds up a number for each image. The order in {eq}`eq-lds` matters:
# average the seeds first, then rank the subsets of *one* query, and average over queries last.
#
# Here are the 192 models: 64 random halves of 300 digits, three seeds each. **Guess first:** about a third of the scores are
# positive. Absolute values turn all others round. How much of the LDS will that cost?

# %% tags=["hide-input"]
rule, size, seed = "Scores", "Subsets", "Seeds"
every = {"Query": 0, rule: 0, size: 64, seed: 3}
clamp = {"Query": 8, rule: "negative ones set to 0"}
constant = {rule: "plus a constant"}
absolute = {"Query": 6, rule: "absolute values"}
shuffled, few = {rule: "shuffled"}, {size: 8, seed: 1}
said = {
    "add a constant": "All points move right by one amount. No rank moves.",
    "clamp": "The cloud gets tighter: this query and the mean rise.",
    "absolute": "This query loses much of its correlation, the mean little.",
    "shuffle": "The same scores, at other images: a cloud without direction.",
    "eight halves, one seed": "The same scores. With so few models their "
    "correlation could be anything.",
}

# %% tags=["hide-input"]
states = constant, clamp, absolute, shuffled, few
buttons = [
    di.interactive.Preset(name, every | state, note)
    for (name, note), state in zip(said.items(), states, strict=True)
]
halves = di.interactive.Scatter(
    scores,
    truth,
    presets=buttons,
    caption="Twelve held-out digits; each point is one of the random halves. "
    "Set how many halves and seeds count, and what is done to the scores.",
)
halves


# %% tags=["hide-input"]
def shown(**state):
    """Spearman of the chosen query, its interval, mean over the twelve."""
    places = halves.state(**state)
    value, interval = halves.estimate(places)
    return value, interval, spearman(*halves.points(places)).mean()


assert 0.3 < (scores > 0).double().mean() < 0.37  # about a third
plain = {q: shown(Query=q) for q in (0, 6, 8)}
assert shown(**every | constant) == plain[0]
clamped, turned = shown(**every | clamp), shown(**every | absolute)
assert clamped[0] > plain[8][0] + 0.1 and clamped[2] > plain[8][2] + 0.03
assert turned[0] < plain[6][0] - 0.2 and turned[2] > plain[6][2] - 0.03
assert abs(shown(**every | shuffled)[0]) < 0.13
assert shown(**every | few)[1] == (-1, 1)

# %% [markdown]
# Very little, in the mean. And the clamp, which throws away every negative score, *gains*. How can scores be changed so much
# and agree as well as before? For that we need to know what an LDS compares.
#
# ## What it sees
#
# Suppose for a moment that the truth is additive too. Each image has a true effect $u_n$ on the query, and the loss is a
# constant plus the effects of all images left out. Let $v_n$ be the scores. Over all halves of $N$ images,
#
# $$ \operatorname{Cov}_k\Bigl(\sum_n z_{kn} v_n,\; \sum_n z_{kn} u_n\Bigr) = \frac{N}{4 (N - 1)} \sum_{n=1}^{N} (v_n - \bar v)(u_n - \bar u) . $$ (eq-halves)
#
# So Pearson's correlation over *halves* is Pearson's correlation over *images*. An LDS looks like a comparison of models.
# Up to ranks and luck, it is a comparison of scores with effects, image by image.
#
# :::{admonition} Step by step
# :class: dropdown
# Each image is left out by one half in two, so $z_{kn}$ has mean $\frac12$ and variance $\frac14$. If $n$ is left out, $N/2 - 1$ of the
# other $N - 1$ images are as well. So two images are left out together with probability $\frac12 \cdot \frac{N/2 - 1}{N - 1}$, and
# their covariance is that minus $\frac14$, which is $-\frac{1}{4 (N - 1)}$. Put both into the covariance of the sums:
#
# $$ \begin{aligned}
# & \tfrac14 \sum_n v_n u_n - \tfrac{1}{4 (N - 1)} \sum_{n \ne j} v_n u_j \\
# &\quad = \tfrac14 \Bigl(1 + \tfrac{1}{N - 1}\Bigr) \sum_n v_n u_n - \tfrac{1}{4 (N - 1)} \sum_n v_n \sum_j u_j \\
# &\quad = \tfrac{N}{4 (N - 1)} \Bigl(\sum_n v_n u_n - N \bar v \bar u\Bigr) .
# \end{aligned} $$
#
# The last bracket is the sum in {eq}`eq-halves`. With $u = v$ it gives the variances, and the factor drops out of the correlation.
# :::

# %%
generator = np.random.default_rng(0)
u, v = generator.standard_normal((2, 6))
z = np.array([[n in half for n in range(6)]
              for half in combinations(range(6), 3)])  # fmt: skip
over_halves = np.cov(z @ v, z @ u, bias=True)[0, 1]
product = (v - v.mean()) @ (u - u.mean())
assert np.isclose(over_halves, 6 / (4 * 5) * product)
assert np.isclose(np.corrcoef(z @ v, z @ u)[0, 1], np.corrcoef(v, u)[0, 1])

# %% [markdown]
# Three things follow at once:
#
# - *A constant* goes with $\bar v$, and *a positive factor* goes with the correlation. The LDS says nothing about sizes.
# - *Kept for left out* turns $z$ into $1 - z$ on one side, and every LDS into its negative. A paper that plots absolute values
#   of LDS cannot show this mistake.
# - *Large scores decide.* An image counts by the square of its distance from $\bar v$:

# %%
squares = (scores - scores.mean(1, keepdim=True)).square().sort(1).values
share = (squares[:, -30:].sum(1) / squares.sum(1)).mean()
print(f"thirty images of 300 hold {share:.0%} of the squares")

# %% [markdown]
# A fourth needs a thought. Suppose that scores are right on average: among images of one score $v$, the mean effect is a
# multiple of $v$, plus a constant. Then any function of the scores meets the effects through $v$ alone. Its LDS is that of $v$, times
# its correlation with $v$ over images. So whatever you do to such scores, you can only lose, and you know how much.
#
# Hold our scores to this promise. Beside the real truth stand two that we make up, with effects that add up. In one the effects
# are the scores plus noise. In the other, the size of a negative score means nothing: all are set to 0 before noise is added.


# %%
def made_up(effects, error):
    """A ground truth where effects add up: these, plus noise."""
    size = error * scores.std(1, keepdim=True)
    noise = torch.randn(scores.shape, generator=di.keyed_generator("noise"))
    sums = (~truth.masks).double() @ (effects + size * noise).T
    return replace(truth, measurements=sums[:, None])


truths = {
    # noise such that their LDS is about the real one
    "right on average": made_up(scores, 0.9),
    "negative means 0": made_up(scores.clamp(min=0), 0.6),
    "real": truth,
}
changes = {
    "clamped": lambda v: v.clamp(min=0),
    "absolute": torch.abs,
    "negative alone": lambda v: v.clamp(max=0),
}

# %%
kept = {name: {} for name in changes}
for name, change in changes.items():
    both = zip(scores, change(scores), strict=True)
    alike = [np.corrcoef(v, other)[0, 1] for v, other in both]
    kept[name]["promised"] = float(np.mean(alike))
    for title, there in truths.items():
        changed, whole = (di.lds(v, there, bootstrap=2).mean
                          for v in (change(scores), scores))  # fmt: skip
        kept[name][title] = changed / whole
rows = [{"scores": name} | {title: di.tables.number(part, 2)
                            for title, part in row.items()}
        for name, row in kept.items()]  # fmt: skip
of_whole = "LDS as a part of that of the unchanged scores."
di.tables.table(rows, caption=of_whole)

# %% tags=["hide-input"]
promised, right, nothing, real = np.array(
    [list(row.values()) for row in kept.values()]
).T
assert abs(right - promised).max() < 0.05
assert abs(nothing - real).max() < 0.1 < abs(real - promised).min()
levels = [
    di.lds(scores, there, bootstrap=2).mean for there in truths.values()
]
assert np.ptp(levels) < 0.03
gain = di.paired_difference(scores.clamp(min=0), scores, truth)
assert gain.interval[0] > 0

# %% [markdown]
# The first made-up truth keeps the promise to a few hundredths, and the real one breaks it. It behaves like the second, as if all
# images with a negative score had the same effect on average, however negative it is. Which effect, an LDS cannot say, for constants
# drop out. And this is a lead and no proof, because an LDS sees sums over halves and not single images. {doc}`../book/removal`
# trained without such images.
#
# ## How high it can go
#
# Train the same half twice and you get two losses. Call the mean over endless seeds the *signal*. It differs between halves,
# with variance $V_\text{signal}$, and each seed adds noise of variance $V_\text{seed}$. Then two seeds correlate, over halves, by
#
# $$ \rho = \frac{V_\text{signal}}{V_\text{signal} + V_\text{seed}} , $$ (eq-reliability)
#
# the **reliability** of one seed. You can measure it without knowing the signal. **Guess first:** on our digits $\rho$ is about
# three quarters. What is the LDS of *perfect* scores against one seed, and against the mean of three?
#
# The noise of a mean of $K$ seeds is $V_\text{seed} / K$. Its reliability, and the most that scores can reach, are
#
# $$ \rho_K = \frac{V_\text{signal}}{V_\text{signal} + V_\text{seed} / K} = \frac{K \rho}{1 + (K - 1)\, \rho} , \qquad \text{LDS} \le \sqrt{\rho_K} . $$ (eq-bound)
#
# The first is the Spearman–Brown formula. The second is the **bound** (up to ranks and luck). If you guessed $\rho$ itself: that
# is what one seed says about *another*, with noise on both sides. Perfect scores have none, and a root is left.
#
# The **ceiling** of {doc}`01_quickstart` is a third number. There one seed predicts the mean of the $K - 1$ others, and the
# correlation is $\sqrt{\rho\, \rho_{K-1}}$. Scores whose errors are smaller than the luck of one seed lie above it.
#
# :::{admonition} Step by step
# :class: dropdown
# Write a seed's losses, over halves, as signal plus noise. The noises of two seeds are independent of the signal and of
# each other. So the covariance of two seeds is $V_\text{signal}$, and each has variance $V_\text{signal} + V_\text{seed}$: this is
# {eq}`eq-reliability`. Divide the first fraction of {eq}`eq-bound` by $V_\text{signal} + V_\text{seed}$ above and below the line:
# it becomes $\rho / (\rho + (1 - \rho) / K)$, which is the second one. The covariance of the signal with a mean of $K$ seeds is
# $V_\text{signal}$ too. Their variances are $V_\text{signal}$ and $V_\text{signal} / \rho_K$, so they correlate by
# $\sqrt{\rho_K}$. In the same way one seed and the mean of $K - 1$ others have variances $V_\text{signal} / \rho$ and
# $V_\text{signal} / \rho_{K-1}$, which gives the ceiling.
# :::
#
# Is this model of noise right? It makes a prediction: the LDS of the *same* scores must rise with the number of seeds as
# $\sqrt{\rho_K}$ does, so that their ratio stays.

# %%
reliability = di.evaluation.seed_reliability


def against(seeds):
    """The LDS against the mean of these seeds."""
    part = replace(truth, measurements=truth.measurements[:, list(seeds)])
    return di.lds(scores, part, bootstrap=2).mean


rows, ratios = [], []
for K in (1, 2, 3):
    value = np.mean([against(chosen) for chosen in combinations(range(3), K)])
    bound = reliability(truth, K) ** 0.5
    ratios.append(value / bound)
    rows.append({"seeds": K, "LDS, %": percent(value),
                 "bound, %": percent(bound),
                 "LDS / bound, %": percent(ratios[-1])})  # fmt: skip
assert max(ratios) - min(ratios) < 0.01
assert 0.18 < (1 - bound) / (1 - value) < 0.25
di.tables.table(rows, name="tab-seeds", caption="EK-FAC, held-out digits.")

# %%
expected = di.evaluation.self_consistency(truth).expected
print(f"ceiling: {di.ceiling(truth):.1%}; predicted {expected:.1%}")
assert abs(expected - di.ceiling(truth)) < 0.01
assert 0.7 < reliability(truth) < 0.77  # about three quarters

# %% [markdown]
# The ratio moves by less than a point, and the ceiling comes out where $\sqrt{\rho\, \rho_2}$ puts it. Of what EK-FAC lacks to 100%, the
# seeds' luck is about a fifth. The rest has two sources that an LDS cannot tell apart: errors of the scores, and effects
# of images that do not add up. More seeds remove neither.
#
# ### Elsewhere
#
# The same numbers for every data set of this book:

# %% tags=["hide-input"]
NAMES = {"digits": "3s, 8s", "digits-pair": "4s, 9s",
         "digits-ten": "ten digits", "fashion": "sneakers, bags",
         "cifar2-tiny": "cars, horses"}  # fmt: skip


def row_of(name, asked):
    there = di.load_ground_truth(f"{name}-ground-truth", asked)
    M, K, _ = there.measurements.shape
    found = next(
        row for row in di.load_bundle(f"{name}-methods").metrics["results"]
        if (row["method"], row["queries"]) == ("ekfac", asked)
        and row["attributed"] == row["measured"] == "loss"
    )  # fmt: skip
    bound = reliability(there, K) ** 0.5
    ceiling = di.evaluation.self_consistency(there).lds
    return {"images": NAMES[name], "models": f"{M} × {K}",
            "ρ": di.tables.number(reliability(there), 2),
            "ceiling": percent(*ceiling, digits=0),
            "bound": percent(bound, digits=0),
            "EK-FAC": percent(found["lds"], found["interval"], digits=0),
            "of bound": percent(found["lds"] / bound, digits=0)}  # fmt: skip


# %% tags=["hide-input"]
SETS = "held-out", "generated"
elsewhere = {asked: [row_of(name, asked) for name in NAMES] for asked in SETS}
numbers = {asked: {row["images"]: row["of bound"].value for row in rows}
           for asked, rows in elsewhere.items()}  # fmt: skip
last = elsewhere["held-out"][-1]
assert last["EK-FAC"].value > 1.5 * last["ceiling"].value
assert last["ceiling"].interval[1] > last["EK-FAC"].interval[0]
*most, fashion, cars = numbers["held-out"].values()
assert fashion < 65 < min(*most, cars) and max(*most, cars) < 82
*most, fashion, cars = numbers["generated"].values()
assert max(fashion, cars) < 50 and min(most) > 71 and max(most) < 76

# %% tags=["hide-input"]
di.tables.table(
    elsewhere["held-out"],
    caption="Held-out queries, %, with 95% intervals. Models: subsets × "
    "seeds. Of bound: EK-FAC over the bound.",
)

# %% tags=["hide-input"]
di.tables.table(
    elsewhere["generated"],
    caption="Generated queries. From the bundles in {doc}`../book/datasets`.",
)

# %% [markdown]
# Look at the cars and horses (CIFAR-2). An LDS of about a half seems poor beside the digits. But its ceiling is lower still,
# because single retrainings of that network hardly agree. Against the bound, EK-FAC does there what it does on digits. On sneakers
# and bags it does not, and on *generated* images of the last two sets it falls below half of the bound. There the seeds are not to
# blame. One caution: twenty-odd halves give a rough $\rho$, as the intervals of the ceilings show.
#
# ## How far luck moves it
#
# One query alone says little. If the halves came in random order, Spearman's correlation would have mean 0 and standard deviation
# $1 / \sqrt{M - 1}$. That is 0.13 for 64 halves, and what *shuffle* shows. So an LDS is a mean over 57 queries, and papers print its
# standard error over queries. **Guess first:** what does that error leave out?

# %%
five = np.arange(5.0)
chance = [spearman(five, np.array(order)) for order in permutations(five)]
assert np.isclose(np.mean(np.square(chance)), 1 / (5 - 1))  # all orders

# %% [markdown]
# Every query was measured on the *same* 64 halves. If these happen to be easy, they are easy for all queries at once, and no
# spread between queries shows it. Queries and halves are *crossed* samples.
#
# To see both kinds of luck, we need a number for each query with each half. A rank correlation is no mean over halves, but the
# **jackknife** comes close. Leave out one half at a time. Let $\psi_{qk}$ be $M$ times query $q$'s correlation over all halves,
# minus $M - 1$ times that without half $k$. For a plain mean this would be exactly the value of half $k$. Then split the variance of
# the table of $\psi_{qk}$ into what differs between queries, between halves, and the rest, which belongs to one query with one half:
#
# $$ \operatorname{Var}[\text{LDS}] = \frac{V_\text{queries}}{Q} + \frac{V_\text{halves}}{M} + \frac{V_\text{both}}{QM} . $$ (eq-crossed)
#
# The standard error over queries has the first and the last term. In ten lines:


# %%
def crossed(predicted, measured):
    """Variances of queries, of halves and of both, from [Q, M] each."""
    Q, M = predicted.shape
    without = [spearman(np.delete(predicted, k, 1), np.delete(measured, k, 1))
               for k in range(M)]  # fmt: skip
    psi = M * spearman(predicted, measured)[:, None]
    psi = psi - (M - 1) * np.stack(without, 1)
    rows, columns = psi.mean(1), psi.mean(0)
    rest = psi - rows[:, None] - columns + psi.mean()
    both = (rest**2).sum() / ((Q - 1) * (M - 1))
    return rows.var(ddof=1) - both / M, columns.var(ddof=1) - both / Q, both


P = di.evaluation.predicted_changes(scores, truth)  # [Q, M]
m = di.evaluation.mean_measurements(truth)
found = np.array(crossed(P, m))

# %% [markdown]
# :::{admonition} Checkpoint
# The library finds the same three variances. They also say by how much the LDS of 32 halves should differ from that of the other 32:
# here the queries are the same, so only the last two terms count. (Both sets come from the same 64, so this tests the
# arithmetic and not the luck. {doc}`../book/evaluation` tests that, in simulations.)
# :::

# %%
sampled = di.evaluation.sampled_lds([scores], truth)[0]
library = di.evaluation.resampling.variance_components(sampled.pseudo_values)
np.testing.assert_allclose(
    found, [library.queries, library.subsets, library.rest]
)
Q, M = P.shape
splits = [generator.permutation(M).reshape(2, M // 2) for _ in range(400)]
apart = [spearman(P[:, a], m[:, a]).mean() - spearman(P[:, b], m[:, b]).mean()
         for a, b in splits]  # fmt: skip
said = (4 * (found[1] + found[2] / Q) / M) ** 0.5
print(f"two sets of 32 differ by {100 * np.std(apart):.1f} points; "
      f"predicted {100 * said:.1f}")  # fmt: skip
assert abs(np.std(apart) / said - 1) < 0.1


# %%
def errors(Q):
    parts = found / (Q, M, Q * M)
    return {"queries": Q, "over queries": percent((parts[0] + parts[2])**.5),
            "crossed": percent(parts.sum() ** 0.5)}  # fmt: skip


measured, paper = errors(57), errors(1000)
assert 0.4 < paper["over queries"].value / paper["crossed"].value < 0.6
di.tables.table(
    [measured, paper],
    caption="Standard errors of the LDS, in points: as measured, and what "
    "the same variances say of a thousand queries.",
)

# %% [markdown]
# With 57 queries the difference is small. With a thousand, the error over queries alone would be about half of the crossed
# one. More queries shrink the first as far as you like, and the second only down to the luck of the halves.
#
# A difference of two methods on the same halves is much better known than either value, because easy halves are easy for
# both. `di.paired_difference` gives it.
#
# ### Few halves lower it
#
# Move the slider of the figure to few halves, and the mean of the twelve is usually lower. This is no accident. Spearman's
# correlation $R_M$ of $M$ halves is on average below that of endlessly many, because it mixes in Kendall's $\tau$ (pairs in the right
# order minus pairs in the wrong one, as a share of all pairs), which lies nearer to 0:
#
# $$ \mathbb{E}[R_M] = \frac{(M - 2)\, R_\infty + 3 \tau}{M + 1} . $$ (eq-few)
#
# :::{admonition} Step by step, and what ties do to a bootstrap
# :class: dropdown
# Take one query, and leave its index out. Without ties, half $k$'s rank minus the mean rank is $\frac12 \sum_j
# \operatorname{sign}(P_k - P_j)$. The squares of these numbers add up to $(M^3 - M) / 12$. So
#
# $$ R_M = \frac{3}{M^3 - M} \sum_{k, i, j} \operatorname{sign}(P_k - P_j) \operatorname{sign}(\bar m_k - \bar m_i) . $$
#
# The $M (M - 1)$ terms with $i = j \ne k$ have mean $\tau$. The $M (M - 1)(M - 2)$ terms with three different halves have a mean
# that does not depend on $M$. All others are 0. For endless $M$ only those with three halves count, so their mean is
# $R_\infty / 3$. Divide by $M (M - 1)$: this is {eq}`eq-few`.
#
# A bootstrap draws $M$ halves again with replacement. Two copies of one half are a tie, and their sign is 0. Of the terms with
# three different draws, $1/M$ has $i$ and $j$ at the same half, which is one more piece of $\tau$. Counted so, above and below the
# line, the mean of the resamples is about $((M - 1) R_M + 3 \tau) / (M + 2)$. That is $3 (R_M - \tau) / (M + 2)$ below $R_M$: each
# resample repeats the loss. The library therefore shifts the resamples back, and {doc}`../book/evaluation` tests the intervals
# that result.
# :::

# %%
R = spearman(P, m)
tau = np.array(
    [kendalltau(a, b).statistic for a, b in zip(P, m, strict=True)]
)
endless = ((M + 1) * R - 3 * tau) / (M - 2)
rows = []
for count in (8, 16, 32, 64):
    chosen = [generator.permutation(M)[:count] for _ in range(400)]
    drawn = [spearman(P[:, few], m[:, few]).mean() for few in chosen]
    said = (((count - 2) * endless + 3 * tau) / (count + 1)).mean()
    assert abs(np.mean(drawn) - said) < 0.006
    rows.append({"halves": count, "LDS, mean of 400 draws, %":
                 percent(np.mean(drawn)), "formula, %": percent(said)}
                )  # fmt: skip
di.tables.table(rows, caption="The same scores, fewer of the 64 halves.")

# %%
lost = sampled.mean - sampled.resamples.mean()
print(f"resamples lie {100 * lost:.1f} points too low, "
      f"formula {300 * (R - tau).mean() / (M + 2):.1f}")  # fmt: skip
assert abs(lost - 3 * (R - tau).mean() / (M + 2)) < 0.003

# %% [markdown]
# With eight halves the same scores lose some five points. So never compare an LDS with one from fewer subsets.
#
# ## What to buy
#
# Retraining is what an LDS costs. Suppose you can afford 192 trainings. **Guess first:** 192 halves with one seed each, 96
# with two, or 64 with three?
#
# In {eq}`eq-crossed` the last two variances each have a part of the halves' own, $V'$, and a part from the noise of seeds, $V''$ for
# one seed. With $M K$ trainings in all,
#
# $$ \frac{V' + V'' / K}{M} = \frac{K V' + V''}{M K} . $$ (eq-budget)
#
# The seeds' part depends on the number of trainings alone, however you spend them. The halves' part grows with $K$. So one
# seed is best. By how much? Here is the smallest difference between two methods that is found four times out of five, a
# **power** of 80%. Noise shrinks the differences as well, so all are given as three seeds would show them.

# %%
kfac = di.influence_scores(run, truth.queries, approximation="kfac")[0]
pixels = di.attribution.pixel_distance_scores(run.data.train, truth.queries)
studies = {"K-FAC": di.evaluation.power_analysis(scores, kfac, truth),
           "pixel distance": di.evaluation.power_analysis(scores, pixels,
                                                          truth)}  # fmt: skip
designs = ((192, 1), (96, 2), (64, 3), (32, 6))
smallest = np.array([
    [study.smallest_difference(*design) for design in designs]
    for study in studies.values()
])  # fmt: skip
assert (np.diff(smallest, axis=1) > 0).all()
assert smallest[0].max() < 0.01 < smallest[1].min()
di.tables.table([
    {"halves × seeds": f"{halves} × {seeds}"}
    | {f"EK-FAC and {name}": percent(row[i], digits=2)
       for name, row in zip(studies, smallest, strict=True)}
    for i, (halves, seeds) in enumerate(designs)
], caption="Smallest difference, points; 192 trainings.")  # fmt: skip

# %% [markdown]
# We bought three seeds and paid for them. With one we could have printed neither ceiling nor bound. Two would have done: they
# give $\rho$, and {eq}`eq-bound` the rest. Queries cost no training, only measuring, so take many.
# {doc}`../book/evaluation` has other budgets.
#
# So is a point of LDS much? Between two kinds of influence, which err alike, it is. Between methods that err each in its own way it
# is nothing.
#
# ## Pitfalls
#
# - **Kept for left out.** It turns every sign. So does a measurement that is higher for *likelier* queries, with scores
#   of the loss.
# - **One correlation over all queries.** Queries differ far more in their loss than halves do. Rank within a query.
# - **Seeds correlated one by one.** The mean of the correlations with single seeds is the first row of
#   {numref}`tab-seeds`, not the last.
# - **Tuning on the judge.** A damping chosen by LDS is judged on other subsets: {doc}`../book/evaluation`.
# - **Training images as queries.** Their own score dominates. The library warns.
# - **Reading it as a share.** 73% is a correlation. It does not say that 73 of 100 images are right, nor that any size is.
#
# ## Exercises

# %% [markdown]
# :::{exercise} When a constant matters · 5 minutes · ★
# :label: ex-sizes
# Three images have the effects 5, 2 and 1, effects add up, and the scores are exactly right. Three subsets leave out {1}, {2} and
# {2, 3}. Add a constant $c$ to all scores. By hand: for which $c$ does the correlation stay at 1, and what is it elsewhere? What
# does this say about subsets that keep each image with probability one half?
# :::
#
# :::{solution-start} ex-sizes
# :label: sol-sizes
# :class: dropdown
# :::
#
# The predictions are $5 + c$, $2 + c$ and $3 + 2c$, and their order is right while $2 + c < 3 + 2c < 5 + c$, so for $-1 < c < 2$.
# Beyond either end, two neighbours have changed places: $1 - 6 \cdot 2 / 24 = \frac12$. Where subsets differ in size, a constant is
# multiplied by the number of images left out, and a large one ranks subsets by size alone. So the
# invariance is one of the *halves*.

# %%
uneven = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]])
effects = np.array([5.0, 2, 1])
for c, wanted in ((-2, 0.5), (-0.5, 1), (1.5, 1), (3, 0.5)):
    value = spearman(uneven @ (effects + c), uneven @ effects)
    assert np.isclose(value, wanted)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Write it yourself · 10 minutes · ★★
# :label: ex-lds
# Write `my_lds(scores, masks, measurements)` from {eq}`eq-lds`. It gets `[Q, N]`, `[M, N]` (True = *kept*) and `[M, K, Q]`, and
# returns a number. `scipy.stats.rankdata` gives ties the mean of their ranks. Run `di.checks.lds(my_lds)`, which names your
# mistake if it knows it, and hold it against `di.lds` on the digits.
# :::
#
# :::{solution-start} ex-lds
# :label: sol-lds
# :class: dropdown
# :::


# %%
def my_lds(scores, masks, measurements):
    predicted = (scores @ (~masks).double().T).numpy()  # [Q, M]
    measured = measurements.mean(1).T.numpy()  # over seeds
    total = 0.0
    for one, other in zip(predicted, measured, strict=True):
        total += np.corrcoef(rankdata(one), rankdata(other))[0, 1]
    return total / len(predicted)


print(di.checks.lds(my_lds))
ours = my_lds(scores, truth.masks, truth.measurements)
assert np.isclose(ours, di.lds(scores, truth).mean, rtol=0, atol=1e-12)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} The bound of three seeds, from one · 10 minutes · ★★
# :label: ex-seeds
# Write `my_reliability(correlation, factor)`, the Spearman–Brown formula, and run `di.checks.spearman_brown(my_reliability)`. From
# the $\rho$ of one seed, give the bound on the LDS with three seeds, and the number of seeds that a bound of 98% takes, on the digits
# and on the cars and horses.
# :::
#
# :::{solution-start} ex-seeds
# :label: sol-seeds
# :class: dropdown
# :::


# %%
def my_reliability(correlation, factor):
    return factor * correlation / (1 + (factor - 1) * correlation)


print(di.checks.spearman_brown(my_reliability))
wanted = 0.98**2  # of the reliability: the bound is its root
for name in ("digits", "cifar2-tiny"):
    there = di.load_ground_truth(f"{name}-ground-truth")
    rho = reliability(there)
    three = my_reliability(rho, 3) ** 0.5
    seeds = np.ceil(wanted * (1 - rho) / (rho * (1 - wanted)))
    assert np.isclose(three, reliability(there, 3) ** 0.5)
    print(f"{NAMES[name]}: bound {three:.1%}, 98% with {seeds:.0f} seeds")

# %% [markdown]
# Cars and horses take several times as many, so there it is cheaper to live with the
# bound and divide by it (the *disattenuated* LDS of {doc}`../book/evaluation`).
#
# :::{solution-end}
# :::
#
# :::{exercise} One correlation over all queries · 5 minutes · ★★
# :label: ex-pooled
# Make scores that know nothing of the images, and whose *pooled* correlation, one Spearman over all pairs of query and half, is
# above 90%. What is their LDS? (`m` and `P` above hold a row for each query.)
# :::
#
# :::{solution-start} ex-pooled
# :label: sol-pooled
# :class: dropdown
# :::

# %%
noise = di.attribution.random_scores(*scores.shape, seed=0)
empty = noise + 1000 * torch.from_numpy(m.mean(1, keepdims=True))
sums = di.evaluation.predicted_changes(empty, truth)
print(f"pooled: {spearman(sums.ravel(), m.ravel()):.0%}")
print("LDS:", di.lds(empty, truth))
assert spearman(sums.ravel(), m.ravel()) > 0.9
assert di.lds(empty, truth).interval[0] < 0 < di.lds(empty, truth).interval[1]

# %% [markdown]
# Give each query a constant of its own. Within a query it moves no rank, so the LDS is that of random numbers. Across queries it
# sorts them by their loss, and the pooled correlation is nearly perfect.
#
# :::{solution-end}
# :::
#
# An LDS asks about random halves, where many small effects add up. You rarely want to know about a random half. You want to
# know about *these* images, the ones that the scores point at. Retraining without them is another test, and {doc}`../book/removal`
# shows how differently it can come out.
