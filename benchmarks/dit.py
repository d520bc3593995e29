"""A diffusion transformer: training step (forward, backward, AdamW) and forward pass, against PyTorch eager.

Both sides have the same structure and the same weights, and must put out the same. They live in processes of their own
and take turns on the same cores. The Keras side is measured as `fit` runs it: its compiled train function, fed by
`tf.data`. It runs twice, with TensorFlow's usual allocator and with `TF_CPU_ALLOCATOR_USE_BFC=1`, which keeps memory
instead of asking the operating system for it anew in each step.

Run: python -m benchmarks dit --oracle-python PYTHON, an interpreter that has PyTorch.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

THREADS = 2


def batch(o):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(o["batch"], o["grid"], o["grid"], o["channels"])).astype("float32")
    t, label = rng.random(o["batch"]).astype("float32"), rng.integers(0, o["classes"], o["batch"]).astype("int32")
    return x, t, label


# === Keras ===


def serve_keras(o):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    import keras

    from benchmarks.turns import serve
    from keras_vqdit.models.diffusion_transformer import DiffusionTransformer
    from keras_vqdit.models.dit_weights import dit_weights

    x, t, label = batch(o)
    inputs = {"x": tf.constant(x), "t": tf.constant(t), "label": tf.constant(label)}
    network = DiffusionTransformer(o["d_model"], o["heads"], o["dff"], o["layers"], num_classes=o["classes"])
    network.build({name: value.shape for name, value in inputs.items()})
    rng = np.random.default_rng(1)  # zero-initialised layers would make all outputs equal
    network.set_weights([w + 0.02 * rng.normal(size=w.shape) for w in network.get_weights()])
    np.savez(o["weights"], output=network(inputs), **dit_weights(network, x.shape[1:3]))

    def functions(jit_compile):
        network.compile(keras.optimizers.AdamW(1e-4), "mse", jit_compile=jit_compile)
        network.train_function = None
        network.make_train_function()
        train, data = network.train_function, iter(tf.data.Dataset.from_tensors((inputs, inputs["x"])).repeat())
        forward = tf.function(lambda values: network(values, training=False), jit_compile=jit_compile)
        return lambda: keras.tree.map_structure(float, train(data)), lambda: forward(inputs).numpy()

    train, forward = functions(True)
    timed = {"train": train, "forward": forward}
    if o["graph"]:
        timed["train_graph"], timed["forward_graph"] = functions(False)
    serve(f"Keras {keras.__version__}, TensorFlow {tf.__version__}", timed)


# === PyTorch ===


def serve_torch(o):
    import torch
    from torch import nn
    from torch.nn import functional as F

    from benchmarks.turns import serve

    torch.set_num_threads(THREADS)
    d, heads, tokens = o["d_model"], o["heads"], o["grid"] ** 2

    def layer_norm(x):
        return F.layer_norm(x, (d,), eps=1e-6)

    def modulate(x, shift, scale):
        return x * (1 + scale[:, None]) + shift[:, None]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, o["dff"]), "fc2": nn.Linear(o["dff"], d)})
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

        def forward(self, x, condition):
            shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=1)
            qkv = self.attn["qkv"](modulate(layer_norm(x), shift1, scale1))
            q, k, v = qkv.view(-1, tokens, 3, heads, d // heads).permute(2, 0, 3, 1, 4).unbind(0)
            hidden = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, tokens, d)
            x = x + gate1[:, None] * self.attn["proj"](hidden)
            hidden = F.gelu(self.mlp["fc1"](modulate(layer_norm(x), shift2, scale2)), approximate="tanh")
            return x + gate2[:, None] * self.mlp["fc2"](hidden)

    class Network(nn.Module):
        """The official DiT for patches of one position, with its names of the weights."""

        def __init__(self):
            super().__init__()
            self.x_embedder = nn.ModuleDict({"proj": nn.Linear(o["channels"], d)})
            self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))})
            self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(o["classes"] + 1, d)})
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, d), requires_grad=False)
            self.blocks = nn.ModuleList(Block() for _ in range(o["layers"]))
            self.final_layer = nn.ModuleDict(
                {
                    "linear": nn.Linear(d, o["channels"]),
                    "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d)),
                }
            )
            self.register_buffer("frequencies", 10000.0 ** (-torch.arange(128) / 128), persistent=False)

        def forward(self, x, t, label):
            angle = 1000 * t[:, None] * self.frequencies
            condition = self.t_embedder["mlp"](torch.cat([angle.cos(), angle.sin()], dim=1))
            condition = condition + self.y_embedder["embedding_table"](label)
            tokens = self.x_embedder["proj"](x.flatten(1, 2)) + self.pos_embed
            for block in self.blocks:
                tokens = block(tokens, condition)
            shift, scale = self.final_layer["adaLN_modulation"](condition).chunk(2, dim=1)
            return self.final_layer["linear"](modulate(layer_norm(tokens), shift, scale)).view(x.shape)

    weights = {name: torch.from_numpy(value) for name, value in np.load(o["weights"]).items()}
    expected = weights.pop("output")
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].flatten(1)
    network = Network()
    network.load_state_dict(weights)
    x, t, label = map(torch.from_numpy, batch(o))
    with torch.no_grad():
        difference = (network(x, t, label.long()) - expected).abs().max() / expected.abs().max()
    if difference > 1e-3:
        raise RuntimeError(f"the two sides differ by {difference:.1e}")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def train():
        optimizer.zero_grad()
        loss = F.mse_loss(network(x, t, label.long()), x)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def forward():
        with torch.no_grad():
            return network(x, t, label.long()).numpy()

    serve(f"PyTorch {torch.__version__}, outputs equal to {difference:.0e}", {"train": train, "forward": forward})


# === Comparison ===


def main(argv=None):
    from benchmarks.turns import Side, processor, report, take_turns

    parser = argparse.ArgumentParser(prog="python -m benchmarks dit", description=__doc__.split("\n")[0])
    for name, default, meaning in (
        ("batch", 64, "examples in a batch"),
        ("d-model", 192, "width"),
        ("heads", 6, "attention heads"),
        ("layers", 6, "blocks"),
        ("dff", 768, "width of the feed-forward networks"),
        ("grid", 7, "tokens along each side of the input"),
        ("channels", 16, "channels of the input"),
        ("classes", 10, "class labels"),
        ("repetitions", 7, "timed runs of each, of three calls in a row"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--graph", action="store_true", help="also time TensorFlow without XLA")
    parser.add_argument("--oracle-python", default=None, help="interpreter that has PyTorch (default: this one)")
    options = vars(parser.parse_args(argv))
    if options["oracle_python"] is None and importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed here: pass --oracle-python, an interpreter that has it")

    with tempfile.TemporaryDirectory() as folder:
        options["weights"] = str(Path(folder) / "weights.npz")

        def command(python, side):
            return [python, "-m", "benchmarks.dit", "--worker", side, json.dumps(options)]

        usual = Side(command(sys.executable, "keras"), {"TF_CPU_ALLOCATOR_USE_BFC": "0"})
        keeping = Side(command(sys.executable, "keras"), {"TF_CPU_ALLOCATOR_USE_BFC": "1"})
        torch = Side(command(options["oracle_python"] or sys.executable, "torch"))
        print(f"{processor()}; {THREADS} threads; {usual.about}; {torch.about}")
        print("batch {batch}, {layers} layers, d_model {d_model}, {heads} heads, dff {dff}".format(**options))
        ratios = {}
        for name, title in (("train", "training step"), ("forward", "forward pass")):
            runs = {
                f"{title}, PyTorch eager": partial(torch.run, name),
                f"{title}, Keras with XLA": partial(usual.run, name),
                f"{title}, Keras with XLA, memory kept": partial(keeping.run, name),
            }
            if options["graph"]:
                runs[f"{title}, Keras without XLA"] = partial(usual.run, f"{name}_graph")
                runs[f"{title}, Keras without XLA, memory kept"] = partial(keeping.run, f"{name}_graph")
            print()
            medians = report(take_turns(runs, repetitions=options["repetitions"]), f"{title}, PyTorch eager")
            ratios[name] = {key: medians[f"{title}, PyTorch eager"] / value for key, value in medians.items()}
        for side in (usual, keeping, torch):
            side.close()
    return ratios


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        {"keras": serve_keras, "torch": serve_torch}[sys.argv[2]](json.loads(sys.argv[3]))
    else:
        main()
