"""Let a model in a GGUF file answer, by whichever installed library can run it.

Each is asked as a chat program asks: the model's own template around the messages, and of every
token the likeliest.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.demo.child import started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    Message = dict[str, str]
    Answering = Callable[[list[Message]], str]

_CONTEXT = 1024
_MOST_TOKENS = 48
_GREEDY = {"temperature": 0.0, "max_tokens": _MOST_TOKENS}


def answers(
    library: str, model: Path, conversations: Sequence[Sequence[Message]]
) -> AbstractContextManager[Iterator[str]]:
    """Answer in a process of one thread, for models so small gain nothing from more.

    Parameters
    ----------
    library : str
        One of :func:`installed`.
    model : Path
        A GGUF file.
    conversations : sequence of sequence of dict
        Each a list of messages (``role``, ``content``), the last of them the user's.

    Returns
    -------
    context manager
        Gives an iterator over the answers, as they come.
    """
    return started(
        "nola_edge.demo.chat", library, model, json.dumps(conversations),
        OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1",
    )  # fmt: skip


def _xllamacpp(model: Path) -> Answering:
    library: Any = import_module("xllamacpp")
    parameters = library.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = _CONTEXT, 1, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = library.Server(parameters)
    return lambda messages: _content(
        server.handle_chat_completions({"messages": messages, **_GREEDY})
    )


def _llama_cpp(model: Path) -> Answering:
    library: Any = import_module("llama_cpp")
    loaded = library.Llama(
        str(model), n_ctx=_CONTEXT, n_threads=1, n_threads_batch=1, verbose=False
    )
    return lambda messages: _content(loaded.create_chat_completion(messages, **_GREEDY))


def _content(completion: Any) -> str:
    content: str = completion["choices"][0]["message"]["content"]
    return content


def _transformers(model: Path) -> Answering:
    library: Any = import_module("transformers")
    where = {"gguf_file": model.name}
    tokenizer = library.AutoTokenizer.from_pretrained(model.parent, **where)
    loaded = library.AutoModelForCausalLM.from_pretrained(model.parent, **where)

    def answer(messages: list[Message]) -> str:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        said = loaded.generate(**prompt, max_new_tokens=_MOST_TOKENS, do_sample=False)
        new = said[0, prompt["input_ids"].shape[1] :]
        text: str = tokenizer.decode(new, skip_special_tokens=True)
        return text

    return answer


#: Library -> how it answers, and the modules that it needs; the quickest first.
LIBRARIES = {
    "xllamacpp": (_xllamacpp, ("xllamacpp",)),
    "llama_cpp": (_llama_cpp, ("llama_cpp",)),
    "transformers": (_transformers, ("transformers", "torch", "gguf")),
}


def installed() -> list[str]:
    """Return the libraries that are there."""
    return [name for name, (_, modules) in LIBRARIES.items() if all(map(find_spec, modules))]


def _main(library: str, model: Path, conversations: str) -> None:
    answer = LIBRARIES[library][0](model)
    for messages in json.loads(conversations):
        print(json.dumps(answer(messages)), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
