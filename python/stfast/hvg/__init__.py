"""Highly variable genes: five definitions, one slide or a thousand, nothing loaded twice.

Sums per gene are made in Rust, block of rows after block of rows, from memory or
from disk; choosing genes from a few numbers a gene is done here, step by step as
scanpy documents it. One file an idea: ``source`` and ``files`` give blocks, ``passes``
sums them, ``moments`` keeps sums, ``dispersion`` and ``ranking`` choose, ``flavors``
says which needs what, ``genes`` and ``recipes`` are what users call.
"""

from stfast.hvg.genes import highly_variable_genes
from stfast.hvg.moments import GeneMoments, gene_moments
from stfast.hvg.recipes import hvg_overlap, hvg_rank_combined

__all__ = [
    "GeneMoments",
    "gene_moments",
    "highly_variable_genes",
    "hvg_overlap",
    "hvg_rank_combined",
]
