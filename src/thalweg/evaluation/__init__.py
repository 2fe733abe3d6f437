"""Did it really get better? Accuracy with intervals, diversity, monitors against hacking, and the report."""

from thalweg.evaluation.advice import warnings
from thalweg.evaluation.comparison import write_comparison
from thalweg.evaluation.confidence import Estimate, accuracy_metrics, difference, mean_of, wilson
from thalweg.evaluation.diversity import (
    attribute_entropy,
    cosine_distance,
    diversity_metrics,
    euclidean_distance,
    vendi_score,
)
from thalweg.evaluation.features import image_features
from thalweg.evaluation.monitors import (
    border_deviation,
    drift,
    duplicate_fraction,
    feature_shift,
    frechet_distance,
    image_statistics,
    monitor_metrics,
)
from thalweg.evaluation.record import Record, read_run
from thalweg.evaluation.report import write_report

__all__ = [
    "Estimate",
    "Record",
    "accuracy_metrics",
    "attribute_entropy",
    "border_deviation",
    "cosine_distance",
    "difference",
    "diversity_metrics",
    "drift",
    "duplicate_fraction",
    "euclidean_distance",
    "feature_shift",
    "frechet_distance",
    "image_features",
    "image_statistics",
    "mean_of",
    "monitor_metrics",
    "read_run",
    "vendi_score",
    "warnings",
    "wilson",
    "write_comparison",
    "write_report",
]
