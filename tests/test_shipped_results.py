"""The shipped ground truth is what this code makes: one of its models is trained again and measured."""

import numpy as np
import torch

import diffinf_lib as di
from diffinf_lib.runs import subset_mask

SUBSET, SEED = 5, 1
GROUND_TRUTH = ("dataset", "unet", "training", "subsets", "sampling", "measurement", "further_measurements")
"""The parts of a preset that retrained models and their measurements depend on."""


def agrees(recorded, now):
    """Whether what was recorded still holds; options that came later must be off."""
    if isinstance(recorded, list) and isinstance(now, list):
        return len(recorded) == len(now) and all(map(agrees, recorded, now))
    if not isinstance(recorded, dict) or not isinstance(now, dict):
        return recorded == now
    later = [value for key, value in now.items() if key not in recorded]
    return not any(later) and all(agrees(value, now.get(key)) for key, value in recorded.items())


def test_one_retrained_model_measures_what_the_bundle_says():
    bundle = di.load_bundle("digits-ground-truth")
    preset = di.get_preset("digits")
    recorded, now = bundle.manifest["configuration"]["preset"], di.artifacts.plain(preset)
    for part in GROUND_TRUTH:
        assert agrees(recorded[part], now[part]), part
    data = di.load_dataset(preset.dataset)
    assert bundle.manifest["configuration"]["dataset_digest"] == data.digest
    mask = subset_mask(len(data.train), preset.subsets.fraction, SUBSET)
    assert torch.equal(mask, torch.from_numpy(bundle.arrays["masks"][SUBSET]))
    model = di.train(di.build_model(preset.unet, seed=SEED), data.train.subset(mask), preset.retraining(), seed=SEED,
                     progress=False).model  # fmt: skip
    measured = di.measure(model, data.queries, preset.measurement).numpy()
    shipped = bundle.arrays["held-out/measured/loss"][SUBSET, SEED]
    others = np.delete(bundle.arrays["held-out/measured/loss"][:, SEED], SUBSET, axis=0)
    # The same bits on the processor that made the bundle. Elsewhere training amplifies rounding, but the model is still
    # far closer to its own record than to that of any other subset.
    assert np.abs(measured - shipped).mean() < 0.5 * np.abs(others - shipped).mean(1).min()
