"""Small models of each kind, and adapters of the LoRA family that PEFT trains for them."""

from __future__ import annotations

import peft
import torch
import transformers
from safetensors.torch import save_file

SMALL = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
STEPS = 3


def llama():
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=False,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def qwen():
    """With biases in its attention."""
    config = transformers.Qwen2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=False
    )
    return transformers.Qwen2ForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(**SMALL, intermediate_size=48)
    return transformers.BertForSequenceClassification(config)


def t5():
    config = transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def batch(model):
    """Return what a model is trained with."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([0, 1, 1, 0])
    if isinstance(model, transformers.ViTForImageClassification):
        pixels = torch.randn(4, 3, 8, 8, generator=generator).to(model.dtype)
        return {"pixel_values": pixels, "labels": labels}
    tokens = torch.randint(3, 64, (4, 8), generator=generator)
    classifies = isinstance(model, transformers.BertForSequenceClassification)
    return {"input_ids": tokens, "labels": labels if classifies else tokens}


#: Whose ranks and scalings patterns name, of each model: two of its targets.
TARGETS = {
    llama: {"target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj", "lm_head"]},
    gpt2: {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    bert: {"target_modules": ["query", "value", "dense"], "task_type": "SEQ_CLS"},
    t5: {"target_modules": ["q", "v", "wo"]},
    vit: {"target_modules": ["q_proj", "v_proj", "fc1"], "modules_to_save": ["classifier"]},
    qwen: {"target_modules": ["q_proj", "v_proj"]},
}
#: What the files of a model call its modules, where not as in memory.
RENAMED = {
    vit: [
        "vit.layers=vit.encoder.layer",
        "attention.q_proj=attention.attention.query",
        "attention.v_proj=attention.attention.value",
        "mlp.fc1=intermediate.dense",
    ]
}
EMBEDDING = {"target_modules": ["embed_tokens", "v_proj"]}


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 7, **options})


def with_patterns(**options):
    first, second = options["target_modules"][:2]
    return lora(
        use_rslora=True, rank_pattern={first: 3, rf"1\..*{second}": 6},
        alpha_pattern={rf".*0\..*{second}": 3}, **options,
    )  # fmt: skip


def vera(**options):
    return peft.VeraConfig(r=8, d_initial=0.5, **options)


EVERYWHERE = {
    "LoRA": lora,
    "rsLoRA with patterns": with_patterns,
    "DoRA": lambda **options: lora(use_dora=True, **options),
    "VeRA": vera,
}
#: model -> method -> what makes PEFT's configuration.
FAMILIES = {
    make: {
        name: lambda method=method, targets=targets: method(**targets)
        for name, method in EVERYWHERE.items()
    }
    for make, targets in TARGETS.items()
    if make is not qwen
}
FAMILIES[llama] |= {
    "embedding": lambda: lora(**EMBEDDING),
    "DoRA, embedding": lambda: lora(use_dora=True, use_rslora=True, **EMBEDDING),
    "whole layers": lambda: lora(modules_to_save=["lm_head", "norm"], **EMBEDDING),
}
FAMILIES[bert] |= {"biases": lambda: lora(bias="all", **TARGETS[bert])}
FAMILIES[qwen] = {
    "biases of its layers": lambda: lora(bias="lora_only", **TARGETS[qwen]),
    "added biases": lambda: lora(lora_bias=True, **TARGETS[qwen]),
}
CASES = [(make, method) for make, methods in FAMILIES.items() for method in methods]


def renames(make):
    """Return the options of a merge from files for a model."""
    return [argument for pair in RENAMED.get(make, []) for argument in ("--rename", pair)]


def train(model, config, folder):
    """Train an adapter for a few steps and save it; return PEFT's model."""
    wrapped = peft.get_peft_model(model, config).eval()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for _ in range(STEPS):
        wrapped(**batch(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.save_pretrained(folder)
    return wrapped


def save_own_names(model, path):
    """Save a model as a checkpoint whose tensors are named as its parameters are."""
    tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


@torch.no_grad()
def logits(model):
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return model(**batch(base)).logits
