"""The protocols and value types that the core and its plugins share. Importable without torch.

One legend for axes: B batch, T tokens, D feature width, H W rows and columns, C outputs, N K numeric and
categorical columns. A plugin implements the protocols by shape; it inherits nothing, and
what a recipe does not say of itself has a default (`fact`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo_core.contracts.modules import (
    Backbone,
    ClosedForm,
    Divisible,
    Exportable,
    Extendable,
    LinearMap,
    Objective,
    Preparation,
    as_backbone,
)
from zoo_core.contracts.recipes import (
    AdapterFacts,
    AdapterFormat,
    AdapterRecipe,
    BackboneRecipe,
    Context,
    HeadFacts,
    HeadRecipe,
    Located,
    MergesItself,
    Namespace,
    TaskFacts,
    TaskRecipe,
    fact,
)
from zoo_core.contracts.values import (
    Batch,
    Features,
    FeatureSpec,
    FileHash,
    Output,
    Site,
    Source,
    Split,
    Target,
    TaskData,
)
from zoo_core.contracts.vocabulary import (
    KINDS,
    METRICS,
    MODALITIES,
    PART_KINDS,
    ROLES,
    TARGET_KINDS,
    TRUSTS,
    Change,
    Kind,
    Metric,
    Modality,
    PartKind,
    Raw,
    Seam,
    TargetKind,
    Trust,
    Weights,
)

if TYPE_CHECKING:
    from zoo_core.contracts.modules import LoadedBackbone as LoadedBackbone  # there is none without torch

__all__ = [
    "KINDS",
    "METRICS",
    "MODALITIES",
    "PART_KINDS",
    "ROLES",
    "TARGET_KINDS",
    "TRUSTS",
    "AdapterFacts",
    "AdapterFormat",
    "AdapterRecipe",
    "Backbone",
    "BackboneRecipe",
    "Batch",
    "Change",
    "ClosedForm",
    "Context",
    "Divisible",
    "Exportable",
    "Extendable",
    "FeatureSpec",
    "Features",
    "FileHash",
    "HeadFacts",
    "HeadRecipe",
    "Kind",
    "LinearMap",
    "Located",
    "MergesItself",
    "Metric",
    "Modality",
    "Namespace",
    "Objective",
    "Output",
    "PartKind",
    "Preparation",
    "Raw",
    "Seam",
    "Site",
    "Source",
    "Split",
    "Target",
    "TargetKind",
    "TaskData",
    "TaskFacts",
    "TaskRecipe",
    "Trust",
    "Weights",
    "as_backbone",
    "fact",
]
