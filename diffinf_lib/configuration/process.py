"""Process: how an image becomes noise, and what a network is asked to say on the way back.

States and targets are linear in the image x and the noise ε,

    x_t = s_t x + n_t ε,      y_t = a_t x + b_t ε,

so every kind of diffusion model is a row of one table:

| target | y_t | known as |
|---|---|---|
| `noise` | ε | epsilon (Ho et al. 2020) |
| `image` | x | sample, x_0 |
| `v` | s_t ε − n_t x | v prediction (Salimans & Ho 2022) |
| `velocity` | ε − x, with s_t = 1 − σ_t, n_t = σ_t | flow matching (Lipman et al. 2023) |

Image and noise come back from a state and a target by solving the two equations: with D_t = s_t b_t − n_t a_t,
x = (b_t x_t − n_t y_t) / D_t and ε = (s_t y_t − a_t x_t) / D_t.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.options import Options, PositiveFloat, PositiveInt
from diffinf_lib.settings import own_settings

if TYPE_CHECKING or "torch" in sys.modules:  # for annotations, which alone do not load it
    from diffinf_lib.configuration.coefficients import Coefficients
    from diffinf_lib.shapes import ImageBatch, PerTimestep, Timesteps

Target = Literal["noise", "image", "v", "velocity"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
SamplerName = Literal["ddpm", "ddim", "euler"]

PREDICTION_TYPES = {"noise": "epsilon", "image": "sample", "v": "v_prediction", "velocity": "flow_prediction"}
"""What diffusers calls the targets."""

SCHEDULER_CONFIG = "scheduler_config.json"


@dataclass(frozen=True)
class Process(Options):
    """A forward process with what the network predicts; timesteps count from 0 to `num_train_timesteps` − 1, as diffusers does.

    The default is that of Ho et al. 2020, which the paper uses for images; Stable Diffusion's latents take
    `scaled_linear` from 0.00085 to 0.012 and `clip_sample=None`.

    Options that say nothing of the process that the others describe are refused, so that equal processes are written alike.

    Attributes:
        num_train_timesteps: T, as diffusers' schedulers call it.
        target: what the network's output is held against.
        beta_start, beta_end, beta_schedule: variances β_t that the process adds; not of `velocity`. `squaredcos_cap_v2` has no
            start and no end.
        trained_betas: the variances themselves, in place of a rule.
        zero_terminal_snr: the variances are rescaled so that nothing of the image is left in the last state (Lin et al. 2024).
        clip_sample: bound at which the DDPM sampler cuts the guessed image off; None for latents, and always of `velocity`.
        flow_shift: of `velocity`: σ_t = f u / (1 + (f − 1) u) with u = (t + 1) / T (Esser et al. 2024).

    Raises:
        ConfigurationError: variances out of range, or an option that says nothing beside another.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    num_train_timesteps: PositiveInt = 1000
    target: Target = "noise"
    trained_betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False
    clip_sample: PositiveFloat | None = 1.0
    flow_shift: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_flow and self.clip_sample == Process.clip_sample:
            object.__setattr__(self, "clip_sample", None)
        self._refuse_idle()
        require(0 < self.beta_start <= self.beta_end < 1, f"beta_start={self.beta_start}, beta_end={self.beta_end}: "
                "give 0 < beta_start <= beta_end < 1")  # fmt: skip
        betas = self.trained_betas
        require(betas is None or (len(betas) == self.num_train_timesteps and all(0 < beta <= 1 for beta in betas)),
                f"trained_betas: give one number in (0, 1] for each of the {self.num_train_timesteps} timesteps")  # fmt: skip
        require(
            1.0 not in (betas or ())[:-1],
            "trained_betas: only the last can be 1, for nothing of the image is left after it",
        )
        require(self.num_train_timesteps > 1 or not self.zero_terminal_snr, "num_train_timesteps="
                f"{self.num_train_timesteps} with zero_terminal_snr: give 2 or more, for nothing of the image is left in the "
                "last")  # fmt: skip

    def _refuse_idle(self) -> None:
        """Refuse an option that says nothing beside another one."""
        of_rule, of_range = ("beta_start", "beta_end", "beta_schedule"), ("beta_start", "beta_end")
        idle = {
            f"target={self.target!r}":
                (*of_rule, "trained_betas", "zero_terminal_snr", "clip_sample") if self.is_flow else ("flow_shift",),
            "trained_betas": () if self.trained_betas is None else of_rule,
            f"beta_schedule={self.beta_schedule!r}": of_range if self.beta_schedule == "squaredcos_cap_v2" else (),
        }  # fmt: skip
        for reason, names in idle.items():
            for name in names:
                value, usual = getattr(self, name), getattr(Process, name)
                unset = value == usual or (name == "clip_sample" and value is None)
                shown = name if isinstance(value, tuple) else f"{name}={value!r}"
                require(unset, f"{shown} with {reason}: it would say nothing there; leave it out")

    @staticmethod
    def of(scheduler: Any) -> Process:
        """The process that a diffusers scheduler steps through, whatever its way of stepping.

        Raises:
            ConfigurationError: its process or its prediction type is none of the table; the message names it.
        """
        if isinstance(scheduler, Process):
            return scheduler
        require(not isinstance(scheduler, type), f"process={getattr(scheduler, '__name__', '')}: that is a class; give one of "
                f"its kind, {getattr(scheduler, '__name__', '')}()")  # fmt: skip
        name, config = type(scheduler).__name__, dict(getattr(scheduler, "config", {}))
        kind = config.get("prediction_type", "epsilon")
        for option, usual in (("timestep_type", "discrete"), ("invert_sigmas", False)):
            found = config.get(option, usual)
            require(found == usual, f"{name}: {option}={found!r} tells the network another time than is understood here; give "
                    "process=di.Process(...) if its states are those")  # fmt: skip
        if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
            return _flow(name, config)
        require(hasattr(scheduler, "alphas_cumprod"), f"{name}: its process is not understood here; give a scheduler with "
                "alphas_cumprod (DDPM, DDIM, DPM-Solver, …), or FlowMatchEulerDiscreteScheduler")  # fmt: skip
        targets = {theirs: ours for ours, theirs in PREDICTION_TYPES.items() if ours != "velocity"}
        require(kind in targets, f"{name}: prediction_type={kind!r} is not understood; known are {', '.join(targets)}")
        _warn_of_sampling(name, config)
        clip = float(config.get("clip_sample_range") or 1.0) if config.get("clip_sample", False) else None
        return _with_variances(targets[kind], scheduler.alphas_cumprod, config, clip)  # type: ignore[arg-type]

    @staticmethod
    def read(folder: Path | str) -> Process:
        """The process of a saved scheduler, from the folder of its `scheduler_config.json`."""
        import diffusers

        from diffinf_lib.artifacts.files import read_json

        config = read_json(Path(folder) / SCHEDULER_CONFIG)
        name = str(config.get("_class_name"))
        kind = getattr(diffusers, name, None)
        known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
        require(known, f"{folder}: its scheduler {name!r} is none of diffusers; give process=di.Process(...)")
        assert kind is not None
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        try:
            return Process.of(kind.from_config(options))
        except (NotImplementedError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"{folder}: diffusers cannot make its {name} ({reason}); give process=di.Process(...)"
            ) from None

    @property
    def is_flow(self) -> bool:
        """Whether states move along straight lines from image to noise."""
        return self.target == "velocity"

    @property
    def coefficients(self) -> Coefficients:
        """s_t, n_t, a_t, b_t of every timestep, `[T]`, float64."""
        return _coefficients(self)

    @property
    def alphas_cumprod(self) -> PerTimestep:
        """ᾱ_t = s_t² / (s_t² + n_t²), the share of a state's variance that the image has left; float64."""
        signal, noise = self.coefficients[:2]
        return signal.square() / (signal.square() + noise.square())

    @property
    def times(self) -> PerTimestep | None:
        """What the network is given for each timestep, where that is not the timestep itself."""
        return self.num_train_timesteps * self.coefficients.noise if self.is_flow else None

    def at(self, timesteps: Timesteps, like: ImageBatch) -> Coefficients:
        """The coefficients of some draws, `[B, 1, 1, 1]`, in the type and on the device of `like`."""
        return self.coefficients.at(timesteps, like)

    def noisy(self, images: ImageBatch, timesteps: Timesteps, noise: ImageBatch) -> ImageBatch:
        """x_t = s_t x + n_t ε (Ho et al. 2020, equation 4); `[B, C, H, W]`."""
        here = self.at(timesteps, images)
        return here.signal * images + here.noise * noise

    def target_of(self, images: ImageBatch, timesteps: Timesteps, noise: ImageBatch) -> ImageBatch:
        """y_t = a_t x + b_t ε, what the network should say; `[B, C, H, W]`."""
        if self.target == "noise":
            return noise
        here = self.at(timesteps, images)
        return here.target_signal * images + here.target_noise * noise

    def solved(self, noisy: ImageBatch, prediction: ImageBatch, timesteps: Timesteps) -> tuple[ImageBatch, ImageBatch]:
        """The image and the noise that a prediction in a state amounts to, each `[B, C, H, W]`.

        Raises:
            ConfigurationError: they cannot be told: noise is predicted where nothing of the image is left.
        """
        self.check_solvable()
        here = self.at(timesteps, noisy)
        image = (here.target_noise * noisy - here.noise * prediction) / here.determinant
        return image, (here.signal * prediction - here.target_signal * noisy) / here.determinant

    def check_solvable(self) -> None:
        """Refuse a process in which the prediction says nothing of the image at some timestep."""
        solvable = bool((self.coefficients.determinant != 0).all())
        require(solvable, "target='noise' with zero_terminal_snr: in the last state no image is left, and noise says nothing "
                "of it; such a model is trained with target='v'")  # fmt: skip

    @property
    def samplers(self) -> tuple[SamplerName, ...]:
        """The ways of sampling that this process has, the usual one first."""
        return ("euler",) if self.is_flow else ("ddpm", "ddim")

    def check_sampler(self, method: SamplerName | None, steps: int) -> None:
        """Refuse a way of sampling that this process does not have, and more steps than it has timesteps."""
        self._check_method(method)
        whole = isinstance(steps, Integral) and 0 < steps <= self.num_train_timesteps
        require(whole, f"steps={steps!r}: give a whole number from 1 to {self.num_train_timesteps}")
        self.check_solvable()

    def _check_method(self, method: SamplerName | None) -> None:
        require(method is None or method in self.samplers, f"method={method!r}: a process with target={self.target!r} is "
                f"sampled by {' or '.join(self.samplers)}; give one of these")  # fmt: skip

    def scheduler(self, method: SamplerName | None = None) -> Any:
        """The diffusers scheduler that steps backwards along this process; default DDPM, or Euler for a flow.

        `fixed_small` is the posterior variance β̃_t (Ho et al. 2020, equation 7).
        """
        import diffusers  # takes seconds, and a command that refuses its input needs none of it

        self._check_method(method)
        if self.is_flow:
            return diffusers.FlowMatchEulerDiscreteScheduler(
                num_train_timesteps=self.num_train_timesteps, shift=self.flow_shift
            )
        shared = {
            "num_train_timesteps": self.num_train_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "trained_betas": None if self.trained_betas is None else list(self.trained_betas),
            "rescale_betas_zero_snr": self.zero_terminal_snr,
            "prediction_type": PREDICTION_TYPES[self.target],
            "clip_sample": self.clip_sample is not None,
            "clip_sample_range": self.clip_sample or 1.0,
            "timestep_spacing": "trailing" if self.zero_terminal_snr else "leading",
        }
        if (method or self.samplers[0]) == "ddpm":
            return diffusers.DDPMScheduler(variance_type="fixed_small", **shared)
        # Clipping the guessed image but not the guessed noise would leave the deterministic path that DDIM follows
        shared["clip_sample"] = False
        if self.beta_schedule == "sigmoid":  # diffusers' DDIM does not know it, but takes its variances
            unscaled = diffusers.DDPMScheduler(**shared | {"rescale_betas_zero_snr": False})
            shared["trained_betas"] = unscaled.betas.tolist()
        return diffusers.DDIMScheduler(**shared)


def _warn_of_sampling(name: str, config: dict[str, Any]) -> None:
    """Say which options of a scheduler samples made here do not follow; what the network predicts they leave alone."""
    variance = config.get("variance_type")
    ignored = [f"variance_type={variance!r}"] if str(variance).startswith("fixed_large") else []
    ignored += ["thresholding=True"] if config.get("thresholding") else []
    if ignored:
        warnings.warn(f"{name}: samples made here do not follow {' and '.join(ignored)}: they take fixed_small and a fixed "
                      "bound; for its own samples use diffusers and give the files", stacklevel=3)  # fmt: skip


def _flow(name: str, config: dict[str, Any]) -> Process:
    """Flow matching, as FlowMatch… schedulers and multistep ones with `use_flow_sigmas` describe it."""
    kind = config.get("prediction_type", "flow_prediction")
    require(kind == "flow_prediction", f"{name}: prediction_type={kind!r} with flow sigmas is not understood")
    # With dynamic shifting the sampler moves its own steps, by the size of the image; the network knows σ all the same
    shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", config.get("flow_shift")) or 1.0)
    steps = int(config.get("num_train_timesteps", 1000))
    return Process(num_train_timesteps=steps, target="velocity", clip_sample=None, flow_shift=shift)


def _with_variances(target: Target, alphas_cumprod: PerTimestep, config: dict[str, Any], clip: float | None) -> Process:
    """The process by its options where these give the scheduler's own ᾱ_t, and by its variances otherwise."""
    import torch

    options: dict[str, Any] = {"num_train_timesteps": len(alphas_cumprod), "target": target, "clip_sample": clip}
    trained = config.get("trained_betas")
    named: dict[str, Any] = {
        "beta_start": config.get("beta_start"), "beta_end": config.get("beta_end"),
        "beta_schedule": config.get("beta_schedule"),
        "trained_betas": None if trained is None else tuple(float(beta) for beta in trained),
    }  # fmt: skip
    ruled = ["beta_start", "beta_end"] if trained is not None or named["beta_schedule"] == "squaredcos_cap_v2" else []
    idle = [*ruled, *(["beta_schedule"] if trained is not None else [])]  # diffusers writes them all the same
    named = {key: value for key, value in named.items() if value is not None and key not in idle}
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    try:
        process = Process(**options, **named, zero_terminal_snr=zero_snr)
        found = process.scheduler().alphas_cumprod
        known = slice(None, -1) if zero_snr else slice(None)  # some schedulers step around a zero with a small number
        if found.shape == alphas_cumprod.shape and torch.equal(found[known], alphas_cumprod.to(found)[known]):
            return process
    except (ConfigurationError, NotImplementedError):
        pass
    left = alphas_cumprod.double()
    before = torch.cat([left.new_ones(1), left[:-1]])
    return Process(**options, trained_betas=tuple((1 - left / before).tolist()))


@lru_cache
@own_settings
def _coefficients(process: Process) -> Coefficients:
    import torch

    from diffinf_lib.configuration.coefficients import Coefficients

    if process.is_flow:
        share = torch.arange(1, process.num_train_timesteps + 1, dtype=torch.float64) / process.num_train_timesteps
        noise = process.flow_shift * share / (1 + (process.flow_shift - 1) * share)
        return Coefficients(1 - noise, noise, torch.full_like(noise, -1.0), torch.ones_like(noise))
    left = process.scheduler("ddpm").alphas_cumprod.double()
    signal, noise = left.sqrt(), (1 - left).sqrt()
    one, nothing = torch.ones_like(left), torch.zeros_like(left)
    of_target = {"noise": (nothing, one), "image": (one, nothing), "v": (-noise, signal)}[process.target]
    return Coefficients(signal, noise, *of_target)
