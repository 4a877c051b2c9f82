from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo_core.contracts import FEATURE_KINDS, Features, Kind
from zoo_core.errors import IncompatibleError
from zoo_core.toolkit.features import convert, joined, masked_mean, to_tokens

MAP = Features(kind="map", x=torch.arange(2 * 3 * 2 * 4, dtype=torch.float64).reshape(2, 3, 2, 4))
TOKENS = Features(kind="tokens", x=torch.randn(2, 5, 3, dtype=torch.float64))
POOLED = Features(kind="pooled", x=torch.randn(2, 3, dtype=torch.float64))
BY_KIND: dict[Kind, Features] = {"map": MAP, "tokens": TOKENS, "pooled": POOLED}


@pytest.mark.parametrize("given_kind", FEATURE_KINDS)
@pytest.mark.parametrize("wanted", FEATURE_KINDS)
def test_features_only_become_poorer(given_kind: Kind, wanted: Kind) -> None:
    if FEATURE_KINDS.index(given_kind) <= FEATURE_KINDS.index(wanted):
        assert convert(BY_KIND[given_kind], wanted, masked_mean).kind == wanted
    else:
        with pytest.raises(IncompatibleError, match=f"{given_kind} features cannot become {wanted}"):
            convert(BY_KIND[given_kind], wanted, masked_mean)


@pytest.mark.parametrize("kind", FEATURE_KINDS)
def test_features_of_the_right_kind_are_left_as_they_are(kind: Kind) -> None:
    assert convert(BY_KIND[kind], kind, masked_mean) is BY_KIND[kind]


def test_pooling_is_the_backbones_own() -> None:
    found = convert(TOKENS, "pooled", lambda features: features.x[:, 0])
    assert torch.equal(found.x, TOKENS.x[:, 0])


def test_a_map_becomes_tokens_row_by_row() -> None:
    tokens = to_tokens(MAP)
    assert tokens.x.shape == (2, 8, 3)
    for row in range(2):
        for column in range(4):
            assert torch.equal(tokens.x[:, row * 4 + column], MAP.x[:, :, row, column])


def test_a_map_and_its_tokens_have_one_mean() -> None:
    torch.testing.assert_close(masked_mean(MAP), masked_mean(to_tokens(MAP)), rtol=1e-12, atol=0)  # order of summing


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_mean_sees_real_tokens_alone(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), 6, 3, dtype=torch.float64, generator=generator)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    found = masked_mean(Features(kind="tokens", x=x, mask=mask))
    expected = torch.stack([row[:length].mean(0) for row, length in zip(x, lengths, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # rounding of float64 sums of six


@pytest.mark.parametrize("padding", [math.nan, math.inf])
def test_the_mean_ignores_padding_whatever_it_holds(padding: float) -> None:
    x = torch.ones(1, 3, 2)
    x[0, 2] = padding
    found = masked_mean(Features(kind="tokens", x=x, mask=torch.tensor([[True, True, False]])))
    assert torch.equal(found, torch.ones(1, 2))


def test_a_mask_of_true_is_no_mask() -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    found = masked_mean(Features(kind="tokens", x=TOKENS.x, mask=mask))
    torch.testing.assert_close(found, masked_mean(TOKENS), rtol=1e-12, atol=1e-12)  # sum / count against mean


def test_joined_tokens_are_padded_and_the_padding_is_masked() -> None:
    short = Features(kind="tokens", x=torch.randn(1, 2, 3), mask=torch.tensor([[True, False]]))
    long = Features(kind="tokens", x=torch.randn(2, 4, 3))
    both = joined([short, long])
    assert both.mask is not None
    assert both.mask.tolist() == [[True, False, False, False], [True] * 4, [True] * 4]
    torch.testing.assert_close(masked_mean(both)[:1], masked_mean(short), rtol=1e-6, atol=1e-6)  # float32, other order


@pytest.mark.parametrize("kind", ["map", "pooled"])
def test_joined_features_are_concatenated(kind: Kind) -> None:
    assert torch.equal(joined([BY_KIND[kind], BY_KIND[kind]]).x, torch.cat([BY_KIND[kind].x] * 2))
