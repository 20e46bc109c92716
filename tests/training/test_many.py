"""Models trained side by side, held against the same models trained by themselves."""

from dataclasses import replace

import filelock
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from diffinf_lib.artifacts import read_json
from diffinf_lib.configuration import Process
from diffinf_lib.data import load_dataset
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.models import build_model
from diffinf_lib.presets import get_preset
from diffinf_lib.training import Trainer, Training, train, train_many
from diffinf_lib.training.stacked import StackedTrainer

PRESET = get_preset("smoke")
IMAGES = load_dataset(PRESET.dataset).train
CONFIG = replace(PRESET.training, steps=6, checkpoint_every=2, keep_ema_at=(4,), horizontal_flip=True)
SEEDS = (3, 4)
SMALL = replace(PRESET.unet, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))


def told_of_classes(seed):
    """Dropout, attention, classes and a frozen layer in one network."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        num_class_embeds=4, dropout=0.2, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    network.conv_in.requires_grad_(False)
    return Denoiser(network, Process(), no_class=3)


def subset(seed):
    """Images of each model's own, of another number."""
    return replace(IMAGES, labels=IMAGES.labels % 3).subset(slice(0, 15 + seed))


def trainings(make, seeds=SEEDS, folder=None, dtype=torch.float32):
    def start(seed):
        return make(seed).to(dtype), subset(seed)

    return [Training(lambda s=seed: start(s), seed, folder and folder / str(seed)) for seed in seeds]


def many(*arguments, together=2, config=CONFIG, **options):
    found = dict(train_many(trainings(*arguments, **options), config, together=together, progress=False))
    return [found[number] for number in sorted(found)]


def smoke(seed):
    return build_model(PRESET.unet, seed=seed)


def plain(seed):
    return build_model(SMALL, seed=seed)


def assert_same(found, expected, within, leaving_out=()):
    for (name, a), b in zip(found.model.state_dict().items(), expected.model.state_dict().values(), strict=True):
        if not name.endswith(leaving_out):
            torch.testing.assert_close(a, b, rtol=0, atol=within, msg=lambda text, name=name: f"{name}: {text}")


# Adam divides a gradient that is nothing but rounding by its own size: attention does not depend on the bias of its keys
KEYS = ("to_k.bias",)


def test_fifty_steps_beside_others_end_as_fifty_by_oneself():
    config = replace(CONFIG, steps=50, keep_ema_at=(), learning_rate=1e-4)
    for seed, found in zip(SEEDS, many(smoke, config=config), strict=True):
        alone = train(smoke(seed), subset(seed), config, seed=seed, progress=False)
        assert_same(found, alone, 1e-4)
        assert_same(found, alone, 1e-6, leaving_out=KEYS)
        np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-4)


def test_dropout_classes_attention_and_frozen_layers_are_each_model_s_own():
    config = replace(CONFIG, drop_condition=0.3, keep_ema_at=(), max_grad_norm=0.5, weight_decay=0.1)
    for seed, found in zip(SEEDS, many(told_of_classes, dtype=torch.float64, config=config), strict=True):
        alone = train(told_of_classes(seed).double(), subset(seed), config, seed=seed, progress=False)
        assert_same(found, alone, 1e-10, leaving_out=KEYS)
        np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-6)
        assert torch.equal(found.model.network.conv_in.weight, told_of_classes(seed).double().network.conv_in.weight)


def test_bfloat16_beside_others():
    config = replace(CONFIG, precision="bfloat16", keep_ema_at=(), learning_rate=1e-4)
    found = many(plain, seeds=(3,), together=2, config=config)[0]
    alone = train(plain(3), subset(3), config, seed=3, progress=False)
    assert_same(found, alone, 1e-3)
    np.testing.assert_allclose(found.losses, alone.losses, rtol=0.02)


def test_numbers_do_not_depend_on_the_company():
    """The same bits beside other models, in another place, and in a stack that is not full."""
    whole = many(plain, seeds=(3, 4, 5))
    assert_same(many(plain, seeds=(5,))[0], whole[2], 0)
    assert_same(many(plain, seeds=(6, 3))[1], whole[0], 0)


def test_a_killed_group_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Killed between the checkpoints of its models, and once more when one of them was finished."""
    whole = many(plain, folder=tmp_path / "whole")
    save, advance, steps = Trainer.__base__.save, StackedTrainer.advance, []

    def killed(self, path, identity):
        if self.step == 4 and self.seed == 4:
            raise KeyboardInterrupt
        save(self, path, identity)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer.__base__, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            many(plain, folder=tmp_path / "killed")
    assert not any(read_json(tmp_path / "killed" / str(seed) / "manifest.json")["finished"] for seed in SEEDS)
    one = train_many(trainings(plain, folder=tmp_path / "killed"), CONFIG, together=2, progress=False)
    assert next(one)[0] == 0  # it was at step 4, the other at 2
    one.close()
    states = [read_json(tmp_path / "killed" / str(seed) / "manifest.json")["finished"] for seed in SEEDS]
    assert states == [True, False]
    monkeypatch.setattr(StackedTrainer, "advance", lambda self: (steps.append(1), advance(self))[1])
    resumed = many(plain, folder=tmp_path / "killed")
    assert len(steps) == 2
    for found, expected in zip(resumed, whole, strict=True):
        assert_same(found, expected, 0)
        assert np.array_equal(found.losses, expected.losses)


def test_a_checkpoint_goes_on_in_the_other_way(tmp_path, monkeypatch):
    advance = StackedTrainer.advance

    def killed(self):
        if max(place.step for place in self.taken if place) == 3:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(StackedTrainer, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            many(plain, folder=tmp_path)
    for seed in SEEDS:
        resumed = train(plain(seed), subset(seed), CONFIG, seed=seed, out=tmp_path / str(seed), progress=False)
        assert_same(resumed, train(plain(seed), subset(seed), CONFIG, seed=seed, progress=False), 1e-4)
    how = read_json(tmp_path / "3" / "manifest.json")["how"]
    assert how == {"together": 1, "begun": {"together": 2}}


def test_folders_are_those_of_single_trainings(tmp_path, monkeypatch):
    """The same files; what is finished is read back, in whichever way it is asked for; the caller's models are left alike."""
    many(plain, folder=tmp_path / "many")
    train(plain(3), subset(3), CONFIG, seed=3, out=tmp_path / "alone", progress=False)
    files = [
        sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))
        for root in (tmp_path / "many/3", tmp_path / "alone")
    ]
    assert files[0] == files[1]
    manifests = [read_json(root / "manifest.json") for root in (tmp_path / "many/3", tmp_path / "alone")]
    assert manifests[0]["configuration"] == manifests[1]["configuration"]
    assert [m["how"] for m in manifests] == [{"together": 2}, {"together": 1}]
    monkeypatch.setattr(Trainer, "advance", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(StackedTrainer, "advance", lambda *_: pytest.fail("trained again"))
    assert len(many(plain, folder=tmp_path / "many", together=1)) == len(many(plain, folder=tmp_path / "many")) == 2


def test_what_another_process_makes_is_waited_for_last(tmp_path):
    order = []
    lock = filelock.FileLock(tmp_path / ".3.lock")
    lock.acquire()
    for number, _ in train_many(trainings(plain, (3, 4, 5), tmp_path), CONFIG, together=2, progress=False):
        order.append(number)
        if len(order) == 2:
            lock.release()
    assert order == [1, 2, 0]


def test_a_diverging_model_ends_all_and_nothing_is_called_finished(tmp_path):
    config = replace(CONFIG, learning_rate=1e25)
    with pytest.raises(ConfigurationError, match="lower learning_rate"):
        many(plain, folder=tmp_path, config=config)
    assert not any(read_json(path)["finished"] for path in tmp_path.glob("*/manifest.json"))


def test_networks_that_do_not_stack_are_refused():
    class Noisy(torch.nn.Linear):
        def forward(self, noisy, timesteps):
            return super().forward(noisy) + torch.rand(1)

    def noisy(seed):
        return Denoiser(Noisy(8, 8), Process())

    with pytest.raises(
        ConfigurationError, match=r"Noisy: it cannot be computed for several models at once .*together=1"
    ):
        many(noisy)
    with pytest.raises(ConfigurationError, match="models that are computed together are of one network"):
        many(lambda seed: build_model(replace(PRESET.unet, layers_per_block=seed), seed=seed), seeds=(1, 2))
    with pytest.raises(ConfigurationError, match="together=0"):
        many(plain, together=0)
