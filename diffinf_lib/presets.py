"""Presets: every experiment of the book as one frozen configuration, from seconds to GPU-days.

| preset | data | good for |
|---|---|---|
| `smoke` | digits | seconds; tests |
| `digits` | 3s and 8s of scikit-learn's digits, 8×8 | minutes on two cores; the book |
| `digits-pair`, `digits-ten` | 4s and 9s; all ten digits | whether what holds for `digits` holds elsewhere |
| `fashion` | sneakers and bags of Fashion-MNIST, 28×28, 400 images | an hour on two cores; images one likes to look at |
| `cifar2-tiny` | CIFAR-2, 32×32, 300 images | an hour on two cores; a UNet of 0.6M parameters |
| `cifar2-small` | CIFAR-2, 32×32 | minutes on one GPU; a UNet of about 2M parameters |
| `cifar2`, `cifar2deq`, `cifar10`, `artbench10` | the paper's | the paper's experiments |

The paper's text and the authors' code differ in places (weight decay, EMA, which images make CIFAR-2); each paper preset
therefore comes `as-written` (default) and, as `NAME:as-run`, the way the published numbers were made. `:limited` after any
name means the same experiment at the size of a trial.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from diffinf_lib.configuration import (
    DEFAULT_DAMPING,
    CurvatureConfig,
    DatasetConfig,
    DrawConfig,
    LikelihoodConfig,
    MeasurementConfig,
    Process,
    SamplingConfig,
    StoreFormat,
    TrainingConfig,
    UNetConfig,
)
from diffinf_lib.errors import require
from diffinf_lib.limited import LIMITED, limited
from diffinf_lib.options import NonNegativeFloat, Options, PositiveInt, Range

Flavour = Literal["as-written", "as-run"]

STORE_BUDGET = 2e10
"""Bytes of disk that training gradients may take, unless a preset says otherwise."""


@dataclass(frozen=True)
class SubsetConfig(Options, called={name: f"subsets.{name}" for name in ("count", "seeds", "fraction", "steps")}):
    """The ground truth of the LDS: how many random subsets, and how each is retrained.

    Attributes:
        count: number of subsets M.
        seeds: trainings of each subset, K.
        fraction: share of the training images a subset keeps.
        steps: optimizer steps of a retraining.
    """

    count: PositiveInt = 100
    seeds: PositiveInt = 5
    fraction: Annotated[float, Range(lambda value: 0 < value < 1, "a share between 0 and 1")] = 0.5
    steps: PositiveInt = 16_000


@dataclass(frozen=True)
class Preset(Options):
    """One experiment: data, model, training, ground truth, attribution.

    Attributes:
        measurement: what is attributed, and what the ground truth measures first of all.
        further_measurements: what the ground truth measures besides.
        gradient_draws: draws of each training gradient; queries take the measurement's own draws.
        damping: λ added to the curvature's eigenvalues when scoring.
        store_format: how training gradients are kept.
        query_format: how query gradients are kept, on disk and in memory while they are scored; None in full.
        store_budget: bytes of disk that a store of training gradients may take. A larger one is not made: these gradients are
            scored in full as they are computed, and forgotten (single use).
    """

    name: str
    summary: str
    dataset: DatasetConfig
    unet: UNetConfig
    training: TrainingConfig
    subsets: SubsetConfig
    process: Process = Process()
    sampling: SamplingConfig = SamplingConfig()
    measurement: MeasurementConfig = MeasurementConfig()
    further_measurements: tuple[MeasurementConfig, ...] = ()
    curvature: CurvatureConfig = CurvatureConfig()
    gradient_draws: DrawConfig = DrawConfig(250)
    damping: NonNegativeFloat = DEFAULT_DAMPING
    store_format: StoreFormat = StoreFormat()
    query_format: StoreFormat | None = None
    store_budget: NonNegativeFloat = STORE_BUDGET

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = [measurement.label for measurement in self.measurements]
        twice = next((label for label in labels if labels.count(label) > 1), "")
        require(not twice, f"measurement={self.measurement.label!r}: {twice} is there twice, for further_measurements are "
                f"{', '.join(labels[1:])}; give others, or none by --set 'further_measurements=[]'")  # fmt: skip

    @property
    def measurements(self) -> tuple[MeasurementConfig, ...]:
        """Everything that the ground truth measures."""
        return (self.measurement, *self.further_measurements)

    def measurement_labelled(self, label: str) -> MeasurementConfig:
        """The measurement of that label.

        Raises:
            ConfigurationError: the preset has none; the message names those it has.
        """
        known = {config.label: config for config in self.measurements}
        require(label in known, f"measurement={label!r}: the preset has {', '.join(known)}; give one of these")
        return known[label]

    @property
    def has_trajectories(self) -> bool:
        """Whether its samples come by every step of the reverse process, each with a density."""
        return self.sampling.method == "ddpm" and self.sampling.steps == self.process.num_train_timesteps

    @property
    def measures_trajectories(self) -> bool:
        """Whether something is measured along them; they are not sampled for nothing, for they are large."""
        wanted = any(config.attributable and config.objective.on_trajectories for config in self.measurements)
        return wanted and self.has_trajectories

    def keeps(self, store_bytes: float) -> bool:
        """Whether a store of training gradients of that size is made."""
        return store_bytes <= self.store_budget

    def retraining(self) -> TrainingConfig:
        """The training of a subset: that of the full model with fewer steps."""
        return replace(self.training, steps=self.subsets.steps, keep_ema_at=())


def _all_measurements(draws: int, levels: int | None) -> tuple[MeasurementConfig, ...]:
    """Every measurement but the loss; those that weigh timesteps unevenly draw them unevenly."""
    uneven = DrawConfig(draws, timestep_rule="elbo")
    return (
        MeasurementConfig("loss_at_time", draws=DrawConfig(draws // 4), timestep=100),
        MeasurementConfig("simplified_elbo", draws=uneven),
        MeasurementConfig("elbo", draws=uneven, levels=levels),
        MeasurementConfig("square_norm", draws=DrawConfig(draws)),
        MeasurementConfig("trajectory_log_prob", draws=DrawConfig(draws, noise_rule="independent")),
        MeasurementConfig("log_likelihood", levels=levels, likelihood=LikelihoodConfig(steps=6, draws=2)),
    )


_DIGITS_UNET = UNetConfig(add_attention=False)

_DIGITS = Preset(
    name="digits",
    summary="3s and 8s of scikit-learn's digits; minutes on two cores",
    dataset=DatasetConfig("digits", classes=(3, 8), train_size=300),
    unet=_DIGITS_UNET,
    training=TrainingConfig(
        steps=1_000,
        batch_size=64,
        learning_rate=1e-3,
        warmup_fraction=0.0,
        horizontal_flip=False,
        checkpoint_every=200,
        keep_ema_at=tuple(range(100, 1_001, 100)),
    ),
    subsets=SubsetConfig(count=64, seeds=3, steps=500),
    further_measurements=_all_measurements(256, levels=17),
    curvature=CurvatureConfig(draws=DrawConfig(30)),
    gradient_draws=DrawConfig(64, timestep_rule="signal", shared=True),
)

_SMOKE = replace(
    _DIGITS,
    name="smoke",
    summary="the digits experiment at the size of a test; seconds",
    dataset=DatasetConfig("digits", classes=(3, 8), train_size=24, query_size=6),
    unet=replace(_DIGITS_UNET, block_out_channels=(8, 8), norm_num_groups=4),
    training=replace(_DIGITS.training, steps=20, batch_size=8, checkpoint_every=5, keep_ema_at=(4, 8, 10, 12, 16, 20)),
    subsets=SubsetConfig(count=4, seeds=2, steps=8),
    sampling=SamplingConfig(count=3, steps=5, method="ddim"),
    measurement=MeasurementConfig(draws=DrawConfig(16)),
    further_measurements=(
        MeasurementConfig("elbo", draws=DrawConfig(16, timestep_rule="elbo"), levels=17),
        MeasurementConfig("log_likelihood", levels=17, likelihood=LikelihoodConfig(steps=4, draws=2)),
    ),
    curvature=CurvatureConfig(draws=DrawConfig(4)),
    gradient_draws=DrawConfig(8, timestep_rule="signal", shared=True),
)

_DIGITS_PAIR = replace(
    _DIGITS,
    name="digits-pair",
    summary="4s and 9s of scikit-learn's digits; minutes on two cores",
    dataset=DatasetConfig("digits", classes=(4, 9), train_size=300),
    subsets=SubsetConfig(count=20, seeds=2, steps=500),
    sampling=SamplingConfig(count=32),
    further_measurements=(),
)

_DIGITS_TEN = replace(
    _DIGITS_PAIR,
    name="digits-ten",
    summary="1,000 of scikit-learn's digits, all ten classes; minutes on two cores",
    dataset=DatasetConfig("digits", train_size=1_000, query_size=64),
)

_CIFAR_UNET = UNetConfig(
    sample_size=32,
    in_channels=3,
    out_channels=3,
    layers_per_block=2,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=32,
    norm_eps=1e-6,
    dropout=0.1,
    attention_head_dim=None,
    downsample_padding=0,
    freq_shift=1,
    flip_sin_to_cos=False,
    resnet_time_scale_shift="scale_shift",
)

# The paper's protocol of section 4: 250 uniform draws a gradient, 125 draws for each of the two passes of EK-FAC, 5,000
# draws a measurement, 1,000 queries; the ELBO is measured beside the loss. `as-written` keeps the numbers of draws of
# gradients and takes them stratified and antithetic. It measures with 256 of these, the ELBO by its own weights: 5,000 would
# cost more than retraining, and what 128 cost on digits cannot be told from nothing (bundles `digits-measuring` and
# `digits-elbo-measuring`). Queries are kept in 8 bits a row, the code's own default by another packing. A store of training
# gradients would take 192 GB to 1.9 TB: they are scored in full as they are computed. The paper's second algorithm, which
# keeps them (in 8 bits), is `store_budget=1e13`.
_OF_ELBO = DrawConfig(256, timestep_rule="elbo")
_CIFAR2 = Preset(
    name="cifar2",
    summary="5,000 cars and horses of CIFAR-10; the paper's first experiment, days on one A100",
    dataset=DatasetConfig("cifar2", train_size=5_000, query_size=1_000),
    unet=_CIFAR_UNET,
    training=TrainingConfig(precision="tf32", compile=True, keep_ema_at=(8_000, 16_000, 24_000, 32_000)),
    subsets=SubsetConfig(),
    sampling=SamplingConfig(count=1_000),
    measurement=MeasurementConfig(draws=DrawConfig(256)),
    further_measurements=(MeasurementConfig("elbo", draws=_OF_ELBO, levels=256),),
    curvature=CurvatureConfig(draws=DrawConfig(125, noise_rule="independent")),
    gradient_draws=DrawConfig(250),
    store_format=StoreFormat("int8"),
    query_format=StoreFormat("int8"),
)

_CIFAR10 = replace(
    _CIFAR2,
    name="cifar10",
    summary="all of CIFAR-10; the paper's second experiment",
    dataset=DatasetConfig("cifar10", query_size=1_000),
    training=replace(
        _CIFAR2.training, steps=160_000, lr_schedule="constant", keep_ema_at=(40_000, 80_000, 120_000, 160_000)
    ),
    subsets=SubsetConfig(steps=80_000),
)

_CIFAR2_SMALL = replace(
    _CIFAR2,
    name="cifar2-small",
    summary="CIFAR-2 with a UNet of 1.7M parameters; minutes on one GPU",
    unet=UNetConfig(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
    training=TrainingConfig(
        steps=8_000, learning_rate=4e-4, checkpoint_every=500, keep_ema_at=(2_000, 4_000, 6_000, 8_000)
    ),
    subsets=SubsetConfig(count=32, seeds=2, steps=4_000),
    further_measurements=(),
    sampling=SamplingConfig(count=64, method="ddim", steps=100),
    measurement=MeasurementConfig(draws=DrawConfig(256)),
    curvature=CurvatureConfig(draws=DrawConfig(4)),
    gradient_draws=DrawConfig(64, timestep_rule="signal", shared=True),
)

_CIFAR2_TINY = replace(
    _DIGITS,
    name="cifar2-tiny",
    summary="300 cars and horses at 32×32 with a UNet of 0.6M parameters; an hour on two cores",
    dataset=DatasetConfig("cifar2", train_size=300, query_size=32),
    unet=replace(
        _DIGITS_UNET,
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    ),
    training=replace(_DIGITS.training, batch_size=32),
    subsets=SubsetConfig(count=24, seeds=2, steps=500),
    sampling=SamplingConfig(count=24, steps=250),
    measurement=MeasurementConfig(draws=DrawConfig(64)),
    further_measurements=(),
    curvature=CurvatureConfig(draws=DrawConfig(12)),
)

_FASHION = replace(
    _CIFAR2_TINY,
    name="fashion",
    summary="400 sneakers and bags of Fashion-MNIST at 28×28 with a UNet of 0.6M parameters; an hour on two cores",
    dataset=DatasetConfig("fashion", classes=("Sneaker", "Bag"), train_size=400, query_size=64),
    unet=replace(_CIFAR2_TINY.unet, sample_size=28, in_channels=1, out_channels=1),
    training=replace(
        _CIFAR2_TINY.training,
        steps=1_600,
        batch_size=16,
        learning_rate=2e-3,
        warmup_fraction=0.05,
        keep_ema_at=tuple(range(160, 1_601, 160)),
    ),
    subsets=SubsetConfig(count=32, seeds=2, steps=800),
)

_ARTBENCH10 = replace(
    _CIFAR2,
    name="artbench10",
    summary="50,000 paintings through latent diffusion; the paper's third experiment, days on one A100",
    dataset=DatasetConfig("artbench10", query_size=1_000, autoencoder="stabilityai/stable-diffusion-2-base"),
    unet=replace(
        _CIFAR_UNET,
        in_channels=4,
        out_channels=4,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
        norm_eps=1e-5,
        dropout=0.0,
        attention_head_dim=8,
        downsample_padding=1,
        freq_shift=0,
        flip_sin_to_cos=True,
        resnet_time_scale_shift="default",
    ),
    training=replace(
        _CIFAR2.training,
        steps=200_000,
        batch_size=64,
        warmup_fraction=0.05,
        lr_schedule="constant",
        keep_ema_at=(50_000, 100_000, 150_000, 200_000),
    ),
    subsets=SubsetConfig(count=50, seeds=5, steps=60_000),
    process=Process(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=None),
    further_measurements=(MeasurementConfig("elbo", draws=_OF_ELBO),),
    curvature=CurvatureConfig(draws=DrawConfig(63, noise_rule="independent")),
    gradient_draws=DrawConfig(125, noise_rule="independent"),
)


def _as_run(preset: Preset) -> Preset:
    """The flavour that made the published numbers: the released code's values where they differ from the text."""
    uniform: dict[str, Any] = {"timestep_rule": "uniform", "noise_rule": "independent"}
    ema: dict[str, Any] = {} if preset.name == "artbench10" else {"ema_max_decay": 0.999}
    dataset = replace(preset.dataset, stratified=False) if preset.name.startswith("cifar2") else preset.dataset
    further = [
        replace(config, draws=replace(config.draws, count=1_000)) if config.name == "elbo" else config
        for config in preset.further_measurements
    ]
    return replace(
        preset,
        name=f"{preset.name}:as-run",
        summary=f"{preset.summary}; as the authors' code ran it",
        dataset=dataset,
        training=replace(preset.training, weight_decay=1e-2, **ema),  # AdamW's own default: the code never passed 1e-6
        measurement=replace(preset.measurement, draws=replace(preset.measurement.draws, count=5_000, **uniform)),
        further_measurements=tuple(further),
        curvature=replace(
            preset.curvature,
            draws=replace(preset.curvature.draws, **uniform),
            factor_draws=replace(preset.curvature.draws, **uniform),
            input_positions=None,
            correction="per_draw",
        ),
        gradient_draws=replace(preset.gradient_draws, **uniform),
    )


_PAPER = [
    _CIFAR2,
    replace(
        _CIFAR2,
        name="cifar2deq",
        summary="CIFAR-2, dequantised, for log-probabilities",
        dataset=replace(_CIFAR2.dataset, name="cifar2deq"),
        further_measurements=(
            MeasurementConfig("elbo", draws=_OF_ELBO),
            MeasurementConfig("log_likelihood", levels=256, dequantised=True),
        ),
    ),
    _CIFAR10,
    _ARTBENCH10,
]

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in [
        _SMOKE,
        _DIGITS,
        _DIGITS_PAIR,
        _DIGITS_TEN,
        _FASHION,
        _CIFAR2_TINY,
        _CIFAR2_SMALL,
        *_PAPER,
        *map(_as_run, _PAPER),
    ]
}
"""Every preset by its name, as `diffinf presets` lists them."""


def get_preset(name: str, flavour: Flavour | None = None) -> Preset:
    """The preset of that name; `flavour` picks between the two versions of a paper preset.

    Args:
        name: one of `PRESETS`; with `:limited` after it, at the size of a trial (see `limited`).

    Raises:
        ConfigurationError: no such preset; the message lists the names.
    """
    whole = name.removesuffix(LIMITED)
    full_name = f"{whole}:as-run" if flavour == "as-run" else whole.removesuffix(":as-written")
    require(full_name in PRESETS, f"preset={full_name!r}: no such preset; give one of {', '.join(PRESETS)}")
    return PRESETS[full_name] if whole == name else limited(PRESETS[full_name])
