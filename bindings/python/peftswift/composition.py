"""How adapters act together: the blocks of AdapterHub's ``adapters`` library, of names and of blocks.

>>> model.set_adapter(Stack("language", Fuse("a", "b")))
>>> model.set_adapter(Average("a", "b", weights=[0.3, 0.7]))

And the combinations that have names, as configurations of the adapters they are made of:

>>> for part, config in unipelt().items():
...     model.add_adapter(part, config)
>>> model.set_adapter(Stack(*unipelt()))
"""


class Block:
    """A block of a composition; ``settings`` are what it has besides its members."""

    def __init__(self, *children, **settings):
        self.children = list(children)
        self.settings = {key: value for key, value in settings.items() if value is not None}

    def to_dict(self):
        """As peft_adapter_set_composition takes it."""
        block = {"type": type(self).__name__, "children": [child.to_dict() if isinstance(child, Block) else child for child in self.children]}
        return {**block, "kwargs": self.settings} if self.settings else block

    def __repr__(self):
        return f"{type(self).__name__}({', '.join([*map(repr, self.children), *(f'{key}={value!r}' for key, value in self.settings.items())])})"


class Stack(Block):
    """One behind the other."""

    def __init__(self, *children):
        super().__init__(*children)


class Fuse(Block):
    """AdapterFusion. ``name``: the adapter ADAPTER_FUSION that has the attention (default: the members' names with commas between)."""

    def __init__(self, *children, name=None):
        super().__init__(*children, name=name)


class Average(Block):
    """The average of what the members make of each layer and block."""

    def __init__(self, *children, weights=None, normalize_weights=True):
        super().__init__(*children, weights=None if weights is None else list(weights), normalize_weights=None if normalize_weights else False)


class Split(Block):
    """So many tokens of a text to each; what follows to the last."""

    def __init__(self, *children, splits):
        super().__init__(*children, splits=splits)


class BatchSplit(Block):
    """So many rows of a batch to each."""

    def __init__(self, *children, batch_sizes):
        super().__init__(*children, batch_sizes=batch_sizes)


class Parallel(Block):
    """All rows to each: outputs have as many times the rows."""

    def __init__(self, *children):
        super().__init__(*children)


def mam(prefix_length=30, bottleneck_size=800, reduction_factor=2, scaling=4.0):
    """Mix-and-Match (He et al., arXiv:2110.04366): a prefix, made by a network while it is trained, and a bottleneck beside each feed-forward."""
    return {
        "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": prefix_length, "prefix_projection": True, "encoder_hidden_size": bottleneck_size},
        "bottleneck": {"peft_type": "BOTTLENECK", "config": "par_bn", "reduction_factor": reduction_factor, "scaling": scaling},
    }


def unipelt(prefix_length=10, reduction_factor=16, r=8, shared_gating=True, target_modules=None):
    """UniPELT (Mao et al., arXiv:2110.07577): a prefix, a bottleneck behind each feed-forward and LoRA, each behind a gate that sees the text."""
    return {
        "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": prefix_length, "use_gating": True, "shared_gating": shared_gating},
        "bottleneck": {"peft_type": "BOTTLENECK", "config": "seq_bn", "reduction_factor": reduction_factor, "use_gating": True},
        "lora": {"peft_type": "LORA", "r": r, "target_modules": target_modules, "use_gating": True},
    }
