"""Train the shipped model on CPython's own documentation, or measure it again.

    python models/train.py --out DIR --steps N --seed S   trains; writes a directory of Hugging Face layout
    python models/train.py --evaluate models/pydoc        bits per byte of held-out text, against zstd -19

One thread and deterministic algorithms: the same seed, steps, CPython, torch and kind of processor give the
same bytes. Matrix products run in bfloat16 (quick on processors with AVX512-BF16 or AMX, slow on others).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, `models` is not on the path

import torch
import transformers
from torch.nn import functional
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from models.training.corpus import Corpus, load_corpus
from models.training.measure import CONTEXT_TOKENS, STRIDE_TOKENS, bits_per_byte, measure
from models.training.network import SHIPPED, TINY, ExpertBalance, add_dropout, compile_parts, make_model
from models.training.optimiser import Optimiser, decay_start, rate_share, steps_from_decay_start
from models.training.tokens import BEGIN_ID, encode_documents, load_tokenizer, train_tokenizer

DEFAULT_STEPS = 970
"""What the model in `models/pydoc` was trained for."""
PEAK_LR = 3e-3
DROPOUT = 0.1
GRADIENT_NORM = 1.0
BALANCE_SPEED = 0.02
"""What a router's bias moves by in one step at the peak learning rate, in units of a gate's score (0 to 1).
It falls with the rate. A tenth of it let two experts take all tokens of a layer in the first steps."""

STEP_TOKENS = 4096
"""Tokens of one training step, `<s>` included."""

SHORT_TOKENS = 256
"""Sequence length, cheap to attend over, until the learning rate falls; from then on it is CONTEXT_TOKENS."""

REPORTS = 10
"""Times the held-out text is looked at on the way; for the reader only, nothing is chosen by it."""

REPORT_BYTES = 24_000
"""Held-out text of such a look, in characters."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training needs to be repeated."""

    sizes: dict[str, int]
    """Sizes of the network, as in `models.training.network`."""
    steps: int
    """Steps of STEP_TOKENS tokens."""
    seed: int
    """Of the weights, the order of the text and the dropout."""
    step_tokens: int = STEP_TOKENS
    """Tokens of one step."""
    compiled: bool = False
    """Whether torch compiles parts of the network, which rounds sums in another order."""


def say(line: str) -> None:
    """One line for the person who waits; standard output stays free for --json."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Batches:
    """Int64 batches of shape (sequences, tokens), each sequence starting with `<s>`, without end.

    Every epoch shuffles the documents, starts at another offset, cuts them into sequences and shuffles those.
    """

    def __init__(self, documents: list[torch.Tensor], seed: int) -> None:
        self._documents = documents
        self._generator = torch.Generator().manual_seed(seed)
        self._pool = torch.empty(0, 0, dtype=torch.int64)
        self._taken = 0

    def take(self, tokens: int, length: int) -> torch.Tensor:
        """The next batch: `tokens` tokens in sequences of `length`."""
        count = tokens // length
        if self._pool.shape[1] != length or self._taken + count > len(self._pool):
            self._pool = self._epoch(length)
            self._taken = 0
        self._taken += count
        return self._pool[self._taken - count : self._taken]

    def _epoch(self, length: int) -> torch.Tensor:
        order = torch.randperm(len(self._documents), generator=self._generator).tolist()
        stream = torch.cat([self._documents[index] for index in order])
        offset = int(torch.randint(length, (1,), generator=self._generator))
        usable = (len(stream) - offset) // (length - 1) * (length - 1)
        rows = stream[offset : offset + usable].view(-1, length - 1)
        rows = rows[torch.randperm(len(rows), generator=self._generator)]
        return functional.pad(rows, (1, 0), value=BEGIN_ID)


class Ending:
    """How many steps there are: as asked, or fewer once somebody presses Ctrl-C.

    The learning rate then starts to fall at once, and the result is that of the smaller number of steps.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def look(self, step: int) -> None:
        """Called before each step, counted from 0."""
        if self._asked and step < decay_start(self.steps) and self.steps != steps_from_decay_start(step):
            self.steps = steps_from_decay_start(step)
            say(f"asked to end: the learning rate falls from here; this is a training of {self.steps} steps")

    def restore(self) -> None:
        """Give Ctrl-C back its old meaning."""
        signal.signal(signal.SIGINT, self._before)


def train(run: Run, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> tuple[DeepseekV3ForCausalLM, int]:
    """A trained model, in float32, and the number of its steps; lines of progress on the way."""
    torch.manual_seed(run.seed)
    model = make_model(run.sizes)
    add_dropout(model, DROPOUT)
    if run.compiled:
        compile_parts(model)
    balance = ExpertBalance(model)
    optimiser = Optimiser(model, PEAK_LR)
    documents = encode_documents(tokenizer, corpus.train)
    progress = Progress(corpus, sum(len(row) for row in documents) / len(corpus.train_text.encode()))
    batches = Batches(documents, run.seed)
    ending = Ending(run.steps)
    say(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {run.steps} steps")
    model.train()
    step = 0
    while step < ending.steps:
        ending.look(step)
        short = step < decay_start(ending.steps)
        # The plain attention is the quicker one on a CPU for short sequences, the tiled one for long ones.
        model.set_attn_implementation("eager" if short else "sdpa")
        loss = _one_step(model, batches.take(run.step_tokens, SHORT_TOKENS if short else CONTEXT_TOKENS))
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        share = rate_share(step, ending.steps)
        balance.update(BALANCE_SPEED * share)
        optimiser.step(share)
        step += 1
        progress.report(step, ending.steps, loss, balance.imbalance, model, tokenizer)
    ending.restore()
    model.train(False)
    return model, ending.steps


class Progress:
    """Lines for the person who waits."""

    def __init__(self, corpus: Corpus, tokens_per_byte: float) -> None:
        self._tokens_per_byte = tokens_per_byte
        self._sample = _sample(corpus)
        self._recent: list[float] = []
        self._started = time.monotonic()

    def report(
        self,
        done: int,
        steps: int,
        loss: float,
        imbalance: float,
        model: DeepseekV3ForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        """A line each hundredth of the way; each tenth of it, with a look at the held-out text."""
        self._recent.append(loss)
        if done % max(1, steps // 100) and done != steps:
            return
        loss = sum(self._recent) / len(self._recent)
        self._recent.clear()
        eta_s = (time.monotonic() - self._started) / done * (steps - done)
        line = f"step {done}/{steps}  loss {loss:.4f}"
        line += f"  {loss / math.log(2) * self._tokens_per_byte:.3f} bits/byte"
        line += f"  imbalance {imbalance:.2f}  ETA {eta_s / 60:.1f} min"
        if done % max(1, steps // REPORTS) == 0:
            with torch.compiler.set_stance("force_eager"):  # these shapes are not worth compiling
                line += f"  held out {bits_per_byte(model, tokenizer, self._sample):.3f} bits/byte"
        say(line)


def _one_step(model: DeepseekV3ForCausalLM, batch: torch.Tensor) -> float:
    """Gradients of one batch; returns its mean loss in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    torch.autograd.backward(loss)
    return float(loss.detach())


def _sample(corpus: Corpus) -> tuple[Any, ...]:
    sample, size = [], 0
    for document in corpus.held_out:
        if size + len(document.text) <= REPORT_BYTES:
            sample.append(document)
            size += len(document.text)
    return tuple(sample)


def save(model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write settings, tokenizer and weights: bfloat16, but float32 for the routers' biases, as DeepSeek's."""
    directory.mkdir(parents=True, exist_ok=True)
    model.bfloat16()
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.e_score_correction_bias = layer.mlp.gate.e_score_correction_bias.float()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def load(directory: Path) -> tuple[DeepseekV3ForCausalLM, PreTrainedTokenizerFast]:
    """The stored model, its weights widened to float32, and its tokenizer."""
    model = DeepseekV3ForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    model.train(False)
    return model, load_tokenizer(directory)


def evaluate(directory: Path, corpus: Corpus) -> dict[str, Any]:
    """The figures of a stored model on this interpreter's held-out text, and whether it was split for it."""
    model, tokenizer = load(directory)
    figures = dataclasses.asdict(measure(model, tokenizer, corpus))
    report = figures | {"context_tokens": CONTEXT_TOKENS, "stride_tokens": STRIDE_TOKENS}
    report |= {"corpus_sha256": corpus.sha256, "python": platform.python_version()}
    record = directory / "training.json"
    if record.exists():
        trained = json.loads(record.read_text())
        report["same_corpus"] = trained["corpus_sha256"] == corpus.sha256
        if not report["same_corpus"]:
            say(
                f"This CPython {report['python']} has another text than CPython {trained['python']}, which "
                "the model was trained on: expect figures close to those in training.json, not equal "
                "ones. Text held out here may repeat a paragraph of that training text."
            )
    return report


def train_and_save(run: Run, corpus: Corpus, directory: Path) -> dict[str, Any]:
    """Train, write, read back what was written and measure that; returns the content of training.json."""
    train_bytes, held_out_bytes = len(corpus.train_text.encode()), len(corpus.held_out_text.encode())
    say(f"CPython {platform.python_version()}: {train_bytes:,} bytes to train on, {held_out_bytes:,} held out")
    tokenizer = train_tokenizer(corpus.train, run.sizes["vocab_size"], run.sizes["max_position_embeddings"])
    started = time.monotonic()
    model, steps = train(run, corpus, tokenizer)
    save(model, tokenizer, directory)
    training_s = time.monotonic() - started
    (directory / "training.json").unlink(missing_ok=True)  # of an earlier training, and no longer true
    report = evaluate(directory, corpus) | {
        "seed": run.seed,
        "steps": steps,
        "compiled": run.compiled,
        "tokens_seen": steps * run.step_tokens,
        "training_s": round(training_s),
        "train_documents": len(corpus.train),
        "train_bytes": train_bytes,
        "held_out_documents": [document.name for document in corpus.held_out],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (directory / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the shipped model, or measure it again.")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--out", type=Path, help="train, and write the model into this directory")
    work.add_argument("--evaluate", type=Path, help="measure the model in this directory")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--size", choices=("shipped", "tiny"), default="shipped", help="tiny is for tests: on topics alone"
    )
    parser.add_argument(
        "--plain", action="store_true", help="train without torch.compile: slower, needs no C++ compiler"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}; it must be at least 1")
    if options.evaluate and not (options.evaluate / "config.json").exists():
        parser.error(f"--evaluate: {options.evaluate} has no config.json; give a directory this script wrote")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills fresh memory, a guard for debugging that costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tiny = options.size == "tiny"
    corpus = load_corpus(topics_only=tiny)
    if options.evaluate:
        report = evaluate(options.evaluate, corpus)
    elif tiny:
        report = train_and_save(Run(TINY, options.steps, options.seed, step_tokens=2048), corpus, options.out)
    else:
        run = Run(SHIPPED, options.steps, options.seed, compiled=not options.plain)
        report = train_and_save(run, corpus, options.out)
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        rows = ("model", "zstd_19", "zstd_19_with_training_text")
        sys.stdout.writelines(f"{row:28} {report[row]:.4f} bits/byte\n" for row in rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
