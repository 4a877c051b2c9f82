"""Makes zoo_peft/catalogue.json and zoo_peft/methods.json from the installed peft.

    python plugins/zoo-peft/catalogue.py

Arguments, types, defaults and help are those of peft's configuration classes; on which kinds of layers a method works,
how far it is from a no-op at the start and whether it folds is measured on two small layers of each kind. No network,
some seconds. What a method is in one line, its source, its roles and its learning rates stand here.
"""

from __future__ import annotations

import enum
import json
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import peft
import torch
from peft.config import PeftConfig, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zoo_core.errors import ZooError
from zoo_peft.injection import inject_at, merge
from zoo_peft.methods import Method
from zoo_peft.recipes import Hub, Peft

__all__ = ["catalogue", "methods"]

PACKAGE = Path(__file__).parent / "zoo_peft"
SEED = 7
SMALLEST = 1e-6  # relative, in float64: some methods compute in float32 whatever the weights are
SMALLEST_32 = 1e-4  # relative, in float32, for a method that takes nothing else

LOW_RANK = (2e-4, 1e-3, 5e-3, 2.5e-2, 1.25e-1)  # as of the native lora; peft's ia3 wants 5e-3 too
ROTATIONS = (4e-5, 2e-4, 1e-3, 5e-3, 2.5e-2)
VECTORS = (4e-4, 2e-3, 1e-2, 5e-2, 2.5e-1)  # few numbers, each of which moves much
ATTENTION_ELSE_ALL = (("attn.q", "attn.v"), ("mlp.in", "mlp.out"), ("conv",))

PROMPTS = "it adds tokens through peft's own classes of language models; write +prompt(...) or +prefix(...)"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What stands here of a method. source: where it is described, if peft's files or this file's author know."""

    summary: str
    source: str = ""
    rates: tuple[float, ...] = LOW_RANK
    needs: tuple[tuple[str, ...], ...] = ATTENTION_ELSE_ALL
    refused: str = ""
    fixed: Mapping[str, Any] | None = None
    instead: Mapping[str, str] | None = (
        None  # arguments of which peft takes one of two: the first counts if the other is 0
    )
    samples: bool = False
    smaller: Mapping[str, Any] | None = None  # values with which it fits the small layers it is measured on


KNOWN: Mapping[str, Known] = {
    "ADALORA": Known(
        summary="Low-rank updates as singular values whose rank moves between layers.",
        source="arXiv:2303.10512",
        refused="it moves rank between layers in a call after each optimiser step, which nobody makes here; "
        "write +peft/lora or +lora",
    ),
    "ADAMSS": Known(summary="Trains small subspaces into which the singular vectors of each weight are clustered."),
    "ADAPTION_PROMPT": Known(
        summary="Gated prompts in the attention of Llama models.", source="arXiv:2303.16199", refused=PROMPTS
    ),
    "BEFT": Known(
        summary="Adds a bias to what leaves the values of attention.",
        source="arXiv:2509.15974",
        needs=(("attn.v",), ("mlp.out",)),
    ),
    "BOFT": Known(
        summary="Rotates the inputs of each weight by a product of sparse orthogonal matrices.",
        source="arXiv:2311.06243",
        rates=ROTATIONS,
        instead={"boft_block_size": "boft_block_num"},
    ),
    "C3A": Known(
        summary="Adds a block-circular convolution of the inputs.",
        source="arXiv:2407.19342",
        smaller={"block_size": 16},
    ),
    "CARTRIDGE": Known(summary="A trained cache of keys and values.", source="arXiv:2506.06266", refused=PROMPTS),
    "CPT": Known(summary="Prompts made from context examples.", source="arXiv:2410.17222", refused=PROMPTS),
    "DEFT": Known(summary="Replaces a low-rank subspace of each weight by what is trained."),
    "DELORA": Known(
        summary="Low-rank updates with normalised directions and a strength of their own.", source="arXiv:2503.18225"
    ),
    "FOURIERFT": Known(
        summary="Trains a few Fourier coefficients of the change of each weight.",
        source="arXiv:2405.03003",
        rates=VECTORS,
    ),
    "FROD": Known(
        summary="Trains scales and sparse entries between factors that the weights of all layers share.",
        rates=VECTORS,
        fixed={"progressbar": False},
    ),
    "GLORA": Known(summary="Scales and shifts weight, bias and input, each by a low-rank or smaller term."),
    "GRALORA": Known(summary="Low-rank updates of the blocks of each weight."),
    "HIRA": Known(
        summary="Multiplies each weight elementwise by one plus a low-rank matrix.",
        source="https://openreview.net/pdf?id=TwJrTz9cRS",
    ),
    "HRA": Known(
        summary="Rotates the inputs of each weight by Householder reflections.",
        source="arXiv:2405.17484",
        rates=ROTATIONS,
    ),
    "IA3": Known(
        summary="Scales keys, values and the inputs of the second linear layer of each block by learned vectors.",
        source="arXiv:2205.05638",
        needs=(("attn.k", "attn.v", "mlp.out"), ("mlp.in", "mlp.out"), ("conv",)),
    ),
    "LILY": Known(summary="Low-rank updates whose factors the layers share and route.", source="arXiv:2407.09946"),
    "LN_TUNING": Known(
        summary="Trains copies of the normalisation layers; `norm` trains them in place.",
        source="arXiv:2312.11420",
        needs=(("norm",),),
    ),
    "LOHA": Known(
        summary="Adds the elementwise product of two low-rank matrices to each weight.", source="arXiv:2108.06098"
    ),
    "LOKR": Known(
        summary="Adds a Kronecker product of small matrices to each weight.",
        source="arXiv:2309.14859",
    ),
    "LORA": Known(
        summary="Adds a low-rank update to each weight, with use_dora=true one of its direction: peft's own LoRA.",
        source="arXiv:2106.09685; DoRA: arXiv:2402.09353",
    ),
    "MISS": Known(summary="Adds one trained block to all blocks of inputs of each weight.", source="arXiv:2409.15371"),
    "MULTITASK_PROMPT_TUNING": Known(
        summary="Prompts that several tasks share.", source="arXiv:2303.02861", refused=PROMPTS
    ),
    "OFT": Known(
        summary="Rotates blocks of the inputs of each weight.",
        source="arXiv:2306.07280",
        rates=ROTATIONS,
        instead={"oft_block_size": "r"},
    ),
    "OSF": Known(
        summary="Trains the small singular values of each weight, orthogonal to the large ones.",
        refused="it keeps its projection in hooks on gradients, which a copy of the model loses; write +lora(init=...)",
    ),
    "PEANUT": Known(summary="Adds a small network of each weight itself to that weight.", source="arXiv:2410.01870"),
    "POLY": Known(
        summary="Several low-rank updates that a router mixes by task.",
        source="arXiv:2202.13914",
        refused="its router wants the task of each example with the call; write +peft/lora or +lora",
    ),
    "PREFIX_TUNING": Known(summary="Learned keys and values.", source="arXiv:2101.00190", refused=PROMPTS),
    "PROMPT_TUNING": Known(summary="Learned tokens before the text.", source="arXiv:2104.08691", refused=PROMPTS),
    "PSOFT": Known(
        summary="Rotates each weight within its largest singular vectors.",
        source="https://openreview.net/forum?id=FSHrinMArK",
        rates=ROTATIONS,
    ),
    "PVERA": Known(
        summary="VeRA whose scales are drawn from a learned distribution while training.", rates=VECTORS, samples=True
    ),
    "P_TUNING": Known(summary="Learned tokens that a small network makes.", source="arXiv:2103.10385", refused=PROMPTS),
    "RANDLORA": Known(
        summary="Full-rank updates: sums of fixed random low-rank matrices with trained scales.",
        source="arXiv:2502.00987",
        rates=ROTATIONS,
    ),
    "ROAD": Known(
        summary="Rotates and scales pairs of what leaves each layer.", source="arXiv:2409.00119", rates=ROTATIONS
    ),
    "SHADOW": Known(
        summary="A small model beside the base that corrects its hidden states.",
        refused="it runs a second model beside the base instead of changing weights; write +bottleneck",
    ),
    "SHIRA": Known(summary="Trains a few randomly chosen entries of each weight.", source="arXiv:2406.13175"),
    "SUPERTUNING": Known(summary="Trains the largest or smallest entries of each weight.", source="arXiv:2607.09287"),
    "TINYLORA": Known(
        summary="Trains a tiny vector that random tensors turn into low-rank updates.",
        source="arXiv:2602.04118",
        rates=VECTORS,
    ),
    "TRAINABLE_TOKENS": Known(
        summary="Trains the embeddings of a few tokens, given by their numbers.",
        refused="the role embed does not tell the embedding of tokens from that of positions; write +full or +lora",
    ),
    "UNILORA": Known(
        summary="Low-rank updates that one small trained vector fills.", source="arXiv:2506.00799", rates=VECTORS
    ),
    "VBLORA": Known(
        summary="Low-rank updates put together from a bank of vectors that all layers share.",
        source="arXiv:2405.15179",
        rates=VECTORS,
        smaller={"vector_length": 16},
    ),
    "VERA": Known(
        summary="Fixed random matrices that all layers share, with trained scales of each layer.",
        source="arXiv:2310.11454",
        rates=VECTORS,
    ),
    "WAVEFT": Known(summary="Trains a few wavelet coefficients of the change of each weight.", rates=VECTORS),
    "XLORA": Known(
        summary="Mixes trained LoRA adapters by a gate.",
        source="arXiv:2402.07148",
        refused="it mixes adapters that were trained before, inside a model of peft's own; load one: +hub/ORG/ADAPTER",
    ),
}

ROLES_SAY_IT = "roles say it"
OTHERS_DO = "write +norm, +bitfit or +partial beside it"
LEFT_OUT: Mapping[str, str] = {
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern"),
        ROLES_SAY_IT,
    ),
    **dict.fromkeys(("target_parameters", "layer_replication"), ROLES_SAY_IT),
    **dict.fromkeys(("bias", "modules_to_save", "trainable_token_indices"), OTHERS_DO),
    "fan_in_fan_out": "read off the layer",
    "progressbar": "there is none",
    **dict.fromkeys(("use_asa", "use_dynamic_rank"), "it wants a call after each step"),
    **dict.fromkeys(
        ("save_projection", "save_only_topk_weights", "save_precomputed_indices", "save_indices"),
        "what is stored holds all that a seed does not give bit for bit on every machine",
    ),
    **dict.fromkeys(("megatron_core", "ensure_weight_tying", "runtime_offload_base_weight"), "for other models"),
    **dict.fromkeys(("use_qalora", "qalora_group_size"), "for quantised weights"),
    "alora_invocation_tokens": "for chat models",
    "boft_n_butterfly_factor": "peft sets it to 1 where it cannot compile its CUDA code",
}
ASA = ("asa_", "init_warmup", "final_warmup", "mask_interval", "svd_threshold")  # of what use_asa switches on
KEPT_TEXTS = {("LORA", "init_lora_weights"): ("gaussian", "orthogonal")}  # the others change the base, or need data


def main() -> int:
    """Writes both files."""
    made = methods()
    _write(PACKAGE / "methods.json", {"peft": peft.__version__, "methods": made}, indent=1)
    _write(PACKAGE / "catalogue.json", catalogue(made), indent=1)
    sys.stdout.write(f"{len(made)} methods of peft {peft.__version__}\n")
    return 0


def methods() -> dict[str, dict[str, Any]]:
    """Every method of the installed peft by its name, as zoo_peft.methods reads it."""
    unknown = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} ^ KNOWN.keys()
    if unknown:
        raise SystemExit(f"methods that KNOWN does not tell of, or that are gone: {', '.join(sorted(unknown))}")
    found = {
        kind.value.lower(): _method_row(kind.value, config) for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    return dict(sorted(found.items()))


def catalogue(made: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries of the methods, in the format of zoo_core.registry.catalog."""
    spaces = {name: {"summary": _first_line(recipe)} for name, recipe in (("hub", Hub), ("peft", Peft))}
    return {"adapter": spaces | {f"peft/{name}": {"summary": _summary(row)} for name, row in made.items()}}


def _first_line(recipe: type) -> str:
    return (recipe.__doc__ or "").splitlines()[0]


def _summary(row: Mapping[str, Any]) -> str:
    notes = ["Refused here."] if row["refused"] else ["Not a no-op at the start."] if row["start"] >= 1e-5 else []
    return " ".join([row["summary"], *notes])


def _method_row(tuner: str, config: type[PeftConfig]) -> dict[str, Any]:
    known = KNOWN[tuner]
    assert known.refused or not issubclass(config, PromptLearningConfig)
    row: dict[str, Any] = {
        "tuner": tuner,
        "summary": known.summary,
        "source": known.source,
        "refused": known.refused,
        "arguments": [],
        "left_out": {},
        "fixed": dict(known.fixed or {}),
        "instead": {},
        "layers": [],
        "needs": [],
        "start": 0.0,
        "mergeable": False,
        "samples": known.samples,
        "learning_rates": list(known.rates),
    }
    if known.refused:
        return row
    row["arguments"], row["left_out"] = _arguments(tuner, config)
    for each in row["arguments"]:
        other = (known.instead or {}).get(each["name"])
        if other:
            row["instead"][each["name"]] = [other, each["default"]]
            each["default"], each["type"] = None, [*each["type"], "none"]
    row |= _measured(tuner, known, row)
    for name in [
        each["name"] for each in row["arguments"] if "dropout" in each["name"] and "scale" not in each["name"]
    ]:
        if not _acts(tuner, known, row, name):
            row["arguments"] = [each for each in row["arguments"] if each["name"] != name]
            row["left_out"][name] = "peft never applies it"
    return row


# --- what may be written ---------------------------------------------------------------------------------------------


def _arguments(tuner: str, config: type[PeftConfig]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    hints = get_type_hints(config)
    general = {each.name for each in fields(PeftConfig)}
    arguments, left_out = [], {}
    for each in fields(config):
        if each.name in general:
            continue
        default = each.default if each.default_factory is MISSING else each.default_factory()
        kinds = _kinds(hints[each.name], KEPT_TEXTS.get((tuner, each.name)))
        why = LEFT_OUT.get(each.name, "a spec cannot write it" if kinds is None else "")
        if each.name.startswith(ASA):
            why = "it wants a call after each step"
        if why:
            left_out[each.name] = why
            continue
        assert kinds is not None
        default = default.value if isinstance(default, enum.Enum) else default
        if default is None and "none" not in kinds:
            kinds.append("none")
        told = " ".join(str(each.metadata.get("help", "")).split())
        arguments.append({"name": each.name, "type": kinds, "default": default, "help": told})
    return arguments, left_out


def _kinds(hint: Any, texts: tuple[str, ...] | None) -> list[Any] | None:
    """A type as zoo_peft.methods reads it, less what a spec cannot write; None if nothing of it can be."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [kind for member in members if (kind := _kind(member, texts)) is not None]
    if any(isinstance(kind, list) for kind in found):
        found = [kind for kind in found if kind != "str"]  # an enumeration beside text says what may be written
    return found if set(map(str, found)) - {"none"} else None


def _kind(member: Any, texts: tuple[str, ...] | None) -> Any:
    words: dict[Any, str] = {
        int: "int",
        float: "float",
        bool: "bool",
        str: "str",
        type(None): "none",
        list[int]: "ints",
    }
    if get_origin(member) is Literal:
        return [text for text in get_args(member) if texts is None or text in texts]
    if isinstance(member, type) and issubclass(member, enum.Enum):
        return [each.value for each in member]
    return words.get(member)


# --- what is measured ------------------------------------------------------------------------------------------------

WIDTH = 64


class _Two(nn.Module):
    """Two layers of one kind, one after the other where their outputs can be inputs."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = make(), make()
        self.chained = not isinstance(self.first, nn.Embedding)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        z: Tensor = self.second(y.tanh()) if self.chained else y + self.second(x)
        return z


def _conv2d(**more: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(WIDTH, WIDTH, 3, **{"padding": 1, **more})


def _conv1d_of_gpt2() -> nn.Module:
    """A linear layer that keeps its weight transposed."""
    return Conv1D(WIDTH, WIDTH)  # type: ignore[no-untyped-call]


def _channels_last() -> nn.Module:
    """As many backbones keep their convolutions, since they are faster so."""
    return _conv2d()().to(memory_format=torch.channels_last)


PROBES: Mapping[str, tuple[tuple[Callable[[], nn.Module], tuple[int, ...]], ...]] = {
    "linear": ((lambda: nn.Linear(WIDTH, WIDTH), (3, 5, WIDTH)),),
    "transposed": ((_conv1d_of_gpt2, (3, 5, WIDTH)),),
    "conv1d": ((lambda: nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1), (2, WIDTH, 17)),),
    "conv2d": (
        (_conv2d(), (2, WIDTH, 8, 8)),
        (_conv2d(stride=2), (2, WIDTH, 16, 16)),
        (_channels_last, (2, WIDTH, 8, 8)),
    ),
    "dilated": ((_conv2d(padding=2, dilation=2), (2, WIDTH, 8, 8)),),
    "padded": ((_conv2d(padding_mode="circular"), (2, WIDTH, 8, 8)),),
    "grouped": ((_conv2d(groups=4), (2, WIDTH, 8, 8)), (_conv2d(groups=WIDTH), (2, WIDTH, 8, 8))),
    "embedding": ((lambda: nn.Embedding(30, WIDTH), (3, 5)),),
    "norm": ((lambda: nn.LayerNorm(WIDTH), (3, 5, WIDTH)),),
}


def _measured(tuner: str, known: Known, row: Mapping[str, Any]) -> dict[str, Any]:
    """layers, needs, start and mergeable of a method."""
    method, values = _method(tuner, row), _values(known, row)
    seen: dict[str, list[tuple[float, bool] | None]] = {
        kind: [_probed(method, values, make, shape) for make, shape in probes] for kind, probes in PROBES.items()
    }
    if tuner != "LN_TUNING":  # it copies whatever it is given; only for norms is that its method
        seen["norm"] = [None]
    else:
        seen = {kind: found if kind == "norm" else [None] for kind, found in seen.items()}
    good = {kind: [each for each in found if each is not None] for kind, found in seen.items() if None not in found}
    if not any(each[1] for found in good.values() for each in found):
        mergeable = False
    else:  # where it folds at all, a layer on which it does not is one on which it is wrong
        good = {kind: found for kind, found in good.items() if all(each[1] for each in found)}
        mergeable = True
    assert good, f"{tuner} works on nothing"
    needs = [list(roles) for roles in known.needs if _kinds_of_roles(roles) <= good.keys()]
    start = max(each[0] for each in good.get("linear") or next(iter(good.values())))
    return {"layers": sorted(good), "needs": needs, "start": float(f"{start:.1g}"), "mergeable": mergeable}


def _method(tuner: str, row: Mapping[str, Any]) -> Method:
    unknown: dict[str, Any] = {"arguments": (), "layers": frozenset(), "needs": (), "learning_rates": ()}
    return Method(**{**row, **unknown, "name": tuner.lower()})


def _values(known: Known, row: Mapping[str, Any]) -> dict[str, Any]:
    usual = {each["name"]: each["default"] for each in row["arguments"]}
    return usual | {name: value for name, (_, value) in row["instead"].items()} | dict(known.smaller or {})


def _acts(tuner: str, known: Known, row: Mapping[str, Any], dropout: str) -> bool:
    """Whether a dropout makes two passes in training mode differ."""
    make, shape = PROBES["linear"][0]
    values = {name: 4 if name == "r" and value is None else value for name, value in _values(known, row).items()}
    begun = _begun(_method(tuner, row), values | {dropout: 0.5}, make, shape, torch.float32)
    assert begun is not None
    two, x, _ = begun
    with torch.no_grad():
        for parameter in two.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        two.train()
        found = [two(x) for _ in range(8)]
    return not all(torch.equal(found[0], other) for other in found[1:])


def _kinds_of_roles(roles: tuple[str, ...]) -> set[str]:
    kinds = {"conv": "conv2d", "norm": "norm", "embed": "embedding"}
    return {kinds.get(role, "linear") for role in roles}


def _probed(
    method: Method, values: Mapping[str, Any], make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> tuple[float, bool] | None:
    """How far the start is from a no-op in float32, and whether it folds exactly; None if it does not work."""
    begun = _begun(method, values, make, shape, torch.float32)
    if begun is None:
        return None
    for dtype, tolerance in ((torch.float64, SMALLEST), (torch.float32, SMALLEST_32)):
        again = _begun(method, values, make, shape, dtype)
        if again is not None:
            folds = _folds(*again[:2], tolerance)
            return None if folds is None else (begun[2], folds)
    return None


def _begun(
    method: Method,
    values: Mapping[str, Any],
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[nn.Module, Tensor, float] | None:
    """Two layers with the method's own, inputs for them, and how far that changed the outputs; None: it does not work.

    peft passes over a layer that it does not know, and then there is nothing to train.
    """
    torch.manual_seed(SEED)
    two = _Two(make).to(dtype).eval().requires_grad_(False)
    x = torch.randn(shape, dtype=dtype) if two.chained else torch.randint(30, shape)
    base = two(x)
    extra: dict[str, Any] = {"feedforward_modules": []} if method.tuner == "IA3" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_at(two, method, {**values, **extra}, ["first", "second"])
            y = two.eval()(x)
            trained = [parameter for parameter in two.parameters() if parameter.requires_grad]
            if not trained:
                return None
            torch.autograd.grad(y.square().sum(), trained, allow_unused=True)
        start = float((y.detach() - base).abs().max() / base.abs().max())
    except (ZooError, RuntimeError, AttributeError, KeyError):
        return None
    return two, x, start


@torch.no_grad()
def _folds(two: nn.Module, x: Tensor, tolerance: float) -> bool | None:
    """Whether it does what it did once it is folded, away from its start; None: it gives an error."""
    for parameter in two.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    try:
        before = two(x)
        merge(two)
        after = two(x)
    except ZooError:
        return False
    except RuntimeError:
        return None
    return torch.allclose(before, after, rtol=0, atol=tolerance * float(before.abs().max()))


def _write(file: Path, content: object, indent: int) -> None:
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
