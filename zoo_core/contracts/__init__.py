"""The protocols and value types that zoo-core and its plugins share. Importing them does not import torch.

A plugin implements a protocol by having its methods and attributes. It inherits from nothing here, and what a recipe
does not say of itself has a default (`fact`).
The axes of tensors have one legend: B batch, T tokens, D feature width, H W rows and columns, C outputs, N K numeric
and categorical columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo_core.contracts.extensions import AugmentationRecipe, MetricRecipe, ReaderRecipe
from zoo_core.contracts.modules import (
    Backbone,
    ClosedForm,
    Exportable,
    Extendable,
    Learner,
    LinearMap,
    MicroBatchable,
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
    Surveyed,
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
    Survey,
    Target,
    TaskData,
)
from zoo_core.contracts.vocabulary import (
    FEATURE_KINDS,
    METRICS,
    MODALITIES,
    PART_KINDS,
    ROLES,
    SUFFIXES,
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
    "FEATURE_KINDS",
    "METRICS",
    "MODALITIES",
    "PART_KINDS",
    "ROLES",
    "SUFFIXES",
    "TARGET_KINDS",
    "TRUSTS",
    "AdapterFacts",
    "AdapterFormat",
    "AdapterRecipe",
    "AugmentationRecipe",
    "Backbone",
    "BackboneRecipe",
    "Batch",
    "Change",
    "ClosedForm",
    "Context",
    "Exportable",
    "Extendable",
    "FeatureSpec",
    "Features",
    "FileHash",
    "HeadFacts",
    "HeadRecipe",
    "Kind",
    "Learner",
    "LinearMap",
    "Located",
    "MergesItself",
    "Metric",
    "MetricRecipe",
    "MicroBatchable",
    "Modality",
    "Namespace",
    "Objective",
    "Output",
    "PartKind",
    "Preparation",
    "Raw",
    "ReaderRecipe",
    "Seam",
    "Site",
    "Source",
    "Split",
    "Survey",
    "Surveyed",
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
