"""Write what vector-quantize-pytorch computes, for the quantizer tests.

Run in an environment with PyTorch and vector-quantize-pytorch: `python tests/oracles/make_quantizer_fixtures.py`.
"""

from pathlib import Path

import numpy as np
import torch
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans, rotate_to

FOLDER = Path(__file__).parent / "fixtures"
BATCH, LENGTH, DIM, CODES, STEPS = 3, 20, 6, 24, 5


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_steps(name, *, cosine, masked):
    """Five training steps of the moving averages, and a lookup after each with the codes of then."""
    vq = VectorQuantize(
        DIM,
        CODES,
        decay=0.9,
        eps=1e-5,
        use_cosine_sim=cosine,
        commitment_weight=0.25,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    book = vq._codebook
    start = random(1, CODES, DIM, seed=1)
    start = torch.nn.functional.normalize(start, dim=-1) if cosine else start
    book.embed.copy_(start)
    book.embed_avg.copy_(start)
    z = random(STEPS, BATCH, LENGTH, DIM, seed=2)
    mask = random(STEPS, BATCH, LENGTH, seed=3) > -0.5 if masked else None
    out = {"start": start[0], "z": z}
    if masked:
        out["mask"] = mask
    for i in range(STEPS):
        with torch.no_grad():
            _, indices, loss = vq(z[i], mask=None if mask is None else mask[i])
        out[f"indices{i}"], out[f"loss{i}"] = indices.to(torch.int32), loss
        out[f"count{i}"], out[f"total{i}"], out[f"codebook{i}"] = (
            book.cluster_size[0].clone(),
            book.embed_avg[0].clone(),
            book.embed[0].clone(),
        )
    return {f"{name}/{key}": value for key, value in out.items()}


def make_kmeans():
    z, starts = random(1, 300, DIM, seed=4), random(1, CODES, DIM, seed=5)
    starts[0, 3] = 20.0  # stays empty
    means, counts = kmeans(z, CODES, 10, sample_fn=lambda samples, num: starts)
    return {
        "kmeans/z": z[0],
        "kmeans/starts": starts[0],
        "kmeans/means": means[0],
        "kmeans/counts": counts[0],
    }


def make_rotation():
    z, q, g = random(50, DIM, seed=6).requires_grad_(), 2 * random(50, DIM, seed=7), random(50, DIM, seed=8)
    output = rotate_to(z, q)
    output.backward(g)
    return {"rotation/z": z.detach(), "rotation/q": q, "rotation/g": g, "rotation/gradient": z.grad}


def make_lookup():
    """Nearest codes in a small and in a wide table."""
    out = {}
    for name, num, dim, codes in (("small", 200, 3, 50), ("wide", 64, 16, 500)):
        z, table = random(1, num, dim, seed=9), random(1, codes, dim, seed=10)
        for kind in ("euclidean", "cosine"):
            vq = VectorQuantize(dim, codes, use_cosine_sim=kind == "cosine").eval()
            vq._codebook.embed.copy_(torch.nn.functional.normalize(table, dim=-1) if kind == "cosine" else table)
            with torch.no_grad():
                out[f"lookup/{name}/{kind}"] = vq(z)[1][0].to(torch.int32)
        out[f"lookup/{name}/z"], out[f"lookup/{name}/codebook"] = z[0], table[0]
    return out


if __name__ == "__main__":
    arrays = {**make_rotation(), **make_lookup(), **make_kmeans()}
    for cosine in (False, True):
        for masked in (False, True):
            arrays.update(make_steps(f"{'cosine' if cosine else 'euclidean'}/{masked}", cosine=cosine, masked=masked))
    arrays = {key: value.numpy() for key, value in arrays.items()}
    np.savez_compressed(FOLDER / "quantizer.npz", **arrays)
