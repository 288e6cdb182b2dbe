"""Species and tissues by one name each, those of STimage-1K4M.

Repositories say ``Homo sapiens``, ``human`` and ``GRCh38`` of the same thing; a split by
tissue wants one word.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

_SPECIES = {
    "human": ("homo sapiens", "h. sapiens", "hs", "man", "humans", "grch38", "grch37", "hg19",
              "hg38"),
    "mouse": ("mus musculus", "m. musculus", "mm", "mice", "murine", "grcm38", "grcm39", "mm9",
              "mm10", "mm39"),
    "rattus norvegicus": ("rat", "rats", "r. norvegicus", "rn6", "rn7", "mratbn7.2"),
    "pig": ("sus scrofa", "swine", "sscrofa11.1"),
    "fish": ("danio rerio", "zebrafish", "grcz11"),
    "frog": ("xenopus laevis", "xenopus tropicalis", "xenopus"),
    "ambystoma mexicanum": ("axolotl",),
    "plant": ("arabidopsis thaliana", "arabidopsis", "tair10"),
    "human & mouse": ("human and mouse", "grch38_and_mm10", "grch38_and_grcm39", "hg19_and_mm10"),
}  # fmt: skip
_TISSUES = {
    "brain": ("cerebrum", "whole brain", "cerebral cortex", "cortex", "hippocampus",
              "prefrontal cortex", "dorsolateral prefrontal cortex", "dlpfc"),
    "breast": ("mammary gland", "mammary", "breast tissue", "breast cancer"),
    "colon": ("colonic mucosa", "colon tissue"),
    "colorectal": ("colorectum",),
    "heart": ("cardiac", "myocardium", "cardiac muscle"),
    "intestine": ("small intestine", "gut", "bowel"),
    "kidney": ("renal", "renal cortex"),
    "large intestine": ("largeintestine",),
    "liver": ("hepatic",),
    "lung": ("pulmonary", "lungs"),
    "lymph node": ("lymphnode", "lymph nodes"),
    "mouth": ("oral cavity", "oral mucosa"),
    "muscle": ("skeletal muscle",),
    "olfactory bulb": ("main olfactory bulb", "mob"),
    "ovary": ("ovarian", "ovaries"),
    "pancreas": ("pancreatic",),
    "prostate": ("prostate gland",),
    "skin": ("cutaneous", "dermis", "epidermis"),
    "stomach": ("gastric",),
}  # fmt: skip
_VOCABULARIES = {"species": _SPECIES, "tissue": _TISSUES}


def clean_terms(
    texts: Iterable[str | None],
    vocabulary: Literal["species", "tissue"],
    *,
    synonyms: Mapping[str, str] | None = None,
) -> list[str | None]:
    """Say species or tissues in STimage-1K4M's words.

    Parameters
    ----------
    texts
        What n slides say; null is nothing.
    vocabulary
        ``"species"`` or ``"tissue"``.
    synonyms
        More words and what they become; they go before the built-in ones.

    Returns
    -------
    list of str or None
        n words: in lower case, with single spaces, and by the one name where several are
        known. A word that is not known stays as it is; an empty text is None.

    Raises
    ------
    ValueError
        No such vocabulary.
    TypeError
        Something that is neither text nor null, or one text in place of several.

    Notes
    -----
    Each term of the published table (Chen et al., 2024) stays as it is but for two that are
    written in two ways there, ``lymphnode`` and ``largeintestine``. Parts of the brain, as
    ``hippocampus``, are ``brain``, as the table has them; ``cerebellum`` is a term of its own.
    """
    if vocabulary not in _VOCABULARIES:
        raise ValueError(f"vocabulary: expected species or tissue, got {vocabulary!r}")
    if isinstance(texts, str):
        raise TypeError(f"texts: expected several texts, got one, {texts!r}")
    known = {word: name for name, words in _VOCABULARIES[vocabulary].items() for word in words}
    known |= {_plain(word): name for word, name in (synonyms or {}).items()}
    plain = [_plain(text) for text in texts]
    return [known.get(text, text) if text else None for text in plain]


def _plain(text: str | None) -> str:
    if text is None or text != text:  # noqa: PLR0124  NaN is pandas' null
        return ""
    if not isinstance(text, str):
        raise TypeError(f"texts: expected texts, got {text!r}")
    return re.sub(r"\s+", " ", text).strip().lower()


def species_of_genome(genome: str) -> str | None:
    """The species of a reference genome; None where it is not known."""
    found = clean_terms([genome.split("-", maxsplit=1)[0]], "species")[0]
    return found if found in _SPECIES else None
