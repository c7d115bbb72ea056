"""Makes optimizers.json and schedules.json with torch, transformers, bitsandbytes and peft. usage: python make_fixtures.py (in this folder)"""
import json

import bitsandbytes
import torch
import transformers
from torch import nn
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
import peft.optimizers.lorafa as lorafa

lorafa.is_bf16_available = lambda: False  # float32 as here; PEFT projects in bfloat16 where it can


def values(t):
    return [float(x) for x in t.detach().flatten()]


def run(make, shapes, steps, max_norm=None, skip=None):
    """Updates parameters of `shapes` with random gradients; parameter `skip[1]` has no gradient in step `skip[0]`."""
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(s)) for s in shapes]
    out = {"shapes": [list(s) for s in shapes], "start": [values(p) for p in params], "gradients": [], "norms": []}
    opt = make(params)
    for step in range(steps):
        row = []
        for i, p in enumerate(params):
            p.grad = None if skip == (step, i) else torch.randn(p.shape) * (0.5 + step)
            row.append(None if p.grad is None else values(p.grad))
        out["gradients"].append(row)
        if max_norm is not None:
            out["norms"].append(float(torch.nn.utils.clip_grad_norm_(params, max_norm)))
        opt.step()
    out["result"] = [values(p) for p in params]
    return out


def eight_bits(count=5120, steps=4):
    """bitsandbytes' AdamW8bit on a parameter large enough for it; start and gradients are formulas, of the result every 64th value is kept."""
    i = torch.arange(count, dtype=torch.float64)
    start = torch.sin(i * 0.37).float()
    p = nn.Parameter(start.reshape(-1, 64).clone())
    opt = bitsandbytes.optim.AdamW8bit([p], lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    for step in range(steps):
        p.grad = (torch.cos(i * 0.11 * (step + 1)) * (0.5 + step) * torch.exp(3 * torch.sin(i * 0.013))).float().reshape(-1, 64)
        opt.step()
    return {"result": values(p)[::64]}


shapes = [(3, 4), (5,), (2, 2)]
adafactor = dict(scale_parameter=False, relative_step=False)
cases = {
    "adamw8bit": eight_bits(),
    "adafactor": run(lambda p: transformers.optimization.Adafactor(p, lr=0.05, weight_decay=0.02, **adafactor), [(3, 4), (5,), (2, 3, 4)], 4),
    "lion": run(lambda p: bitsandbytes.optim.Lion(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), shapes, 4),
    "adamw": run(lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1), shapes, 4),
    "adamw_skip": run(lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0), shapes, 3, skip=(0, 1)),
    "adamw_clip": run(lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0), shapes, 3, max_norm=1.5),
    "sgd": run(lambda p: torch.optim.SGD(p, lr=0.05), shapes, 3),
    "sgd_momentum": run(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.02), shapes, 4),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lin = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, ids):
        return self.head(self.norm(self.lin(self.embed(ids))))


def saved(name):  # the key PEFT saves a parameter under
    return name.replace(".default", "").replace(".modules_to_save", "")


torch.manual_seed(0)
net = get_peft_model(Net(), LoraConfig(r=2, lora_alpha=6, target_modules=["embed", "lin"], modules_to_save=["norm", "head"]))
net.base_model.model.lin.base_layer.bias.requires_grad_(True)  # what bias="lora_only" trains
opt = create_loraplus_optimizer(net, torch.optim.AdamW, lr=0.001, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.1, loraplus_lr_embedding=5e-5)
names = {id(p): n for n, p in net.named_parameters()}
cases["loraplus_groups"] = [
    {"name": saved(names[id(p)]), "dimensions": p.ndim, "lr": g["lr"], "weight_decay": g["weight_decay"]} for g in opt.param_groups for p in g["params"]
]

torch.manual_seed(2)
net = get_peft_model(Net(), LoraConfig(r=3, lora_alpha=6, target_modules=["lin"], modules_to_save=["norm"], init_lora_weights=False))
opt = create_lorafa_optimizer(net, r=3, lora_alpha=6, lr=0.02, weight_decay=0.01)
entries = [(saved(n), p) for n, p in net.named_parameters() if "lora_" in n or "modules_to_save" in n]
case = {"names": [n for n, _ in entries], "shapes": [list(p.shape) for _, p in entries], "start": [values(p) for _, p in entries], "gradients": []}
for step in range(3):
    row = []
    for n, p in entries:
        p.grad = torch.randn(p.shape) if p.requires_grad else None
        row.append(None if p.grad is None else values(p.grad))
    case["gradients"].append(row)
    opt.step()
case["result"] = [values(p) for _, p in entries]
cases["lorafa"] = case

schedules = []
for name, warmup, total, steps in [("constant", 3, 10, 6), ("constant_with_warmup", 3, 10, 6), ("linear", 0, 7, 9), ("linear", 3, 10, 12), ("cosine", 0, 8, 8), ("cosine", 2, 9, 9), ("linear", 5, 5, 7)]:
    p = nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([p], lr=1.0)
    schedule = transformers.get_scheduler(name, opt, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    schedules.append({"name": name, "warmup": warmup, "total": total, "rates": rates})

json.dump(cases, open("optimizers.json", "w"))
json.dump(schedules, open("schedules.json", "w"))
