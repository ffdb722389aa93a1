"""The second opinion of the demo: the whole model in one process, run by transformers itself.

Run as `python -m orbitmesh.cli.unsplit`: one JSON line `{"directory": .., "prompt": .., "max_new_tokens":
..}` on stdin, one JSON line on stdout. Nothing of the mesh is used here.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> int:
    """Answers the prompt greedily in float32 with `model.generate`."""
    order = json.loads(sys.stdin.readline())
    import torch
    import transformers

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(order["directory"])
    # Typed as anything: the stubs of transformers do not know the mixture that its auto classes return.
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(order["directory"], dtype=torch.float32)
    model.eval()
    inputs = tokenizer(order["prompt"], return_tensors="pt")
    started = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=order["max_new_tokens"], do_sample=False)
    seconds = time.perf_counter() - started
    new = output[0, inputs["input_ids"].shape[1] :].tolist()
    answer = {"token_ids": new, "text": tokenizer.decode(new), "tokens_per_second": len(new) / seconds}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
