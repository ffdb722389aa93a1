"""The flat layout of a model, beside numpy's own concatenation and torch's own state_dict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from services.updates.layout import Layout, Tensor
from services.updates.spans import SPAN_VALUES, span_count, span_length, span_slice, spans

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6)


def arrays(shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(shapes))
    return {f"layer.{n}": rng.standard_normal(shape).astype(np.float32) for n, shape in enumerate(shapes)}


@given(SHAPES)
def test_a_vector_is_the_tensors_end_to_end_and_comes_apart_again(shapes: list[tuple[int, ...]]) -> None:
    """Flattening is concatenation in order; unflattening gives the same tensors, as views of the vector."""
    tensors = {**arrays(shapes), "last": np.ones(2, np.float32)}
    layout = Layout.of(tensors)
    vector = layout.flatten(tensors)
    np.testing.assert_array_equal(vector, np.concatenate([array.reshape(-1) for array in tensors.values()]))
    back = layout.unflatten(vector)
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)
    vector[:] = 7
    assert back["last"].tolist() == [7, 7]


def test_a_torch_model_has_its_floating_tensors_in_the_layout() -> None:
    """Counters of a batch norm are no values to train; everything else is there, in the order of the state_dict."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layout = Layout.of(state)
    assert "1.num_batches_tracked" in state
    floating = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    assert [tensor.name for tensor in layout] == floating
    assert layout.size == sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    layout.check(layout.flatten(state))


@given(SHAPES, st.data())
def test_every_position_is_found_where_it_lies(shapes: list[tuple[int, ...]], data: st.DataObject) -> None:
    """The tensor and index that a position is said to be at hold the value of that position."""
    tensors = {**arrays(shapes), "last": np.ones(2, np.float32)}
    layout = Layout.of(tensors)
    numbered = layout.unflatten(np.arange(layout.size, dtype=np.float32))
    position = data.draw(st.integers(0, layout.size - 1))
    name, index = layout.locate(position)
    assert numbered[name][index] == position


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_named(bad: float) -> None:
    """The error names the tensor and the index, beyond the first span too."""
    tensors = {"a": np.zeros(3, np.float32), "b.weight": np.zeros((300, 300), np.float32)}
    layout = Layout.of(tensors)
    vector = layout.flatten(tensors)
    vector[3 + 250 * 300 + 17] = bad
    with pytest.raises(InvalidInputError, match=r"\[250, 17\] of the tensor 'b.weight'") as caught:
        layout.check(vector)
    assert caught.value.reason == "NOT_FINITE"


def test_models_that_differ_in_anything_have_other_digests() -> None:
    """Names, shapes and order count, a name that ends in digits is not mixed up with a shape; equal ones agree."""
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(6, np.float32)}
    layout = Layout.of(tensors)
    others = [
        {"a": np.zeros((3, 2), np.float32), "b": np.zeros(6, np.float32)},
        {"b": np.zeros(6, np.float32), "a": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((2, 3), np.float32), "c": np.zeros(6, np.float32)},
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros((6, 1), np.float32)},
        {"a": np.zeros((2, 3), np.float32)},
    ]
    digests = {Layout.of(other).digest for other in others} | {layout.digest}
    assert len(digests) == len(others) + 1
    assert Layout.of(dict(tensors)).digest == layout.digest
    layout.expect(layout.digest)
    with pytest.raises(InvalidInputError, match="same task in the same version") as caught:
        layout.expect(Layout.of(others[0]).digest)
    assert caught.value.reason == "LAYOUT_MISMATCH"


def test_what_does_not_fit_a_layout_is_refused() -> None:
    """Other sizes, types, names and shapes; layouts with gaps, without values, with one name twice."""
    tensors = {"a": np.zeros((2, 3), np.float32)}
    layout = Layout.of(tensors)
    for vector in (np.zeros(5, np.float32), np.zeros(6), np.zeros((6, 1), np.float32)):
        with pytest.raises(InvalidInputError, match="expected"):
            layout.unflatten(vector)
    for given_tensors in ({}, {"b": tensors["a"]}, {**tensors, "b": tensors["a"]}, {"a": np.zeros(6, np.float32)}):
        with pytest.raises(InvalidInputError) as caught:
            layout.flatten(given_tensors)
        assert caught.value.reason == "LAYOUT_MISMATCH"
    tensor = layout.tensors[0]
    for laid in (
        (),
        (replace(tensor, offset=1),),
        (replace(tensor, shape=(0,)),),
        (tensor, replace(tensor, offset=6)),
        (replace(tensor, shape=(-2, -3)),),
        (Tensor("x" * 5000, (1,), 0),),
    ):
        with pytest.raises(InvalidInputError):
            Layout(laid)
    with pytest.raises(InvalidInputError, match="position 6"):
        layout.locate(6)


@given(st.integers(1, 5 * SPAN_VALUES))
def test_spans_cover_a_vector_once_in_order(size: int) -> None:
    """Every value is in exactly one span; only the last span is shorter."""
    covered = list(spans(size))
    assert [span for span, _ in covered] == list(range(span_count(size)))
    stops = [0, *(where.stop for _, where in covered)]
    assert [where.start for _, where in covered] == stops[:-1] and stops[-1] == size
    assert {span_length(span, size) for span in range(span_count(size) - 1)} <= {SPAN_VALUES}
    for span in (-1, span_count(size)):
        with pytest.raises(InvalidInputError):
            span_slice(span, size)
