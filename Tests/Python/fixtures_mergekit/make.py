"""Makes merged.npz: what mergekit makes of two changes of a weight, each a product of rank 4 (its LGPL code is run, nothing of it is here).

    pip install torch mergekit        (made with 2.13, 0.1.5)
    python make.py

`normalize` is set where this library divides by how many agree, as PEFT and the TIES paper do; DARE and DELLA draw at random, each library
with its own numbers, and are not here.
"""
from pathlib import Path

import numpy as np
import torch
from mergekit.merge_methods.generalized_task_arithmetic import get_mask
from mergekit.merge_methods.slerp import slerp
from mergekit.sparsify import SparsificationMethod, sparsify

random = np.random.default_rng(7)
factors = {f"{name}{i}": random.normal(size=shape).astype(np.float32) for i in (1, 2) for name, shape in (("b", (24, 4)), ("a", (4, 40)))}
deltas = torch.stack([torch.from_numpy(factors[f"b{i}"].astype(np.float64) @ factors[f"a{i}"].astype(np.float64)) for i in (1, 2)])


def merged(method, weights, density=1.0, gamma=0.0, elects=False):
    """GeneralizedTaskArithmeticMerge.merge_group with base 0."""
    parts = torch.stack([sparsify(d, density=density, method=method, gamma=gamma) if method else d for d in deltas])
    w = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    parts = parts * w
    if not elects:
        return parts.sum(0)
    mask = get_mask(parts, method="sum", mask_dtype=torch.float64)
    divisor = (w * mask).sum(0)
    divisor[divisor == 0] = 1
    return (parts * mask).sum(0) / divisor


results = {
    "task_arithmetic": merged(None, [0.7, 0.5]),
    "ties_svd": merged(SparsificationMethod.magnitude, [1.0, 1.0], density=0.4, elects=True),
    "magnitude_prune_svd": merged(SparsificationMethod.magnitude, [0.7, 0.5], density=0.4),
    "breadcrumbs": merged(SparsificationMethod.magnitude_outliers, [0.7, 0.5], density=0.6, gamma=0.1),
    "breadcrumbs_ties": merged(SparsificationMethod.magnitude_outliers, [1.0, 1.0], density=0.6, gamma=0.1, elects=True),
    "slerp": slerp(torch.tensor([0.25]), deltas[0][None], deltas[1][None])[0],
}
np.savez_compressed(Path(__file__).parent / "merged.npz", **factors, **{name: value.numpy() for name, value in results.items()})
