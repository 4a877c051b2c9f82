"""Everybody's own random numbers: they are those of the global generator with that seed, and nobody else's move."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo_core
from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core._process.singletons import Once
from zoo_core.data.augmentation import Augment
from zoo_core.data.loader import Loader
from zoo_core.data.randomness import derive_seed, forked_rng, private_rng, seeded
from zoo_core.model import build
from zoo_core.model.build import build as build_learner
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part
from zoo_core.testing.recipes import ToyOpen, toy_plan
from zoo_core.training import fit as train
from zoo_core.training import gradient_trainer
from zoo_core.training.fit import fit

THREADS = 4
CPU = torch.device("cpu")


@contextmanager
def swapped(*parts: object) -> Iterator[torch.Generator]:
    """Draws as they were made first: the global generator, seeded and put back. The numbers are those of today."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(*parts))
        yield torch.Generator().manual_seed(derive_seed(*parts))


# --- the numbers -----------------------------------------------------------------------------------------------------


def initialised(by: Callable[..., Any], *arguments: Any) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        weight = torch.empty(17, 16)
        by(weight, *arguments)
        return weight

    return draw


def parameters(make: Callable[[], nn.Module]) -> Callable[[], Tensor]:
    return lambda: nn.utils.parameters_to_vector(make().parameters()).detach()


def lstm() -> Tensor:
    found: Tensor = nn.LSTM(4, 8, 2, dropout=0.5).train()(torch.ones(5, 2, 4))[0]
    return found.detach()


def attention(dropout: float) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        x = torch.randn(1, 2, 8, 4)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout)

    return draw


def seeding() -> Tensor:
    """A part that seeds torch while it is built, for good and for a while."""
    first = torch.rand(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(-3)
        second = torch.rand(2)
    third = torch.rand(2)
    state = torch.get_rng_state()
    fourth = torch.rand(2)
    torch.set_rng_state(state)
    again = torch.rand(2)
    torch.manual_seed(5)
    return torch.cat([first, second, third, fourth, again, torch.rand(2), torch.tensor([float(torch.initial_seed())])])


def named_generator() -> Tensor:
    """torch's global generator, given by name, as `random_split` does."""
    return torch.cat([torch.rand(3, generator=torch.default_generator), torch.randperm(9).float()])


DRAWS: dict[str, Callable[[], Tensor]] = {
    **{
        name: initialised(getattr(nn.init, name))
        for name in (
            *("kaiming_normal_", "kaiming_uniform_", "normal_", "orthogonal_", "trunc_normal_", "uniform_"),
            *("xavier_normal_", "xavier_uniform_"),
        )
    },
    "sparse_": initialised(nn.init.sparse_, 0.3),
    "Linear": parameters(lambda: nn.Linear(5, 7)),
    "Conv2d": parameters(lambda: nn.Conv2d(3, 8, 3)),
    "LSTM": parameters(lambda: nn.LSTM(4, 8, 2)),
    "Embedding": parameters(lambda: nn.Embedding(30, 7)),
    "MultiheadAttention": parameters(lambda: nn.MultiheadAttention(16, 4)),
    "Bilinear": parameters(lambda: nn.Bilinear(4, 5, 6)),
    "rand": lambda: torch.rand(5, 7),
    "rand_like": lambda: torch.rand_like(torch.zeros(40)),
    "rand out": lambda: torch.rand(40, out=torch.zeros(40)),
    "rand on cpu:0": lambda: torch.cat([torch.rand(3), torch.rand(3, device="cpu:0")]),
    "rand float64": lambda: torch.rand(9, dtype=torch.float64),
    "randn": lambda: torch.randn(5, 7),
    "randn_like": lambda: torch.randn_like(torch.zeros(40)),
    "randint": lambda: torch.randint(3, 10, (30,)),
    "randint_like": lambda: torch.randint_like(torch.zeros(30), 10),
    "randperm": lambda: torch.randperm(50),
    "multinomial": lambda: torch.multinomial(torch.rand(3, 20), 5),
    "multinomial again": lambda: torch.multinomial(torch.rand(3, 20), 5, True),
    "normal": lambda: torch.normal(torch.zeros(4), torch.ones(4)),
    "bernoulli": lambda: torch.bernoulli(torch.full((50,), 0.3)),
    "poisson": lambda: torch.poisson(torch.full((30,), 4.0)),
    "random_": lambda: torch.empty(40, dtype=torch.int64).random_(),
    "exponential_": lambda: torch.empty(40).exponential_(),
    "Gamma": lambda: torch.distributions.Gamma(2.0, 3.0).sample((10,)),
    "dropout": lambda: F.dropout(torch.ones(300)),
    "native_dropout": lambda: torch.native_dropout(torch.ones(300), 0.5, True)[0],
    "alpha_dropout": lambda: F.alpha_dropout(torch.ones(300), training=True),
    "dropout2d": lambda: F.dropout2d(torch.ones(30, 30, 2, 2)),
    "rrelu": lambda: F.rrelu(-torch.ones(300), training=True),
    "dropout of an LSTM": lstm,
    "attention": attention(0.0),
    "dropout of attention": attention(0.3),
    "seeding": seeding,
    "named generator": named_generator,
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", DRAWS)
def test_numbers_are_those_of_the_global_generator_with_that_seed(name: str, mode: Callable[[], Any]) -> None:
    with mode():
        with swapped("a", 1) as generator:
            expected = [DRAWS[name](), torch.rand(3), torch.rand(3, generator=generator)]
        before = torch.get_rng_state()
        with seeded("a", 1) as generator:
            found = [DRAWS[name](), torch.rand(3), torch.rand(3, generator=generator)]
        assert torch.equal(torch.get_rng_state(), before)
        with forked_rng(CPU, "a", 1):
            trained = [DRAWS[name](), torch.rand(3)]
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, trained, expected))


def test_a_part_within_a_part_draws_its_own_and_the_outer_one_goes_on() -> None:
    with swapped("outer"):
        outer = torch.rand(4)
    with swapped("inner"):
        inner = torch.rand(4)
    with seeded("outer"):
        first = torch.rand(2)
        with seeded("inner"):
            found = [torch.rand(2)]
            with forked_rng(CPU, "outer"):
                assert torch.equal(torch.rand(4), outer)
            found.append(torch.rand(2))
        last = torch.rand(2)
    assert torch.equal(torch.cat([first, last]), outer)
    assert torch.equal(torch.cat(found), inner)


def test_nothing_is_drawn_on_the_meta_device() -> None:
    with seeded("a"):
        with torch.device("meta"):
            assert nn.Linear(3, 3).weight.is_meta
        found = torch.rand(3)
    with swapped("a"):
        assert torch.equal(torch.rand(3), found)


def test_after_an_error_all_is_as_it_was() -> None:
    before, held = torch.get_rng_state(), vars(torch.random)["default_generator"]
    with pytest.raises(ZeroDivisionError), seeded("a"):
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert vars(torch.random)["default_generator"] is held is torch.default_generator
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_recomputation_draws_what_was_drawn() -> None:
    x = torch.ones(200, requires_grad=True)
    with seeded("a"):
        y = torch.utils.checkpoint.checkpoint(F.dropout, x, use_reentrant=False)
        y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)


# --- the caller's generator ------------------------------------------------------------------------------------------


def drawn_beside(work: Callable[[], object]) -> tuple[Tensor, Tensor]:
    """What another thread drew from the global generator while something was done, and what it draws alone."""
    torch.manual_seed(7)
    started, done = threading.Event(), threading.Event()
    found: list[Tensor] = []

    def draw() -> None:
        while not done.is_set():
            found.append(torch.rand(1))
            started.set()
        found.append(torch.rand(1))

    thread = threading.Thread(target=draw)
    thread.start()
    started.wait()
    try:
        work()
    finally:
        done.set()
        thread.join()
    together = torch.cat(found)
    torch.manual_seed(7)
    return together, torch.cat([torch.rand(1) for _ in found])


SPECS = ("starter/vit-nano(weights=random)+lora(r=2)", "starter/convnet-nano(weights=random)", "starter/vit-nano+mlp")


def load(spec: str) -> Learner:
    return zoo_core.load(spec, num_classes=3)


@pytest.mark.parametrize("spec", SPECS)
def test_a_load_takes_nothing_from_a_thread_that_draws(spec: str) -> None:
    before = torch.get_rng_state()
    load(spec)
    assert torch.equal(torch.get_rng_state(), before)
    together, alone = drawn_beside(lambda: load(spec))
    assert torch.equal(together, alone)


def test_a_load_that_takes_from_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "seeded", swapped)

    def loads() -> None:
        for _ in range(3):
            load(SPECS[0])

    together, alone = drawn_beside(loads)
    assert not torch.equal(together, alone)


def test_preparing_takes_nothing_from_a_thread_that_draws() -> None:
    plan = toy_plan()
    loader = loader_of(plan, build_learner(plan), augment="strong")
    together, alone = drawn_beside(lambda: [list(loader.epoch(epoch)) for epoch in range(5)])
    assert torch.equal(together, alone)


# --- threads ---------------------------------------------------------------------------------------------------------


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What each of some threads gave that began together."""
    barrier = threading.Barrier(THREADS)

    def begin(index: int) -> Any:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def others(specs: Sequence[str], times: int = 2) -> int:
    """How many of the learners that threads load at once differ from one built alone; one more if they moved what
    the caller draws from.
    """
    alone = {spec: load(spec).state_dict() for spec in specs}
    before = torch.get_rng_state()

    def loads(index: int) -> int:
        turned = [*specs[index % len(specs) :], *specs[: index % len(specs)]]
        return sum(not same(load(spec).state_dict(), alone[spec]) for _ in range(times) for spec in turned)

    return sum(map(int, at_once(loads))) + int(not torch.equal(torch.get_rng_state(), before))


RANDOM = (
    *("starter/vit-nano(weights=random)", "starter/convnet-nano(weights=random)", "starter/mlp-nano(weights=random)"),
    *("timm/test_vit(weights=random)", "timm/test_resnet(weights=random)", "timm/test_efficientnet(weights=random)"),
)
ADAPTED = tuple(
    f"starter/vit-nano+{chain}"
    for chain in ("lora(r=2)", "prefix(length=3)", "bottleneck(r=4)", "prompt(length=3)", "linear", "mlp")
)


def test_threads_that_load_random_backbones_at_once_get_what_one_gets_alone() -> None:
    assert others(RANDOM) == 0


@pytest.mark.slow
def test_threads_that_load_adapters_and_heads_at_once_get_what_one_gets_alone() -> None:
    assert others(ADAPTED) == 0


@pytest.mark.parametrize("name", ["bert", "wav2vec2"])
def test_threads_that_load_models_of_transformers_get_what_one_gets_alone(
    name: str,
    tiny: Callable[[str], str],  # noqa: F811
) -> None:
    spec = tiny(name)
    assert others([spec, spec.replace(")", ", weights=random)")]) == 0


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads that take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager")
def test_threads_that_get_others_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "seeded", swapped)
    assert others(RANDOM[:3], times=4) > 0


FIRST = """
import sys, threading
import zoo_core
num, specs = int(sys.argv[1]), sys.argv[2:]
found, errors, barrier = [], [], threading.Barrier(num * len(specs))
def begin(spec):
    barrier.wait()
    try:
        found.append((spec, zoo_core.load(spec, num_classes=3).state_dict()))
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=begin, args=(spec,)) for spec in specs for _ in range(num)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
alone = {spec: zoo_core.load(spec, num_classes=3).state_dict() for spec in specs}
print(sum(any((x != alone[spec][name]).any() for name, x in each.items()) for spec, each in found))
"""


def others_at_first(*specs: str, num: int = 4) -> str:
    """What a fresh process prints whose first loads are by `num` threads each: how many differ from one alone."""
    command = [sys.executable, "-c", FIRST, str(num), *specs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("spec", [ADAPTED[0], RANDOM[4]])
def test_the_first_loads_of_a_process_may_be_those_of_threads(spec: str) -> None:
    assert others_at_first(spec) == "0"


@pytest.mark.slow
def test_the_first_loads_of_a_process_may_be_those_of_threads_for_every_part_at_once() -> None:
    assert others_at_first(*RANDOM, *ADAPTED, num=2) == "0"


@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", [*RANDOM, *ADAPTED])
def test_the_first_loads_of_a_process_may_be_those_of_threads_for_each_part(spec: str) -> None:
    assert others_at_first(spec) == "0"


@pytest.mark.slow
def test_the_first_loads_of_a_process_may_be_of_transformers(
    tiny: Callable[[str], str],  # noqa: F811
) -> None:
    specs = [tiny(name).replace(")", ", weights=random)") for name in ("bert", "wav2vec2")]
    assert others_at_first(*specs, num=2) == "0"


BUDGET = Budget(epochs=2, batch_size=16, augment="light")


def loader_of(plan: Any, learner: Learner, augment: str = "light") -> Loader:
    return Loader(
        plan.task.recipe.open(None).splits["train"],
        modality="image",
        target=learner.target,
        preparation=learner.source.preparation,
        batch_size=plan.budget.batch_size,
        shuffled=True,
        augment=Augment(registry().bind(Part(augment), "augmentation")),
        seed=plan.seed,
    )


def fitted(seed: int) -> dict[str, Tensor]:
    """The weights of a toy with dropout and augmentation, trained for some steps."""
    plan = toy_plan(ToyOpen(), budget=BUDGET, seed=seed)
    learner = build_learner(plan)
    fit(learner, loader_of(plan, learner), budget=BUDGET, learning_rate=1e-2, seed=seed)
    return learner.state_dict()


@contextmanager
def unguarded(_: torch.device, *parts: object) -> Iterator[None]:
    with swapped(*parts):
        yield


def fits_that_differ() -> int:
    """How many fits of threads end otherwise than alone; one more if they moved what the caller draws from."""
    alone = [fitted(index) for index in range(THREADS)]
    before = torch.get_rng_state()
    found = at_once(fitted)
    differ = sum(not same(each, expected) for each, expected in zip(found, alone, strict=True))
    return differ + int(not torch.equal(torch.get_rng_state(), before))


@pytest.mark.usefixtures("eager")
def test_fits_in_threads_end_with_the_bits_of_each_alone() -> None:
    assert fits_that_differ() == 0


@pytest.mark.usefixtures("eager")
def test_fits_that_disturb_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "forked_rng", unguarded)
    monkeypatch.setattr(gradient_trainer, "forked_rng", unguarded)
    assert fits_that_differ() > 0


def test_a_load_does_not_wait_for_a_fit_nor_a_fit_within_a_load_for_another() -> None:
    inside, over = threading.Event(), threading.Event()

    def train_long() -> None:
        with forked_rng(CPU, "long"):
            inside.set()
            assert over.wait(60)
            with seeded("a part, from a callback"):
                torch.rand(1)

    def build_and_train() -> None:
        with seeded("a part"), forked_rng(CPU, "short"):
            torch.rand(1)
        list(loader_of(plan, learner).epoch())
        load(SPECS[2])

    plan = toy_plan()
    learner = build_learner(plan)
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(train_long)
        assert inside.wait(60)
        try:
            pool.submit(build_and_train).result(60)
        finally:
            over.set()
        long.result(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_inherits_no_lock_that_another_thread_holds() -> None:
    inside, over = threading.Event(), threading.Event()

    def hold() -> None:
        with forked_rng(CPU, "a"), seeded("b"):
            inside.set()
            assert over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(60)
        child = os.fork()
        if child == 0:
            late = threading.Timer(20, os._exit, [3])
            late.start()
            with seeded("c"), forked_rng(CPU, "d"):
                torch.rand(1)
            with forked_rng(CPU, "e"):
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        over.set()
        thread.join()


def test_what_a_process_has_one_of_is_made_once() -> None:
    made: list[int] = []
    slow = threading.Event()

    @Once
    def only() -> list[int]:
        """What there is one of."""
        slow.wait(0.05)
        made.append(len(made))
        return made

    found = at_once(lambda _: only())
    assert made == [0]
    assert all(each is made for each in found)
    only.cache_clear()
    only()
    assert made == [0, 1]


def test_examples_draw_apart_without_a_lock() -> None:
    barrier = threading.Barrier(THREADS, timeout=60)

    def draw(index: int) -> Tensor:
        with private_rng("example", index):
            first = torch.rand(2)
            barrier.wait()
            return torch.cat([first, torch.rand(2)])

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(draw, range(THREADS)))
    for index, each in enumerate(found):
        with swapped("example", index):
            assert torch.equal(each, torch.rand(4))


def test_what_a_part_may_set_for_the_process_is_as_it_was() -> None:
    """torch's own generator is never another object, to whoever passes it on, and its functions come back."""
    names = ("manual_seed", "seed", "initial_seed", "get_rng_state", "set_rng_state")
    functions = [getattr(torch, name) for name in names]
    with seeded("part"):
        assert vars(torch.random)["default_generator"] is torch.default_generator
    assert [getattr(torch, name) for name in names] == functions == [getattr(torch.random, name) for name in names]


def test_seeding_inside_a_part_is_the_parts_own_and_outside_as_ever() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded("part"):
        torch.manual_seed(1)
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(torch.initial_seed).result() == 7  # another thread's is torch's own
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_lock_that_another_thread_holds_is_free_in_a_forked_child() -> None:
    program = """
import os, sys, threading
from zoo_core._process.singletons import Lock
lock, held = Lock(), threading.Event()

def hold():
    with lock.held:
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
if not (child := os.fork()):
    with lock.held:
        os._exit(0)
threading.Timer(20, lambda: os.kill(child, 9)).start()
sys.stdout.write(str(os.waitpid(child, 0)[1])), sys.stdout.flush()
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "0", done.stderr
