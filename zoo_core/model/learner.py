"""The learner: backbone, head, objective; the rule of what trains, and the delta that a fitted one holds.

Two laws live here. First, frozen values do not move: a module is in training mode if and only if all its parameters are
trainable. Second, the delta holds what the files of the base do not determine. Its names are fixed when `seal` is
called at the end of building, and every later use checks that the learner still has exactly these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from zoo_core import contracts
from zoo_core.contracts import Batch, Features, Kind, MergesItself, Output, Source, Target
from zoo_core.errors import IncompatibleError, LawError, RefusedError, UsageError
from zoo_core.lock import part_key
from zoo_core.model.given_features import features_in, state_in
from zoo_core.model.objective import Given, ScaledHead, needs_of, total_of
from zoo_core.model.transforms import BesideCollate, BesideTransform, Collate, Transform
from zoo_core.toolkit.features import convert
from zoo_core.toolkit.sites import capture_sites, fold_changes
from zoo_core.toolkit.stages import capture, dummy_inputs, groups, resumed

if TYPE_CHECKING:
    from zoo_core.contracts import LoadedBackbone
    from zoo_core.model.teachers import Teachers
    from zoo_core.plan.plan import Plan
    from zoo_core.toolkit.table_encoding import Encoding

__all__ = ["Learner"]

MAIN = "main"  # stored deltas hold the head as heads.main


class Learner(nn.Module):
    """A model in training or in use: one forward pass gives predictions, features and the stage states asked for.

    It keeps its laws inside another module, after a parent's `.train()`, compiled or deep-copied.
    plan: what it was built from, which `zoo_core.save` stores with it; None for one that was put together by hand.
    num_columns: of the rows that a table's model was fitted on. encoding: how inputs were made of a table's cells.
    teachers: what its adapters learn from, None if they learn from none; no module of it, and in no state.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, consumes: Kind, objective: nn.Module, target: Target):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({MAIN: head})  # one, which `head` gives
        self.objective: nn.Module | None = objective
        self.consumes: Kind = consumes
        self.target = target
        self.plan: Plan | None = None
        self.num_columns: int | None = None
        self.encoding: Encoding | None = None
        self.finishers: list[Callable[[contracts.Learner], None]] = []  # called in order when training is over
        self._scales: dict[nn.Parameter, float] = {}  # by identity: an adapter that wraps a part renames parameters
        self._starts: dict[nn.Parameter, float] = {}
        self._base = frozenset(backbone.parameters())
        self._added_names: frozenset[str] = frozenset()
        self._delta_names: frozenset[str] | None = None
        self._closed_names: frozenset[str] = frozenset()
        self._frozen_names: tuple[str, ...] = ()
        self._unsized: dict[str, torch.Size] = {}
        self._unfitted: dict[str, Tensor] = {}  # state of a closed-form head as it was built, until it is another
        self.teachers: Teachers | None = None

    @property
    def source(self) -> LoadedBackbone:
        """The backbone, typed as its contract."""
        return cast("LoadedBackbone", self.backbone)

    @property
    def head(self) -> nn.Module:
        """What makes predictions of features; an adapter may wrap it: `learner.head = Wrapped(learner.head)`."""
        return self.heads[MAIN]

    @head.setter
    def head(self, head: nn.Module) -> None:
        self.heads[MAIN] = head

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "head":  # torch would register a module of that name, which the property then hides
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)
        if name == "objective":  # an adapter may wrap it
            self._needs = needs_of(value)

    @property
    def weights_source(self) -> Source | None:
        """The repository at its pinned commit, or the folder, whose files determine the frozen weights; None: random
        ones, those inside a package, and a learner that was put together by hand.
        """
        if self.plan is None or self.plan.weights != "pretrained":
            return None
        key = part_key(self.plan.backbone)
        source, pin = self.plan.sources.get(key), self.plan.pins.get(key)
        return source if source is None or pin is None else replace(source, revision=pin.revision or source.revision)

    # -- one pass ---------------------------------------------------------------------------------------------------

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        """inputs: normalised, by the names in contracts.Batch; or features, see model/given_features.py.

        Raises UsageError for other inputs, and for a closed-form head that has not been fitted.
        """
        if self._unfitted:
            self._check_fitted()
        needs = self._needs
        if not isinstance(inputs, Mapping):
            raise UsageError(f"a learner takes a mapping of inputs, found {type(inputs).__name__}; {self._reads()}")
        with capture(self.backbone, needs.stages) as states, capture_sites(self.backbone, needs.sites) as sites:
            features = self.features(inputs)
        consumed = convert(features, self.consumes, self.source.pool)
        pooled = None
        if needs.pooled:
            pooled = consumed.x if consumed.kind == "pooled" else convert(features, "pooled", self.source.pool).x
        return Output(predictions=self.head(consumed), features=features, pooled=pooled, stages=states, sites=sites)

    def features(self, inputs: Mapping[str, Tensor]) -> Features:
        """What the backbone makes of inputs, or what is in their place."""
        found, entering = features_in(inputs), state_in(inputs)
        if found is not None:
            return found
        if entering is not None:
            return resumed(self.backbone, {**dummy_inputs(self.backbone, 1), **inputs}, *entering)
        try:
            found = self.backbone(inputs)
        except KeyError as error:
            if error.args[0] in inputs:
                raise
            held = ", ".join(map(str, inputs)) or "nothing"
            raise UsageError(f"inputs lack {error}, they hold {held}; {self._reads()}") from None
        return cast("Features", found)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """The scalar to minimise, the sum of the objective's named terms."""
        return total_of(self.terms(output, batch))

    def terms(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The objective's named terms, each a scalar. Teachers see the batch first, unless they have seen it."""
        if self.objective is None:
            raise IncompatibleError("this learner was loaded for use and has no objective; build it for training")
        if self.teachers is not None and self._needs.taught:
            batch = self.taught(batch)
            batch = replace(batch, teachers=Given(batch.teachers))
        terms: dict[str, Tensor] = self.objective(output, batch)
        return terms

    def taught(self, batch: Batch) -> Batch:
        """The batch with what the learner's teachers give for it, computed from `batch.beside`; as it is without any.

        `loss` calls it for a batch that has not been through it. Call it before you divide a batch into parts.
        """
        return batch if self.teachers is None else self.teachers.taught(batch)

    def transform(self, *, train: bool = False) -> Callable[[Any], Mapping[str, Tensor]]:
        """As the backbone's own `transform`, with what each teacher reads of the same example beside it."""
        own = cast("Transform", self.source.transform(train=train))
        if self.teachers is None:
            return own
        return BesideTransform(own, {of: self.teachers.preparation(of) for of in self.teachers.asked})

    @property
    def collate(self) -> Callable[[Sequence[Any]], Any]:
        """As the backbone's own `collate`, for what `transform` makes, teachers' inputs included."""
        own = cast("Collate", self.source.collate)
        if self.teachers is None:
            return own
        return BesideCollate(own, {of: self.teachers.preparation(of) for of in self.teachers.asked})

    def _reads(self) -> str:
        names = ", ".join(map(repr, self.source.preparation.dummy(1)))
        return f"this one reads {names}: batch.inputs, or zoo_core.predict for raw items"

    def _check_fitted(self) -> None:
        """Raises UsageError while a closed-form head's state is that of a head nobody has fitted."""
        head = _inner(self.head)
        state = dict(head.named_buffers())
        if all(
            state[name].shape == built.shape and torch.equal(state[name].to(built), built)
            for name, built in self._unfitted.items()
        ):
            raise UsageError(
                "the head is fitted in closed form, and nothing has fitted it: use zoo_core.fit, "
                "or learner.head.fit(features, target) in a loop of your own"
            )
        self._unfitted = {}

    @property
    def reads_features(self) -> bool:
        """Whether features of the backbone can stand in for inputs all through training.

        That is so if nothing of the backbone trains or draws, and the objective looks at nothing inside it.
        """
        opened = any(parameter.requires_grad for parameter in self.backbone.parameters())
        follows = _trains(self.backbone)[self.backbone] is None  # without parameters it is in training mode as we are
        return not (opened or follows or self._needs.stages or self._needs.sites)

    def reads_states(self, stage: int) -> bool:
        """Whether hidden states that enter a stage, counted from 0, can stand in for inputs all through training.

        That is so if nothing before it trains, and the objective looks at nothing there. Whether something there draws,
        or an adapter computes with it, is for values to tell.
        """
        try:
            group_of = groups(self.backbone)
        except LawError:
            return False
        opened = any(group_of[name] <= stage for name, x in self.backbone.named_parameters() if x.requires_grad)
        return not (opened or self._needs.sites or any(each < stage for each in self._needs.stages))

    # -- what trains ------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Learner:
        """Puts modules that are entirely trainable into training mode and all others into evaluation mode."""
        self.training = mode
        for child in self.children():
            _set_mode(child, mode, mode, _trains(child))
        return self

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of everything that trains, the objective's projectors included."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def set_scale(self, parameters: Iterable[nn.Parameter], scale: float) -> None:
        """Sets the learning rate of these parameters relative to the rest. A later adapter overrides an earlier one."""
        for parameter in parameters:
            self._scales[parameter] = scale

    def scale_of(self, parameter: nn.Parameter) -> float:
        """The learning rate of a parameter relative to the rest."""
        return self._scales.get(parameter, 1.0)

    def delay(self, parameters: Iterable[nn.Parameter], start: float) -> None:
        """Keeps these parameters unchanged until `start`, a share of all steps from 0 to below 1. Then they train.

        A delay only postpones training; what trains in the end is already decided. A later adapter overrides an earlier
        one. `zoo_core.fit` follows the delays, and a training loop of your own can ask `start_of`.
        """
        if not 0 <= start < 1:
            raise UsageError(f"a phase starts at a share of the steps, 0 to below 1, found {start:g}")
        for parameter in parameters:
            self._starts[parameter] = start

    def start_of(self, parameter: nn.Parameter) -> float:
        """The share of all steps after which a parameter begins to train."""
        return self._starts.get(parameter, 0.0)

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for a torch optimiser, one for each scale of the learning rate.

        Weight decay applies only to matrices and kernels named `weight`, not to biases, norms, position embeddings and
        learned tokens.
        """
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.trainable():
            decays = parameter.ndim > 1 and name.endswith(("weight", "original"))  # of a parametrised one too
            groups.setdefault((self.scale_of(parameter), self.start_of(parameter), decays), []).append(parameter)
        return [
            {"params": parameters, "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0, "start": start}
            for (scale, start, decays), parameters in groups.items()
        ]

    def fit_scale(self, targets: Tensor) -> None:
        """Makes the mean and standard deviation of the training targets, float [N, C], the unit of the predictions.

        A column that does not vary, or varies less than float32 can represent, keeps its own unit.
        """
        head = self.head
        assert isinstance(head, ScaledHead), "only a regression is predicted in units"
        exact = targets.double()
        deviation = exact.std(dim=0, correction=0)
        varies = deviation > torch.finfo(torch.float32).eps * exact.abs().amax(dim=0)
        head.shift.copy_(exact.mean(dim=0))
        head.scale.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))

    def take_scale(self) -> None:
        """Makes the unit of the first teacher that predicts that of the predictions, for values without labels."""
        head, teachers = self.head, self.teachers
        assert teachers is not None, "nothing else tells the unit"
        for of, asked in teachers.asked.items():
            theirs = teachers.model(of).head if asked.predictions else None
            if isinstance(head, ScaledHead) and isinstance(theirs, ScaledHead):
                head.shift.copy_(theirs.shift)
                head.scale.copy_(theirs.scale)
                return

    # -- plain weights ----------------------------------------------------------------------------------------------

    def merge(self) -> Learner:
        """Returns a copy for use, whose backbone has plain weights with the keys, the shapes and the speed of the base.

        The learner itself stays as it is. Raises RefusedError if an adapter cannot be folded into weights.
        """
        merged = copy.deepcopy(self)
        merged.objective = merged.teachers = None
        merged.requires_grad_(False)
        merged.eval()
        for part in self.plan.adapters if self.plan is not None else ():
            if not part.fact("mergeable"):
                raise RefusedError(
                    f"{part.name} does not fold into plain weights; the learner is used as it is, or trained without it"
                )
            if isinstance(part.recipe, MergesItself):
                part.recipe.merge(merged)
        fold_changes(merged.backbone)
        left = sorted(name for name, _ in merged.named_parameters() if name in self._added_names)
        if left:
            raise RefusedError(f"{len(left)} tensors do not fold into plain weights, {left[0]} first")
        merged._added_names = frozenset()
        return merged

    # -- the delta --------------------------------------------------------------------------------------------------

    def base(self) -> dict[str, nn.Parameter]:
        """The backbone's own parameters by name, without those that adapters added."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter in self._base}

    def added(self) -> dict[str, nn.Parameter]:
        """The parameters that adapters added to the backbone, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if name in self._added_names}

    def seal(self, base: Iterable[Tensor], determined: bool = True) -> None:
        """Fixes the names of the delta. Called once, after all adapters have been applied.

        base: parameters and buffers of the backbone before any adapter.
        determined: whether the files of the base determine them. If they do, one of them is in the delta only if it can
        change: a trainable parameter, or a buffer of a module that is in training mode whenever the learner is. With
        random weights, all of them are in the delta.
        """
        self._needs = needs_of(self.objective)
        known = {id(tensor) for tensor in base}
        self._added_names = frozenset(
            f"backbone.{name}" for name, parameter in self.backbone.named_parameters() if id(parameter) not in known
        )
        if not determined:
            known = set()
        opened = _open_tensors(self.backbone, True, _trains(self.backbone))
        state = self._held()
        frozen = {name for name, tensor in state.items() if name.startswith("backbone.") and id(tensor) not in opened}
        self._frozen_names = tuple(sorted(frozen))
        self._closed_names = frozenset(name for name in frozen if id(state[name]) in known)
        self._delta_names = frozenset(state) - self._closed_names
        buffers = {f"heads.{name}" for name, _ in self.heads.named_buffers()}
        self._unsized = {name: state[name].shape for name in buffers & state.keys() if not state[name].numel()}
        if not any(parameter.requires_grad for parameter in self.head.parameters()):
            self._unfitted = {name: buffer.clone() for name, buffer in _inner(self.head).named_buffers()}

    def frozen(self) -> dict[str, Tensor]:
        """The tensors of the backbone that training must not move, by name. Raises LawError if one has vanished."""
        state = self._held()
        vanished = [name for name in self._frozen_names if name not in state]
        if vanished:
            raise LawError(f"state appeared or vanished after building: {', '.join(vanished[:3])}")
        return {name: state[name].detach() for name in self._frozen_names}

    def delta(self) -> dict[str, Tensor]:
        """Everything that the files of the base do not determine, by name. The tensors are the learner's own, detached.

        Raises LawError if the learner has other names than when it was built.
        """
        if self._delta_names is None:
            raise LawError("the delta is known once building is over; build the learner with zoo_core.load")
        state = self._held()
        found = frozenset(state) - self._closed_names
        if found != self._delta_names or not self._closed_names <= frozenset(state):
            changed = sorted(found ^ self._delta_names) or sorted(self._closed_names - frozenset(state))
            raise LawError(f"state appeared or vanished after building: {', '.join(changed[:3])}")
        return {name: state[name].detach() for name in sorted(self._delta_names)}

    def load_delta(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies a delta into the learner. Nothing is changed unless all of it fits.

        Raises IncompatibleError if names, shapes or dtypes differ. A buffer of the head that was empty when it was
        built may have any length, because its length is that of the training split.
        """
        own = self.delta()
        if own.keys() != tensors.keys():
            missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise IncompatibleError(
                f"this delta is of another learner: {len(missing)} names missing {missing[:2]}, "
                f"{len(unknown)} unknown {unknown[:2]}"
            )
        for name, tensor in own.items():
            shape = self._unsized.get(name, tensor.shape)
            if not _fits(tensors[name].shape, shape) or tensors[name].is_floating_point() != tensor.is_floating_point():
                raise IncompatibleError(
                    f"this delta is of another learner: {name} is {tensors[name].dtype} {list(tensors[name].shape)}, "
                    f"expected {tensor.dtype} {[size or 'any' for size in shape]}"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                if name in self._unsized:
                    path, _, leaf = name.rpartition(".")
                    found = tensors[name].to(tensor, copy=True)
                    setattr(self.get_submodule(path), leaf, found.contiguous())  # as it lies in a file
                else:
                    tensor.copy_(tensors[name])

    def _held(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers of backbone and heads by name. The objective's are not included."""
        held: dict[str, Tensor] = {}
        self.backbone.state_dict(destination=held, prefix="backbone.", keep_vars=True)
        self.heads.state_dict(destination=held, prefix="heads.", keep_vars=True)
        return held


def _inner(head: nn.Module) -> nn.Module:
    """The head itself, without the scaling of a regression, which is known before the head is fitted."""
    return head.head if isinstance(head, ScaledHead) else head


def _fits(found: torch.Size, built: torch.Size) -> bool:
    """Whether a shape equals the one that was built, where a built size of 0 matches any size."""
    return len(found) == len(built) and all(size in (0, here) for here, size in zip(found, built, strict=True))


def _set_mode(module: nn.Module, mode: bool, parent: bool, trains: Mapping[nn.Module, bool | None]) -> None:
    """Law: a module is in training mode if all its parameters train. One without parameters follows its parent."""
    own = trains[module]
    module.training = parent if own is None else mode and own
    for child in module.children():
        _set_mode(child, mode, module.training, trains)


def _open_tensors(module: nn.Module, parent: bool, trains: Mapping[nn.Module, bool | None]) -> set[int]:
    """The ids of trainable parameters, and of the buffers of modules that train whenever the learner does."""
    own = parent if trains[module] is None else bool(trains[module])
    found = {id(parameter) for parameter in module.parameters(recurse=False) if parameter.requires_grad}
    if own:
        found |= {id(buffer) for buffer in module.buffers(recurse=False)}
    for child in module.children():
        found |= _open_tensors(child, own, trains)
    return found


def _trains(module: nn.Module, found: dict[nn.Module, bool | None] | None = None) -> dict[nn.Module, bool | None]:
    """For a module and each module inside it: whether all its parameters train, None if it has none.

    found: the modules that were already visited, so that a large network is traversed only once.
    """
    found = {} if found is None else found
    if module in found:
        return found
    told = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
    for child in module.children():
        own = _trains(child, found)[child]
        told += [] if own is None else [own]
    found[module] = all(told) if told else None
    return found
