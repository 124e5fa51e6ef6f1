"""Made the models beside it: ``python export.py torch|skl2onnx|tf2onnx|paddle2onnx``.

Each in an environment that has that exporter (torch 2.13 with onnxscript; scikit-learn with
skl2onnx 1.20; tensorflow-cpu with tf2onnx 1.17; paddlepaddle with paddle2onnx), none of which is a
dependency of edgekit. All are trained on the same noisy sines of three frequencies as
``buildkit.graphs.waves`` gives, and are right in more than 97 of 100 cases.
"""

# mypy: ignore-errors

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LENGTH, CLASSES = 16, 3


def waves(n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    time = np.arange(LENGTH) / LENGTH
    clean = np.sin(2 * np.pi * (labels[:, None] + 1) * time)
    return (clean + rng.normal(0, 0.4, (n, LENGTH))).astype(np.float32), labels


def with_torch():
    """Convolution, batch normalisation and GRU, by the exporter that traces with dynamo."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8)
            self.gru, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, CLASSES)

        def forward(self, x):
            hidden = torch.relu(self.norm(self.conv(x.unsqueeze(1))))
            hidden, _ = self.gru(hidden.transpose(1, 2))
            return self.head(hidden[:, -1]).softmax(-1)

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x, labels = map(torch.tensor, waves(2000, 7))
    for _ in range(150):
        loss = nn.functional.nll_loss(torch.log(model(x) + 1e-9), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    torch.onnx.export(
        model, (x[:2],), HERE / "torch.onnx", input_names=["x"], output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, external_data=False,
    )  # fmt: skip


def with_skl2onnx():
    """A pipeline: scaler and perceptron, whose labels and probabilities are outputs."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = waves(2000, 7)
    model = make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=300, random_state=0))
    model.fit(x, labels)
    made = to_onnx(model, x[:1], options={id(model): {"zipmap": False}}, target_opset=17)
    (HERE / "skl2onnx.onnx").write_bytes(made.SerializeToString())


def with_tf2onnx():
    """Keras convolutions, opset 13: 1-D ones become 2-D ones between Unsqueeze and Squeeze."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    x = tf.keras.Input((LENGTH,), name="x")
    hidden = layers.Reshape((LENGTH, 1))(x)
    hidden = layers.Conv1D(8, 3, padding="same", activation="relu")(hidden)
    hidden = layers.MaxPooling1D(2)(hidden)
    hidden = layers.Conv1D(8, 3, padding="same", activation="relu")(hidden)
    y = layers.Dense(CLASSES, activation="softmax")(layers.Flatten()(hidden))
    model = tf.keras.Model(x, y)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*waves(2000, 7), epochs=15, verbose=0)
    taken = [tf.TensorSpec((None, LENGTH), tf.float32, name="x")]
    called = tf.function(model.__call__, input_signature=taken)
    made, _ = tf2onnx.convert.from_function(called, input_signature=taken, opset=13)
    onnx.save(made, HERE / "tf2onnx.onnx")


def with_paddle2onnx():
    """Convolutions, batch normalisation and hard swish, opset 11: weights in Constant nodes."""
    import paddle
    import paddle2onnx
    from paddle import nn

    class Model(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1D(1, 8, 3, padding=1), nn.BatchNorm1D(8)
            self.second, self.head = nn.Conv1D(8, 8, 3, stride=2, padding=1), nn.Linear(64, CLASSES)

        def forward(self, x):
            hidden = nn.functional.relu(self.norm(self.conv(x.unsqueeze(1))))
            hidden = nn.functional.hardswish(self.second(hidden))
            return nn.functional.softmax(self.head(hidden.flatten(1)))

    paddle.seed(0)
    model = Model()
    optimizer = paddle.optimizer.Adam(0.005, parameters=model.parameters())
    x, labels = map(paddle.to_tensor, waves(2000, 7))
    for _ in range(60):
        loss = nn.functional.nll_loss(paddle.log(model(x) + 1e-9), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    model.eval()
    taken = [paddle.static.InputSpec([None, LENGTH], "float32", "x")]
    stored = HERE / "paddle"
    paddle.jit.save(paddle.jit.to_static(model, input_spec=taken), str(stored))
    target = str(HERE / "paddle2onnx.onnx")
    paddle2onnx.export(f"{stored}.json", f"{stored}.pdiparams", target, opset_version=11)
    for part in ("json", "pdiparams"):
        stored.with_suffix(f".{part}").unlink()


if __name__ == "__main__":
    globals()[f"with_{sys.argv[1]}"]()
