"""The paper's pair of towers: a picture's model and one linear layer for genes, 32-d both.

The tower is any module; the head's input is the tower's own output width, so that CLIP,
PLIP (512) and UNI (1024) need no special case.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from stfast.loader import SparseRows


class ContrastiveModel(nn.Module):
    """Image tower → linear, genes → linear, and a learnt logit scale.

    Parameters
    ----------
    tower
        Takes images (n, 3, h, w); returns (n, ``width``) or an output with
        ``image_embeds``, as transformers' ``CLIPVisionModelWithProjection`` does.
    width
        Features that the tower returns.
    n_genes
        Columns of the gene matrix.
    size
        Side of the shared space; the paper's is 32.

    Notes
    -----
    Weights of both heads are Xavier uniform, the scale starts at ln(1 / 0.07)
    (STimage-1K4M; Radford et al. 2021).
    """

    def __init__(self, tower: nn.Module, *, width: int, n_genes: int, size: int = 32) -> None:
        super().__init__()
        self.tower = tower
        self.image_head = nn.Linear(width, size)
        self.gene_head = nn.Linear(n_genes, size)
        for head in (self.image_head, self.gene_head):
            nn.init.xavier_uniform_(head.weight)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def features(self, images: Tensor) -> Tensor:
        """The tower's own embedding, (n, width)."""
        out: Any = self.tower(images)
        features: Tensor = getattr(out, "image_embeds", out)
        if features.ndim != 2 or features.shape[1] != self.image_head.in_features:
            wanted = f"(n, {self.image_head.in_features})"
            raise ValueError(f"tower: expected output {wanted}, got {tuple(features.shape)}")
        return features

    def forward(self, images: Tensor, genes: "Tensor | SparseRows") -> tuple[Tensor, Tensor]:
        """Embeddings of images and of genes, (n, size) both, not yet of length one."""
        return self.image_head(self.features(images)), self.embed_genes(genes)

    def embed_genes(self, genes: "Tensor | SparseRows") -> Tensor:
        """The gene tower of dense or sparse rows, (n, size)."""
        if isinstance(genes, Tensor):
            embedded: Tensor = self.gene_head(genes)
            return embedded
        return self.gene_head.bias + functional.embedding_bag(
            genes.indices.long(),
            self.gene_head.weight.T,
            genes.indptr,
            mode="sum",
            per_sample_weights=genes.values,
            include_last_offset=True,
        )

    def loss(self, images: Tensor, genes: "Tensor | SparseRows") -> Tensor:
        """The symmetric loss of a batch of pairs."""
        image, gene = self(images, genes)
        return contrastive_loss(image, gene, self.logit_scale)


def contrastive_loss(images: Tensor, genes: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss: cross-entropy over rows and over columns, halved.

    Parameters
    ----------
    images, genes
        Paired embeddings, (n, size) both; scaled to length one here.
    logit_scale
        Logarithm of what cosines are multiplied by.

    Raises
    ------
    ValueError
        When the two shapes differ.
    """
    if images.shape != genes.shape:
        shapes = f"{tuple(images.shape)} and {tuple(genes.shape)}"
        raise ValueError(f"embeddings: expected equal shapes, got {shapes}")
    images = functional.normalize(images, dim=1)
    genes = functional.normalize(genes, dim=1)
    logits = logit_scale.exp() * images @ genes.T
    pairs = torch.arange(len(logits), device=logits.device)
    rows = functional.cross_entropy(logits, pairs)
    return (rows + functional.cross_entropy(logits.T, pairs)) / 2


def paper_optimizer(
    model: nn.Module, *, lr: float = 5e-5, weight_decay: float = 0.2
) -> torch.optim.Adam:
    """Adam as the paper sets it: 5e-5, (0.9, 0.98), 1e-6, weight decay 0.2."""
    return torch.optim.Adam(
        model.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=weight_decay
    )
