"""Dictionaries: sparse autoencoders, transcoders and crosscoders; native in cpp's sae module."""

from .._C import DictionaryOrigin, DictionarySite
from ..steering.splice import splice_intervention, splice_interventions
from .absorption import Absorption, concept_absorption, first_letter_absorption
from .attribution import FeatureAttribution, attribute_features
from .contexts import Contexts, contexts_of
from .cross_layer_trainer import CrossLayerTrainer, train_cross_layer
from .cross_layer_transcoder import CrossLayerTranscoder
from .dictionary import SAE, Crosscoder, SAEConfig, SAEMetadata, SparseFeatures, Transcoder
from .diffing import (
    CrosscoderClasses,
    FeatureMonitor,
    FeatureShift,
    LatentScaling,
    crosscoder_classes,
    feature_monitor,
    latent_scaling,
    rising_features,
    text_features,
)
from .evaluation import Evaluation, evaluate
from .explanations import Endpoint, Explanation, Score, detection_score, explain, fuzzing_score
from .export import (
    neuronpedia_upload,
    read_neuronpedia,
    read_saedashboard,
    write_neuronpedia,
    write_saedashboard,
)
from .features import FeatureStatistics, feature_card, feature_statistics, logit_effects
from .probe_perturbation import (
    CorrelationRemoval,
    ProbePerturbation,
    spurious_correlation_removal,
    targeted_probe_perturbation,
)
from .probing import SparseProbing, sparse_probing
from .readouts import Feature, InjectedFeatures, feature_readout, injected_features
from .recovery import Recovery, best_cosines, decoder_cosines
from .saelens_names import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    SAETrainingRunner,
)
from .steering import (
    Decomposition,
    contrast_features,
    contrastive_steering,
    control_vector,
    decompose,
    steer_with_sae,
)
from .streams import ActivationFile, ActivationStream, TokenStream, token_stream, write_activations
from .trainer import Trainer, TrainerMetrics, anthropic_jumprelu
from .training import Training, train_many

__all__ = [
    "SAE",
    "Absorption",
    "ActivationFile",
    "ActivationStream",
    "Contexts",
    "CorrelationRemoval",
    "CrossLayerTrainer",
    "CrossLayerTranscoder",
    "Crosscoder",
    "CrosscoderClasses",
    "Decomposition",
    "DictionaryOrigin",
    "DictionarySite",
    "Endpoint",
    "Evaluation",
    "Explanation",
    "Feature",
    "FeatureAttribution",
    "FeatureMonitor",
    "FeatureShift",
    "FeatureStatistics",
    "InjectedFeatures",
    "LanguageModelSAERunnerConfig",
    "LanguageModelSAETrainingRunner",
    "LatentScaling",
    "ProbePerturbation",
    "Recovery",
    "SAEConfig",
    "SAEMetadata",
    "SAETrainingRunner",
    "Score",
    "SparseFeatures",
    "SparseProbing",
    "TokenStream",
    "Trainer",
    "TrainerMetrics",
    "Training",
    "Transcoder",
    "anthropic_jumprelu",
    "attribute_features",
    "best_cosines",
    "concept_absorption",
    "contexts_of",
    "contrast_features",
    "contrastive_steering",
    "control_vector",
    "crosscoder_classes",
    "decoder_cosines",
    "decompose",
    "detection_score",
    "evaluate",
    "explain",
    "feature_card",
    "feature_monitor",
    "feature_readout",
    "feature_statistics",
    "first_letter_absorption",
    "fuzzing_score",
    "injected_features",
    "latent_scaling",
    "logit_effects",
    "neuronpedia_upload",
    "read_neuronpedia",
    "read_saedashboard",
    "rising_features",
    "sparse_probing",
    "splice_intervention",
    "splice_interventions",
    "spurious_correlation_removal",
    "steer_with_sae",
    "targeted_probe_perturbation",
    "text_features",
    "token_stream",
    "train_cross_layer",
    "train_many",
    "write_activations",
    "write_neuronpedia",
    "write_saedashboard",
]
