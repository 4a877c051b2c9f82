"""Fuzzed spec texts: each is a Spec that reads back, or a SpecError; anything else fails.

    python benchmarks/spec_fuzz.py [--num 200000] [--seed 0]

Half of the texts are mutations of valid specs, a quarter strings of the grammar's own symbols, a quarter any
characters.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from zoo_core.errors import SpecError
from zoo_core.spec.parser import parse, parse_part, parse_parts, parse_specs

VALID = (
    "timm/vit_tiny_patch16_224.augreg_in21k+lora(r=8)+linear",
    "hf/sentence-transformers/all-MiniLM-L6-v2@1a2b3c4+prefix(length=16)",
    "starter/vit-nano+full",
    "timm/resnet50(weights=random)+peft/oft(r=8)",
    'run(path="runs/source")+full',
    "partial(n=2)+norm",
    "head:linear",
    'a(b=[1,[2.5e-3,-4],true,none,"x\\"y\\\\z"],c=word.with-dots_2)@',
    'distill(teacher="timm/vit_base+full",T=4)',
)
SYMBOLS = 'abz019._-/+@:()=,[]"\\ \t\ntruefalsnoe'


def main() -> int:
    """Prints the counts and the mean time; 0 if every text was a Spec or a SpecError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    texts = [fuzzed(generator) for _ in range(options.num)]
    outcomes: Counter[str] = Counter()
    started = time.process_time()
    for text in texts:
        outcomes[outcome(text)] += 1
    seconds = time.process_time() - started
    for name, count in sorted(outcomes.items()):
        print(f"{name:40}{count:>10,}")
    print(f"{'mean time of a fuzzed text':40}{1e6 * seconds / options.num:>7.1f} us")
    print(f"{'mean time of a valid spec':40}{mean_us(VALID[0]):>7.1f} us")
    return 0 if set(outcomes) <= {"Spec", "SpecError"} else 1


def outcome(text: str) -> str:
    """What parsing gave; a Spec counts as one only if its canonical text gives it again."""
    try:
        spec = parse(text)
    except SpecError as error:
        if not 0 <= error.column <= len(text):
            return f"SpecError outside the text: {text!r}"
        for other in (parse_part, parse_parts, parse_specs):
            try:
                other(text)
            except SpecError:
                continue
            except Exception as failure:  # noqa: BLE001 - to count what must not happen
                return f"{type(failure).__name__} from {other.__name__}({text!r})"
        return "SpecError"
    except Exception as failure:  # noqa: BLE001 - to count what must not happen
        return f"{type(failure).__name__} from parse({text!r})"
    again = parse(str(spec))
    return "Spec" if again == spec and str(again) == str(spec) else f"no round trip of {text!r}"


def fuzzed(generator: random.Random) -> str:
    """One text of the mixture that the module's docstring states."""
    style = generator.random()
    if style < 0.25:
        return "".join(generator.choices(SYMBOLS, k=generator.randrange(40)))
    if style < 0.5:
        return "".join(chr(generator.randrange(0x110000)) for _ in range(generator.randrange(20)))
    text = generator.choice(VALID)
    for _ in range(generator.randrange(4)):
        at = generator.randrange(len(text) + 1)
        piece = generator.choice((*SYMBOLS, "1" * 40, "[" * 10, "e999", "..", "é", "nan", "\x00", "(a=1)", "@x"))
        text = text[:at] + piece + text[at + generator.randrange(3) :]
    return text


def mean_us(text: str, runs: int = 20_000) -> float:
    """Microseconds of CPU for one parse."""
    started = time.process_time()
    for _ in range(runs):
        parse(text)
    return 1e6 * (time.process_time() - started) / runs


if __name__ == "__main__":
    sys.exit(main())
