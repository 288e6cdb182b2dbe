"""The experiments of STimage-1K4M on any built dataset.

What is theirs (models, classifiers, scores) comes from torch, transformers, timm and
scikit-learn; here is how the paper wires them. Needs the extra ``stfast[learn]``.
"""

from stfast.learn._checkpoint import Trained, load_checkpoint
from stfast.learn.embedding import Embedding, embed, read_embeddings, to_obsm
from stfast.learn.experiments import (
    GenePrediction,
    cluster_models,
    expression,
    labels_of,
    predict_slides,
    probe_models,
    tsne,
)
from stfast.learn.model import ContrastiveModel, contrastive_loss, paper_optimizer
from stfast.learn.plots import draw_clusters, draw_genes, draw_losses, draw_probes, draw_slides
from stfast.learn.predict import GeneFit, predict_genes
from stfast.learn.probe import Probe, linear_probe
from stfast.learn.report import write_report
from stfast.learn.scores import cluster_scores
from stfast.learn.towers import Preprocess, Tower, open_tower, own, plain
from stfast.learn.training import Training, train

__all__ = [
    "ContrastiveModel",
    "Embedding",
    "GeneFit",
    "GenePrediction",
    "Preprocess",
    "Probe",
    "Tower",
    "Trained",
    "Training",
    "cluster_models",
    "cluster_scores",
    "contrastive_loss",
    "draw_clusters",
    "draw_genes",
    "draw_losses",
    "draw_probes",
    "draw_slides",
    "embed",
    "expression",
    "labels_of",
    "linear_probe",
    "load_checkpoint",
    "open_tower",
    "own",
    "paper_optimizer",
    "plain",
    "predict_genes",
    "predict_slides",
    "probe_models",
    "read_embeddings",
    "to_obsm",
    "train",
    "tsne",
    "write_report",
]
