"""Two skills learned apart as bottleneck adapters of the real model, and the fusion of them: on a test of both it is better than either.

A short form of Benchmarks/fuse_skills.py, whose figures are in Benchmarks/LOG.md."""

import sys

import pytest

from conftest import REAL_MODEL, ROOT
from peftswift import Model

sys.path.insert(0, str(ROOT / "Benchmarks"))
from fuse_skills import losses, orders, taught  # noqa: E402


@pytest.mark.skipif(not REAL_MODEL.exists(), reason="no real model in .cache: scripts/fetch_inputs.py fetches it")
def test_a_fusion_is_better_than_either():
    model = Model.from_pretrained(REAL_MODEL, threads=2)
    made = {name: losses(model, block, orders(12, 2)) for name, block in taught(model, steps=24, fusion_steps=14).items()}
    for name, scores in made.items():
        print(name, {test: round(loss, 3) for test, loss in scores.items()})
    assert made["Fuse"]["both"] < 0.95 * min(made["smith"]["both"], made["clerk"]["both"])
