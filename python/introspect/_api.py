"""Everything ``introspect`` exports. Importing this loads torch and the compiled library."""

from . import _C, analysis, circuits, io, ops, patching, repeng, sae, statistics, studies, utils
from ._C import (
    Adapter,
    ChatTemplate,
    Condition,
    ConfigError,
    Error,
    HookError,
    Intervention,
    IoError,
    KVCache,
    Protocol,
    ShapeError,
    StreamDecoder,
    TextFilter,
    Tokenizer,
    TokenTrie,
    operator_names,
    register_operator,
    run_trie,
)
from .analysis.metrics import (
    Accuracy,
    Divergence,
    JSDivergence,
    LogitDifference,
    LogProbability,
    Probability,
    ProbabilityDifference,
    Rank,
)
from .data import load_suffixes, load_words
from .experiments.plans import ExperimentPlan
from .experiments.range_search import RangeEstimates, RangeSearch, estimate_ranges, refine_ranges, screen_ranges
from .experiments.readouts import ReadoutInputs, register_readout
from .experiments.results import Result
from .experiments.run import conversation_tokens, layer_ranges, load_protocol, run_experiment, run_experiments
from .experiments.store import Store
from .finetuning import FinetuneExample, finetune
from .graph import Graph
from .hooks.activation_cache import ActivationCache
from .hub.sources import pull, resolve
from .lora import score_examples, train_lora
from .model import Model, load_model
from .ray_cluster import RayWorkers
from .sae.cross_layer_transcoder import CrossLayerTranscoder
from .sae.dictionary import SAE, Crosscoder, Transcoder
from .steering.norms import residual_norms
from .steering.training import (
    Activations,
    ControlVector,
    LayerDiagnostics,
    collect_activations,
    concept_pairs,
    contrast,
    contrast_models,
    diagnose,
    direction_of_pairs,
    random_directions,
    random_rotation,
    shuffled_vectors,
)
from .studies.dose import coherent_window, dose, equal_dose, solve_strength
from .studies.study import Study, run_study
from .transformer_lens import evals, loading
from .transformer_lens.factored_matrix import FactoredMatrix
from .transformer_lens.hook_root import HookedRootModule, HookPoint
from .transformer_lens.hooked_transformer import HookedTransformer
from .transformer_lens.key_value_cache import HookedTransformerKeyValueCache
from .transformer_lens.svd_interpreter import SVDInterpreter
from .transformer_lens.transformer_config import HookedTransformerConfig

# TransformerLens's first names, and its last one for a cache of keys and values.
EasyTransformer, EasyTransformerConfig = HookedTransformer, HookedTransformerConfig
HookedSAETransformer = HookedTransformer  # SAELens's
TransformerLensKeyValueCache = HookedTransformerKeyValueCache

__version__ = _C.__version__
__all__ = [
    "SAE",
    "Accuracy",
    "ActivationCache",
    "Activations",
    "Adapter",
    "ChatTemplate",
    "Condition",
    "ConfigError",
    "ControlVector",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Divergence",
    "EasyTransformer",
    "EasyTransformerConfig",
    "Error",
    "ExperimentPlan",
    "FactoredMatrix",
    "FinetuneExample",
    "Graph",
    "HookError",
    "HookPoint",
    "HookedRootModule",
    "HookedSAETransformer",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "Intervention",
    "IoError",
    "JSDivergence",
    "KVCache",
    "LayerDiagnostics",
    "LogProbability",
    "LogitDifference",
    "Model",
    "Probability",
    "ProbabilityDifference",
    "Protocol",
    "RangeEstimates",
    "RangeSearch",
    "Rank",
    "RayWorkers",
    "ReadoutInputs",
    "Result",
    "SVDInterpreter",
    "ShapeError",
    "Store",
    "StreamDecoder",
    "Study",
    "TextFilter",
    "TokenTrie",
    "Tokenizer",
    "Transcoder",
    "TransformerLensKeyValueCache",
    "analysis",
    "circuits",
    "coherent_window",
    "collect_activations",
    "concept_pairs",
    "contrast",
    "contrast_models",
    "conversation_tokens",
    "diagnose",
    "direction_of_pairs",
    "dose",
    "equal_dose",
    "estimate_ranges",
    "evals",
    "finetune",
    "io",
    "layer_ranges",
    "load_model",
    "load_protocol",
    "load_suffixes",
    "load_words",
    "loading",
    "operator_names",
    "ops",
    "patching",
    "pull",
    "random_directions",
    "random_rotation",
    "refine_ranges",
    "register_operator",
    "register_readout",
    "repeng",
    "residual_norms",
    "resolve",
    "run_experiment",
    "run_experiments",
    "run_study",
    "run_trie",
    "sae",
    "score_examples",
    "screen_ranges",
    "shuffled_vectors",
    "solve_strength",
    "statistics",
    "studies",
    "train_lora",
    "utils",
]
