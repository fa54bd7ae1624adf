"""What is registered: inputs, intensities, lists of pairs, and data sets.

``given`` is the table of all inputs and ``inputs`` reads them; ``training`` and ``studies`` hold data sets to train and to evaluate on.
``synthetic`` makes pairs from nothing. The names below are those that YAML files use.
"""

from rdmm.lazy import lazy_names

__all__, __getattr__ = lazy_names(
    "rdmm.data",
    {
        "intensity": ["Normalize"],
        "synthetic.contrasts": ["Contrasts"],
        "synthetic.scenes": ["SyntheticShapes"],
        "training.augment": ["Augment"],
        "training.pairs": ["ContrastPairs", "ImagePairs", "SyntheticPairs"],
        "training.sources": ["FolderSource"],
        "training.tables": ["PairSource", "TableSource"],
        "studies.brains": ["BrainSlices", "Brains"],
        "studies.knees": ["Knees"],
        "studies.livers": ["Livers"],
        "studies.lungs": ["LungMasks", "RightLung"],
        "studies.meshes": ["Amoebas", "KneeVoxels", "Meshes"],
        "studies.pair_table": ["PairTable"],
    },
)
