"""Write what a small DiT of diffusers computes, with its weights in the official layout, for the transformer's tests.

Run in an environment with PyTorch and diffusers: `python tests/oracles/make_dit_fixtures.py`.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DiTTransformer2DModel

FOLDER = Path(__file__).parent / "fixtures"
HEADS, HEAD_DIM, LAYERS, SIZE, PATCH, CHANNELS, CLASSES = 3, 8, 2, 8, 2, 4, 5


def make_model():
    """A DiT with random weights, changed where diffusers differs from the official network."""
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=LAYERS,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_elementwise_affine=False,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough for each weight to matter in the output, which zero-initialised layers would hide.
            fan_in = weight[0].numel() if weight.ndim > 1 and "embedding_table" not in name else 4
            scale = 0.3 if name.startswith("proj_out_2") else 1.0  # for outputs of about 1
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale / fan_in**0.5)
    first = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm3.eps = 1e-6
        block.norm1.emb = first  # one embedding of time and label for all blocks
    first.time_proj.downscale_freq_shift = 0
    return model


def official_names(model):
    """The weights by the names, and in the shapes, of facebookresearch/DiT."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    embedding = "transformer_blocks.0.norm1.emb"
    renamed = {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": f"{embedding}.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{embedding}.timestep_embedder.linear_2",
        "y_embedder.embedding_table": f"{embedding}.class_embedder.embedding_table",
        "final_layer.linear": "proj_out_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
    }
    official = {"pos_embed": model.pos_embed.pos_embed}
    for i in range(LAYERS):
        block = f"transformer_blocks.{i}"
        renamed |= {
            f"blocks.{i}.attn.proj": f"{block}.attn1.to_out.0",
            f"blocks.{i}.mlp.fc1": f"{block}.ff.net.0.proj",
            f"blocks.{i}.mlp.fc2": f"{block}.ff.net.2",
            f"blocks.{i}.adaLN_modulation.1": f"{block}.norm1.linear",
        }
        for kind in ("weight", "bias"):
            parts = [state[f"{block}.attn1.to_{part}.{kind}"] for part in "qkv"]
            official[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    for ours, theirs in renamed.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                official[f"{ours}.{kind}"] = state[f"{theirs}.{kind}"]
    return {name: value.numpy().astype("float32") for name, value in official.items()}


def main():
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((4, CHANNELS, SIZE, SIZE), generator=generator)
    times = torch.tensor([0, 1, 517, 999])
    labels = torch.tensor([0, 3, CLASSES - 1, CLASSES])
    with torch.no_grad():
        output = model(x, times, labels).sample
    arrays = {f"weights/{name}": value for name, value in official_names(model).items()}
    arrays |= {"x": x, "times": times, "labels": labels, "output": output}
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "dit.npz", **{name: np.asarray(value) for name, value in arrays.items()})


if __name__ == "__main__":
    main()
