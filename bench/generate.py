"""Tokens per second of the mesh against one process, on the same model, interleaved in one run.

    python bench/generate.py [--json] [--model DIR ...] [--tokens 64] [--rounds 5]

Models: the shipped one, whose layers are so small that the calls between them take most of the time; `llama-8x512` and
`llama-12x768` (the size of GPT-2), with random weights from a seed. `--model` takes others instead.

Peers, each in a process of its own, all with one torch thread:
- `transformers`: `model.generate` of the unsplit model, one generation at a time;
- `one process`: our own stage code with all layers, no network, one generation at a time. It is the harder peer: it
  leaves out what transformers does per token beside the model.
Ours: three stages on loopback without emulated delay, one generation and eight at once; with step timings and without;
and three stages over links of 20 ms one way and 100 Mbit/s, where the token time is set against the sum of the link
delays and the computation that the stages report.

Each round runs every case once, in turning order and each after a short answer that is not counted, because a process
that has slept for seconds is slow at first. Figures are medians over rounds with minimum and maximum. `--json` also
writes bench/results/generate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python")]

from orbitmesh import Link, Mesh  # noqa: E402 - the paths come first

RESULTS = ROOT / "bench" / "results" / "generate.json"
PROMPT = [5, 17, 33, 98, 250, 7, 41, 63]
STAGES = 3
TOGETHER = 8
WARM_UP = 16
LINK = Link(latency_ms=20, rate_mbps=100)


def random_llama(directory: Path, layers: int, width: int) -> str:
    """Saves a Llama with random weights from a fixed seed; returns where."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def peer(kind: str, model: str) -> None:
    """The loop of a peer process: a line with a number of tokens in, a line with seconds per token out."""
    import torch

    torch.set_num_threads(1)
    run = _transformers(model) if kind == "transformers" else _one_process(model)
    run(8)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        tokens = int(line)
        began = time.perf_counter()
        first = run(tokens)
        sys.stdout.write(
            json.dumps({"s": time.perf_counter() - began, "after_first_s": time.perf_counter() - first}) + "\n"
        )
        sys.stdout.flush()


def _transformers(model: str) -> Callable[[int], float]:
    import torch
    from transformers import AutoModelForCausalLM

    unsplit = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    class FirstToken:
        """Notes when the first token came; `generate` hands it the prompt first."""

        def __init__(self) -> None:
            self.calls, self.at = 0, 0.0

        def put(self, value: object) -> None:
            self.calls += 1
            if self.calls == 2:
                self.at = time.perf_counter()

        def end(self) -> None:
            pass

    def run(tokens: int) -> float:
        first = FirstToken()
        unsplit.generate(
            torch.tensor([PROMPT]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=first
        )
        return first.at

    return run


def _one_process(model: str) -> Callable[[int], float]:
    import torch

    from orbitmesh.pack import load_manifest
    from orbitmesh.pack.builder import build_pack
    from services.executor.kvcache import CachePool
    from services.executor.sampling import sample
    from services.executor.stage import Stage

    directory = Path(tempfile.mkdtemp(prefix="orbitmesh-bench-")) / "pack"
    build_pack(model, directory)
    manifest = load_manifest(directory)
    stage = Stage.load(manifest, directory, range(manifest.layer_count), threads=1)
    pool = CachePool(stage.kv_bytes_per_token() * 4096, stage.kv_bytes_per_token())

    def run(tokens: int) -> float:
        cache = pool.open("bench", len(PROMPT) + tokens)
        rows, position, first = torch.tensor(PROMPT), 0, 0.0
        for _ in range(tokens):
            logits = stage.forward(rows, cache, position)
            token = sample(logits, temperature=0.0, top_p=1.0, seed=0, position=position)
            position += rows.shape[0]
            rows = torch.tensor([token])
            first = first or time.perf_counter()
        pool.close("bench")
        return first

    return run


@contextmanager
def peer_process(kind: str, model: str) -> Iterator[Callable[[int], float]]:
    """A peer; the function gives tokens per second after the first token."""
    command = [sys.executable, __file__, "--peer", kind, "--model", model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    while stdout.readline().strip() != "ready":
        if process.poll() is not None:
            raise SystemExit(f"the peer {kind} ended with code {process.returncode}")

    def run(tokens: int) -> float:
        stdin.write(f"{tokens}\n")
        stdin.flush()
        return (tokens - 1) / json.loads(stdout.readline())["after_first_s"]

    try:
        yield run
    finally:
        stdin.close()
        process.wait()


def one(mesh: Mesh, tokens: int, *, timings: bool = True) -> Any:
    """One generation from beginning to end."""
    generation = mesh.generate("bench", prompt=PROMPT, max_new_tokens=tokens, ignore_end=True, timings=timings)
    for _ in generation:
        pass
    return generation


def together(mesh: Mesh, tokens: int) -> float:
    """Tokens per second of `TOGETHER` generations at once, all of their tokens over the whole time."""
    threads = [threading.Thread(target=one, args=(mesh, tokens)) for _ in range(TOGETHER)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return TOGETHER * tokens / (time.perf_counter() - began)


def late(mesh: Mesh, tokens: int) -> dict[str, float]:
    """Token time over emulated links against the sum of link delays and computation."""
    generation = one(mesh, tokens)
    breakdown = mesh.explain(generation.trace_id)
    token_s = statistics.median(breakdown.token_s[1:])
    compute_s = sum(row.median_s for row in breakdown.rows if row.what == "compute")
    bound_s = STAGES * LINK.latency_ms / 1e3 + compute_s
    return {
        "token_ms": token_s * 1e3,
        "bound_ms": bound_s * 1e3,
        "ratio": token_s / bound_s,
        "attributed": breakdown.attributed,
        "least_attributed": min(breakdown.token_attributed[1:]),
    }


def bytes_per_hop(mesh: Mesh, tokens: int) -> dict[str, float]:
    """Bytes beside the hidden state itself, per decode step and hop: two lengths, so that the prompt cancels out."""
    short, long = one(mesh, 2), one(mesh, 2 + tokens)
    raw, wire = long.raw_bytes - short.raw_bytes, long.wire_bytes - short.wire_bytes
    return {"raw": raw / tokens, "wire": wire / tokens, "overhead_per_hop": (wire - raw) / tokens / STAGES}


def summary(values: list[float]) -> dict[str, float]:
    """Median with minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(model: str, tokens: int, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """All cases, interleaved."""
    rates: dict[str, list[float]] = {}
    late_runs: list[dict[str, float]] = []
    with (
        Mesh.local(nodes=STAGES, link=None) as near,
        Mesh.local(nodes=STAGES, link=LINK) as far,
        peer_process("transformers", model) as unsplit,
        peer_process("one process", model) as alone,
    ):
        for mesh in (near, far):
            # Balanced stages: several generations at once are bound by the slowest one.
            mesh.deploy(model, name="bench", stages=STAGES, objective="throughput")
            one(mesh, 8)
        cases: dict[str, Callable[[], float]] = {
            "transformers": lambda: unsplit(tokens),
            "one process": lambda: alone(tokens),
            "3 stages": lambda: one(near, tokens).tokens_per_second,
            "3 stages, no timings": lambda: one(near, tokens, timings=False).tokens_per_second,
            "3 stages, 8 at once": lambda: together(near, tokens),
        }
        warm_up: dict[str, Callable[[], object]] = {
            name: {"transformers": lambda: unsplit(WARM_UP), "one process": lambda: alone(WARM_UP)}.get(
                name, lambda: one(near, WARM_UP)
            )
            for name in cases
        }
        for index in range(rounds):
            turn = index % len(cases)
            for name in [*list(cases)[turn:], *list(cases)[:turn]]:
                warm_up[name]()
                rates.setdefault(name, []).append(cases[name]())
            late_runs.append(late(far, tokens))
            tell(
                f"round {index + 1} of {rounds}: "
                + ", ".join(f"{name} {values[-1]:.0f}/s" for name, values in rates.items())
            )
        sizes = bytes_per_hop(near, tokens)
    ratios = {
        "3 stages / transformers": _pairs(rates, "3 stages", "transformers"),
        "3 stages / one process": _pairs(rates, "3 stages", "one process"),
        "8 at once / transformers": _pairs(rates, "3 stages, 8 at once", "transformers"),
        "8 at once / one process": _pairs(rates, "3 stages, 8 at once", "one process"),
        "timings: time with / without": _pairs(rates, "3 stages, no timings", "3 stages"),
    }
    return {
        "tokens_per_second": {name: summary(values) for name, values in rates.items()},
        "ratios": {name: summary(values) for name, values in ratios.items()},
        "over_20_ms_links": {key: summary([run[key] for run in late_runs]) for key in late_runs[0]},
        "bytes_per_decode_step": sizes,
        "rounds": {"tokens_per_second": rates, "over_20_ms_links": late_runs},
    }


def _pairs(rates: dict[str, list[float]], over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(rates[over], rates[under], strict=True)]


def machine() -> dict[str, Any]:
    """What this ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print and write the results as JSON")
    parser.add_argument("--model", action="append", help="a model in Hugging Face layout; again for more than one")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.peer, arguments.model[0])
        return 0
    scratch = tempfile.TemporaryDirectory(prefix="orbitmesh-bench-")
    models = arguments.model or [
        str(ROOT / "models" / "pydoc"),
        random_llama(Path(scratch.name) / "llama-8x512", 8, 512),
        random_llama(Path(scratch.name) / "llama-12x768", 12, 768),
    ]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "bench/generate.py", *sys.argv[1:]]),
        "machine": machine(),
    }
    for model in models:
        name = Path(model).name
        result[name] = measure(model, arguments.tokens, arguments.rounds, lambda text: print(text, file=sys.stderr))
    if arguments.json:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
    scratch.cleanup()
    if not arguments.json:
        for name in (Path(model).name for model in models):
            print(name)
            for group in ("tokens_per_second", "ratios", "over_20_ms_links"):
                for key, row in result[name][group].items():
                    print(f"  {key:32} {row['median']:10.3f}  ({row['min']:.3f} - {row['max']:.3f})")
            print(f"  bytes per decode step: {result[name]['bytes_per_decode_step']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
