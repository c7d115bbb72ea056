"""Tiny random models of transformers with what they compute: architectures the conformance kit has no base for.

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    python make_models.py [NAME …]

Writes for each NAME a Hugging Face folder beside this file, inputs.safetensors and expected.safetensors ("logits" or
"last_hidden_state", "loss", "generated": greedy continuation) in it. Numbers are f32 on one thread.
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
import transformers as t

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_num_threads(1)

T5 = dict(vocab_size=60, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=2, num_heads=4, relative_attention_num_buckets=8,
          relative_attention_max_distance=16, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, num_labels=3)
DECODER = dict(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
               max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=1)


def t5_inputs(generator, labels):
    ids = torch.randint(2, 60, (2, 9), generator=generator)
    ids[:, 8] = 1
    ids[1, 5:], mask = 0, torch.ones(2, 9, dtype=torch.long)
    ids[1, 5], mask[1, 6:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask, **labels}


def text_inputs(generator, vocabulary=80, length=11, left=False):
    ids = torch.randint(3, vocabulary, (2, length), generator=generator)
    mask = torch.ones(2, length, dtype=torch.long)
    (mask[1, :3] if left else mask[1, -3:]).zero_()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, torch.full_like(ids, -100))}


def models(g):
    """name → (class, configuration, inputs, generates: from the whole text or from so many tokens)"""
    return {
        "t5_seqcls": (t.T5ForSequenceClassification, t.T5Config(**T5), t5_inputs(g, {"labels": torch.tensor([2, 0])}), False),
        "t5_tokcls": (t.T5ForTokenClassification, t.T5Config(**T5, feed_forward_proj="gated-silu"), t5_inputs(g, {"labels": torch.randint(0, 3, (2, 9), generator=g)}), False),
        "t5_qa": (t.T5ForQuestionAnswering, t.T5Config(**(T5 | {"num_labels": 2})), t5_inputs(g, {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([4, 3])}), False),
        "t5_encoder": (t.T5EncoderModel, t.T5Config(**T5), t5_inputs(g, {}), False),
        "gemma": (t.GemmaForCausalLM, t.GemmaConfig(**DECODER, hidden_activation="gelu_pytorch_tanh"), text_inputs(g), True),
        "gemma2": (t.Gemma2ForCausalLM, t.Gemma2Config(**DECODER, query_pre_attn_scalar=16, attn_logit_softcapping=5.0, final_logit_softcapping=3.0, sliding_window=4), text_inputs(g), True),
        "gemma2_cls": (t.Gemma2ForSequenceClassification, t.Gemma2Config(**DECODER, num_labels=3), {k: v for k, v in text_inputs(g, left=True).items() if k != "labels"} | {"labels": torch.tensor([1, 2])}, False),
        "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**(DECODER | {"num_hidden_layers": 3}), query_pre_attn_scalar=10, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                   rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}), text_inputs(g, left=True), True),
        "phi3": (t.Phi3ForCausalLM, t.Phi3Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}, sliding_window=5, partial_rotary_factor=0.5, attn_implementation="eager"), text_inputs(g), True),
        "phi3_long": (t.Phi3ForCausalLM, t.Phi3Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}, original_max_position_embeddings=16, attn_implementation="eager",
                      rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.2, 2.0, 3.0, 5.0], "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0}), text_inputs(g, length=20), 4),
        "llama_qa": (t.LlamaForQuestionAnswering, t.LlamaConfig(**DECODER), {k: v for k, v in text_inputs(g).items() if k != "labels"} | {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([4, 3])}, False),
        "gpt2_tokcls": (t.GPT2ForTokenClassification, t.GPT2Config(vocab_size=80, n_positions=32, n_embd=24, n_layer=2, n_head=4, num_labels=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, classifier_dropout=0.0),
                        text_inputs(g) | {"labels": torch.randint(0, 3, (2, 11), generator=g)}, False),
        "gemma3_bare": (t.Gemma3TextModel, t.Gemma3TextConfig(**DECODER, sliding_window=4), {k: v for k, v in text_inputs(g).items() if k != "labels"}, False),
        "mixtral": (t.MixtralForCausalLM, t.MixtralConfig(**(DECODER | {"intermediate_size": 24}), num_local_experts=5, num_experts_per_tok=3, sliding_window=5), text_inputs(g, left=True), 6),
        "whisper": (t.WhisperForConditionalGeneration, t.WhisperConfig(vocab_size=60, num_mel_bins=8, d_model=24, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=40, decoder_layers=2,
                    decoder_attention_heads=2, decoder_ffn_dim=32, max_source_positions=12, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3),
                    {"input_features": torch.randn(2, 8, 24, generator=g), "labels": torch.tensor([[5, 9, 33, 12, 40, 2], [7, 50, 21, 2, -100, -100]])}, "frames"),
        "dinov2": (t.Dinov2ForImageClassification, t.Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=20, patch_size=4, num_labels=3),
                   {"pixel_values": torch.randn(2, 3, 20, 20, generator=g), "labels": torch.tensor([2, 0])}, False),
        "dinov2_larger": (t.Dinov2Model, t.Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=20, patch_size=4),
                          {"pixel_values": torch.randn(2, 3, 12, 28, generator=g)}, False),
        "qwen3_yarn": (t.Qwen3ForCausalLM, t.Qwen3Config(**DECODER, rope_parameters={"rope_type": "yarn", "rope_theta": 10.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 2.0,
                       "beta_slow": 0.5, "truncate": False, "mscale": 1.0, "mscale_all_dim": 0.5}), text_inputs(g, length=20), True),
        "mistral_qa": (t.MistralForQuestionAnswering, t.MistralConfig(**DECODER, sliding_window=None), {k: v for k, v in text_inputs(g).items() if k != "labels"} | {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([4, 3])}, False),
        # What Gemma 3 does not do, and an exact GELU: of four values, so that it is three times the tolerance away from the approximation.
        "gemma3_gelu": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**(DECODER | {"intermediate_size": 4}), sliding_window=4, hidden_activation="gelu", attn_logit_softcapping=2.0), text_inputs(g), True),
    }


#: What the tiny models want of raw input.
PREPROCESSORS = {
    "whisper": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "sampling_rate": 240, "hop_length": 10, "chunk_length": 1, "n_fft": 16},
    "dinov2": {"image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 24}, "resample": 3, "do_center_crop": True, "crop_size": {"height": 20, "width": 20},
               "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}


def greedy(model, frames, count):
    """What a decoder writes, and the least lead of the best token."""
    ids, gap = torch.tensor([[model.config.decoder_start_token_id]]), 9.0
    for _ in range(count):
        best = model(input_features=frames, decoder_input_ids=ids).logits[0, -1].topk(2)
        gap, ids = min(gap, float(best.values[0] - best.values[1])), torch.cat([ids, best.indices[:1].view(1, 1)], 1)
    return ids, gap


def make(name, cls, config, inputs, generates):
    torch.manual_seed(len(name) * 7 + 1)
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(0, 0.25)
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for extra in os.listdir(folder):
        if extra not in ["config.json", "model.safetensors"]:
            os.remove(os.path.join(folder, extra))
    with torch.no_grad():
        out = model(**inputs)
        expected = {k: out[k] for k in ["logits", "start_logits", "end_logits", "loss"] if out.get(k) is not None}
        if "last_hidden_state" in out and not expected:
            expected["last_hidden_state"] = out.last_hidden_state
        if name in PREPROCESSORS:
            with open(os.path.join(folder, "preprocessor_config.json"), "w") as file:
                json.dump(PREPROCESSORS[name], file, indent=1)
        if generates == "frames":
            expected["generated"], gap = greedy(model, inputs["input_features"][:1], 12)
            assert gap > 1e-3, (name, gap)
        elif generates:
            prompt = {k: v[:1] for k, v in inputs.items() if k in ["input_ids", "input_features"]}
            if generates is not True:
                prompt = {"input_ids": prompt["input_ids"][:, :generates]}
            done = model.generate(**prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, return_dict_in_generate=True, output_logits=True)
            gap = min(float(x[0].topk(2).values.diff().abs()) for x in done.logits)
            assert gap > 1e-3, (name, gap)
            expected["generated"] = done.sequences
    save_file({k: v.contiguous() for k, v in inputs.items()}, os.path.join(folder, "inputs.safetensors"))
    save_file({k: v.contiguous().clone() for k, v in expected.items()}, os.path.join(folder, "expected.safetensors"))
    print(name, {k: tuple(v.shape) for k, v in expected.items()}, sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)))


def main():
    for name, parts in models(torch.Generator().manual_seed(5)).items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            make(name, *parts)


if __name__ == "__main__":
    main()
