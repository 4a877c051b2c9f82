"""Real weights: sentence-transformers/all-MiniLM-L6-v2, loaded, compared, and a probe trained on its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from zoo_core.contracts import Batch, Target
from zoo_core.data import Loader
from zoo_core.learner import Learner
from zoo_core.objective import default_objective
from zoo_transformers.backbones import Transformers

SST2 = Path(__file__).parents[3].parent / "shared" / "data" / "sst2"


def built(folder: Path) -> Any:
    return Transformers(files=str(folder)).build(folder, "pretrained")


def sst2(name: str, num: int) -> tuple[list[str], list[int]]:
    if not SST2.is_dir():
        pytest.skip(f"{SST2} is not here")
    lines = (SST2 / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[:num]
    rows = [line.split("\t", 1) for line in lines]
    return [text for _, text in rows], [int(label) for label, _ in rows]


def test_minilm_pools_as_sentence_transformers_documents(minilm: Path) -> None:
    backbone = built(minilm)
    texts = ["This is an example sentence", "Each sentence is converted", "", "short"]
    inputs = backbone.preparation.collate(backbone.preparation.prepare(texts))
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    assert torch.equal(encoded["input_ids"], inputs["input_ids"])
    assert torch.equal(encoded["attention_mask"], inputs["attention_mask"])
    with torch.no_grad():
        tokens = model(**encoded).last_hidden_state
        features = backbone(inputs)
        assert torch.equal(features.x, tokens)
        mask = encoded["attention_mask"].unsqueeze(-1).expand(tokens.size()).float()
        expected = torch.sum(tokens * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
        torch.testing.assert_close(backbone.pool(features), expected, rtol=1e-6, atol=1e-6)  # another order of sums
    assert backbone.preparation.max_length == 256


def test_minilm_and_a_linear_head_learn_sentiment(minilm: Path) -> None:
    """A probe on 120 sentences: well above half of 120 others, which is what always the same answer has."""
    from zoo_adapters.heads import Linear  # a sibling, which only tests may import

    backbone = built(minilm).requires_grad_(False)
    target = Target(kind="classes", names=("negative", "positive"))
    head = Linear().build(backbone.features, target)
    learner = Learner(backbone, head, "pooled", default_objective(target, head), target)
    learner.seal([*backbone.parameters(), *backbone.buffers()])
    optimiser = torch.optim.AdamW(learner.parameter_groups(lr=5e-2))

    def batches(name: str) -> list[Batch]:
        texts, labels = sst2(name, 120)
        split = Texts(texts, labels)
        loader = Loader(split, modality="text", target=target, preparation=backbone.preparation, batch_size=40)
        return list(loader.epoch())

    training = batches("train")
    learner.train()
    for _ in range(6):
        for batch in training:
            optimiser.zero_grad()
            learner.loss(learner(batch.inputs), batch).backward()
            optimiser.step()
    learner.eval()
    with torch.no_grad():
        right = [(learner(batch.inputs).predictions.argmax(1) == batch.target).float() for batch in batches("dev")]
    assert torch.cat(right).mean() > 0.7


class Texts:
    """A split of texts."""

    groups = None

    def __init__(self, texts: list[str], labels: list[int]) -> None:
        self.texts = texts
        self.targets = labels
        self.num = len(texts)
        self.ids = [str(index) for index in range(self.num)]

    def raw(self, index: int) -> str:
        return self.texts[index]
