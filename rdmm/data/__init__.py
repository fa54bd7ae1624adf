"""What is registered: inputs, intensities, lists of pairs, data sets to train on and to evaluate on."""

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
