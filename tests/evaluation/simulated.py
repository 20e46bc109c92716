"""Simulated ground truths: measurements that are sums of influences of the images left out, plus noise of retraining."""

import numpy as np
import torch

import diffinf_lib as di
from diffinf_lib.evaluation import GroundTruth

COUNT = 40


def simulated(subsets=40, seeds=3, queries=8, count=30, noise=1.0, seed=0):
    """True scores `[Q, N]` and a ground truth; queries share nothing."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, count, generator=generator, dtype=torch.float64)
    masks = torch.stack([torch.randperm(count, generator=generator) < count // 2 for _ in range(subsets)])
    clean = (scores @ (~masks).double().T).T
    spread = clean.std() * noise
    measured = clean.unsqueeze(1) + spread * torch.randn(subsets, seeds, queries, generator=generator).double()
    return scores, truth_of(masks, measured)


def truth_of(masks, measured, **fields) -> GroundTruth:
    """A ground truth with ids that do not meet."""
    train_ids, query_ids = torch.arange(masks.shape[1]), 1000 + torch.arange(measured.shape[2])
    return di.evaluation.GroundTruth(masks, measured, train_ids, query_ids, **fields)


def world(generator, errors=(1.0,), subsets=24, seeds=1, queries=16, noise=1.0, common=0.9):
    """Scores `[D, Q, N]` of methods with these errors, and a fresh ground truth of one fixed population.

    Half of each query's influences and half of the noise of a retrained model are those of all queries; errors of two methods
    correlate by `common`; queries are easy or hard.
    """
    shared = np.random.default_rng(99).normal(size=(1, COUNT))
    true = (shared + generator.normal(size=(queries, COUNT))) / np.sqrt(2)
    masks = np.stack([generator.permutation(COUNT) < COUNT // 2 for _ in range(subsets)])
    noises = (generator.normal(size=(subsets, seeds, 1)) + generator.normal(size=(subsets, seeds, queries))) / np.sqrt(
        2
    )
    measured = (true @ (~masks).T).T[:, None] + noise * np.sqrt(COUNT) / 2 * noises
    mistakes = generator.normal(size=(queries, COUNT)), generator.normal(size=(len(errors), queries, COUNT))
    mistake = np.sqrt(common) * mistakes[0] + np.sqrt(1 - common) * mistakes[1]
    hard = np.exp(0.3 * generator.normal(size=(queries, 1)))
    scores = true + np.array(errors)[:, None, None] * hard * mistake
    return torch.tensor(scores), truth_of(torch.tensor(masks), torch.tensor(measured))


def covered(estimates, value) -> int:
    """How many intervals hold the value."""
    return sum(low <= value <= high for _, (low, high) in estimates)
