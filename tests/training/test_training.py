import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffinf_lib.artifacts import file_digest, read_tensors, write_tensors
from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import Latents, load_dataset
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.loading import load_model
from diffinf_lib.models import build_model
from diffinf_lib.presets import get_preset
from diffinf_lib.training import Trainer, batch_indices, learning_rate_factor, train, training_identity

PRESET = get_preset("smoke")
IMAGES = load_dataset(PRESET.dataset).train


def fresh(seed=0, **changes):
    return build_model(replace(PRESET.unet, **changes), seed=seed)


def test_every_image_is_seen_once_an_epoch():
    steps = [batch_indices(step, 10, 4, seed=0) for step in range(5)]
    first, second = torch.cat(steps)[:10], torch.cat(steps)[10:20]
    assert torch.equal(first.sort().values, torch.arange(10)) and torch.equal(second.sort().values, torch.arange(10))
    assert not torch.equal(first, second)


def test_a_batch_may_be_larger_than_the_data():
    assert torch.bincount(batch_indices(0, 3, 8, seed=0), minlength=3).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_learning_rate_rises_then_falls_to_zero():
    config = TrainingConfig(steps=100, warmup_fraction=0.1)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    np.testing.assert_allclose(factors[55], 0.5)
    assert factors[-1] < 1e-3
    assert learning_rate_factor(99, replace(config, lr_schedule="constant")) == 1.0


def test_the_average_follows_the_warm_up_formula():
    """shadow ← d·shadow + (1 − d)·weights with d = min(max, 1 − (1 + s)^−power), s counted from 0 (diffusers)."""
    config = replace(PRESET.training, ema_max_decay=0.8, ema_power=0.75)
    trainer = Trainer(fresh().train(), IMAGES, config, 0)
    shadow = trainer.parameters[0].detach().clone()
    decays = []
    for step in range(12):
        trainer.advance()
        decay = min(0.8, 1 - (1 + step) ** -0.75) if step > 0 else 0.0
        shadow = decay * shadow + (1 - decay) * trainer.parameters[0].detach()
        decays.append(decay)
    torch.testing.assert_close(trainer.ema.shadow_params[0], shadow)
    assert decays[-1] == 0.8 and decays[1] < 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_checkpoint_goes_on_bit_for_bit(tmp_path, dropout):
    config = replace(PRESET.training, horizontal_flip=True)
    whole = Trainer(fresh(dropout=dropout).train(), IMAGES, config, 3)
    for _ in range(9):
        whole.advance()
    half = Trainer(fresh(dropout=dropout).train(), IMAGES, config, 3)
    for _ in range(4):
        half.advance()
    half.save(tmp_path / "c.safetensors", {"a": 1})
    resumed = Trainer(fresh(seed=7, dropout=dropout).train(), IMAGES, config, 3)
    torch.randn(50)
    resumed.load(tmp_path / "c.safetensors", {"a": 1})
    while resumed.step < 9:
        resumed.advance()
    for name in ("parameters", "losses"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(whole, name), getattr(resumed, name), strict=True)), name
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True))


def test_a_checkpoint_of_before_it_held_a_digest_is_gone_on_with(tmp_path):
    trainer, path, identity = (
        Trainer(fresh().train(), IMAGES, PRESET.training, 0),
        tmp_path / "c.safetensors",
        {"a": [1]},
    )
    trainer.advance()
    trainer.save(path, identity)
    write_tensors(path, read_tensors(path), metadata=identity)
    again = Trainer(fresh(seed=7).train(), IMAGES, PRESET.training, 0)
    again.load(path, identity)
    assert again.step == 1 and all(map(torch.equal, trainer.parameters, again.parameters))
    with pytest.warns(UserWarning, match=r"c\.safetensors: damaged or of something else; the training begins again"):
        again.load(path, {"a": [2]})


def test_training_lowers_the_loss():
    config = replace(PRESET.training, steps=150, learning_rate=3e-3)
    losses = train(fresh(), IMAGES, config, progress=False).losses
    assert losses[-30:].mean() < 0.5 * losses[:10].mean()


def test_a_folder_holds_the_run_and_is_read_back(tmp_path):
    config = replace(PRESET.training, keep_ema_at=(5, 12))
    first = train(fresh(), IMAGES, config, out=tmp_path / "m", progress=False)
    assert {p.name for p in (tmp_path / "m" / "ema").iterdir()} == {"step-000005", "step-000012"}
    early, late = (load_model(tmp_path / "m" / "ema" / name) for name in ("step-000005", "step-000012"))
    assert not torch.equal(next(early.parameters()), next(late.parameters()))
    digest = file_digest(tmp_path / "m" / "losses.npz")
    second = train(fresh(), IMAGES, config, out=tmp_path / "m", progress=False)
    assert file_digest(tmp_path / "m" / "losses.npz") == digest
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    with pytest.raises(ArtifactError, match="seed is 0 there, 1 asked"):
        train(fresh(), IMAGES, config, seed=1, out=tmp_path / "m", progress=False)


def test_training_with_and_without_a_folder_agree(tmp_path):
    inside = train(fresh(), IMAGES, PRESET.training, out=tmp_path / "m", progress=False)
    outside = train(fresh(), IMAGES, PRESET.training, progress=False)
    assert np.array_equal(inside.losses, outside.losses)
    assert all(torch.equal(a, b) for a, b in zip(inside.model.parameters(), outside.model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_killed_training_ends_as_one_that_was_left_alone_in_its_own_type(tmp_path, monkeypatch, dtype):
    config = replace(PRESET.training, steps=9, checkpoint_every=3)
    advance = Trainer.advance

    def killed(trainer):
        if trainer.step == 5:
            raise KeyboardInterrupt
        advance(trainer)

    def trained(folder):
        return train(fresh().to(dtype), IMAGES, config, out=folder, progress=False)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed")
    resumed, whole, without = trained(tmp_path / "killed"), trained(tmp_path / "whole"), trained(None)
    read = load_model(tmp_path / "whole")
    for model in (resumed.model, whole.model, read):
        for found, expected in zip(model.parameters(), without.model.parameters(), strict=True):
            assert found.dtype == dtype and torch.equal(found, expected)
    assert np.array_equal(resumed.losses, without.losses)


def test_the_caller_s_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    train(fresh(), IMAGES, replace(PRESET.training, steps=2), progress=False)
    assert torch.equal(torch.randn(3), expected)


def test_bfloat16_trains_too():
    losses = train(fresh(), IMAGES, replace(PRESET.training, steps=3, precision="bfloat16"), progress=False).losses
    reference = train(fresh(), IMAGES, replace(PRESET.training, steps=3), progress=False).losses
    assert not np.array_equal(losses, reference)
    np.testing.assert_allclose(losses, reference, rtol=0.05)


def test_latents_are_drawn_anew_in_every_step():
    """Without variance they are their means; with it, another training, and what identifies it says so."""
    config, means = replace(PRESET.training, steps=3, horizontal_flip=True, keep_ema_at=()), IMAGES.images

    def latents(log_variance, mirrored):
        spread = torch.full_like(means, log_variance)
        return Latents(means, IMAGES.labels, IMAGES.ids, spread, mirrored, spread)

    sets = [IMAGES, latents(-1e4, means.flip(-1)), latents(-1e4, -means), latents(-2.0, means.flip(-1))]
    losses = [train(fresh(), images, config, progress=False).losses for images in sets]
    assert np.array_equal(losses[0], losses[1])
    assert all(not np.array_equal(losses[0], others) for others in losses[2:])
    assert len({training_identity(fresh(), images, config, 0)["images"] for images in sets}) == 4


@pytest.mark.parametrize("changes", [{}, {"keep_ema_at": (2,)}, {"checkpoint_every": 2}, {"steps": 60}])
def test_a_diverging_run_is_named_and_leaves_nothing_that_is_not_finite(tmp_path, changes):
    config = replace(PRESET.training, steps=12, keep_ema_at=(), learning_rate=1e25)
    config = replace(config, **changes)
    for out in (None, tmp_path):
        with pytest.raises(ConfigurationError, match=r"at step \d+: lower learning_rate=1e\+25"):
            train(fresh(), IMAGES, config, out=out, progress=False)
    for file in tmp_path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in read_tensors(file).values()), file
    assert not json.loads((tmp_path / "manifest.json").read_text())["finished"]
    with pytest.raises(ConfigurationError, match="lower learning_rate"):  # and not taken for one that is to go on
        train(fresh(), IMAGES, config, out=tmp_path, progress=False)


def test_a_model_that_is_not_finite_is_not_trained_on():
    model = fresh()
    with torch.no_grad():
        model.network.conv_in.bias[0] = float("inf")
    with pytest.raises(ConfigurationError, match=r"conv_in\.bias: some of the model's weights there are not finite"):
        train(model, IMAGES, PRESET.training, progress=False)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"batch_size": -1}, {"learning_rate": float("nan")}, {"warmup_fraction": 2}, {"weight_decay": -1},
     {"lr_schedule": "step"}, {"precision": "half"}, {"keep_ema_at": (0,)}],
)  # fmt: skip
def test_bad_settings_are_refused(changes):
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        replace(PRESET.training, **changes)


def test_an_empty_set_is_refused():
    with pytest.raises(ConfigurationError, match="at least one image"):
        train(fresh(), IMAGES.subset(torch.zeros(len(IMAGES), dtype=torch.bool)), PRESET.training, progress=False)
