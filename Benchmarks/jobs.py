"""What is measured, and which figures are set beside each other."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """One process. `arguments` may hold {gguf}, {bf16}, {cache}: the quantised file, its bf16 folder, where both are."""

    key: str
    program: str  # "engine" or "peers"
    arguments: str
    quick: bool = False  # also in bench-quick


@dataclass(frozen=True)
class Ratio:
    """`ours` divided by `theirs`, or a figure alone where `theirs` is a number."""

    what: str
    ours: tuple
    theirs: tuple = field(default=None)
    reach: str = ""


JOBS = [
    Job("lora bf16 B1", "engine", "train {bf16} --compute bfloat16 --batch 1", quick=True),
    Job("peft bf16 B1", "peers", "train-hf {cache} --dtype bf16 --batch 1"),
    Job("qlora q4_1 B1", "engine", "train {gguf} --compute bfloat16 --batch 1", quick=True),
    Job("bitsandbytes nf4 B1", "peers", "train-bnb {cache} --batch 1"),
    Job("qlora q4_1 B1 in 128 MB", "engine", "train {gguf} --compute bfloat16 --batch 1 --checkpointing auto --budget 128", quick=True),
    Job("qlora q4_1 B1 recompute", "engine", "train {gguf} --compute bfloat16 --batch 1 --checkpointing on", quick=True),
    Job("lora bf16 B1 recompute", "engine", "train {bf16} --compute bfloat16 --batch 1 --checkpointing on"),
    Job("lora bf16 B4", "engine", "train {bf16} --compute bfloat16 --batch 4"),
    Job("peft bf16 B4", "peers", "train-hf {cache} --dtype bf16 --batch 4 --repeats 2"),
    Job("peft bf16 B4 recompute", "peers", "train-hf {cache} --dtype bf16 --batch 4 --checkpointing --repeats 2"),
    Job("lora int8 B1", "engine", "train {bf16} --compute bfloat16 --batch 1 --int8", quick=True),
    Job("qlora int8 B1", "engine", "train {gguf} --compute bfloat16 --batch 1 --int8"),
    Job("lora f32 B1", "engine", "train {bf16} --compute float32 --batch 1", quick=True),
    Job("peft f32 B1", "peers", "train-hf {cache} --dtype f32 --batch 1"),
    Job("lora f32 avx2 B1", "engine", "train {bf16} --compute float32 --level avx2 --batch 1"),
    Job("qlora q4_1 B8 S64", "engine", "train {gguf} --compute bfloat16 --batch 8 --seq 64", quick=True),
    Job("qlora q4_1 B1 S4096 recompute", "engine", "train {gguf} --compute bfloat16 --batch 1 --seq 4096 --checkpointing on --repeats 1 --seconds 0"),
    Job("prompt", "engine", "prompt {gguf}", quick=True),
    Job("prompt lora", "engine", "prompt {gguf} --lora"),
    Job("prompt bf16", "engine", "prompt {bf16} --compute bfloat16"),
    Job("decode", "engine", "decode {gguf}", quick=True),
    Job("decode behind 4096", "engine", "decode {gguf} --context 4096"),
    Job("decode sampled", "engine", "decode {gguf} --sampled", quick=True),
    Job("decode lora", "engine", "decode {gguf} --lora", quick=True),
    Job("llama.cpp", "peers", "infer-llamacpp {cache}"),
    Job("transformers bf16", "peers", "infer-hf {cache} --dtype bf16"),
    Job("sessions 8", "engine", "sessions {gguf} --adapters 8", quick=True),
    Job("start", "engine", "start {gguf}", quick=True),
]

RATIOS = [
    Ratio("LoRA, S=512 B=1, bf16, tok/s", ("lora bf16 B1", "tok_s"), ("peft bf16 B1", "tok_s"), "≥ 2.4"),
    Ratio("LoRA, S=512 B=4, bf16, tok/s", ("lora bf16 B4", "tok_s"), ("peft bf16 B4", "tok_s"), "≥ 2.4"),
    Ratio("LoRA, S=512 B=1, int8 forward : PEFT bf16, tok/s", ("lora int8 B1", "tok_s"), ("peft bf16 B1", "tok_s"), "≥ 3"),
    Ratio("LoRA, S=512 B=1, int8 forward : bf16, tok/s", ("lora int8 B1", "tok_s"), ("lora bf16 B1", "tok_s")),
    Ratio("QLoRA, int8 forward : LoRA in bf16, tok/s", ("qlora int8 B1", "tok_s"), ("lora bf16 B1", "tok_s")),
    Ratio("LoRA, S=512 B=1, f32, tok/s", ("lora f32 B1", "tok_s"), ("peft f32 B1", "tok_s"), "≥ 1.6"),
    Ratio("LoRA, S=512 B=1, f32 with AVX2 only, tok/s", ("lora f32 avx2 B1", "tok_s"), ("peft f32 B1", "tok_s"), "≥ 1.2"),
    Ratio("QLoRA (Q4_1) : bitsandbytes NF4, tok/s", ("qlora q4_1 B1", "tok_s"), ("bitsandbytes nf4 B1", "tok_s")),
    Ratio("QLoRA (Q4_1) : LoRA with bf16 weights, tok/s", ("qlora q4_1 B1", "tok_s"), ("lora bf16 B1", "tok_s"), "≥ 0.95"),
    Ratio("QLoRA in a budget of 128 MB : LoRA with bf16 weights, tok/s", ("qlora q4_1 B1 in 128 MB", "tok_s"), ("lora bf16 B1", "tok_s"), "≥ 0.9"),
    Ratio("QLoRA with recompute : without, tok/s", ("qlora q4_1 B1 recompute", "tok_s"), ("qlora q4_1 B1", "tok_s"), "≥ 0.72"),
    Ratio("QLoRA, S=64 B=8 : S=512 B=1, tok/s", ("qlora q4_1 B8 S64", "tok_s"), ("qlora q4_1 B1", "tok_s"), "≥ 0.9"),
    Ratio("QLoRA, S=4096 with recompute : S=512, tok/s", ("qlora q4_1 B1 S4096 recompute", "tok_s"), ("qlora q4_1 B1", "tok_s"), "≥ 0.6"),
    Ratio("LoRA peak memory : HF PEFT's", ("lora bf16 B1", "peak_mb"), ("peft bf16 B1", "peak_mb")),
    Ratio("QLoRA peak memory : bitsandbytes'", ("qlora q4_1 B1", "peak_mb"), ("bitsandbytes nf4 B1", "peak_mb")),
    Ratio("LoRA peak memory, MB", ("lora bf16 B1", "peak_mb"), None, "≤ 450"),
    Ratio("QLoRA peak memory, MB", ("qlora q4_1 B1", "peak_mb"), None, "≤ 250"),
    Ratio("QLoRA peak memory in a budget of 128 MB, MB", ("qlora q4_1 B1 in 128 MB", "peak_mb"), None, "≤ 300"),
    Ratio("QLoRA peak memory with recompute, MB", ("qlora q4_1 B1 recompute", "peak_mb"), None, "≤ 180"),
    Ratio("prompt of 512 : llama.cpp, tok/s", ("prompt", "tok_s"), ("llama.cpp prompt 512", "tok_s"), "≥ 5"),
    Ratio("prompt of 512 : transformers bf16, tok/s", ("prompt", "tok_s"), ("transformers bf16 prompt 512", "tok_s"), "≥ 1.6"),
    Ratio("prompt of 512, tok/s", ("prompt", "tok_s"), None, "≥ 1600"),
    Ratio("decoding : llama.cpp, tok/s", ("decode", "tok_s"), ("llama.cpp decode 128", "tok_s"), "≥ 2.5"),
    Ratio("decoding behind 4096 tokens : llama.cpp, tok/s", ("decode behind 4096", "tok_s"), ("llama.cpp decode 128 behind 4096", "tok_s")),
    Ratio("decoding : transformers bf16, tok/s", ("decode", "tok_s"), ("transformers bf16 decode 64", "tok_s")),
    Ratio("decoding, tok/s", ("decode", "tok_s"), None, "≥ 300"),
    Ratio("decoding, sampled : the most likely, tok/s", ("decode sampled", "tok_s"), ("decode", "tok_s")),
    Ratio("decoding with a LoRA : without, tok/s", ("decode lora", "tok_s"), ("decode", "tok_s"), "≥ 0.95"),
    Ratio("8 sessions with 8 adapters together : one with one, tok/s", ("sessions 8", "tok_s"), ("decode lora", "tok_s"), "≥ 4"),
    Ratio("file to first token, ms", ("start", "first_token_ms"), None, "≤ 50"),
    Ratio("loading an adapter, ms", ("start", "adapter_load_ms"), None, "≤ 5"),
    Ratio("switching an adapter, µs", ("start", "adapter_switch_us"), None, "≤ 10"),
    Ratio("start of a C program (minimal --version), ms", ("program", "start_ms"), None, "≤ 20"),
]
