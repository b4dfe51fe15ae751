"""Functions on arrays: how well logits classify and simple classifiers do on features, and what features look like."""

from difformer.analysis.bootstrap import Interval, PairedDifference, bootstrap_mean, paired_bootstrap
from difformer.analysis.cka import MinibatchCKA, cka, cknna
from difformer.analysis.knn import knn_scores
from difformer.analysis.linear import LinearModel, choose
from difformer.analysis.logistic import LogisticFit, logistic_path
from difformer.analysis.metrics import (
    METRICS,
    ClassificationMetrics,
    ClassMetrics,
    ImageScores,
    Metric,
    accuracy,
    calibration_error,
    classification_metrics,
    confusion_matrix,
    find_metric,
    image_scores,
    measure,
)
from difformer.analysis.pca import PrincipalComponents, pca_maps, principal_components
from difformer.analysis.retrieval import nearest_images, precision_at_k
from difformer.analysis.ridge import RidgeFit, choose_leave_one_out, ridge_path
from difformer.analysis.scatter import view_criterion
from difformer.analysis.sgd import SGDFit, sgd_grids
from difformer.analysis.wilson import images_of_equal_weight, share_interval

__all__ = [
    "METRICS",
    "ClassMetrics",
    "ClassificationMetrics",
    "ImageScores",
    "Interval",
    "LinearModel",
    "LogisticFit",
    "Metric",
    "MinibatchCKA",
    "PairedDifference",
    "PrincipalComponents",
    "RidgeFit",
    "SGDFit",
    "accuracy",
    "bootstrap_mean",
    "calibration_error",
    "choose",
    "choose_leave_one_out",
    "cka",
    "cknna",
    "classification_metrics",
    "confusion_matrix",
    "find_metric",
    "image_scores",
    "images_of_equal_weight",
    "knn_scores",
    "logistic_path",
    "measure",
    "nearest_images",
    "paired_bootstrap",
    "pca_maps",
    "precision_at_k",
    "principal_components",
    "ridge_path",
    "sgd_grids",
    "share_interval",
    "view_criterion",
]
