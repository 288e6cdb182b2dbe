"""The protocols of STimage-1K4M's experiments, on arrays and modules.

What is theirs (models, classifiers, scores) comes from torch and scikit-learn; here is
how the paper wires them. Needs the extra ``stfast[learn]``.
"""

from stfast.learn.model import ContrastiveModel, contrastive_loss, paper_optimizer
from stfast.learn.predict import GeneFit, predict_genes
from stfast.learn.probe import Probe, linear_probe
from stfast.learn.scores import cluster_scores

__all__ = [
    "ContrastiveModel",
    "GeneFit",
    "Probe",
    "cluster_scores",
    "contrastive_loss",
    "linear_probe",
    "paper_optimizer",
    "predict_genes",
]
