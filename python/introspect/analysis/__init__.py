"""What a model computes: metrics, patching, lenses, heads, probes, erasure; native in cpp's analysis module."""

from .attribution import LogitAttribution, direct_logit_attribution
from .attribution_patching import attribution_patch
from .effects import EffectGrid
from .erasure import (
    FoundDirection,
    LeaceEraser,
    LeaceFitter,
    ablated,
    ablation_interventions,
    fit_leace,
    intervened,
    orthogonalised,
    refusal_direction,
)
from .head_detection import detect_head
from .heads import HeadTable, classify_attention_heads, classify_heads, repeated_tokens
from .lenses import JacobianLens, Lens, LensTable, Patchscope, TunedLens, logit_lens, patchscope, trajectory
from .metrics import (
    Accuracy,
    Divergence,
    JSDivergence,
    LogitDifference,
    LogProbability,
    Metric,
    Probability,
    ProbabilityDifference,
    Rank,
)
from .misalignment import MisalignmentReport, detect_misalignment
from .monitors import MonitorReport, monitor_report, probe_scores, set_threshold
from .patching import PatchGrid, PatchGrids, causal_trace, patch_grid
from .path_patching import direct_path_grid, path_patching
from .prediction import DebuggedPrediction, debug_prediction
from .probe_table import ProbeRow, ProbeTable
from .probes import Probe, fit_probe, probe_layers, probe_of_direction, probe_readout

__all__ = [
    "Accuracy",
    "DebuggedPrediction",
    "Divergence",
    "EffectGrid",
    "FoundDirection",
    "HeadTable",
    "JSDivergence",
    "JacobianLens",
    "LeaceEraser",
    "LeaceFitter",
    "Lens",
    "LensTable",
    "LogProbability",
    "LogitAttribution",
    "LogitDifference",
    "Metric",
    "MisalignmentReport",
    "MonitorReport",
    "PatchGrid",
    "PatchGrids",
    "Patchscope",
    "Probability",
    "ProbabilityDifference",
    "Probe",
    "ProbeRow",
    "ProbeTable",
    "Rank",
    "TunedLens",
    "ablated",
    "ablation_interventions",
    "attribution_patch",
    "causal_trace",
    "classify_attention_heads",
    "classify_heads",
    "debug_prediction",
    "detect_head",
    "detect_misalignment",
    "direct_logit_attribution",
    "direct_path_grid",
    "fit_leace",
    "fit_probe",
    "intervened",
    "logit_lens",
    "monitor_report",
    "orthogonalised",
    "patch_grid",
    "patchscope",
    "path_patching",
    "probe_layers",
    "probe_of_direction",
    "probe_readout",
    "probe_scores",
    "refusal_direction",
    "repeated_tokens",
    "set_threshold",
    "trajectory",
]
