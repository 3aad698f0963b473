"""Names of checkpoints: those that stand for a hub id, and those of models that this library does not run."""

from __future__ import annotations

import functools

from ..data import other_models

# Owner of repositories -> those whose last part, in small letters, TransformerLens takes as a short name.
_REPOSITORIES = {
    "EleutherAI": [
        *(f"pythia-{size}{kind}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
          for kind in ("", "-deduped", "-v0", "-deduped-v0")),
        "pythia-14m", "pythia-31m", "pythia-160m-seed1", "pythia-160m-seed2", "pythia-160m-seed3", "gpt-neox-20b",
    ],
    "HuggingFaceTB": [f"SmolLM2-{size}{kind}" for size in ("135M", "360M", "1.7B") for kind in ("", "-Instruct")],
    "Qwen": [
        *(f"Qwen1.5-{size}{kind}" for size in ("0.5B", "1.8B", "4B", "7B", "14B") for kind in ("", "-Chat")),
        *(f"Qwen2-{size}{kind}" for size in ("0.5B", "1.5B", "7B") for kind in ("", "-Instruct")),
        *(f"Qwen2.5-{size}{kind}" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
          for kind in ("", "-Instruct")),
        *(f"Qwen3-{size}" for size in ("0.6B", "0.6B-Base", "1.7B", "4B", "8B", "14B", "30B-A3B", "235B-A22B")),
    ],
    "allenai": ["OLMo-2-0425-1B", "OLMo-2-0425-1B-Instruct", "OLMo-2-1124-7B", "OLMo-2-1124-7B-Instruct",
                "Olmo-3-1025-7B", "Olmo-3-7B-Instruct", "Olmo-3-7B-Think", "Olmo-3-1125-32B", "Olmo-3-32B-Think",
                "Olmo-3.1-32B-Instruct", "Olmo-3.1-32B-Think"],
    "google": [
        *(f"gemma-2-{size}{kind}" for size in ("2b", "9b", "27b") for kind in ("", "-it")),
        "gemma-3-270m", "gemma-3-270m-it", "gemma-3-1b-pt", "gemma-3-1b-it",
    ],
    "meta-llama": [
        "Llama-2-7b-hf", "Llama-2-13b-hf", "Llama-2-7b-chat-hf", "Llama-2-13b-chat-hf", "Llama-2-70b-chat-hf",
        "Meta-Llama-3-8B", "Meta-Llama-3-8B-Instruct", "Meta-Llama-3-70B", "Meta-Llama-3-70B-Instruct",
        "Llama-3.1-8B", "Llama-3.1-8B-Instruct", "Llama-3.1-70B", "Llama-3.1-70B-Instruct",
        "Llama-3.2-1B", "Llama-3.2-1B-Instruct", "Llama-3.2-3B", "Llama-3.2-3B-Instruct", "Llama-3.3-70B-Instruct",
    ],
    "01-ai": ["Yi-6B", "Yi-34B", "Yi-6B-Chat", "Yi-34B-Chat"],
    "ai-forever": ["mGPT"],
    "codellama": ["CodeLlama-7b-hf", "CodeLlama-7b-Python-hf", "CodeLlama-7b-Instruct-hf"],
    "microsoft": ["Phi-3-mini-4k-instruct", "phi-4", "Phi-4-mini-instruct"],
    "mistralai": ["Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1", "Mistral-Nemo-Base-2407",
                  "Mistral-Small-24B-Base-2501", "Mixtral-8x7B-v0.1", "Mixtral-8x7B-Instruct-v0.1"],
    "openai": ["gpt-oss-20b", "gpt-oss-120b"],
    "stabilityai": [f"stablelm-{kind}-alpha-{size}" for kind in ("base", "tuned") for size in ("3b", "7b")],
    "stanford-crfm": [
        "alias-gpt2-small-x21", "battlestar-gpt2-small-x49", "caprica-gpt2-small-x81", "darkmatter-gpt2-small-x343",
        "expanse-gpt2-small-x777", "arwen-gpt2-medium-x21", "beren-gpt2-medium-x49", "celebrimbor-gpt2-medium-x81",
        "durin-gpt2-medium-x343", "eowyn-gpt2-medium-x777",
    ],
    "openai-community": ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"],
}  # fmt: skip
_OTHER_NAMES = {
    "distilgpt2": "distilbert/distilgpt2",
    "distil-gpt2": "distilbert/distilgpt2",
    "distill-gpt2": "distilbert/distilgpt2",
    "distillgpt2": "distilbert/distilgpt2",
    "gpt2-xs": "distilbert/distilgpt2",
    "gpt2-small": "openai-community/gpt2",
    "gpt-neox": "EleutherAI/gpt-neox-20b",
    "neox": "EleutherAI/gpt-neox-20b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama-2-70b-chat": "meta-llama/Llama-2-70b-chat-hf",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "mixtral-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mixtral-8x7b-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "gpt-oss": "openai/gpt-oss-20b",
    "olmo-2-1b": "allenai/OLMo-2-0425-1B",
    "olmo-2-7b": "allenai/OLMo-2-1124-7B",
    "phi-3": "microsoft/Phi-3-mini-4k-instruct",
    "pythia": "EleutherAI/pythia-70m",
    "codellama-7b": "codellama/CodeLlama-7b-hf",
    "codellama-7b-python": "codellama/CodeLlama-7b-Python-hf",
    "codellama-7b-instruct": "codellama/CodeLlama-7b-Instruct-hf",
    **{
        f"stanford-gpt2-{size}-{letter}": f"stanford-crfm/{name}-gpt2-{size}-x{seed}"
        for size, letter, name, seed in (
            ("small", "a", "alias", 21),
            ("small", "b", "battlestar", 49),
            ("small", "c", "caprica", 81),
            ("small", "d", "darkmatter", 343),
            ("small", "e", "expanse", 777),
            ("medium", "a", "arwen", 21),
            ("medium", "b", "beren", 49),
            ("medium", "c", "celebrimbor", 81),
            ("medium", "d", "durin", 343),
            ("medium", "e", "eowyn", 777),
        )
    },
}
# Pythia's sizes before they were counted with the embeddings.
_OLD_PYTHIA = {"19m": "70m", "125m": "160m", "350m": "410m", "800m": "1b", "1.3b": "1.4b", "2.7b": "2.8b",
               "6.7b": "6.9b", "13b": "12b"}  # fmt: skip


@functools.cache
def aliases() -> dict[str, str]:
    """Short names, in small letters, and the hub ids they stand for."""
    names = {repo.lower(): f"{owner}/{repo}" for owner, repos in _REPOSITORIES.items() for repo in repos}
    for old, new in _OLD_PYTHIA.items():
        names |= {
            name.replace(f"-{new}", f"-{old}", 1): id for name, id in names.items() if name.startswith(f"pythia-{new}")
        }
    return names | _OTHER_NAMES


def what_is(name: str) -> str | None:
    """What a model is that this library does not run, and why, told by its short name or hub id; None: not known."""
    name = name.lower()
    for kind in other_models():
        exact = {one + ending for one in kind.get("names", ()) for ending in kind.get("endings", ("",))}
        if name in exact or name.startswith(tuple(kind.get("prefixes", ()))):
            return f"{kind['what']}: {kind['why']}"
    return None
