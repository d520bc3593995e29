"""Write what the schedulers of diffusers compute, for the diffusion tests.

Run in an environment with PyTorch and diffusers: `python tests/oracles/make_diffusion_fixtures.py`. The steps of diffusers
are numbered 0 to T - 1; ours are the entries 1 to T of a table, so its step k is our time (k + 1) / T.
"""

from pathlib import Path

import diffusers
import numpy as np
import torch

FOLDER = Path(__file__).parent / "fixtures"
SHAPE = (2, 4, 4, 3)
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}
PREDICTIONS = {"noise": "epsilon", "clean": "sample", "v": "v_prediction"}


def network(x, tau):
    """The network of all trajectories, of the input and its time in [0, 1]: smooth, and nearly the noise at 1."""
    tau = torch.as_tensor(tau, dtype=torch.float32)
    return torch.tanh(3 * tau) * x + 0.2 * (1 - tau) * torch.sin(x)


def noise_like(x, seed):
    """What a scheduler draws that is given a generator with this seed."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def exact(scheduler):
    """The scheduler with float64 products of its betas: in float32 its 1 - alpha-bar of the first steps has three digits."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.one = scheduler.one.double()
    return scheduler


def make_schedules():
    out = {}
    for name, theirs in SCHEDULES.items():
        for zero in (False, True):
            scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, rescale_betas_zero_snr=zero)
            out[f"alpha_bar/{name}/{zero}"] = scheduler.alphas_cumprod.numpy()
    for spacing in ("leading", "trailing", "linspace"):
        for num_steps in (1, 2, 3, 7, 10, 20, 50, 64, 250, 999, 1000):
            scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
            scheduler.set_timesteps(num_steps)
            out[f"timesteps/{spacing}/{num_steps}"] = scheduler.timesteps.numpy().astype("int16")
    for shift in (1.0, 3.0):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12).tolist())
        out[f"flow_times/{shift}"] = scheduler.sigmas.numpy()
    return out


def make_ddpm(x, seed=5):
    """One ancestral step at several times, with small, large and learned variance.

    Not the last of 20 steps: theirs adds noise there, unless it starts from step 0.
    """
    out = {"noise": noise_like(x, seed).numpy()}
    raw = torch.cat([network(x, 0.3), torch.tanh(x)], dim=-1)  # prediction and variance, channels last
    out["raw"] = raw.numpy()
    for variance in ("fixed_small", "fixed_large", "learned_range"):
        for clip in (False, True):
            scheduler = exact(
                diffusers.DDPMScheduler(variance_type=variance, clip_sample=clip, timestep_spacing="trailing")
            )
            for num_steps, k in (
                (1000, 999),
                (1000, 500),
                (1000, 1),
                (1000, 0),
                (20, 999),
                (20, 449),
                (20, 99),
            ):
                scheduler.set_timesteps(num_steps)
                output = raw if variance == "learned_range" else raw[..., :3]
                result = scheduler.step(
                    output.permute(0, 3, 1, 2),
                    k,
                    x.permute(0, 3, 1, 2),
                    # The scheduler draws channels first: hand it the noise that our layout calls for.
                    generator=Fixed(noise_like(x, seed).permute(0, 3, 1, 2)),
                )
                out[f"{variance}/{clip}/{num_steps}/{k}"] = result.prev_sample.permute(0, 2, 3, 1).float().numpy()
    return out


class Fixed:
    """Stands for a generator, and makes the scheduler draw the noise given."""

    def __init__(self, noise):
        self.noise = noise


def patched_randn(shape, generator=None, device=None, dtype=None, layout=None):
    return generator.noise if isinstance(generator, Fixed) else torch.randn(shape, generator=generator)


def make_ddim(x):
    """Ten steps; deterministic, half and fully stochastic; with and without clipping."""
    out = {}
    for name in ("linear", "cosine"):
        for prediction in ("noise", "v"):
            for eta in (0.0, 0.5, 1.0):
                for clip in (False, True):
                    if (name, prediction, clip) == ("cosine", "noise", False):
                        continue  # divides by alpha = 5e-5 at t = 1
                    scheduler = diffusers.DDIMScheduler(
                        beta_schedule=SCHEDULES[name],
                        prediction_type=PREDICTIONS[prediction],
                        clip_sample=clip,
                        timestep_spacing="trailing",
                    )
                    scheduler.set_timesteps(10)
                    y = x
                    for i, k in enumerate(scheduler.timesteps):
                        y = scheduler.step(
                            network(y, k / 1000),
                            int(k),
                            y,
                            eta=eta,
                            use_clipped_model_output=clip,
                            variance_noise=noise_like(x, i),
                        ).prev_sample
                    out[f"{name}/{prediction}/{eta}/{clip}"] = y.numpy()
    out["noises"] = np.stack([noise_like(x, i).numpy() for i in range(10)])
    return out


def make_dpmpp_2m(x):
    out = {}
    for name in ("linear", "cosine"):
        for prediction in ("noise", "clean", "v"):
            for num_steps in (5, 20):
                if (name, prediction) == ("cosine", "noise"):
                    continue
                scheduler = diffusers.DPMSolverMultistepScheduler(
                    beta_schedule=SCHEDULES[name],
                    prediction_type=PREDICTIONS[prediction],
                    algorithm_type="dpmsolver++",
                    solver_order=2,
                    timestep_spacing="trailing",
                )
                scheduler.set_timesteps(num_steps)
                y = x
                for k in scheduler.timesteps:
                    y = scheduler.step(network(y, k / 1000), k, y).prev_sample
                out[f"{name}/{prediction}/{num_steps}"] = y.numpy()
    return out


def make_flow(x):
    out = {}
    for shift in (1.0, 3.0):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12).tolist())
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(network(y, t / 1000), t, y).prev_sample
        out[f"euler/{shift}"] = y.numpy()

        scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(12)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(network(y, t / 1000), t, y).prev_sample
        out[f"heun/{shift}"] = y.numpy()
        out[f"heun_times/{shift}"] = scheduler.sigmas.unique().flip(0).numpy()
    return out


if __name__ == "__main__":
    diffusers.schedulers.scheduling_ddpm.randn_tensor = patched_randn
    x = noise_like(torch.empty(SHAPE), 123)
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "diffusion_schedules.npz", **make_schedules())
    samplers = {"x": x.numpy()}
    for name, make in (
        ("ddpm", make_ddpm),
        ("ddim", make_ddim),
        ("dpmpp_2m", make_dpmpp_2m),
        ("flow", make_flow),
    ):
        samplers.update({f"{name}/{key}": value for key, value in make(x).items()})
    np.savez_compressed(FOLDER / "diffusion_samplers.npz", **samplers)
    for path in sorted(FOLDER.glob("diffusion_*.npz")):
        print(path.name, path.stat().st_size)
