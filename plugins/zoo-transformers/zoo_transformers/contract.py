"""A model of transformers under the backbone contract: preparation, stages, sites, pooling, weights from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoo_core.contracts import Features, FeatureSpec, Modality, Preparation, Site, Target
from zoo_core.errors import IntegrityError, RefusedError, UsageError
from zoo_core.toolkit.prompts import PromptTokens
from zoo_core.toolkit.weights import assign, blank, open_pickle, open_tensors
from zoo_transformers.audio import audio_preparation
from zoo_transformers.checkpoint import converted, weight_files
from zoo_transformers.configuration import Described, describe
from zoo_transformers.export import write
from zoo_transformers.families import Family, Pool
from zoo_transformers.images import image_preparation
from zoo_transformers.masks import feature_mask, word_positions
from zoo_transformers.pooling import pooled, stated_pool
from zoo_transformers.sites import find_sites, stage_paths, width
from zoo_transformers.text import text_preparation

__all__ = ["TransformersBackbone", "backbone"]

HALVES = (torch.bfloat16, torch.float16)


class TransformersBackbone(nn.Module):
    """A model of transformers without its head, as a backbone; its last hidden state is the features.

    attends: whether the model is told which inputs are padding; if not, only pooling is. files: of the repository.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        preparation: Preparation,
        *,
        pooling: Pool,
        attends: bool,
        files: Path,
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.files = files
        self.preparation = preparation
        self.pooling: Pool = pooling
        self.attends = attends
        self.modality: Modality = family.modality
        self.features = FeatureSpec(kind=family.kind, dim=width(model.config))
        self.stages = tuple(f"model.{path}" for path in stage_paths(model, family))
        self._sites = find_sites(model, family, prefix="model.")
        how = family.prompts
        self._prompts = PromptTokens(how.start if how else 0, reserved=how is not None and how.at == "words")

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """inputs: as the preparation gives them. Features are float32 where the weights have half precision."""
        given = {name: inputs[name] for name in self.family.inputs}
        mask = given.pop("attention_mask", None)
        own = self.model.dtype
        given = {name: x.to(own) if x.is_floating_point() else x for name, x in given.items()}
        if self.attends and mask is not None:
            given |= self._attention_mask(mask)
        if self._prompts.length and self._prompts.reserved:
            given = self._with_places(given)
        x: Tensor = self.model(**given).last_hidden_state
        x = self._prompts.without(x.float() if own in HALVES else x)
        if self.family.kind == "map":
            return Features(kind="map", x=self._as_map(x, given["pixel_values"]))
        return Features(kind="tokens", x=x, mask=feature_mask(self.family.mask, mask, x.shape[1], self.model.config))

    def _attention_mask(self, mask: Tensor) -> dict[str, Tensor]:
        """What tells the model of padding. On the meta device, where no mask can be looked at, all tokens are real."""
        if not mask.is_meta:
            return {"attention_mask": mask}
        if self.family.mask != "tokens":
            return {}
        return {"attention_mask": mask.bool()[:, None, None]}  # with four axes it is taken as it is

    def _with_places(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same texts as embedded words, with a place for each learned token before them, all of them to be seen.

        The words keep the positions they have without.
        """
        how, embedding = self.family.prompts, self.model.get_input_embeddings()
        assert how is not None
        assert isinstance(embedding, nn.Embedding)
        ids, length = given["input_ids"], self._prompts.length
        words: Tensor = embedding(ids)
        found = {"inputs_embeds": torch.cat([words.new_zeros(len(ids), length, words.shape[-1]), words], dim=1)}
        if "attention_mask" in given:
            mask = given["attention_mask"]
            found["attention_mask"] = torch.cat([mask.new_ones(*mask.shape[:-1], length), mask], dim=-1)
        if how.positions != "own":
            positions = word_positions(ids, how, embedding.padding_idx)
            found["position_ids"] = torch.cat([positions.new_zeros(len(positions), length), positions], dim=1)
        return found

    def extend(self, prompt: nn.Module, length: int) -> int:
        """Learned tokens before the words, or behind the class token: see zoo_core.contracts.Extendable.

        Raises RefusedError for families whose masks, windows or local attention leave no place for them.
        """
        kinds = set(getattr(self.model.config, "layer_types", None) or ()) - {"full_attention"}
        if self.family.prompts is None or kinds:
            raise RefusedError(
                f"{self.model.config.model_type} attends within windows or near each token, or makes its masks inside, "
                f"so not every token would see the learned ones; prefix, lora and bottleneck work on most of these"
            )
        return self._prompts.add(self.get_submodule(self.stages[0]), prompt, length)

    def _as_map(self, x: Tensor, pixels_BCHW: Tensor) -> Tensor:
        """Swin's rows of tokens [B, H * W, D] as [B, D, H, W]; what is a map already as it is."""
        if x.ndim == 4:
            return x
        config = self.model.config
        sides = [-(-side // config.patch_size) for side in pixels_BCHW.shape[2:]]
        for _ in config.depths[1:]:  # between stages, neighbours are merged and an odd side is padded
            sides = [-(-side // 2) for side in sides]
        map_BDHW: Tensor = x.transpose(1, 2).unflatten(2, sides)
        return map_BDHW

    def pool(self, features: Features) -> Tensor:
        """One vector for each example, float [B, D], by the rule `pooling`: see zoo_transformers.pooling."""
        return pooled(self.model, self.pooling, features)

    def sites(self, role: str) -> tuple[Site, ...]:
        return self._sites.get(role, ())

    def export(self, folder: Path, head: nn.Linear | None, target: Target) -> str:
        """Writes a folder that transformers loads by itself, with what prepares inputs, and without the head."""
        return write(self.model, self.files, folder)


def backbone(files: Path, *, globs: Sequence[str], dtype: str, max_length: int | None) -> nn.Module:
    """The backbone that a folder describes.

    globs: of weights, best first; none for random ones, drawn as transformers does. dtype: of the weights.
    max_length: of texts, None for the most that is allowed.
    """
    described = describe(files)
    preparation, attends = _preparation(described, max_length, loads=bool(globs))
    model = _model(described, weight_files(files, globs) if globs else [], getattr(torch, dtype))
    pooling = stated_pool(files) or described.family.pool
    found = TransformersBackbone(model, described.family, preparation, pooling=pooling, attends=attends, files=files)
    return found.eval()


def _preparation(described: Described, max_length: int | None, *, loads: bool) -> tuple[Preparation, bool]:
    """What prepares a repository's inputs, and whether its model is told what of them is padding.

    loads: whether weights are loaded too; then a tokeniser waits for its first use.
    """
    if described.family.modality == "text":
        text = text_preparation(described, max_length=max_length)
        if not loads:
            text.read()  # so that a damaged one is refused before any weights are fetched
        return text, True
    if max_length is not None:
        raise UsageError(f"hf: max_length is for texts, and {described.path.parent} reads {described.family.modality}")
    if described.family.modality == "image":
        return image_preparation(described.path.with_name("preprocessor_config.json")), False
    audio = audio_preparation(described)
    return audio, audio.attends


def _blank_model(described: Described) -> PreTrainedModel:
    """The library's model without a walk for initial values, which takes longer than loading.

    By a class of its own: `no_init_weights` of the library takes the functions of torch.nn.init, and its own, away from
    every thread of the process, and modules that another one makes meanwhile would stay as memory was.
    """
    kind = described.model
    without: type[PreTrainedModel] = type(kind.__name__, (kind,), {"init_weights": lambda self: None})
    model = without(described.config, **described.family.arguments)
    model.__class__ = kind
    return model


def _model(described: Described, paths: Sequence[Path], dtype: torch.dtype) -> PreTrainedModel:
    """The library's model in evaluation mode, with the weights of the files, or random ones where there are none."""
    family = described.family
    with ExitStack() as stack:
        if paths:
            stack.enter_context(blank())
        try:
            model = _blank_model(described) if paths else described.model(described.config, **family.arguments)
        except Exception as error:  # the model's own code raises whatever a wrong number leads to
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
            raise IntegrityError(f"{described.path} describes no model that can be built: {reason:.200}") from error
    if not paths:
        nn.Module.to(model, dtype)
        return model
    source = str(paths[0] if len(paths) == 1 else paths[0].parent)
    read = open_pickle if paths[0].suffix == ".bin" else open_tensors
    tensors = converted(model, family, read(paths))
    assign(model, tensors, source=source, unused=family.unused, dtype=dtype, paths=paths)
    return model
