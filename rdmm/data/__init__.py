"""Data to register: inputs, intensities, lists of pairs, and data sets.

``given`` is the table of optional inputs, and ``inputs`` reads all inputs. ``training`` and ``studies`` have data sets for training and
for evaluation; ``synthetic`` makes random pairs. YAML files use the names below.
"""

from rdmm.lazy import lazy_names

__all__, __getattr__ = lazy_names(
    "rdmm.data",
    {
        "intensity": ["Normalize"],
        "parts": ["Labels"],
        "synthetic.cage": ["RigidCage"],
        "synthetic.contrasts": ["Contrasts"],
        "synthetic.sliding": ["Sliding"],
        "synthetic.scenes": ["SyntheticShapes"],
        "synthetic.strain": ["StrainScenes"],
        "synthetic.volumes": ["Volumes"],
        "training.augment": ["Augment"],
        "training.mixture": ["Mixture"],
        "training.pairs": ["ContrastPairs", "ImagePairs", "StrainPairs", "SyntheticPairs"],
        "training.sources": ["FolderSource"],
        "training.volumes": ["VolumePairs"],
        "training.tables": ["PairSource", "TableSource"],
        "studies.brains": ["BrainSlices", "Brains"],
        "studies.clouds": ["Clouds"],
        "studies.knees": ["Knees"],
        "studies.livers": ["Livers"],
        "studies.lungs": ["LungMasks", "RightLung"],
        "studies.meshes": ["Amoebas", "KneeVoxels", "Meshes"],
        "studies.pair_table": ["PairTable"],
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
