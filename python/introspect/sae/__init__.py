"""Dictionaries: sparse autoencoders, transcoders and crosscoders; native in cpp's sae module."""

from .._C import DictionaryOrigin, DictionarySite
from ..steering.splice import splice_intervention
from .attribution import FeatureAttribution, attribute_features
from .cross_layer_transcoder import CrossLayerTranscoder
from .dictionary import SAE, Crosscoder, SAEConfig, SAEMetadata, SparseFeatures, Transcoder
from .readouts import Feature, InjectedFeatures, feature_readout, injected_features
from .steering import (
    Decomposition,
    contrast_features,
    contrastive_steering,
    control_vector,
    decompose,
    steer_with_sae,
)

__all__ = [
    "SAE",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Decomposition",
    "DictionaryOrigin",
    "DictionarySite",
    "Feature",
    "FeatureAttribution",
    "InjectedFeatures",
    "SAEConfig",
    "SAEMetadata",
    "SparseFeatures",
    "Transcoder",
    "attribute_features",
    "contrast_features",
    "contrastive_steering",
    "control_vector",
    "decompose",
    "feature_readout",
    "injected_features",
    "splice_intervention",
    "steer_with_sae",
]
