"""Right solutions pass: plain ones as a reader would write them, and the library's own where there is one."""

import math

import pytest
import torch

import diffinf_lib as di
from diffinf_lib.attribution import trak_scores
from diffinf_lib.checks import Passed
from diffinf_lib.compression import int8_rows
from diffinf_lib.curvature import Curvature, LayerCurvature
from diffinf_lib.curvature.ekfac import correction_sum, eigenbasis
from diffinf_lib.curvature.exact import dense_ggn
from diffinf_lib.curvature.inverses import conjugate_gradient_inverse
from diffinf_lib.curvature.kfac import KroneckerFactors, input_factor_sum, output_gradient_factor_sum
from diffinf_lib.diffusion import DrawBatch
from diffinf_lib.diffusion.elbo import kl_weights
from diffinf_lib.diffusion.reverse import posterior_mean
from diffinf_lib.evaluation import GroundTruth, holm as library_holm, spearman, spearman_brown
from diffinf_lib.gradients.compute import gradients_in_eigenbasis
from diffinf_lib.runs.subsets import shard_of as library_shard

# --- plain solutions


def noisy(images, alphas_cumprod, timesteps, noise):
    left = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return left.sqrt() * images + (1 - left).sqrt() * noise


def mean_of_step(image, state, t, betas):
    kept = torch.cumprod(1 - betas, 0)
    before = kept[t - 1] if t > 0 else 1.0
    of_image = before**0.5 * betas[t] / (1 - kept[t])
    return of_image * image + (1 - betas[t]).sqrt() * (1 - before) / (1 - kept[t]) * state


def pairs(timesteps, noise):
    return timesteps.repeat_interleave(2), torch.stack([noise, -noise], 1).flatten(0, 1)


def loss_of_the_best(variance, alphas_cumprod):
    return alphas_cumprod * variance / (alphas_cumprod * variance + 1 - alphas_cumprod)


def draws_for(deviation, correlation, error):
    alone = 2 * deviation**2 / error**2
    return math.ceil(alone), math.ceil(alone * (1 - correlation))


def weights_of_kl(betas):
    kept = torch.cumprod(1 - betas, 0)
    weights = torch.zeros_like(betas)
    weights[1:] = betas[1:] / (2 * (1 - betas[1:]) * (1 - kept[:-1]))
    return weights


def mean_by_importance(values, timesteps, probabilities):
    return (values / probabilities[timesteps]).mean() / len(probabilities)


def score(query_gradient, train_gradients, hessian, damping):
    values, vectors = torch.linalg.eigh(hessian)
    return (train_gradients @ vectors) @ ((vectors.T @ query_gradient) / (values + damping)) / len(train_gradients)


def without_each(features, targets, ridge):
    inverse = torch.linalg.inv(features.T @ features + ridge * torch.eye(features.shape[1], dtype=torch.float64))
    fit = inverse @ features.T @ targets
    rows = []
    for x, y in zip(features, targets, strict=True):
        rows.append(fit - inverse @ x * (y - x @ fit) / (1 - x @ inverse @ x))
    return torch.stack(rows)


def without_group(features, targets, ridge, group):
    inverse = torch.linalg.inv(features.T @ features + ridge * torch.eye(features.shape[1], dtype=torch.float64))
    fit, chosen = inverse @ features.T @ targets, features[group]
    left = torch.eye(len(group), dtype=torch.float64) - chosen @ inverse @ chosen.T
    return fit - inverse @ chosen.T @ torch.linalg.inv(left) @ (targets[group] - chosen @ fit)


def answered(hessian, own_hessian, gradient, damping, count):
    """By Newton's method on the objective, which a quadratic ends in one step."""
    start = torch.zeros(len(gradient), dtype=torch.float64)

    def objective(u):
        distance, loss = u @ hessian @ u / 2, gradient @ u + u @ own_hessian @ u / 2
        return distance - loss / count + damping / 2 * u @ u

    bent = torch.func.hessian(objective)(start)
    return -torch.linalg.solve(bent, torch.func.grad(objective)(start))


def dealt(subsets, seeds, shard, shards):
    numbers = torch.arange(shard, subsets * seeds, shards)
    return torch.stack([numbers % subsets, numbers // subsets], 1)


def gauss_newton(jacobians):
    draws, outputs, weights = jacobians.shape
    rows = jacobians.reshape(-1, weights)
    return 2 / outputs * rows.T @ rows / draws


def fisher(jacobians, noise):
    outputs = jacobians.shape[1]
    total = 0
    for labels in noise:
        misses = math.sqrt(outputs / 2) * labels
        gradients = (2 / outputs * misses.unsqueeze(1) @ jacobians).squeeze(1)
        total = total + gradients.T @ gradients / len(gradients)
    return total / len(noise)


def kfac(sharing, bias):
    def factors(inputs, output_gradients):
        if bias:
            inputs = torch.nn.functional.pad(inputs, (0, 1), value=1.0)
        draws, positions, _ = inputs.shape
        if sharing == "reduce":
            inputs, output_gradients, positions = inputs.mean(1), output_gradients.sum(1), 1
        a, g = inputs.reshape(-1, inputs.shape[-1]), output_gradients.reshape(-1, output_gradients.shape[-1])
        return a.T @ a / (draws * positions), g.T @ g / draws

    return factors


def kfac_scores(damped):
    def scores(query_gradient, train_gradients, a, b, damping):
        (in_values, q_a), (out_values, q_b) = torch.linalg.eigh(a), torch.linalg.eigh(b)
        if damped == "product":
            divisor = torch.outer(out_values, in_values).clamp(min=0) + damping
        else:
            divisor = torch.outer(out_values + damping**0.5, in_values + damping**0.5)
        solved = q_b @ (q_b.T @ query_gradient @ q_a / divisor) @ q_a.T
        return (train_gradients * solved).sum((1, 2)) / len(train_gradients)

    return scores


def layer_inputs(layer, given):
    if isinstance(layer, torch.nn.Linear):
        return given.unsqueeze(1)
    padding, stride = layer.padding, layer.stride
    return torch.nn.functional.unfold(given, layer.kernel_size, padding=padding, stride=stride).transpose(1, 2)


def whole_kfac(network, factor_draws, train_draws, query_draws, damping):
    """A draw and an output at a time, and no eigenvectors."""
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    seen, factors = {}, {layer: [0, 0] for layer in layers}
    hooks = [layer.register_forward_hook(lambda m, given, out: seen.update({m: (given[0], out)})) for layer in layers]
    for state, timestep, _, weight in zip(*(part.flatten(0, 1) for part in factor_draws), strict=True):
        outputs = network(state.unsqueeze(0), timestep.unsqueeze(0)).flatten()
        for layer in layers:
            given, output = seen[layer]
            a = layer_inputs(layer, given)[0].detach()
            a = a if layer.bias is None else torch.cat([a, torch.ones(len(a), 1)], 1)
            factors[layer][0] += weight * a.T @ a / len(a) / factor_draws[3].numel()
            for one in outputs:
                g = torch.autograd.grad(one, output, retain_graph=True)[0].reshape(output.shape[1], -1)
                factors[layer][1] += weight * 2 * g @ g.T / len(outputs) / factor_draws[3].numel()
    for hook in hooks:
        hook.remove()

    def gradients(draws):
        for states, timesteps, targets, weights in zip(*draws, strict=True):
            network.zero_grad()
            loss = (weights.view(-1, 1, 1, 1) * (network(states, timesteps) - targets).square()).mean()
            loss.backward()
            bias = [None if layer.bias is None else layer.bias.grad.unsqueeze(1) for layer in layers]
            yield [
                torch.cat([layer.weight.grad.flatten(1), *([] if b is None else [b])], 1).clone()
                for layer, b in zip(layers, bias, strict=True)
            ]

    train, rows = list(gradients(train_draws)), []
    for query in gradients(query_draws):
        solved = [
            torch.linalg.solve(torch.kron(b, a) + damping * torch.eye(one.numel()), one.flatten())
            for one, (a, b) in zip(query, factors.values(), strict=True)
        ]
        rows.append([sum(x @ g.flatten() for x, g in zip(solved, image, strict=True)) for image in train])
    return torch.tensor(rows) / len(train)


def eigenvalues(gradients, output_eigenvectors, input_eigenvectors):
    return torch.stack([(output_eigenvectors.T @ g @ input_eigenvectors) ** 2 for g in gradients]).mean(0)


def from_batches(gradients, output_eigenvectors, input_eigenvectors, signs, draws_per_sum):
    total = 0
    for start in range(0, len(gradients), draws_per_sum):
        summed = sum(
            s * g
            for s, g in zip(signs[start : start + draws_per_sum], gradients[start : start + draws_per_sum], strict=True)
        )
        total = total + (output_eigenvectors.T @ summed @ input_eigenvectors) ** 2
    return total / len(gradients)


def in_8_bits(matrix):
    scale = matrix.abs().max(1, keepdim=True).values / 127
    return (matrix / scale.clamp(min=1e-30)).round().to(torch.int8), scale


def from_accumulated(query_batches, train_batches, curvature, damping, count):
    q = sum(b.sum(0) for b in query_batches) / sum(len(b) for b in query_batches)
    n = sum(b.sum(0) for b in train_batches) / sum(len(b) for b in train_batches)
    return q @ torch.linalg.solve(curvature + damping * torch.eye(len(curvature)).double(), n) / count


def bias_of_shared(query_gradients, train_gradients, curvature, draws):
    together = torch.cov(torch.cat([query_gradients, train_gradients], 1).T, correction=0)
    p = query_gradients.shape[1]
    return torch.trace(torch.linalg.inv(curvature) @ together[:p, p:]) / draws


def from_gram(query_feature, features, damping):
    """By Woodbury's identity, the query's own side of it."""
    scale = len(features) * damping
    inside = torch.linalg.inv(torch.eye(len(features)).double() + features @ features.T / scale)
    return (features @ query_feature - features @ (features.T @ (inside @ (features @ query_feature))) / scale) / scale


def rank_correlation(first, second):
    from scipy.stats import spearmanr

    return spearmanr(first, second).statistic


def datamodelling(scores, masks, measurements):
    each = [
        rank_correlation([scores[q][~mask].sum() for mask in masks], measurements[:, :, q].mean(1))
        for q in range(len(scores))
    ]
    return sum(each) / len(each)


def shifted(scores):
    return 2 * scores + torch.arange(1, len(scores) + 1).double().unsqueeze(1)


def longer(correlation, factor):
    return factor * correlation / (1 + (factor - 1) * correlation)


def stepping_down(p_values):
    adjusted, highest = torch.zeros_like(p_values), 0.0
    for step, place in enumerate(p_values.argsort().tolist()):
        highest = max(highest, min(1.0, float(p_values[place]) * (len(p_values) - step)))
        adjusted[place] = highest
    return adjusted


PLAIN = [
    ("noisy", {}, noisy),
    ("posterior_mean", {}, mean_of_step),
    ("antithetic_pairs", {}, pairs),
    ("irreducible_loss", {}, loss_of_the_best),
    ("draws_needed", {}, draws_for),
    ("elbo_weights", {}, weights_of_kl),
    ("importance_mean", {}, mean_by_importance),
    ("influence", {}, score),
    ("leave_one_out", {}, without_each),
    ("block_leverage", {}, without_group),
    ("proximal", {}, answered),
    ("shard_of", {}, dealt),
    ("ggn", {}, gauss_newton),
    ("sampled_fisher", {}, fisher),
    *[
        ("kfac", {"sharing": sharing, "bias": bias}, kfac(sharing, bias))
        for sharing in ("expand", "reduce")
        for bias in (False, True)
    ],
    *[("kfac_score", {"damped": damped}, kfac_scores(damped)) for damped in ("product", "factors")],
    ("kfac_influence", {}, whole_kfac),
    ("corrected_eigenvalues", {}, eigenvalues),
    ("batched_correction", {}, from_batches),
    ("int8_rows", {}, in_8_bits),
    ("accumulated_score", {}, from_accumulated),
    ("shared_draw_bias", {}, bias_of_shared),
    ("woodbury", {}, from_gram),
    ("spearman", {}, rank_correlation),
    ("lds", {}, datamodelling),
    ("keeps_lds", {}, shifted),
    ("spearman_brown", {}, longer),
    ("holm", {}, stepping_down),
]


@pytest.mark.parametrize(("name", "options", "solution"), PLAIN)
def test_a_plain_solution_passes(name, options, solution):
    passed = getattr(di.checks, name)(solution, **options)
    assert isinstance(passed, Passed) and passed.name == name and len(passed.tried) >= 2


def test_every_check_has_a_solution_for_every_choice_of_options():
    solved = [(name, options) for name, options, _ in PLAIN]
    for name in di.checks.__all__:
        check = getattr(di.checks, name)
        for options in check.exercise.options if hasattr(check, "exercise") else ():
            assert (name, options) in solved


# --- the library's own


def process_of(betas):
    return di.Process(num_train_timesteps=len(betas), trained_betas=tuple(betas.tolist()))


def library_noisy(images, alphas_cumprod, timesteps, noise):
    before = torch.cat([torch.ones(1).double(), alphas_cumprod[:-1]])
    return process_of(1 - alphas_cumprod / before).noisy(images, timesteps, noise)


def library_posterior_mean(image, state, t, betas):
    where = torch.tensor([t])
    return posterior_mean(image.view(1, 1, 2, 3), state.view(1, 1, 2, 3), where, process_of(betas)).view(2, 3)


def dense(hessian):
    """A matrix as the curvature of one block with a single output."""
    values, vectors = torch.linalg.eigh(hessian)
    one = torch.ones(1, 1).double()
    return Curvature({"all": LayerCurvature(vectors, one, corrected_eigenvalues=values.unsqueeze(0))})


def library_influence(query_gradient, train_gradients, hessian, damping):
    curvature = dense(hessian)
    layer = curvature.layers["all"]
    query, train = (
        di.GradientSet.of({"all": layer.to_eigenbasis(g.view(-1, 1, g.shape[-1]))})
        for g in (query_gradient, train_gradients)
    )
    return di.scores_from_gradients(query, train, curvature, damping=damping)[0, 0]


def library_influence_by_iteration(query_gradient, train_gradients, hessian, damping):
    solution = conjugate_gradient_inverse(hessian, damping, query_gradient.flatten(), tolerance=1e-13)
    return train_gradients @ solution.vectors / len(train_gradients)


class FromJacobians(torch.nn.Module):
    """A network whose outputs at draw t are J_t θ: a linear layer at C positions."""

    def __init__(self, jacobians):
        super().__init__()
        self.jacobians, self.layer = jacobians, torch.nn.Linear(jacobians.shape[2], 1, bias=False)

    def forward(self, noisy, timesteps):
        return self.layer(self.jacobians[timesteps]).view_as(noisy)


def library_ggn(jacobians):
    model = di.Denoiser(FromJacobians(jacobians), di.Process()).double()
    draws, outputs, _ = jacobians.shape
    nothing, one = torch.zeros(draws, 1, outputs, 1).double(), torch.ones(draws)
    batch = DrawBatch(nothing, torch.arange(draws), nothing, torch.arange(draws), one.long(), one, nothing, nothing)
    return dense_ggn(model, batch)


def library_kfac(bias):
    def factors(inputs, output_gradients):
        inputs = torch.nn.functional.pad(inputs, (0, 1), value=1.0) if bias else inputs
        draws = len(inputs)
        return input_factor_sum(inputs) / draws, output_gradient_factor_sum(output_gradients) / draws

    return factors


def library_kfac_score(query_gradient, train_gradients, a, b, damping):
    curvature = Curvature({"all": eigenbasis(KroneckerFactors(a, b))})
    layer = curvature.layers["all"]
    query, train = (
        di.GradientSet.of({"all": layer.to_eigenbasis(g)}) for g in (query_gradient.unsqueeze(0), train_gradients)
    )
    return di.scores_from_gradients(query, train, curvature, damping=damping, approximation="kfac")[0, 0]


def as_batch(draws):
    states, timesteps, targets, weights = (part.flatten(0, 1) for part in draws)
    images, count = draws[3].shape
    place = torch.arange(images * count)
    return DrawBatch(states, timesteps, targets, place // count, place % count, weights, states, targets)


def library_kfac_influence(network, factor_draws, train_draws, query_draws, damping):
    def rule(draws):
        return di.DrawConfig(draws[3].shape[1], noise_rule="independent")

    class Given(di.Expectation):
        def batches(self, model, images, batch_size=512):
            yield as_batch({"train": train_draws, "query": query_draws}[self.purpose])

    model, of_factors = di.Denoiser(network, di.Process()), rule(factor_draws)
    config = di.CurvatureConfig("kfac", of_factors, factor_draws=of_factors, exact_labels=True, input_positions=None)
    curvature = di.curvature.fit_to_draws(model, as_batch(factor_draws), config)

    def gradients(draws, purpose):
        count = torch.arange(len(draws[0]))
        images = di.ImageSet(draws[0][:, 0], count, count)
        return di.GradientSet.of(gradients_in_eigenbasis(model, curvature, images, Given(rule(draws), purpose)))

    sets = gradients(query_draws, "query"), gradients(train_draws, "train")
    return di.scores_from_gradients(*sets, curvature, damping=damping, approximation="kfac")[0]


def library_corrected(gradients, output_eigenvectors, input_eigenvectors):
    return correction_sum(LayerCurvature(input_eigenvectors, output_eigenvectors), gradients) / len(gradients)


def library_batched(gradients, output_eigenvectors, input_eigenvectors, signs, draws_per_sum):
    layer = LayerCurvature(input_eigenvectors, output_eigenvectors)
    sums = torch.stack([part.sum(0) for part in (gradients * signs.view(-1, 1, 1)).split(draws_per_sum)])
    return correction_sum(layer, sums) / len(gradients)


def library_accumulated(query_batches, train_batches, curvature, damping, count):
    mean = [torch.cat(batches).mean(0, keepdim=True) for batches in (query_batches, train_batches)]
    return library_influence(mean[0], mean[1], curvature, damping).squeeze() / count


def library_trak(query_feature, features, damping):
    query, train = (di.GradientSet.of({"all": rows.unsqueeze(1)}) for rows in (query_feature.unsqueeze(0), features))
    return trak_scores(query, train, damping=len(features) * damping)[0, 0]


def library_lds(scores, masks, measurements):
    (queries, images), pixels = scores.shape, torch.zeros(len(scores), 1, 1, 1)
    truth = GroundTruth(masks, measurements, torch.arange(images), torch.arange(queries) + 100, pixels)
    return di.evaluation.sampled_lds([scores], truth, bootstrap=10)[0].mean


LIBRARY = [
    ("noisy", {}, library_noisy),
    ("posterior_mean", {}, library_posterior_mean),
    ("elbo_weights", {}, lambda betas: kl_weights(process_of(betas))),
    ("influence", {}, library_influence),
    ("influence", {}, library_influence_by_iteration),
    ("shard_of", {}, lambda *given: torch.tensor(library_shard(*given)).reshape(-1, 2)),
    ("ggn", {}, library_ggn),
    ("kfac", {"bias": False}, library_kfac(False)),
    ("kfac", {"bias": True}, library_kfac(True)),
    ("kfac_score", {}, library_kfac_score),
    ("kfac_influence", {}, library_kfac_influence),
    ("corrected_eigenvalues", {}, library_corrected),
    ("batched_correction", {}, library_batched),
    ("int8_rows", {}, lambda matrix: tuple(part[0] for part in int8_rows(matrix.unsqueeze(0)).values())),
    ("accumulated_score", {}, library_accumulated),
    ("woodbury", {}, library_trak),
    ("spearman", {}, lambda first, second: spearman(first.numpy(), second.numpy()).item()),
    ("lds", {}, library_lds),
    ("spearman_brown", {}, spearman_brown),
    ("holm", {}, lambda p_values: torch.from_numpy(library_holm(p_values.numpy()))),
]


@pytest.mark.parametrize(("name", "options", "implementation"), LIBRARY)
def test_the_library_passes(name, options, implementation):
    assert getattr(di.checks, name)(implementation, **options)
