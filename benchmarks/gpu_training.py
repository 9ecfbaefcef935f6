"""A training step on a GPU: NOLA against PEFT's LoRA and against the public torch way.

A LLaMA-style decoder of 0.6 billion parameters with random weights in bfloat16, every linear layer
adapted with rank 16; adapters in float32. The methods take steps in turns, in one process; the peak
of memory is of each by itself.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator

import peft
import torch
import transformers
from torch import nn

from measure.timing import Figure
from nola_edge.peft import NolaConfig
from nola_edge.torch import expand_together
from public_way import torch_way

DEVICE = torch.device("cuda", 0)
RANK, NUM_BASIS, BATCH, LENGTH = 16, 512, 8, 1024
ROUNDS, STEPS = 5, 4


def decoder() -> nn.Module:
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=1536, intermediate_size=4096, num_hidden_layers=20,
        num_attention_heads=12, num_key_value_heads=12, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, max_position_embeddings=LENGTH,
    )  # fmt: skip
    with torch.device(DEVICE):
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def adapted(method: str) -> nn.Module:
    model = decoder()
    if method == "lora":
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear")
        return peft.get_peft_model(model, config)
    if method == "torch way":
        return torch_way(model, NUM_BASIS).to(DEVICE)
    options = {"r": RANK, "num_basis_a": NUM_BASIS, "num_basis_b": NUM_BASIS}
    model = peft.get_peft_model(model, NolaConfig(**options, target_modules="all-linear"))
    if method == "nola together":
        expand_together(model)
    return model


def stepper(method: str) -> Callable[[], None]:
    model = adapted(method)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, fused=True)
    ids = torch.randint(3, 32000, (BATCH, LENGTH), device=DEVICE)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_of(method: str) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    step = stepper(method)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return peak


def timed(methods: list[str], rounds: int) -> dict[str, float]:
    """Return the median time of a step, of several without a pause, as training takes them."""
    steps = {method: stepper(method) for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(rounds + 1):
        for method, step in steps.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            if turn:
                times[method].append((time.perf_counter() - begin) / STEPS)
    return {method: statistics.median(values) for method, values in times.items()}


def figures() -> Iterator[Figure]:
    memory = {m: peak_of(m) for m in ("lora", "nola", "nola together", "torch way")}
    times = timed(["lora", "nola", "nola together", "torch way"], ROUNDS)
    lora = times["lora"]
    for method in ("nola", "nola together"):
        yield Figure(
            f"training step, {method}", "PEFT LoRA, the same rank", times[method], lora, 1.03,
            False, f"{1e3 * times[method]:.1f} ms, k = {NUM_BASIS}; LoRA {1e3 * lora:.1f} ms",
        )  # fmt: skip
        yield Figure(
            f"peak memory, {method}", "PEFT LoRA, the same rank", memory[method], memory["lora"], 1,
            False, f"{(memory[method] - memory['lora']) / 1e6:+.0f} MB",
        )  # fmt: skip
    added = max(min(times["nola"], times["nola together"]) - lora, 1e-4)
    yield Figure(
        "what NOLA adds to LoRA's step", "what the torch way adds", added,
        times["torch way"] - lora, 10, True, f"torch way {1e3 * times['torch way']:.1f} ms a step",
    )  # fmt: skip
    yield Figure(
        "peak memory, nola", "torch way", memory["nola"], memory["torch way"], 1, False,
        f"{(memory['torch way'] - memory['nola']) / 1e6:.0f} MB less",
    )  # fmt: skip
