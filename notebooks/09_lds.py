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
# You put a number on "the scores are right", first with six models on paper, then with 192 real ones. You derive what
# it sees, how high noise lets it go, and how far luck moves it. At the end you know what to buy for a check of your
# own: more subsets, seeds or queries.
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
from diffinf_lib.evaluation import resampling

torch.set_num_threads(1)
di.show_versions()
run = di.open_run(di.get_preset("digits"), progress=False)
truth = di.load_ground_truth("digits-ground-truth", "held-out")
scores = di.influence_scores(run, truth.queries)[0]  # [queries, images]
spearman, percent = di.evaluation.spearman, di.tables.percent

# %% [markdown]
# ## Six halves on paper
#
# The chapters before this one compared methods by the LDS of {doc}`01_quickstart`, sometimes by a single point (0.01)
# of it. Is a point much? We start where every number can be checked by hand.
#
# Four training images have scores for one query: 4, 1, −2 and 0. There are six ways to leave two out. For each, train a
# model on the other two and measure its loss on the query. A score predicts by how much this loss rises when its image
# is left out; a negative one says that it falls. So add up the scores of the two left out.

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
# Predictions are sums of first-order effects, so we trust their order more than their size. Hence *Spearman's* rank
# correlation: replace each value by its rank, and take the usual (Pearson's) correlation. Here one rank is right, four
# are off by 1, and one by 2. The shortcut for ranks without ties gives $1 - 6 \cdot (1 + 1 + 1 + 1 + 4) / (6^3 - 6)$.
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
# The first two change nothing, and the last one turns the sign. If you expected a constant to matter, note that every
# half leaves out two images: all six predictions grow by 20.
#
# ## The definition
#
# With $M$ subsets, $K$ seeds and $Q$ queries, the model trained on subset $k$ with seed $r$ has the measurement
# $m_{krq}$ on query $q$. Write $z_{kn} = 1$ where subset $k$ leaves out image $n$, and 0 where it keeps it. Then
#
# $$ P_{kq} = \sum_{n=1}^{N} z_{kn}\, \text{score}(q, n), \qquad \bar m_{kq} = \frac1K \sum_{r=1}^{K} m_{krq} , $$ (eq-predicted)
#
# $$ \text{LDS} = \frac1Q \sum_{q=1}^{Q} \operatorname{Spearman}_k\bigl(P_{kq},\, \bar m_{kq}\bigr) . $$ (eq-lds)
#
# This is the **linear datamodelling score** of {cite:t}`park2023trak`. A *datamodel* predicts a measurement from the
# list of images trained on; a linear one adds up a number for each. The order in {eq}`eq-lds` matters: average the
# seeds first, then rank the subsets of *one* query, and average over queries last.
#
# Here are the 192 models: 64 random halves of 300 digits, three seeds each. **Guess first:** about a third of the
# scores are positive. Taking absolute values flips the sign of the other two thirds. How much of the LDS will that
# cost?

# %% tags=["hide-input"]
rule, size, seed = "Scores", "Subsets", "Seeds"
every = {"Query": 0, rule: 0, size: 64, seed: 3}
constant, shuffled = {rule: "plus a constant"}, {rule: "shuffled"}
clamp = {"Query": 8, rule: "negative ones set to 0"}
absolute, few = {"Query": 6, rule: "absolute values"}, {size: 8, seed: 1}
said = {
    "add a constant": "All points move right by one amount. No rank moves.",
    "clamp": "The cloud gets tighter: this query and the mean rise.",
    "absolute": "This query loses much of its correlation, the mean little.",
    "shuffle": "The same scores, at other images: a cloud without direction.",
    "eight halves, one seed": "With so few models no interval can be given.",
}
states = constant, clamp, absolute, shuffled, few
buttons = [
    di.interactive.Preset(name, every | state, note)
    for (name, note), state in zip(said.items(), states, strict=True)
]
alone = di.lds(scores, truth)
figure = di.interactive.Scatter(
    scores, truth, presets=buttons, y_label="measured loss after retraining",
    caption=f"Twelve of the {len(scores)} held-out digits; over all, the LDS "
    f"is {percent(alone.mean)}%. Each point is one of the random halves. In "
    "brackets: 95% interval.")  # fmt: skip
figure


# %% tags=["hide-input"]
def shown(**state):
    """Spearman of the chosen query, its interval, mean over the twelve."""
    places = figure.state(**state)
    value, interval = figure.estimate(places)
    return value, interval, spearman(*figure.points(places)).mean()


plain = {q: shown(Query=q) for q in (0, 6, 8)}
rows = {state[rule]: (state["Query"], shown(**state)) for state in
        (every | constant, every | absolute, every | clamp,
         every | shuffled)}  # fmt: skip
di.tables.table([
    {"scores": name, "query": q,
     "before": di.tables.number(plain[q][0], 2),
     "after": di.tables.number(then[0], 2),
     "mean of twelve": di.tables.number(then[2], 3)}
    for name, (q, then) in rows.items()
], caption="What the buttons do to Spearman's correlation. As they are, "
    f"the mean of the twelve is {plain[0][2]:.3f}.")  # fmt: skip

# %% tags=["hide-input"]
assert 0.3 < (scores > 0).double().mean() < 0.37  # about a third
same, turned, clamped, other = (then for _, then in rows.values())
assert same == plain[0] and abs(other[0]) < 0.13
assert clamped[0] > plain[8][0] + 0.1 and clamped[2] > plain[8][2] + 0.03
assert turned[0] < plain[6][0] - 0.2
assert -0.03 < turned[2] - plain[6][2] < 0  # hardly moves
assert shown(**every | few)[1] == (-1, 1)
width, height = (np.ptp(values[0]) for values in
                 figure.points(figure.state(**every)))  # fmt: skip
assert 15 < width / height < 30  # some twenty times

# %% [markdown]
# Very little: the mean of the twelve hardly moves. And the clamp *gains*. How can scores be changed so much and agree
# as well as before?
#
# ## What it sees
#
# Suppose that the truth is additive too. Each image has a true effect $u_n$ on the query, and the loss is a constant
# plus the effects of all images left out. Let $v_n$ be the scores. Over all halves of $N$ images,
#
# $$ \operatorname{Cov}_k\Bigl(\sum_n z_{kn} v_n,\; \sum_n z_{kn} u_n\Bigr) = \frac{N}{4 (N - 1)} \sum_{n=1}^{N} (v_n - \bar v)(u_n - \bar u) . $$ (eq-halves)
#
# So Pearson's correlation over *halves* is Pearson's correlation over *images*. Up to ranks and luck, an LDS compares
# scores with effects, image by image.
#
# :::{admonition} Step by step
# :class: dropdown
# Each image is left out by one half in two, so $z_{kn}$ has mean $\frac12$ and variance $\frac14$. If $n$ is left out,
# $N/2 - 1$ of the other $N - 1$ images are as well. So two images are left out together with probability
# $\frac12 \cdot \frac{N/2 - 1}{N - 1}$, and their covariance is that minus $\frac14$, which is $-\frac{1}{4 (N - 1)}$.
# Put both into the covariance of the sums:
#
# $$ \begin{aligned}
# & \tfrac14 \sum_n v_n u_n - \tfrac{1}{4 (N - 1)} \sum_{n \ne j} v_n u_j \\
# &\quad = \tfrac14 \Bigl(1 + \tfrac{1}{N - 1}\Bigr) \sum_n v_n u_n - \tfrac{1}{4 (N - 1)} \sum_n v_n \sum_j u_j \\
# &\quad = \tfrac{N}{4 (N - 1)} \Bigl(\sum_n v_n u_n - N \bar v \bar u\Bigr) .
# \end{aligned} $$
#
# The last bracket is the sum in {eq}`eq-halves`. With $u = v$ it gives the variances, and the factor drops out of the
# correlation.
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
# - *A constant* drops out with $\bar v$, and *a positive factor* drops out of the correlation. In the figure the
#   predictions spread some twenty times as wide as the losses, and the LDS does not mind.
# - If you take *kept for left out*, $z$ becomes $1 - z$ on one side, and every LDS changes its sign.
# - *Large scores decide.* In the scores' own variance an image counts by the square of its distance from $\bar v$:

# %%
squares = (scores - scores.mean(1, keepdim=True)).square().sort(1).values
share = (squares[:, -30:].sum(1) / squares.sum(1)).mean()
print(f"thirty images of 300 hold {share:.0%} of the squares")

# %% [markdown]
# A fourth needs a thought. Suppose that scores are right on average: among images of one score $v$, the mean effect is
# $b v + c$ with $b > 0$. Change the scores to $\tilde v$, any function of $v$. Then
# $\operatorname{Cov}(\tilde v, u) = b \operatorname{Cov}(\tilde v, v)$, and so
#
# $$ \operatorname{corr}(\tilde v, u) = \operatorname{corr}(\tilde v, v)\, \operatorname{corr}(v, u) . $$ (eq-function)
#
# The LDS of $\tilde v$ is that of $v$, times their correlation over images. Whatever you do to such scores, you can
# only lose.
#
# We compare the real ground truth with two made-up ones, whose effects are additive. In one the effects are the scores
# plus noise. In the other, negative scores are set to 0 before.


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
low = next(
    row["slope_ratio"][1]
    for row in di.load_bundle("digits-rectify").metrics["results"]
    if (row["method"], row["queries"]) == ("ekfac", "held-out")
)
assert -0.2 < low[0] < 0 < low[1] < 0.1  # of a low score to a high one

# %% [markdown]
# The first made-up truth keeps the promise to a few hundredths. The real one breaks it and behaves like the second, as
# if all images with a negative score had one mean effect. An LDS cannot say which, for constants drop out. And this is
# no proof, because an LDS sees sums and not single images. Retraining without the lowest tenth left each query tried
# better off than without random images ({doc}`../book/removal`). Yet in a regression on high and low scores apart, the
# low ones say almost nothing. {doc}`11_challenges` takes it up.
#
# ## How high it can go
#
# Train the same half twice and you get two losses. Call the mean over endless seeds the *signal*. It differs between
# halves, with variance $V_\text{signal}$, and each seed adds noise of variance $V_\text{seed}$. Then two seeds
# correlate, over halves, by
#
# $$ \rho = \frac{V_\text{signal}}{V_\text{signal} + V_\text{seed}} , $$ (eq-reliability)
#
# the **reliability** of one seed. To measure it, take Spearman's correlation of two seeds over the halves, and average
# over pairs of seeds and over queries. **Guess first:** on our digits $\rho$ is about three quarters. What is the LDS
# of *perfect* scores against one seed, and against the mean of three?
#
# The noise of a mean of $K$ seeds is $V_\text{seed} / K$. Its reliability (the Spearman–Brown formula) and the most
# that scores can reach, the **bound** (up to ranks and luck), are
#
# $$ \rho_K = \frac{V_\text{signal}}{V_\text{signal} + V_\text{seed} / K} = \frac{K \rho}{1 + (K - 1)\, \rho} , \qquad \text{LDS} \le \sqrt{\rho_K} . $$ (eq-bound)
#
# {numref}`tab-seeds` has the values. If you guessed $\rho$ itself: it correlates *two* noisy seeds. Perfect scores have
# no noise, so one factor $\sqrt\rho$ remains.
#
# In the **ceiling** of {doc}`01_quickstart` one seed predicts the mean of the $K - 1$ others, and the correlation is
# $\sqrt{\rho\, \rho_{K-1}}$. Scores whose errors are smaller than the luck of one seed lie above it, as on ten digits
# ({numref}`tab-elsewhere`).
#
# :::{admonition} Step by step
# :class: dropdown
# Write a seed's losses, over halves, as signal plus noise. The noises of two seeds are independent of the signal and of
# each other. So the covariance of two seeds is $V_\text{signal}$, and each has variance
# $V_\text{signal} + V_\text{seed}$: this is {eq}`eq-reliability`. Divide the first fraction of {eq}`eq-bound` by
# $V_\text{signal} + V_\text{seed}$ above and below the line: it becomes $\rho / (\rho + (1 - \rho) / K)$, which is the
# second one. The covariance of the signal with a mean of $K$ seeds is $V_\text{signal}$ too. Their variances are
# $V_\text{signal}$ and $V_\text{signal} / \rho_K$, so they correlate by $\sqrt{\rho_K}$. In the same way one seed and
# the mean of $K - 1$ others have variances $V_\text{signal} / \rho$ and $V_\text{signal} / \rho_{K-1}$, which gives the
# ceiling.
# :::
#
# If this model of noise is right, the LDS of the *same* scores rises with the number of seeds as $\sqrt{\rho_K}$ does:

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
assert 0.14 < (ratios[-1] - value) / (1 - value) < 0.18  # a sixth
di.tables.table(rows, name="tab-seeds",
                caption="Our scores (EK-FAC), held-out digits.")  # fmt: skip

# %%
expected = di.evaluation.self_consistency(truth).expected
print(f"ceiling: {di.ceiling(truth):.1%}; predicted {expected:.1%}")
assert abs(expected - di.ceiling(truth)) < 0.01
assert 0.7 < reliability(truth) < 0.77  # about three quarters

# %% [markdown]
# The ratio moves by less than a point, and the ceiling comes out where $\sqrt{\rho\, \rho_2}$ puts it. With endless
# seeds EK-FAC would reach that ratio. So of what it lacks to 100%, the luck of seeds is about a sixth. The rest has two
# sources that an LDS cannot tell apart: errors of the scores, and effects of images that do not add up.
#
# ### Elsewhere
#
# Every data set of this book:

# %% tags=["hide-input"]
NAMES = {"digits": "3s, 8s", "digits-pair": "4s, 9s",
         "digits-ten": "ten digits", "fashion": "sneakers, bags",
         "cifar2-tiny": "cars, horses"}  # fmt: skip


def bounds(there):
    """The bound and its interval, from that of one seed's reliability."""
    measured = there.measurements.double().numpy().transpose(1, 2, 0)
    K, Q, M = measured.shape
    drawn = resampling.Resamples.draw(Q, M, 1000, 0)
    pairs = [resampling.resample_spearman(a[None], b, drawn)[0]
             for a, b in combinations(measured, 2)]  # fmt: skip
    rho, ends = resampling.Resampled.average(pairs).estimate()
    return [di.evaluation.spearman_brown(max(value, 0), K) ** 0.5
            for value in (rho, *ends)]  # fmt: skip


def share(value, ends, bound, low, high):
    """Of the bound: errors of both added as if independent, at most 1."""
    down = np.hypot(np.log(value / ends[0]), np.log(high / bound))
    up = np.hypot(np.log(ends[1] / value), np.log(bound / low) if low else 9)
    part = value / bound
    return part, (part * np.exp(-down), min(part * np.exp(up), 1))


# %% tags=["hide-input"]
def row_of(name, asked):
    there = di.load_ground_truth(f"{name}-ground-truth", asked)
    M, K, _ = there.measurements.shape
    found = next(
        row for row in di.load_bundle(f"{name}-methods").metrics["results"]
        if (row["method"], row["queries"]) == ("ekfac", asked)
        and row["attributed"] == row["measured"] == "loss"
    )  # fmt: skip
    LDS, bound = (found["lds"], found["interval"]), bounds(there)
    ceiling = di.evaluation.self_consistency(there).lds
    return {"images": NAMES[name], "models": f"{M} × {K}",
            "ceiling": percent(*ceiling, digits=0),
            "bound": percent(bound[0], digits=0),
            "EK-FAC": percent(*LDS, digits=0),
            "of bound": percent(*share(*LDS, *bound), digits=0)}  # fmt: skip


elsewhere = {asked: [row_of(name, asked) for name in NAMES]
             for asked in ("held-out", "generated")}  # fmt: skip
di.tables.table(
    elsewhere["held-out"], name="tab-elsewhere",
    caption="Held-out queries, %, with 95% intervals. Models: subsets × "
    "seeds. Of bound: EK-FAC over the bound, at most 100.")  # fmt: skip

# %% tags=["hide-input"]
di.tables.table(
    elsewhere["generated"],
    caption="Generated queries. From the bundles in {doc}`../book/datasets`.",
)

# %% tags=["hide-input"]
ten, sneakers, cars = elsewhere["held-out"][2:]
assert ten["EK-FAC"].value > ten["ceiling"].interval[1]
assert cars["EK-FAC"].value > 1.5 * cars["ceiling"].value
as_many = di.evaluation.retraining_lds(
    di.load_ground_truth("cifar2-tiny-ground-truth", "held-out"))  # fmt: skip
assert 0.3 < as_many < cars["EK-FAC"].value
assert cars["ceiling"].interval[1] > cars["EK-FAC"].interval[0]
assert cars["ceiling"].interval[1] > sneakers["ceiling"].interval[0]
parts = {asked: [row["of bound"] for row in rows]
         for asked, rows in elsewhere.items()}  # fmt: skip
*most, sneakers, cars = parts["held-out"]
assert min(part.value for part in (*most, cars)) > 70
assert sneakers.interval[1] < min(part.value for part in most)
assert 45 < cars.interval[0] < 60 and cars.interval[1] == 100
*most, sneakers, cars = parts["generated"]
assert 40 < sneakers.value < 50 and sneakers.interval[1] < 65
assert cars.interval[0] < 20 and cars.interval[1] == 100

# %% [markdown]
# On cars and horses (CIFAR-2) an LDS of about a half seems poor. But its ceiling seems lower still (the intervals
# overlap), also where it is judged by as many seeds, because single retrainings of that network hardly agree. Against the
# bound, EK-FAC seems to do there what it does on digits, but anything from half of the bound to all of it is possible. On
# sneakers and bags it falls short. On generated ones it stays near half of the bound, and seeds are not the reason. On
# generated cars the bound is too rough to say.
#
# The rows have different numbers of halves, and twenty lower an LDS by some two points ({numref}`tab-few`). So read
# down a column only for large differences.
#
# ## How far luck moves it
#
# If the halves came in random order, Spearman's correlation would have mean 0 and standard deviation
# $1 / \sqrt{M - 1}$. That is 0.13 for 64 halves, and *shuffle* stays within it. Hence the mean over 57 queries.
# {cite:t}`mlodozeniec2025influence` print its standard error over queries. **Guess first:** what does that error leave
# out?

# %% tags=["hide-input"]
five = np.arange(5.0)
chance = [spearman(five, np.array(order)) for order in permutations(five)]
assert np.isclose(np.mean(np.square(chance)), 1 / (5 - 1))  # all orders

# %% [markdown]
# Every query was measured on the *same* 64 halves. If these happen to be easy, they are easy for all queries at once,
# and no spread between queries shows it. Queries and halves are *crossed*: every query meets every half.
#
# We need a number for each query with each half. A rank correlation is no mean over halves, but the **jackknife** comes
# close. Leave out one half at a time. Let $\psi_{qk}$ be $M$ times query $q$'s correlation over all halves, minus
# $M - 1$ times that without half $k$. For a plain mean this would be exactly the value of half $k$. Then split the
# variance of $\psi_{qk}$ into what differs between queries, between halves, and the rest:
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
# The library finds the same three variances. They also say by how much the LDS of 32 halves should differ from that of
# the other 32: here the queries are the same, so only the last two terms count. (Both come from the same 64, so this
# tests arithmetic and not luck; {doc}`../book/evaluation` tests that.)
# :::

# %%
sampled = di.evaluation.sampled_lds([scores], truth)[0]
library = resampling.variance_components(sampled.pseudo_values)
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
# With 57 queries the difference is small. With a thousand, the error over queries alone would be about half of the
# crossed one, which never falls below the luck of the halves.
#
# A difference of two methods on the same halves is much better known than either value, because easy halves are easy
# for both. Take K-FAC, a coarser curvature:

# %%
kfac = di.influence_scores(run, truth.queries, approximation="kfac")[0]
difference = di.paired_difference(kfac, scores, truth)
print(f"EK-FAC: {alone}")
print(f"K-FAC: {di.lds(kfac, truth)}\ntheir difference: {difference}")
assert 4 * np.ptp(difference.interval) < np.ptp(alone.interval)

# %% [markdown]
#
# ### Few halves lower it
#
# Move the slider of the figure to few halves, and the mean of the twelve is usually lower. Spearman's correlation $R_M$
# of $M$ halves is on average below that of endlessly many, because it mixes in Kendall's $\tau$ (pairs in the right
# order minus pairs in the wrong one, as a share of all pairs), which lies nearer to 0 here
# {cite:p}`hoeffding1948class`:
#
# $$ \mathbb{E}[R_M] = \frac{(M - 2)\, R_\infty + 3 \tau}{M + 1} . $$ (eq-few)
#
# :::{admonition} Step by step, and what ties do to a bootstrap
# :class: dropdown
# Take one query, and leave its index out. Without ties, half $k$'s rank minus the mean rank is
# $\frac12 \sum_j \operatorname{sign}(P_k - P_j)$. The squares of these numbers add up to $(M^3 - M) / 12$. So
#
# $$ R_M = \frac{3}{M^3 - M} \sum_{k, i, j} \operatorname{sign}(P_k - P_j) \operatorname{sign}(\bar m_k - \bar m_i) . $$
#
# The $M (M - 1)$ terms with $i = j \ne k$ have mean $\tau$. The $M (M - 1)(M - 2)$ terms with three different halves
# have a mean that does not depend on $M$. All others are 0. For endless $M$ only those with three halves count, so
# their mean is $R_\infty / 3$. Divide by $M (M - 1)$: this is {eq}`eq-few`.
#
# A bootstrap draws $M$ halves again with replacement. Two copies of one half are a tie, and their sign is 0. Of the
# terms with three different draws, $1/M$ has $i$ and $j$ at the same half, which is one more piece of $\tau$. Count so
# above the line, and below it with $R_M = \tau = 1$. The mean of the resamples is then about
#
# $$ \frac{(M^2 - M - 2)\, R_M + 3 M \tau}{M^2 + 2 M - 2} . $$
#
# That is nearly $3 (R_M - \tau) / (M + 2)$ below $R_M$. The library therefore shifts the resamples back
# ({doc}`../book/evaluation`).
# :::

# %%
R = spearman(P, m)
tau = np.array(
    [kendalltau(a, b).statistic for a, b in zip(P, m, strict=True)]
)
endless = ((M + 1) * R - 3 * tau) / (M - 2)
assert 0 < tau.mean() < R.mean()
rows = []
for count in (8, 20, 32, 64):
    chosen = [generator.permutation(M)[:count] for _ in range(400)]
    drawn = [spearman(P[:, few], m[:, few]).mean() for few in chosen]
    said = (((count - 2) * endless + 3 * tau) / (count + 1)).mean()
    assert abs(np.mean(drawn) - said) < 0.006
    rows.append({"halves": count, "LDS, mean of 400 draws, %":
                 percent(np.mean(drawn)), "formula, %": percent(said)}
                )  # fmt: skip
few = [row["formula, %"].value for row in rows]
assert 1.5 < few[-1] - few[1] < 2.5  # some two points
di.tables.table(rows, name="tab-few",
                caption="The same scores, fewer of the 64 halves."
                )  # fmt: skip

# %%
lost = sampled.mean - sampled.resamples.mean()
exact = (M**2 - M - 2) * R + 3 * M * tau
told = (R - exact / (M**2 + 2 * M - 2)).mean()
print(f"resamples lie {100 * lost:.1f} points too low, "
      f"formula {100 * told:.1f}")  # fmt: skip
assert abs(lost - told) < 0.003
assert np.isclose(told, 3 * (R - tau).mean() / (M + 2), rtol=0.03)

# %% [markdown]
# ## What to buy
#
# Suppose you can afford 192 trainings. **Guess first:** 192 halves with one seed each, 96 with two, or 64 with three?
#
# The last two variances in {eq}`eq-crossed` are each a sum: $V'$ from the halves, and $V'' / K$ from the seeds. With
# $M K$ trainings in all,
#
# $$ \frac{V' + V'' / K}{M} = \frac{K V' + V''}{M K} . $$ (eq-budget)
#
# The seeds' part depends on the number of trainings alone, and the halves' part grows with $K$. So one seed is best. By
# how much? Take the smallest difference between two methods that is found four times out of five (a **power** of 80%)
# at level 5%. It is $1.96 + 0.84 = 2.8$ standard errors, from {eq}`eq-crossed` for the difference, queries included.
# With fewer seeds the same two methods differ less, by $\sqrt{\rho_K / \rho_3}$; the table corrects for that.

# %%
pixels = di.attribution.pixel_distance_scores(run.data.train, truth.queries)
studies = {"K-FAC": di.evaluation.power_analysis(scores, kfac, truth),
           "pixel distance": di.evaluation.power_analysis(scores, pixels,
                                                          truth)}  # fmt: skip
designs = ((192, 1, Q), (96, 2, Q), (64, 3, Q), (32, 6, Q),
           (64, 3, 2 * Q), (128, 3, Q))  # fmt: skip
smallest = {name: [study.smallest_difference(*design) for design in designs]
            for name, study in studies.items()}  # fmt: skip
di.tables.table([
    {"halves × seeds": f"{halves} × {seeds}", "trainings": halves * seeds,
     "queries": queries}
    | {f"EK-FAC and {name}": percent(found[i], digits=2)
       for name, found in smallest.items()}
    for i, (halves, seeds, queries) in enumerate(designs)
], caption="Smallest difference, points.")  # fmt: skip

# %% tags=["hide-input"]
for name, found in smallest.items():
    assert (np.diff(found[:4]) > 0).all()
    assert np.isclose(found[4], found[5], rtol=0.05)
    error = studies[name].standard_error(64, 3)
    assert np.isclose(found[2], 2.8 * error, rtol=1e-3)
assert max(smallest["K-FAC"][:3]) < 0.0055
assert 0.055 < smallest["pixel distance"][2] < 0.065

# %% [markdown]
# So buy queries first: twice as many help as much as twice the halves, and cost no training, only measuring. Then buy
# halves. One seed gives neither ceiling nor bound. Two give both: take two, and no more. {doc}`../book/evaluation` has
# other budgets.
#
# So is a point of LDS much? Between EK-FAC and K-FAC, which err alike, half a point is seen. Between EK-FAC and pixel
# distance (no model at all), which err differently, it takes six, and one is nothing.
#
# ## Pitfalls
#
# - **Kept for left out.** It turns every sign. So does a log-likelihood as measurement, if the scores predict a loss.
# - **One correlation over all queries.** Queries differ far more in their loss than halves do. Rank within a query.
# - **Seeds correlated one by one.** The mean of the correlations with single seeds is the first row of
#   {numref}`tab-seeds`, not the last.
# - **Tuning on the judge.** A damping chosen by LDS is judged on other subsets: {doc}`../book/evaluation`.
# - **Training images as queries.** Do not use them: each one's own score dominates.
# - **Reading it as a share.** 73% is a correlation. It does not say that 73 of 100 images are right, nor that any size
#   is.
#
# ## Exercises

# %% [markdown]
# :::{exercise} When a constant matters · 5 minutes · ★
# :label: ex-sizes
# Three images have the effects 5, 2 and 1, effects add up, and the scores are exactly right. Three subsets leave out
# {1}, {2} and {2, 3}. Add a constant $c$ to all scores. By hand: for which $c$ does the correlation stay at 1, and what
# is it elsewhere? What does this say about subsets that keep each image with probability one half?
# :::
#
# :::{solution-start} ex-sizes
# :label: sol-sizes
# :class: dropdown
# :::
#
# The predictions are $5 + c$, $2 + c$ and $3 + 2c$, and their order is right while $2 + c < 3 + 2c < 5 + c$, so for
# $-1 < c < 2$. Beyond either end, two neighbours have changed places: $1 - 6 \cdot 2 / 24 = \frac12$. At either end two
# predictions tie, and it is $\sqrt3 / 2$. Where subsets differ in size, a constant is multiplied by the number of
# images left out, and a large one ranks subsets by size alone. So the invariance holds only for subsets of one size.

# %%
uneven = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]])
effects = np.array([5.0, 2, 1])
tied = 3**0.5 / 2
for c, wanted in ((-2, 0.5), (-1, tied), (0, 1), (2, tied), (3, 0.5)):
    value = spearman(uneven @ (effects + c), uneven @ effects)
    assert np.isclose(value, wanted)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise} Write it yourself · 10 minutes · ★★
# :label: ex-lds
# Write `my_lds(scores, masks, measurements)` from {eq}`eq-lds`. It gets torch tensors (double) of `[Q, N]`, `[M, N]`
# (True = *kept*) and `[M, K, Q]`, and returns a number. `scipy.stats.rankdata` gives ties the mean of their ranks. Run
# `di.checks.lds(my_lds)`, which names your mistake if it knows it, and hold it against `di.lds` on the digits.
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
# Write `my_reliability(correlation, factor)`, the Spearman–Brown formula, and run
# `di.checks.spearman_brown(my_reliability)`. From the $\rho$ of one seed (`reliability(truth)`, not rounded), give the
# bound on the LDS with three seeds, and the number of seeds that a bound of 98% takes, on the digits and on the cars
# and horses.
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
# The seeds follow from {eq}`eq-bound`, solved for $K$: $\rho_K (1 - \rho) / (\rho\, (1 - \rho_K))$ with
# $\rho_K = 0.98^2$. On cars and horses it is cheaper to divide by the bound (the *disattenuated* LDS of
# {doc}`../book/evaluation`).
#
# :::{solution-end}
# :::
#
# :::{exercise} One correlation over all queries · 5 minutes · ★★
# :label: ex-pooled
# Make scores that know nothing of the images, and whose *pooled* correlation, one Spearman over all pairs of query and
# half, is above 90%. What is their LDS? (`m` and `P` above hold a row for each query.)
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
# Give each query a constant of its own (1000 is any number large enough). Within a query it moves no rank, so the LDS
# is that of random numbers. Across queries it sorts them by their loss, and the pooled correlation is nearly perfect.
#
# :::{solution-end}
# :::
#
# An LDS asks about random halves, but you want to know about the very images that the scores point at. Retraining
# without them is another test, and {doc}`10_removal` shows how differently it can come out.
