# SPDX-License-Identifier: Apache-2.0
"""The diffusion process: noise schedule, noisy images and back, and the sampling loop.

The letters are the papers': `x_0` a clean image (or latent), `noise` or `eps` Gaussian noise, `x_t`
the mixture of both at timestep `t`, and `alphas_cumprod[t]` (the papers' alpha_bar_t) the signal
fraction of the variance of x_t.
"""

import copy
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import psutil
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from spatext_lab.diffusion.guidance import Condition, Denoiser

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# Measured against 50 steps of DDIM: their images are noise or another process's.
UNFIT = (
    "DDIMInverseScheduler",
    "EDMEulerScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
SMALL = 20_000_000  # parameters of a network: below, a second thread costs more than it brings
WRONG_TYPE = f"prediction_type is {{!r}}; pass one of {PREDICTION_TYPES}"
WRONG_BATCH = "condition is for {} images and there are {}; pass one for each"


def noise_schedule(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """The pocket models' schedule: 1000 timesteps, from the image (t = 0) to pure noise (t = 999).

    Raises:
        ValueError: for a prediction type other than "epsilon", "v_prediction" and "sample".
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(WRONG_TYPE.format(prediction_type))
    return DDIMScheduler(
        num_train_timesteps=1000,
        # Cosine: almost no signal is left at the end (alphas_cumprod[999] is about 2e-9), so pure
        # noise is a fair start and very dark and very bright images (night, snow) can be reached.
        beta_schedule="squaredcos_cap_v2",
        # Where no signal is left, x_t is the noise: epsilon teaches nothing there, v still does.
        prediction_type=prediction_type,
        # The default, True, clamps the predicted x_0 to [-1, 1]; unit-variance latents go beyond.
        clip_sample=False,
        # Start at t = 999, where x_t is the pure noise that sampling is given; "leading" starts
        # lower, which shows when the steps are few.
        timestep_spacing="trailing",
        # Without effect on trailing steps; pipelines of diffusers warn where it is 0.
        steps_offset=1,
        # The last step ends at alphas_cumprod = 1: no noise left.
        set_alpha_to_one=True,
    )


# DDPM, arXiv 2006.11239, equation 4: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
def add_noise(
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "steps"],
) -> Float[Tensor, "b c h w"]:
    """The noisy image x_t at the timestep of each batch item.

    Args:
        x_0: clean images or latents.
        noise: N(0, 1), of the same shape.
        t: timesteps, 0 ... steps - 1.
        alphas_cumprod: the schedule's signal fractions, see `noise_schedule`.
    """
    signal, sigma = _signal_sigma(t, alphas_cumprod, x_0.dtype)
    return signal * x_0 + sigma * noise


# The target. DDPM, arXiv 2006.11239, equation 14: eps.
# Salimans and Ho, arXiv 2202.00512, section 4: v = alpha_t eps - sigma_t x_0,
# with alpha_t = sqrt(alpha_bar_t) (here `signal`) and sigma_t = sqrt(1 - alpha_bar_t)
def target(
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "steps"],
    prediction_type: str,
) -> Float[Tensor, "b c h w"]:
    """What the network learns to predict from x_t; arguments as in `add_noise`.

    Args:
        prediction_type: "epsilon" (the noise), "v_prediction" (v) or "sample" (x_0).

    Raises:
        ValueError: for another prediction type.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(WRONG_TYPE.format(prediction_type))
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x_0
    signal, sigma = _signal_sigma(t, alphas_cumprod, x_0.dtype)
    return signal * noise - sigma * x_0


# The way back from `add_noise` and `target`.
# From eps: DDIM, arXiv 2010.02502, equation 9: x_0 = (x_t - sigma_t eps) / alpha_t
# From v: Salimans and Ho, arXiv 2202.00512, appendix D: x_0 = alpha_t x_t - sigma_t v
def to_x0_eps(
    pred: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "steps"],
    prediction_type: str,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """The clean image and the noise (x_0, eps) that a prediction implies.

    From v nothing is divided, so it also holds where alphas_cumprod is 0; from epsilon, x_0 is
    undefined there, and from x_0, eps where alphas_cumprod is 1.

    Args:
        pred: the network's prediction at x_t, of type `prediction_type`.

    Raises:
        ValueError: for an unknown prediction type.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(WRONG_TYPE.format(prediction_type))
    signal, sigma = _signal_sigma(t, alphas_cumprod, x_t.dtype)
    if prediction_type == "epsilon":
        return (x_t - sigma * pred) / signal, pred
    if prediction_type == "sample":
        return pred, (x_t - signal * pred) / sigma
    return signal * x_t - sigma * pred, sigma * x_t + signal * pred


def generators(
    count: int,
    seed: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[torch.Generator]:
    """The source of randomness of each of `count` images.

    Args:
        seed: image k has its own generator with seed `seed` + k, on the CPU, so that its noise does
            not depend on the batch or the device; 0 where neither this nor `generator` is passed.
        generator: one that all images share, in turn, or a list with one per image.

    Raises:
        ValueError: for both, for a seed that is not a whole number from 0 to 2**63 - 1, for
            anything but torch generators, and for a list of another length than `count`.
    """
    if generator is None:
        seed = 0 if seed is None else seed
        if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed!r:.80}; pass a whole number from 0 to 2**63 - 1")
        return [torch.Generator().manual_seed(int(seed) + k) for k in range(count)]
    if seed is not None:
        raise ValueError(f"seed is {seed!r:.80} and generator is passed too; pass one of them")
    sources = [generator] * count if isinstance(generator, torch.Generator) else generator
    if not (isinstance(sources, Sequence) and all(isinstance(s, torch.Generator) for s in sources)):
        raise ValueError(f"generator is {generator!r:.80}; pass a torch.Generator or one per image")
    if len(sources) != count:
        raise ValueError(f"generator holds {len(sources)} for {count} images; pass one per image")
    return list(sources)


def checked_latents(latents: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """Latents that the caller passes, on the device where sampling runs.

    Raises:
        ValueError: for anything but finite floating-point numbers of `shape`.
    """
    form = f"pass finite floating-point numbers of shape {tuple(shape)}, one row per image"
    if not (isinstance(latents, Tensor) and latents.is_floating_point()):
        kind = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents is of type {kind}; {form}")
    if latents.shape != tuple(shape):
        raise ValueError(f"latents has shape {tuple(latents.shape)}; {form}")
    if not latents.isfinite().all():
        raise ValueError(f"latents has {int((~latents.isfinite()).sum())} infinite or NaN; {form}")
    return latents.to(device)


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """N(0, 1) noise of shape (c, h, w) for each seed, float32 on the CPU.

    Raises:
        ValueError: for no seeds.
    """
    if not len(seeds):
        raise ValueError("seeds is empty; pass one whole number per image, such as [0, 1, 2]")
    return randn_tensor((len(seeds), *shape), [torch.Generator().manual_seed(s) for s in seeds])


@dataclass(eq=False)
class SampleStep:
    """One denoising step, as `sample` yields it.

    Attributes:
        index: 0 ... number of steps - 1.
        t: the timestep at which the denoiser was called; it falls, or repeats (PNDM).
        x_t: (b, c, h, w) the sample after the step, less noisy than at t; the last one is the
            result. The caller may replace it: sampling continues from the new value.
        x_0: (b, c, h, w) the clean image that the prediction at t implies.
    """

    index: int
    t: int | float
    x_t: Float[Tensor, "b c h w"]
    x_0: Float[Tensor, "b c h w"]


def sample(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    x_T: Float[Tensor, "b c h w"],
    condition: Condition,
    num_inference_steps: int,
    sources: Sequence[torch.Generator] | None = None,
) -> Iterator[SampleStep]:
    """The sampling loop as a generator: `for step in sample(...)`, one denoiser call per step.

    Schedulers of diffusers for the variance-preserving process work (DDIM, DDPM, PNDM, Euler,
    DPM-Solver++, UniPC ...), those in `UNFIT` do not; the one passed is left as it was.

    With a number of steps that does not divide num_train_timesteps, DDIM takes steps of a rounded
    length and would leave noise in the result (1 % of its deviation at 15 steps, 6 % at 600); its
    last x_t is therefore x_0.

    Args:
        x_T: N(0, 1) noise, see `initial_noise`.
        sources: generators of schedulers that add noise on the way, one per image.

    Raises:
        ValueError: before the first step, for num_inference_steps outside 1 ...
            num_train_timesteps, for a scheduler in `UNFIT`, and where the condition is not for
            len(x_T) images; later, for an x_t of the caller's that is not such latents.
    """
    if type(scheduler).__name__ in UNFIT:
        raise ValueError(
            f"scheduler is {type(scheduler).__name__}, which does not suit this noise schedule; "
            "pass DDIM, Euler, DPMSolverMultistep or UniPC"
        )
    most, n = scheduler.config.num_train_timesteps, num_inference_steps
    if not isinstance(n, Integral) or isinstance(n, bool) or not 1 <= n <= most:
        raise ValueError(f"num_inference_steps is {n!r:.40}; pass a whole number from 1 to {most}")
    if len(condition.text) != len(x_T):
        raise ValueError(WRONG_BATCH.format(len(condition.text), len(x_T)))
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(int(n))
    if hasattr(scheduler, "set_begin_index"):  # Karras sigmas repeat timesteps: no search for one
        scheduler.set_begin_index(0)
    takes = inspect.signature(scheduler.step).parameters
    noisy = {"generator": list(sources)} if sources and "generator" in takes else {}
    timesteps, last = scheduler.timesteps, len(scheduler.timesteps) - 1
    # a scheduler that clamps x_0 has chosen its own last x_t
    ends_at_x_0 = isinstance(scheduler, DDIMScheduler) and not scheduler.config.clip_sample
    # alpha_bar at each step; some schedulers choose sigmas: sigma^2 = (1 - alpha_bar) / alpha_bar
    if hasattr(scheduler, "sigmas"):
        alphas_cumprod = (1 / (1 + scheduler.sigmas**2)).to(x_T.device)
    else:
        alphas_cumprod = scheduler.alphas_cumprod[timesteps.cpu()].to(x_T.device)
    kind, b = scheduler.config.prediction_type, len(x_T)

    def run() -> Iterator[SampleStep]:
        x_t = x_T * scheduler.init_noise_sigma
        for index, t in enumerate(timesteps):
            with torch.no_grad():  # around no `yield`, where it would reach the caller's code
                x_in = scheduler.scale_model_input(x_t, t)
                prediction = denoiser(x_in, t.to(x_t.device).expand(b), condition)
                at = torch.full((b,), index, device=x_t.device)
                x_0, _ = to_x0_eps(prediction, x_in, at, alphas_cumprod, kind)
                x_t = scheduler.step(prediction, t, x_t, **noisy).prev_sample
            if index == last and ends_at_x_0:
                x_t = x_0
            yield (step := SampleStep(index, t.item(), x_t, x_0))
            if step.x_t is not x_t:  # the caller has replaced it
                x_t = checked_latents(step.x_t, x_t.shape, x_t.device)

    return run()


@contextmanager
def few_threads(network: torch.nn.Module) -> Iterator[None]:
    """Runs a small network on one CPU thread, so that many can run side by side.

    Two threads that wait for each other are ten times slower as soon as another process is busy; a
    pocket model gains little from them on a quiet machine. Networks of `SMALL` parameters and more
    keep all cores. The user's own choice (OMP_NUM_THREADS, torch.set_num_threads) is respected, and
    the number is restored afterwards.
    """
    before = torch.get_num_threads()
    own_choice = os.environ.get("OMP_NUM_THREADS") or before not in (
        os.cpu_count(),
        psutil.cpu_count(logical=False),
        len(psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else ()),
    )
    if own_choice or sum(p.numel() for p in network.parameters()) >= SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _signal_sigma(t: Tensor, alphas_cumprod: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped (b, 1, 1, 1)."""
    alpha_bar = rearrange(alphas_cumprod[t], "b -> b 1 1 1")
    return alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
