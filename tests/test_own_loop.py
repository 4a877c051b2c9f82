"""A learner in somebody else's loop: plain torch, transformers' Trainer, Lightning; compiled, copied, for several GPUs.

Every loop sees the batches that `zoo_core.fit` sees, with its schedule and clipping, so its weights are the same.
"""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import zoo_core
from tests.taught.fixture import Taught
from zoo_core.contracts import Batch, Split, Target
from zoo_core.data.loader import Loader
from zoo_core.data.randomness import derive_seed
from zoo_core.data.splits import carve
from zoo_core.errors import PluginError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.model.transforms import with_transforms
from zoo_core.testing.toys import ToyBackbone

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_adapters")
pytest.importorskip("zoo_distill")

TASK = "digits(shots=5)"
SPECS = ("starter/vit-nano+partial(n=2)", "starter/vit-nano+lora(r=4)")
# A map of widths trains beside it. Nothing is clipped: each loop sums the norm for that in an order of its own.
TAUGHT = SPECS[0] + '+distill(teacher="{run}")+distill-features(teacher="{run}",weight=0.05)'
OF_FEATURES = SPECS[0] + '+distill-features(teacher="starter/convnet-nano")'
EACH = pytest.mark.parametrize(
    "spec", [SPECS[0], *(pytest.param(x, marks=pytest.mark.slow) for x in (SPECS[1], TAUGHT))]
)
BUDGET = zoo_core.Budget(epochs=2, num_rates=1, batch_size=10, keep="last")
NORMS = "starter/convnet-nano+partial(n=2)"  # batch norms, of which half are frozen


# -- one data set, and what zoo_core.fit makes of it ------------------------------------------------------------------


class Pairs(Dataset[tuple[Any, int]]):
    """A data set as torchvision's are: a transform of the item, and its class."""

    def __init__(self, split: Split, transform: Callable[[Any], Any]) -> None:
        self.split, self.transform = split, transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.split.raw(index)), int(self.split.targets[index])

    def __len__(self) -> int:
        return self.split.num


class InOrder:
    """The batches of an epoch after another, in the order of `zoo_core.fit`."""

    def __init__(self, num: int) -> None:
        self.num, self.epoch = num, 0

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(derive_seed("order", 0, self.epoch)).permutation(self.num).tolist()
        self.epoch += 1
        return iter([order[start : start + 10] for start in range(0, self.num, 10)])

    def __len__(self) -> int:
        return self.num // 10


def training_split() -> Split:
    task = zoo_core.resolve(SPECS[0], task=TASK).task
    assert task is not None
    return carve(task.recipe.open(None), seed=0, **task.common).train


def batches(learner: Learner) -> DataLoader[Any]:
    split = training_split()
    return DataLoader(Pairs(split, learner.transform()), batch_sampler=InOrder(split.num), collate_fn=learner.collate)


def fresh(spec: str) -> Learner:
    return zoo_core.load(spec, classes=list("0123456789"))


def optimiser_of(learner: Learner, rate: float) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with one step of warm-up in ten, then half a cosine."""
    optimiser = torch.optim.AdamW(learner.parameter_groups(rate, weight_decay=0.05), fused=True)
    share = [1.0, *(0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(10))]
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: share[step])


@pytest.fixture
def named(spec: str, taught: Taught) -> str:
    """The spec with the folder of its teacher, of another family and input size."""
    return spec.format(run=taught.run)


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], tuple[dict[str, Tensor], float]]:
    """What `zoo_core.fit` makes of a spec: the delta, and the rate that it took."""
    known: dict[str, tuple[dict[str, Tensor], float]] = {}

    def fit(spec: str) -> tuple[dict[str, Tensor], float]:
        if spec not in known:
            learner, result = zoo_core.fit(spec, task=TASK, budget=BUDGET)
            assert result.chosen is not None
            known[spec] = learner.delta(), result.chosen["learning_rate"]
        return known[spec]

    return fit


def largest_difference(learner: Learner, expected: dict[str, Tensor]) -> float:
    found = learner.delta()
    assert found.keys() == expected.keys()
    return max(float((found[name] - tensor).abs().max()) for name, tensor in expected.items())


# -- three loops ------------------------------------------------------------------------------------------------------


@EACH
def test_a_plain_loop_makes_what_fit_makes(named: str, fitted: Callable[[str], Any]) -> None:
    expected, rate = fitted(named)
    learner = fresh(named)
    assert largest_difference(learner, expected) > 1e-3, "before it is trained"
    frozen = {name: tensor.clone() for name, tensor in learner.frozen().items()}
    optimiser, schedule = optimiser_of(learner, rate)
    loader = batches(learner)
    learner.train()
    for _ in range(2):
        for batch in loader:
            loss = learner.loss(learner(batch.inputs), batch)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([parameter for _, parameter in learner.trainable()], 1.0)
            optimiser.step()
            schedule.step()
    assert largest_difference(learner, expected) <= 1e-6  # the same operations: 0 where sums are split alike
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in learner.frozen().items())


class ForTrainer(nn.Module):
    """A learner as transformers' Trainer calls models: by the names of a batch, for a loss."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, inputs: dict[str, Tensor], target: Tensor, beside: Any) -> dict[str, Tensor]:
        output = self.learner(inputs)
        batch = Batch(inputs=inputs, target=target, beside=beside)
        return {"loss": self.learner.loss(output, batch), "logits": output.predictions}


@EACH
def test_the_trainer_of_transformers_makes_what_fit_makes(
    named: str, fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    expected, rate = fitted(named)
    learner = fresh(named)
    loader = batches(learner)

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> DataLoader[Any]:
            def by_name(pairs: Any) -> dict[str, Any]:
                batch = loader.collate_fn(pairs)
                return {"inputs": batch.inputs, "target": batch.target, "beside": batch.beside}

            return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=by_name)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        max_grad_norm=1.0,
        label_names=["target"],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(ForTrainer(learner), arguments, optimizers=optimiser_of(learner, rate))
    trainer.train()
    assert trainer.state.global_step == 10
    assert largest_difference(learner, expected) <= 1e-6


@EACH
def test_lightning_makes_what_fit_makes(named: str, fitted: Callable[[str], Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        lightning = pytest.importorskip("pytorch_lightning")
    expected, rate = fitted(named)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.learner = fresh(named)

        def training_step(self, batch: Batch, index: int) -> Tensor:
            return self.learner.loss(self.learner(batch.inputs), batch)

        def configure_optimizers(self) -> dict[str, Any]:
            optimiser, schedule = optimiser_of(self.learner, rate)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what is frozen
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        trainer.fit(module.train(), batches(module.learner))
    assert trainer.global_step == 10
    assert largest_difference(module.learner, expected) <= 1e-6


# -- the laws, wherever the learner is --------------------------------------------------------------------------------


class Parent(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.other = nn.Linear(2, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.learner(inputs)


@contextmanager
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def check_laws(learner: Learner, model: nn.Module, names: set[str]) -> None:
    """Two steps of `model`, around the learner: what is frozen stays, what trains moves, the delta keeps its names."""
    before = {name: tensor.clone() for name, tensor in learner.frozen().items()}
    trained = {name: parameter.detach().clone() for name, parameter in learner.trainable()}
    assert any(name.endswith("running_mean") for name in before)
    model.train()
    frozen_norms = [
        module for module in learner.modules() if isinstance(module, nn.BatchNorm2d) and not module.training
    ]
    open_norms = [module for module in learner.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    assert frozen_norms
    assert open_norms
    optimiser = torch.optim.SGD([parameter for _, parameter in learner.trainable()], lr=0.1)
    for seed in range(2):
        torch.manual_seed(seed)
        inputs = {"pixel_values": torch.randn(4, 3, 32, 32)}
        learner.loss(model(inputs), Batch(inputs=inputs, target=torch.tensor([0, 1, 2, 0]))).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.frozen().items())
    assert all(not torch.equal(parameter, trained[name]) for name, parameter in learner.trainable())
    assert set(learner.delta()) == names


def test_the_laws_hold_in_another_module_compiled_copied_and_for_several_gpus(tmp_path: Path) -> None:
    learner = zoo_core.load(NORMS, num_classes=3)
    names = set(learner.delta())
    parent = Parent(learner)
    check_laws(learner, parent, names)
    twin = copy.deepcopy(parent)
    check_laws(twin.learner, twin, names)
    check_laws(learner, torch.compile(learner, backend="aot_eager"), names)  # type: ignore[arg-type]
    with one_process(tmp_path):
        check_laws(learner, nn.parallel.DistributedDataParallel(learner), names)


def test_the_check_of_the_laws_sees_a_norm_that_moves() -> None:
    learner = zoo_core.load(NORMS, num_classes=3)

    class Careless(Parent):
        def train(self, mode: bool = True) -> Careless:
            super().train(mode)
            learner.get_submodule("backbone.network.blocks.1.bn1").training = mode  # frozen, as its stage is
            return self

    with pytest.raises(AssertionError):
        check_laws(learner, Careless(learner), set(learner.delta()))


def test_a_copy_trains_by_itself_and_keeps_its_rates() -> None:
    learner = zoo_core.load("starter/vit-nano+full+layer-decay", num_classes=3)
    twin = copy.deepcopy(learner)
    rates = [group["lr"] for group in learner.parameter_groups(1.0)]
    assert [group["lr"] for group in twin.parameter_groups(1.0)] == rates
    assert len(set(rates)) > 2
    own = {id(parameter) for parameter in learner.parameters()}
    assert not own & {id(parameter) for group in twin.parameter_groups(1.0) for parameter in group["params"]}


TWO = """
import os, sys, torch, zoo_core
from torch import nn
from zoo_core.contracts import Batch

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet2", rank=rank, world_size=2)
learner = zoo_core.load(sys.argv[3], num_classes=3)
frozen = {name: tensor.clone() for name, tensor in learner.frozen().items()}
model = nn.parallel.DistributedDataParallel(learner).train()
optimiser = torch.optim.SGD(learner.parameter_groups(0.1))
for seed in range(3):
    torch.manual_seed(seed)
    pixels, target = torch.randn(8, 3, 32, 32)[rank::2], torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])[rank::2]
    inputs = {"pixel_values": pixels}
    beside = dict.fromkeys(learner.teachers.asked if learner.teachers else (), inputs)
    learner.loss(model(inputs), Batch(inputs=inputs, target=target, beside=beside)).backward()
    optimiser.step()
    optimiser.zero_grad()
assert all(torch.equal(tensor, frozen[name]) for name, tensor in learner.frozen().items())
torch.save(dict(learner.delta()) | learner.objective.state_dict(), f"{sys.argv[2]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*SPECS, NORMS, OF_FEATURES])
def test_two_processes_train_what_one_does(spec: str, tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(tmp_path), spec], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate()[1] for process in started]
    assert not any(process.returncode for process in started), told
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    beside = zoo_core.load(spec, num_classes=3).objective
    assert beside is not None
    beside_names = beside.state_dict().keys()
    assert first.keys() == second.keys() == zoo_core.load(spec, num_classes=3).delta().keys() | beside_names
    assert bool(beside_names) == (spec == OF_FEATURES)
    parameters = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    if spec == NORMS:
        return  # its open norms see four examples at a time, and not eight
    learner = zoo_core.load(spec, num_classes=3).train()
    optimiser = torch.optim.SGD(learner.parameter_groups(0.1))
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = {"pixel_values": torch.randn(8, 3, 32, 32)}
        looking = dict.fromkeys(learner.teachers.asked if learner.teachers else (), inputs)
        batch = Batch(inputs=inputs, target=torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), beside=looking)
        learner.loss(learner(inputs), batch).backward()
        optimiser.step()
        optimiser.zero_grad()
    own = {name: tensor for name, tensor in first.items() if name not in beside_names}
    assert largest_difference(learner, own) <= 1e-5  # a mean of two means, in another order


# -- transform, collate, feature_dim ----------------------------------------------------------------------------------


def test_a_transform_takes_what_data_sets_hold_and_prepares_it_as_fit_does(tmp_path: Path) -> None:
    backbone = zoo_core.load_backbone("starter/vit-nano")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform = backbone.transform()
    expected = backbone.preparation.prepare([torch.from_numpy(pixels).permute(2, 0, 1)])[0]["pixel_values"]
    for item in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(transform(item)["pixel_values"], expected)
    assert expected.dtype == torch.uint8
    batch = backbone.collate([(transform(pixels), 1), (transform(pixels), 0)])
    assert torch.equal(batch.inputs["pixel_values"][0], backbone.collate([transform(pixels)])["pixel_values"][0])
    with torch.no_grad():
        assert backbone.pool(backbone(batch.inputs)).shape == (2, backbone.feature_dim)
    assert batch.target.tolist() == [1, 0]
    assert len(batch) == 2
    assert len(batch.to("cpu")) == 2


def test_training_draws_a_crop_anew_and_nothing_else_does() -> None:
    backbone = zoo_core.load_backbone("starter/convnet-nano")
    picture = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    drawn = [backbone.transform(train=True)(picture)["pixel_values"] for _ in range(2)]
    plain = [backbone.transform(train=False)(picture)["pixel_values"] for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(*plain)
    torch.manual_seed(3)
    first = backbone.transform(train=True)(picture)["pixel_values"]
    torch.manual_seed(3)
    assert torch.equal(backbone.transform(train=True)(picture)["pixel_values"], first)
    rows = zoo_core.load_backbone("starter/mlp-nano(weights=random)")
    assert torch.equal(rows.transform(train=True)([1.0, 2.0])["numeric"], torch.tensor([1.0, 2.0]))


def test_they_work_in_worker_processes() -> None:
    learner = fresh(SPECS[0])
    backbone = learner.source
    data, split = Pairs(training_split(), backbone.transform()), training_split()
    plain = [batch.target.tolist() for batch in DataLoader(data, batch_size=16, collate_fn=backbone.collate)]
    ahead = DataLoader(data, batch_size=16, collate_fn=backbone.collate, num_workers=2)
    assert [batch.target.tolist() for batch in ahead] == plain
    pickle.loads(pickle.dumps((backbone.transform(train=True), backbone.collate)))
    own = Loader(split, modality="image", target=learner.target, preparation=learner.source.preparation, batch_size=50)
    expected = next(iter(own.epoch()))
    found = next(iter(DataLoader(data, batch_size=50, collate_fn=backbone.collate)))
    assert torch.equal(found.inputs["pixel_values"], expected.inputs["pixel_values"])
    assert torch.equal(found.target, expected.target)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, 2], torch.tensor([0, 2])),
        ([np.int64(0), torch.tensor(2)], torch.tensor([0, 2])),
        ([0.5, 2.0], torch.tensor([[0.5], [2.0]])),
        ([[0, 1, 1], [1, 0, 0]], torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        ([np.array([0.25]), np.array([4.0])], torch.tensor([[0.25], [4.0]])),
    ],
)
def test_targets_come_in_the_form_that_a_loss_takes(given: list[Any], expected: Tensor) -> None:
    backbone = zoo_core.load_backbone("starter/mlp-nano(weights=random)")
    example = backbone.transform()([1.0, 2.0])
    found = backbone.collate([(example, target) for target in given]).target
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_what_is_no_example_or_target_is_refused() -> None:
    backbone = zoo_core.load_backbone("starter/mlp-nano(weights=random)")
    example = backbone.transform()([1.0, 2.0])
    for wrong in ([], [torch.zeros(3)], [("text", 1)]):
        with pytest.raises(UsageError, match=r"collate takes what backbone\.transform\(\) gives"):
            backbone.collate(wrong)  # type: ignore[arg-type]
    for target in ("cat", [[1.0]], None):
        with pytest.raises(UsageError, match="target"):
            backbone.collate([(example, target), (example, target)])
    with pytest.raises(UsageError, match="as many for each example"):
        backbone.collate([(example, [0.0]), (example, [0.0, 1.0])])


def test_tags_of_words_stand_at_their_first_pieces(tmp_path: Path) -> None:
    pytest.importorskip("zoo_transformers")
    from tests.tiny import save_transformers

    spec = save_transformers("bert", tmp_path)
    learner = zoo_core.load(spec, target=Target(kind="token_classes", names=("O", "B-PER")))
    backbone = learner.source
    transform = backbone.transform(train=True)
    pairs = [(transform(["anna", "sleeps"]), [1, 0]), (transform(["no"]), [0])]
    batch = backbone.collate(pairs)
    assert batch.target.shape == batch.inputs["input_ids"].shape
    assert [row[row != -100].tolist() for row in batch.target] == [[1, 0], [0]]
    assert learner.loss(learner(batch.inputs), batch).isfinite()
    assert backbone.collate([(transform("a text"), 3)]).target.tolist() == [3]


def test_a_learner_has_them_too_and_a_plugin_writes_none() -> None:
    learner: Any = zoo_core.load("starter/vit-nano(until=1)+lora", num_classes=2)
    assert learner.backbone.feature_dim == 96
    assert copy.deepcopy(learner).backbone.collate == learner.backbone.collate
    toy: Any = with_transforms(ToyBackbone())
    assert toy.feature_dim == 12
    assert toy.transform()(np.zeros((9, 9), dtype=np.uint8))["pixel_values"].shape == (1, 8, 8)

    class Own(ToyBackbone):
        def collate(self) -> None: ...

    with pytest.raises(PluginError, match="Own has a collate of its own"):
        with_transforms(Own())


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_class_weights_weigh_the_loss() -> None:
    inputs = {"pixel_values": torch.randn(3, 3, 32, 32)}
    batch = Batch(inputs=inputs, target=torch.tensor([0, 1, 2]))
    plain = zoo_core.load(SPECS[0], classes=["a", "b", "c"])
    weighed = zoo_core.load(SPECS[0], classes=["a", "b", "c"], class_weights=[1, 0, 3])
    output = plain(inputs)
    each = nn.functional.cross_entropy(output.predictions, batch.target, reduction="none")
    assert torch.allclose(weighed.loss(weighed(inputs), batch), (each[0] + 3 * each[2]) / 4)
    assert torch.allclose(plain.loss(output, batch), each.mean())
    assert weighed.target.names == ("a", "b", "c")
    assert weighed.delta().keys() == plain.delta().keys(), "the objective is not stored"
    labels = zoo_core.load(SPECS[0], target=Target(kind="multilabel", size=2), class_weights=(2, 0))
    found = labels(inputs)
    batch = Batch(inputs=inputs, target=torch.tensor([[0.0, 1], [1, 0], [1, 1]]))
    first = nn.functional.binary_cross_entropy_with_logits(found.predictions[:, 0], batch.target[:, 0])
    assert torch.allclose(labels.loss(found, batch), first)


@pytest.mark.parametrize("wrong", [[1, 2], [1, 2, -1], [1, 2, math.nan], [0, 0, 0], ["a", 1, 1], 3])
def test_class_weights_are_one_for_each_class(wrong: Any) -> None:
    with pytest.raises(UsageError, match="class_weights are"):
        zoo_core.load(SPECS[0], num_classes=3, class_weights=wrong)


def test_a_regression_has_no_class_weights() -> None:
    with pytest.raises(UsageError, match="class_weights are for classes and multilabel"):
        zoo_core.load(SPECS[0], target=Target(kind="regression", size=1), class_weights=[1])


# -- silent, and by itself --------------------------------------------------------------------------------------------

QUIET = """
import os, sys

here, opened = os.getcwd(), []

def note(event, args):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | os.PathLike):
        path = os.path.abspath(args[0])
        if path.startswith(here + os.sep) and not path.startswith(os.path.join(here, "out")):
            opened.append(path)

import zoo_core
sys.addaudithook(note)
import numpy as np

pictures = [np.full((9, 9), 200, dtype=np.uint8)] * 2
zoo_core.list_names("head"), zoo_core.show("lora"), zoo_core.resolve("starter/vit-nano+lora", task="digits")
backbone = zoo_core.load_backbone("starter/vit-nano")
backbone.collate([(backbone.transform(train=True)(picture), 0) for picture in pictures])
zoo_core.embed(backbone, pictures)
zoo_core.save(zoo_core.load("starter/vit-nano+lora", num_classes=2), "out/saved")
budget = zoo_core.Budget(epochs=1, num_rates=1)
zoo_core.fit("starter/convnet-nano+norm", task="digits(shots=2)", out="out/run", budget=budget)
zoo_core.evaluate("out/run")
zoo_core.predict(zoo_core.load_run("out/run"), pictures)
zoo_core.load_runs({"a": "out/run"})
zoo_core.fetch("starter/vit-nano")
assert not opened, opened
"""


@pytest.mark.slow
def test_python_calls_print_nothing_and_read_nothing_of_the_current_folder(tmp_path: Path) -> None:
    for name in ("zoo.toml", "zoo.lock", "pyproject.toml", ".env", "setup.cfg", "digits", "lora.py", "hada.py"):
        (tmp_path / name).write_text("neither = TOML nor [JSON\n")
    environment = os.environ | {"PYTHONWARNINGS": "error::UserWarning", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_they_say_goes_to_logging() -> None:
    """The one warning that a call may have: it is logged, so that a caller's settings decide."""
    from zoo_core.files import pins

    assert pins.logger.name == "zoo_core.files.pins"
    listed = json.loads(
        subprocess.run(
            [sys.executable, "-c", "import logging, json, zoo_core.api; print(json.dumps(logging.root.handlers))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert listed == [], "and no handler is installed"
