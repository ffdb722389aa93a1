"""The shipped tasks, and how tasks are found."""

from __future__ import annotations

import gzip
import socket
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from orbitmesh.errors import InvalidInputError
from services.training import flat, packaged
from services.training.examples import Examples
from services.training.images import Digits, Images, Mnist5k
from services.training.language import MODEL_VARIABLE, PyDoc, PyDocSmall
from services.training.task import find_task, installed_tasks

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_tasks_are_installed() -> None:
    """Entry points of the distribution, not a list in the code, say which tasks there are."""
    assert {"digits", "mnist5k", "pydoc", "pydoc-small"} <= set(installed_tasks())
    assert isinstance(find_task("mnist5k"), Mnist5k)


@pytest.mark.parametrize("name", ["cifar", "", "../digits", "services.training.images:Digits", "x" * 10_000])
def test_a_task_that_is_not_installed_names_those_that_are(name: str) -> None:
    """The error is typed, short, and lists what can be used."""
    with pytest.raises(InvalidInputError, match="digits, mnist5k, pydoc") as caught:
        find_task(name)
    assert caught.value.reason == "NOT_FOUND"
    assert "mnist5k" in caught.value.metadata["installed"]
    assert len(caught.value.message) < 600


def test_data_is_taken_from_a_directory_where_the_packages_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same path there is read; where neither has it, the message names both ways to get it."""
    name = "sklearn/datasets/data/digits.csv.gz"
    there = packaged.read_table("scikit-learn", name)
    with pytest.raises(InvalidInputError, match=packaged.DATA_VARIABLE) as caught:
        packaged.read_table("orbitmesh-no-such-package", name)
    assert (caught.value.reason, "orbitmesh[train]" in caught.value.message) == ("NOT_FOUND", True)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(Path(str(distribution("scikit-learn").locate_file(name))).read_bytes())
    monkeypatch.setenv(packaged.DATA_VARIABLE, str(tmp_path))
    assert np.array_equal(packaged.read_table("orbitmesh-no-such-package", name), there)
    monkeypatch.setenv(packaged.DATA_VARIABLE, str(tmp_path / "nowhere"))
    assert np.array_equal(packaged.read_table("scikit-learn", name), there)


@pytest.mark.parametrize(
    ("kind", "parameters", "train", "held_out"), [(Digits, 4_810, 1_438, 359), (Mnist5k, 56_970, 4_000, 1_000)]
)
def test_an_image_task_has_the_stated_sizes(kind: type[Images], parameters: int, train: int, held_out: int) -> None:
    """Parameters, training examples and held-out examples are those of the documentation."""
    task = kind()
    assert flat.count(task.model(0)) == sum(one.numel() for one in task.model(0).parameters()) == parameters
    assert len(task.shard(0, 1, seed=0)) == train
    assert len(task.held_out()) == held_out
    assert len(task.held_out().targets.unique()) == 10


def test_shards_and_held_out_pictures_are_the_whole_table_once(digits: Digits) -> None:
    """No picture is in two shards, no held-out one in a shard, and none is missing: compared with the file."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = [
        tuple(float(one) for one in line.split(",")) for line in gzip.decompress(path.read_bytes()).decode().split()
    ]
    parts = [digits.shard(index, 8, seed=5, alpha=0.5) for index in range(8)] + [digits.held_out()]
    inputs = torch.cat([part.inputs for part in parts])
    targets = torch.cat([part.targets for part in parts])
    # Standardising is a line; two of its points give it back.
    low, high = inputs.min(), inputs.max()
    pixels = ((inputs - low) / (high - low) * 16).round()
    ours = sorted((*row, label) for row, label in zip(pixels.tolist(), targets.tolist(), strict=True))
    assert ours == sorted(rows)


def test_a_seed_gives_one_model_and_leaves_torch_alone(mnist5k: Mnist5k) -> None:
    """The same seed gives the same weights; whoever draws from torch afterwards sees no difference."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = (flat.flatten(mnist5k.model(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_loss_and_accuracy_are_torchs_own(digits: Digits) -> None:
    """`evaluate` equals one pass over all held-out pictures at once, and the batch loss torch's mean."""
    model, held_out = digits.model(3), digits.held_out()
    scores = model(held_out.inputs).detach()
    figures = digits.evaluate(model)
    assert figures["loss"] == pytest.approx(float(functional.cross_entropy(scores, held_out.targets)), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(float((scores.argmax(1) == held_out.targets).float().mean()), abs=1e-6)
    assert torch.allclose(digits.loss(model, held_out), functional.cross_entropy(scores, held_out.targets))
    assert model.training


def test_data_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task gives its data on a machine where no socket can be opened."""

    def refuse(*arguments: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(Digits().held_out()) == 359
    assert len(PyDocSmall().held_out()) > 50


def test_the_flat_vector_is_the_state_dict_in_its_order(mnist5k: Mnist5k) -> None:
    """The layout is that of a plain concatenation, and a vector that is loaded comes out again."""
    model = mnist5k.model(1)
    plain = torch.cat([one.reshape(-1) for one in model.state_dict().values()]).numpy()
    assert np.array_equal(flat.flatten(model), plain)
    other = mnist5k.model(2)
    flat.load_flat(other, plain)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.zeros(4_809, np.float32), "INVALID_INPUT"),
        (np.zeros((1, 4_810), np.float32), "INVALID_INPUT"),
        (np.zeros(4_810), "DTYPE_MISMATCH"),
        (np.full(4_810, np.nan, np.float32), "NOT_FINITE"),
        (np.full(4_810, np.inf, np.float32), "NOT_FINITE"),
    ],
)
def test_weights_that_do_not_fit_are_refused(digits: Digits, vector: np.ndarray, reason: str) -> None:
    """A wrong length, shape or type, a NaN or an infinity never reaches the model."""
    model = digits.model(1)
    before = flat.flatten(model)
    with pytest.raises(InvalidInputError) as caught:
        flat.load_flat(model, vector)
    assert caught.value.reason == reason
    assert np.array_equal(flat.flatten(model), before)


def test_sections_of_the_text_stay_whole_and_apart() -> None:
    """Without a skew, a section's sequences are all at one node; together the shards are all sequences once."""
    task = PyDocSmall()
    shards = [task.shard(index, 4, seed=1) for index in range(4)]
    rows = [{tuple(row) for row in shard.inputs.tolist()} for shard in shards]
    everything = task.shard(0, 1, seed=0)
    assert sum(len(shard) for shard in shards) == len(everything)
    assert set.union(*rows) == {tuple(row) for row in everything.inputs.tolist()}
    assert all(not rows[one] & rows[two] for one in range(4) for two in range(one))
    held_out = {tuple(row) for row in task.held_out().inputs.tolist()}
    assert not held_out & set.union(*rows)
    skewed = [task.shard(index, 4, seed=1, alpha=0.5) for index in range(4)]
    assert sum(len(shard) for shard in skewed) == len(everything)


def test_a_sequence_is_text_again() -> None:
    """Inputs begin with the begin sign, targets are one token ahead, and their bytes are of CPython's topics."""
    from pydoc_data.topics import topics

    examples = PyDocSmall().shard(0, 4, seed=1)
    assert (examples.inputs[:, 0] == 0).all()
    assert torch.equal(examples.inputs[:, 1:], examples.targets[:, :-1])
    text = bytes(int(one) - 2 for one in examples.targets[0] if one > 1).decode(errors="ignore")
    squeezed = " ".join(text.split()[1:-1])
    assert any(squeezed in " ".join(topic.split()) for topic in topics.values())


def test_the_small_language_model_reads_left_to_right() -> None:
    """A later byte changes no earlier prediction, and a fresh model knows nothing: about log 258 nats."""
    task = PyDocSmall()
    model = task.model(1).eval()
    batch = task.held_out().span(0, 4)
    with torch.no_grad():
        loss = float(task.loss(model, batch))
        changed = batch.inputs.clone()
        changed[:, 100:] = 5
        first = model(batch.inputs, use_cache=False).logits[:, :100]
        second = model(changed, use_cache=False).logits[:, :100]
    assert loss == pytest.approx(np.log(258), abs=0.4)
    assert torch.allclose(first, second, atol=1e-5)


def test_the_language_task_has_the_shipped_models_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes of all tensors are those of models/pydoc, so its weights can be trained further and served."""
    state = PyDoc().model(1).state_dict()
    with safe_open(ROOT / "models" / "pydoc" / "model.safetensors", framework="pt") as file:
        shipped = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    ours = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert sum(np.prod(shape) for shape in ours.values()) == sum(np.prod(shape) for shape in shipped.values())
    assert {name for name in shipped if "experts." not in name} == {name for name in ours if "experts." not in name}
    monkeypatch.setenv(MODEL_VARIABLE, "/nowhere")
    with pytest.raises(InvalidInputError, match=MODEL_VARIABLE):
        PyDoc().model(1)


def test_an_exported_model_is_read_by_transformers(tmp_path: Path) -> None:
    """What `export` writes, transformers loads by itself: the same scores, and the shipped tokenizer's ids."""
    task = PyDoc()
    model = task.model(3).eval()
    task.export(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.tensor([[0, *task.encode("Return the number of items.")]])
    assert AutoTokenizer.from_pretrained(tmp_path)("Return the number of items.")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)
    with pytest.raises(InvalidInputError, match="expected"):
        task.export(torch.nn.Linear(1, 1), tmp_path)


def test_examples_are_taken_by_row() -> None:
    """`take` and `span` keep inputs and targets together."""
    examples = Examples(torch.arange(12).view(6, 2), torch.arange(6))
    taken = examples.take(torch.tensor([4, 1]))
    assert taken.inputs.tolist() == [[8, 9], [2, 3]]
    assert taken.targets.tolist() == [4, 1]
    assert examples.span(2, 4).targets.tolist() == [2, 3]
