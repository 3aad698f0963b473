"""TransformerLens's ``head_detector``: heads that show a pattern of attention. ``introspect.analysis`` has it too."""

from .analysis.head_detection import (
    HEAD_NAMES,
    ErrorMeasure,
    HeadName,
    compute_head_attention_similarity_score,
    detect_head,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern,
    get_supported_heads,
)

__all__ = [
    "HEAD_NAMES",
    "ErrorMeasure",
    "HeadName",
    "compute_head_attention_similarity_score",
    "detect_head",
    "get_duplicate_token_head_detection_pattern",
    "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern",
    "get_supported_heads",
]
