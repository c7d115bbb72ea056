"""Networks of a host (docs/graph.md) as torch computes them.

    pip install torch==2.13.0 safetensors
    python make_graphs.py

Writes folders graph_* beside this file, as make_models.py does.
"""
import json
import os
import shutil

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))


class Picture(nn.Module):
    layers = [
        {"name": "stem", "kind": "Conv2d", "padding": 1, "stride": [1, 2]}, {"name": "bn", "kind": "BatchNorm2d"}, {"name": "a", "kind": "SiLU"},
        {"name": "grouped", "kind": "Conv2d", "padding": 2, "dilation": 2, "groups": 2}, {"name": "gn", "kind": "GroupNorm", "groups": 3, "eps": 1e-3}, {"name": "b", "kind": "ReLU"},
        {"name": "sum", "kind": "Add", "input": ["a", "b"]}, {"name": "max", "kind": "MaxPool2d", "kernel": 2}, {"name": "avg", "kind": "AvgPool2d", "input": "sum", "kernel": 3, "stride": 2, "padding": 1},
        {"name": "cat", "kind": "Concat", "input": ["max", "avg"]}, {"kind": "Flatten"}, {"name": "norm", "kind": "LayerNorm"}, {"name": "fc", "kind": "Linear"}, {"kind": "GELU"}, {"name": "head", "kind": "Linear"}]
    shape = (3, 8, 16)

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.grouped = nn.Conv2d(3, 6, 3, (1, 2), 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, 1, 2, 2, groups=2)
        self.gn, self.norm, self.fc, self.head = nn.GroupNorm(3, 6, eps=1e-3), nn.LayerNorm(12 * 16), nn.Linear(12 * 16, 10), nn.Linear(10, 4)

    def forward(self, x):
        a = F.silu(self.bn(self.stem(x)))
        x = a + F.relu(self.gn(self.grouped(a)))
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1)], 1).flatten(1)
        return self.head(F.gelu(self.fc(self.norm(x))))


class Signal(nn.Module):
    layers = [{"name": "conv", "kind": "Conv1d", "stride": 2}, {"kind": "Tanh"}, {"name": "bn", "kind": "BatchNorm1d"}, {"kind": "MaxPool1d", "kernel": 3, "stride": 1}, {"kind": "GlobalAvgPool"}, {"name": "head", "kind": "Linear"}]
    shape = (2, 20)

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv1d(2, 5, 4, 2), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.max_pool1d(self.bn(torch.tanh(self.conv(x))), 3, 1).mean(-1))


class Volume(nn.Module):
    layers = [{"name": "conv", "kind": "Conv3d", "padding": [0, 1, 1]}, {"kind": "Sigmoid"}, {"kind": "AvgPool3d", "kernel": [1, 2, 2]}, {"kind": "Flatten"}, {"name": "head", "kind": "Linear"}]
    shape = (1, 4, 4, 4)

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(1, 3, (2, 3, 3), padding=(0, 1, 1)), nn.Linear(3 * 3 * 4, 3)

    def forward(self, x):
        return self.head(F.avg_pool3d(torch.sigmoid(self.conv(x)), (1, 2, 2)).flatten(1))


def main():
    for number, cls in enumerate([Picture, Signal, Volume]):
        torch.manual_seed(number)
        model = cls()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.4 + (1 if value.ndim == 1 and "weight" in name else 0))
        model.eval()
        folder = os.path.join(HERE, "graph_" + cls.__name__.lower())
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        x, labels = torch.randn(3, *cls.shape), torch.tensor([2, 0, 1])
        logits = model(x).detach()
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump({"model_type": "graph", "layers": cls.layers}, file, indent=1)
        save_file(dict(model.state_dict()), os.path.join(folder, "model.safetensors"))
        save_file({"x": x, "labels": labels}, os.path.join(folder, "inputs.safetensors"))
        save_file({"logits": logits, "loss": F.cross_entropy(logits, labels)}, os.path.join(folder, "expected.safetensors"))


if __name__ == "__main__":
    main()
