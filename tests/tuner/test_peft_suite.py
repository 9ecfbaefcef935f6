"""PEFT's own test classes, run on this tuner.

They are not in PEFT's wheel, and not in this repository: `PEFT_TESTS` names the folder `tests` of
an unpacked source distribution of the PEFT that is installed.

    pip download --no-deps --no-binary :all: peft==<version> && tar xf peft-*.tar.gz
    PEFT_TESTS=peft-<version>/tests python -m pytest tests/tuner/test_peft_suite.py

Every test runs that takes a configuration class; it gets NolaConfig. Models of the Hub are replaced
by small ones of the same architecture, made on the spot, so none needs a download.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import pytest
import transformers

from nola_edge.peft import NolaConfig

FOLDER = os.environ.get("PEFT_TESTS")
if not FOLDER:
    pytest.skip("needs PEFT_TESTS, see the top of this file", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = {"vocab_size": 1000, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, **TOKENS}
ARCHITECTURES = {
    "tiny-random-LlamaForCausalLM": transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, **SMALL
    ),
    "tiny-random-GPT2LMHeadModel": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, **TOKENS
    ),
    "tiny-random-OPTForCausalLM": transformers.OPTConfig(
        hidden_size=32, ffn_dim=64, word_embed_proj_dim=32, **SMALL
    ),
}


def load(name: str) -> types.ModuleType:
    """Import a module of PEFT's tests, which call themselves `tests`, under another name."""
    if "peft_tests" not in sys.modules:
        package = types.ModuleType("peft_tests")
        package.__path__ = [str(Path(FOLDER).resolve())]
        sys.modules["peft_tests"] = package
        if importlib.util.find_spec("diffusers") is None:
            # Named in a helper for pipelines, which no test here uses.
            diffusers = types.ModuleType("diffusers")
            diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
            sys.modules["diffusers"] = diffusers
    return importlib.import_module(f"peft_tests.{name}")


def make_models() -> list[str]:
    folder = Path(tempfile.mkdtemp(prefix="nola-edge-peft-suite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = []
    for name, config in ARCHITECTURES.items():
        transformers.set_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        made.append(str(folder / name))
    return made


SMALL_BASIS = {"num_basis_a": 12, "num_basis_b": 9, "r": 3}

custom = load("test_custom_models")
custom.TEST_CASES[:] = [
    ("MLP", "MLP", NolaConfig, {"target_modules": "lin0", **SMALL_BASIS}),
    ("MLP list", "MLP", NolaConfig, {"target_modules": ["lin0"]}),
    ("MLP other", "MLP", NolaConfig, {"target_modules": ["lin1"], **SMALL_BASIS}),
    ("MLP both", "MLP", NolaConfig, {"target_modules": ["lin0", "lin1"], **SMALL_BASIS}),
    ("MLP saved", "MLP", NolaConfig, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    (
        "MLP uniform",
        "MLP",
        NolaConfig,
        {"target_modules": ["lin0", "lin1"], "basis": "uniform", "use_rslora": True, **SMALL_BASIS},
    ),
    ("Conv1D", "EmbConv1D", NolaConfig, {"target_modules": ["conv1d"], **SMALL_BASIS}),
]
custom.ALL_PEFT_CONFIG_CLASSES[:] = [NolaConfig]
NOT_FRESH = {"init_weights": False, **SMALL_BASIS}
custom.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
    (
        "NOLA same",
        "nola",
        NolaConfig,
        {"target_modules": ["lin0"], "seed": 1, **NOT_FRESH},
        {"target_modules": ["lin0"], "seed": 2, **NOT_FRESH},
    ),
    (
        "NOLA different",
        "nola",
        NolaConfig,
        {"target_modules": ["lin0"], "seed": 1, **NOT_FRESH},
        {"target_modules": ["lin1"], "seed": 2, **NOT_FRESH},
    ),
]
decoder = load("test_decoder_models")
decoder.PEFT_DECODER_MODELS_TO_TEST[:] = make_models()
decoder.SMALL_GRID_MODELS[:] = decoder.PEFT_DECODER_MODELS_TO_TEST
decoder.ALL_CONFIGS[:] = [
    (NolaConfig, {"task_type": "CAUSAL_LM", "target_modules": None, **SMALL_BASIS})
]


class TestCustomModels(custom.TestPeftCustomModel):
    pass


class TestMultipleActiveAdapters(custom.TestMultipleActiveAdapters):
    pass


class TestFsdpStateDict(custom.TestPeftFsdpStateDict):
    pass


class TestDecoderModels(decoder.TestDecoderModels):
    pass


class TestRequiresGrad(custom.TestRequiresGrad):
    pass


@pytest.fixture(autouse=True)
def _only_what_is_ours(request):
    """The classes also hold tests of other methods, many of which load models from the Hub."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or NolaConfig not in parameters.params.values():
        pytest.skip("about another method")
