"""DP-SGD: single gradients as opacus and a plain loop have them, honest noise, and models that cannot be hidden."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orbitmesh.errors import InvalidInputError
from services.privacy import record_level
from services.privacy.accountant import epsilon, noise_for
from services.privacy.keystream import Keystream
from services.privacy.record_level import (
    Batch,
    RecordPlan,
    clipped_gradient_sum,
    private_gradient,
    sample_batch,
    train_privately,
)

SEED = bytes(range(32))


def small_cnn() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(4, 6, 3),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(150, 10),
    )


def linear() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Router(nn.Module):
    """Two experts, of which a branch on the example's own values picks one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(784, 10), nn.Linear(784, 10)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.first(row) if row.sum() > 0 else self.second(row) for row in x.flatten(1)]
        return torch.stack(rows) * self.scale


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def batch_of(count: int) -> Batch:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    return images * torch.linspace(0.01, 3, count).reshape(-1, 1, 1, 1), torch.arange(count) % 10


def by_loop(model: nn.Module, batch: Batch, clip: float) -> list[Tensor]:
    """Clipped sums with one plain backward pass for each example."""
    parameters = list(model.parameters())
    sums = [torch.zeros_like(value) for value in parameters]
    for row in range(len(batch[0])):
        single = torch.autograd.grad(
            loss(model, tuple(part[row : row + 1] for part in batch)), parameters, materialize_grads=True
        )
        norm = math.sqrt(sum(float(each.square().sum()) for each in single))
        for total, each in zip(sums, single, strict=True):
            total += each * min(1.0, clip / norm)
    return sums


def by_opacus(model: nn.Module, batch: Batch, clip: float) -> list[Tensor]:
    """Clipped sums of opacus' single gradients."""
    wrapped = GradSampleModule(model, loss_reduction="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss(wrapped, batch).backward()
    singles = [value.grad_sample for value in model.parameters()]
    norms = torch.stack([each.flatten(1).square().sum(1) for each in singles]).sum(0).sqrt()
    factors = (clip / norms).clamp(max=1.0)
    wrapped.to_standard_module()
    return [torch.tensordot(factors, each, dims=1) for each in singles]


@pytest.mark.parametrize("make", [small_cnn, linear, Router])
def test_clipped_sums_are_those_of_a_loop_over_examples(make: type[nn.Module]) -> None:
    """For a CNN, a linear model and one that branches on values, with some examples clipped and some not."""
    model, batch = make(), batch_of(17)
    singles = [by_loop(model, tuple(part[row : row + 1] for part in batch), 1e9) for row in range(17)]
    norms = sorted(math.sqrt(sum(float(each.square().sum()) for each in single)) for single in singles)
    clip = norms[8]
    ours, theirs = clipped_gradient_sum(model, loss, batch, clip), by_loop(model, batch, clip)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [small_cnn, linear])
def test_clipped_sums_are_those_of_opacus(make: type[nn.Module]) -> None:
    """Single gradients by hooks and by vectorised differentiation agree."""
    model, batch = make(), batch_of(17)
    ours = clipped_gradient_sum(model, loss, batch, 1.0)
    for mine, other in zip(ours, by_opacus(model, batch, 1.0), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_batch_taken_in_parts_gives_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory changes nothing but the order of additions."""
    model, batch = small_cnn(), batch_of(17)
    whole = clipped_gradient_sum(model, loss, batch, 0.5)
    monkeypatch.setattr(record_level, "_PER_EXAMPLE_VALUES_MAX", 5 * sum(v.numel() for v in model.parameters()))
    for mine, other in zip(clipped_gradient_sum(model, loss, batch, 0.5), whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_one_example_changes_the_sum_by_at_most_the_clip() -> None:
    """Whatever is in it: an example of a million times the size changes the sum by the clip and no more."""
    model, (images, labels) = small_cnn(), batch_of(9)
    images[8] *= 1e6
    clip = 0.25
    with_it = clipped_gradient_sum(model, loss, (images, labels), clip)
    without = clipped_gradient_sum(model, loss, (images[:8], labels[:8]), clip)
    change = math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(with_it, without, strict=True)))
    assert 0.9 * clip < change <= clip * (1 + 1e-5)


def test_frozen_parameters_have_no_gradient() -> None:
    """Only what is trained is differentiated, and it alone counts towards the norm."""
    model, batch = small_cnn(), batch_of(5)
    first = model[0]
    for value in first.parameters():
        value.requires_grad_(False)
    sums = clipped_gradient_sum(model, loss, batch, 1.0)
    assert [each.shape for each in sums] == [value.shape for value in model.parameters() if value.requires_grad]


def test_an_empty_batch_gives_noise_alone() -> None:
    """Nobody can tell an empty sample from a full one by a missing step: it has noise of the same size."""
    model, (images, labels) = linear(), batch_of(4)
    stream = Keystream(SEED, 1)
    noisy = private_gradient(
        model, loss, (images[:0], labels[:0]), clip=0.5, noise_multiplier=2.0, batch_expected=10.0, stream=stream
    )
    values = torch.cat([each.flatten() for each in noisy]).numpy()
    assert stats.kstest(values / (0.5 * 2.0 / 10.0), "norm").pvalue > 1e-4


def test_the_noise_on_a_gradient_is_that_of_the_plan() -> None:
    """What is left after the clipped sum is taken away is Gaussian with clip times multiplier."""
    model, batch = linear(), batch_of(12)
    noisy = private_gradient(
        model, loss, batch, clip=0.5, noise_multiplier=3.0, batch_expected=8.0, stream=Keystream(SEED, 1)
    )
    sums = clipped_gradient_sum(model, loss, batch, 0.5)
    left = torch.cat([(n * 8.0 - s).flatten() for n, s in zip(noisy, sums, strict=True)]).numpy()
    assert stats.kstest(left / 1.5, "norm").pvalue > 1e-4


def test_without_noise_and_with_a_wide_clip_training_is_plain_training() -> None:
    """With sample rate 1 and no noise the steps are those of torch's own full-batch gradient descent."""
    data = batch_of(20)
    ours, theirs = small_cnn(), small_cnn()
    plan = RecordPlan(clip=1e6, noise_multiplier=0.0, examples=20, batch_expected=20, steps=4)
    train_privately(ours, loss, data, plan, torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9), SEED)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        loss(theirs, data).backward()
        optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_run_learns_within_its_epsilon_and_is_the_same_again_for_a_seed() -> None:
    """Easy data are learnt at epsilon 2; the same seed gives the same weights, another seed others."""
    images = torch.eye(10).repeat(60, 1) + 0.05 * torch.randn(600, 10, generator=torch.Generator().manual_seed(0))
    data = (images, torch.arange(600) % 10)
    noise = noise_for(2.0, 1e-5, 60, 0.1)
    plan = RecordPlan(clip=1.0, noise_multiplier=noise, examples=600, batch_expected=60, steps=60)
    weights = []
    for seed in (SEED, SEED, bytes(32)):
        model = nn.Linear(10, 10)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        steps: list[int] = []
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        release = train_privately(model, loss, data, plan, optimizer, seed, on_step=steps.append)
        assert epsilon([release], 1e-5) <= 2.0
        assert steps == list(range(1, 61))
        assert float((model(images).argmax(1) == data[1]).float().mean()) > 0.95
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_samples_are_each_examples_own_chance_and_differ_from_step_to_step() -> None:
    """Over many steps each example comes up as often as its rate says, also not at all in some steps."""
    samples = [sample_batch(SEED, step, 40, 0.05) for step in range(3000)]
    counts = np.bincount(torch.cat(samples).numpy(), minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.binomtest(int(counts.sum()), 40 * 3000, 0.05).pvalue > 1e-4
    assert any(len(sample) == 0 for sample in samples)


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.BatchNorm1d(10), "1"), (nn.SyncBatchNorm(10), "1"), (nn.InstanceNorm1d(10, track_running_stats=True), "1")],
)
def test_a_layer_in_which_examples_meet_is_refused_by_name(layer: nn.Module, name: str) -> None:
    """The error names the layer and its kind, and says what to use."""
    model = nn.Sequential(nn.Linear(784, 10), layer)
    with pytest.raises(InvalidInputError, match=f"layer '{name}' is a {type(layer).__name__}.*GroupNorm") as caught:
        clipped_gradient_sum(model, loss, batch_of(3), 1.0)
    assert caught.value.reason == "UNSUPPORTED_MODEL"
    assert caught.value.metadata == {"layer": name}


def test_an_example_without_a_finite_gradient_is_refused() -> None:
    """A NaN in one image has the reason NOT_FINITE; no clip would bound it."""
    images, labels = batch_of(4)
    images[2, 0, 3, 3] = math.nan
    with pytest.raises(InvalidInputError) as caught:
        clipped_gradient_sum(linear(), loss, (images, labels), 1.0)
    assert caught.value.reason == "NOT_FINITE"


def test_an_example_without_any_gradient_adds_nothing() -> None:
    """A gradient of norm 0 is not divided by."""
    model = nn.Linear(784, 10, bias=False)
    sums = clipped_gradient_sum(model, lambda m, b: m(b[0].flatten(1)).sum(), (torch.zeros(3, 1, 28, 28),), 1.0)
    assert float(sums[0].abs().max()) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"clip": 0.0},
        {"clip": math.nan},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"batch_expected": 0},
        {"batch_expected": 11},
        {"steps": -1},
    ],
)
def test_plans_out_of_range_are_refused(fields: dict[str, float]) -> None:
    """Clip, noise, batch and steps have typed errors."""
    good = {"clip": 1.0, "noise_multiplier": 1.0, "examples": 10, "batch_expected": 2, "steps": 5}
    with pytest.raises(InvalidInputError):
        RecordPlan(**{**good, **fields})  # type: ignore[arg-type]


def test_batches_and_data_of_the_wrong_shape_are_refused() -> None:
    """Parts of unequal length, data of another size than the plan's and a model without parameters."""
    images, labels = batch_of(4)
    with pytest.raises(InvalidInputError, match="equally many rows"):
        clipped_gradient_sum(linear(), loss, (images, labels[:3]), 1.0)
    with pytest.raises(InvalidInputError, match="no trainable parameter"):
        clipped_gradient_sum(nn.Flatten(), loss, (images, labels), 1.0)
    model = linear()
    plan = RecordPlan(clip=1.0, noise_multiplier=1.0, examples=5, batch_expected=2, steps=1)
    with pytest.raises(InvalidInputError, match="for 5 examples"):
        train_privately(model, loss, (images, labels), plan, torch.optim.SGD(model.parameters()), SEED)
