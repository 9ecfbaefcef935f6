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
from typing import Any

import pytest
import transformers

from nola_edge.peft import NolaConfig

FOLDER = os.environ.get("PEFT_TESTS")
if not FOLDER:
    pytest.skip("needs PEFT_TESTS, see the top of this file", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = {"vocab_size": 1000, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, **TOKENS}
LLAMA = transformers.LlamaConfig(hidden_size=32, intermediate_size=64, **SMALL)
BERT = transformers.BertConfig(hidden_size=32, intermediate_size=64, **SMALL)
ROBERTA = transformers.RobertaConfig(
    hidden_size=32, intermediate_size=64, max_position_embeddings=130, **SMALL
)
#: Class of models -> name, as upstream calls it -> configuration of a small one.
ARCHITECTURES = {
    transformers.AutoModelForCausalLM: {
        "tiny-random-LlamaForCausalLM": LLAMA,
        "tiny-random-GPT2LMHeadModel": transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, **TOKENS
        ),
        "tiny-random-OPTForCausalLM": transformers.OPTConfig(
            hidden_size=32, ffn_dim=64, word_embed_proj_dim=32, **SMALL
        ),
    },
    transformers.AutoModelForSequenceClassification: {
        "tiny-random-BertForSequenceClassification": BERT,
        "tiny-random-RobertaForSequenceClassification": ROBERTA,
        "tiny-LlamaForSequenceClassification-3.2": LLAMA,
    },
    transformers.AutoModel: {
        "tiny-random-BertModel": BERT,
        "tiny-random-RobertaModel": ROBERTA,
        "tiny-random-DebertaModel": transformers.DebertaConfig(
            hidden_size=32, intermediate_size=64, **SMALL
        ),
        "tiny-random-DebertaV2Model": transformers.DebertaV2Config(
            hidden_size=32, intermediate_size=64, **SMALL
        ),
    },
    transformers.AutoModelForSeq2SeqLM: {
        "tiny-random-T5ForConditionalGeneration-calibrated": transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=1000,
            decoder_start_token_id=0,
        ),
        "tiny-random-BartForConditionalGeneration": transformers.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
            decoder_start_token_id=2, forced_eos_token_id=3, **TOKENS,
        ),
    },
}  # fmt: skip


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


def make_models(kind: Any) -> list[str]:
    """Save models of a class where upstream's names lead to, and return their folders."""
    folder = Path(tempfile.mkdtemp(prefix="nola-edge-peft-suite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = []
    for name, config in ARCHITECTURES[kind].items():
        transformers.set_seed(0)
        kind.from_config(config).save_pretrained(folder / name)
        made.append(str(folder / name))
    return made


def use_models(module: types.ModuleType, models: str, kind: Any, task: str | None) -> None:
    """Run a module's tests on our models and our method."""
    getattr(module, models)[:] = make_models(kind)
    module.ALL_CONFIGS[:] = [
        (NolaConfig, {"task_type": task, "target_modules": None, **SMALL_BASIS})
    ]


#: Beta in ones: the rates there are for SGD, whose steps grow with the square of a unit.
SMALL_BASIS = {"num_basis_a": 12, "num_basis_b": 9, "r": 3, "beta_unit": 1.0}

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
#: What PEFT's own tests of mixed batches adapt and train besides, where NOLA can.
MIXED_BATCHES = {
    "mlp": [{}, {}],
    "length_mismatch_raises": [{}, {}],
    "training_mode_raises": [{}, {}],
    "disabled": [{}, {}],
    "merged_raises": [{}, {}],
    "different_target_layers": [{}, {"target_modules": ["lin1"]}],
    "partly_overlapping_target_layers": [{}, {"target_modules": ["lin0", "lin1"]}],
    "multiple_modules_to_save": [{"modules_to_save": ["lin1"]}] * 2,
    "unsupported_layer_raises": [{"modules_to_save": ["gru"]}] * 2,
    "lora_wrong_adapter_name_raises": [{}],
}
#: Large updates saturate the model's softmax, whose small differences allclose then judges.
SMALL_UPDATE = {**NOT_FRESH, "lora_alpha": 0.1}
for test, options in MIXED_BATCHES.items():
    function = getattr(custom.TestMixedAdapterBatches, f"test_mixed_adapter_batches_{test}")
    (mark,) = function.pytestmark
    mark.args[1][:] = [
        (
            "NOLA",
            *(
                NolaConfig(**{"target_modules": ["lin0"], "seed": i, **SMALL_UPDATE, **o})
                for i, o in enumerate(options)
            ),
        )
    ]
common = load("testing_common")
decoder = load("test_decoder_models")
use_models(decoder, "PEFT_DECODER_MODELS_TO_TEST", transformers.AutoModelForCausalLM, "CAUSAL_LM")
decoder.SMALL_GRID_MODELS[:] = decoder.PEFT_DECODER_MODELS_TO_TEST
classifier = load("test_seq_classifier")
use_models(
    classifier,
    "PEFT_SEQ_CLS_MODELS_TO_TEST",
    transformers.AutoModelForSequenceClassification,
    "SEQ_CLS",
)
features = load("test_feature_extraction_models")
use_models(
    features,
    "PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST",
    transformers.AutoModel,
    "FEATURE_EXTRACTION",
)
seq2seq = load("test_encoder_decoder_models")
use_models(
    seq2seq,
    "PEFT_ENCODER_DECODER_MODELS_TO_TEST",
    transformers.AutoModelForSeq2SeqLM,
    "SEQ_2_SEQ_LM",
)


class TestCustomModels(custom.TestPeftCustomModel):
    pass


class TestMultipleActiveAdapters(custom.TestMultipleActiveAdapters):
    pass


class TestFsdpStateDict(custom.TestPeftFsdpStateDict):
    pass


class TestMixedAdapterBatches(custom.TestMixedAdapterBatches):
    pass


class MixesBatches:
    """Tests that run for LoRA alone, by its class, and may as well run for NOLA."""

    @pytest.fixture(autouse=True)
    def _as_lora(self, request, monkeypatch):
        if "mixed_adapter_batches" in request.node.name:
            for module in (common, decoder):
                monkeypatch.setattr(module, "LoraConfig", NolaConfig)


class TestDecoderModels(MixesBatches, decoder.TestDecoderModels):
    pass


class TestSequenceClassification(classifier.TestSequenceClassificationModels):
    pass


class TestFeatureExtraction(features.TestPeftFeatureExtractionModel):
    pass


class TestEncoderDecoder(MixesBatches, seq2seq.TestEncoderDecoderModels):
    pass


class TestRequiresGrad(custom.TestRequiresGrad):
    pass


@pytest.fixture(autouse=True)
def _only_what_is_ours(request):
    """The classes also hold tests of other methods, many of which load models from the Hub."""
    parameters = getattr(request.node, "callspec", None)
    values = list(parameters.params.values()) if parameters is not None else []
    if NolaConfig not in values and not any(isinstance(v, NolaConfig) for v in values):
        pytest.skip("about another method")
