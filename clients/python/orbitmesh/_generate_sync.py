"""Writes the sync face, `client.py` and the modules `_*_sync.py`, from the async core:
`python -m orbitmesh._generate_sync` (`--check` only compares).

Signatures, types and docstrings are taken from the source text of the core as they stand there, so they
cannot drift apart; only the bodies are new: they hand the work to the core on a private loop thread. A public
`async def` becomes a `def`, properties and plain methods are passed through, private methods stay behind.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
Sources = tuple[tuple[str, tuple[str, ...]], ...]
COPIED = ("AsyncLocalEntry", "AsyncLocalAccess")
"""Classes that need no more than other names."""
LINE_COLUMNS = 110
"""The longest line, in columns."""

_WORDS = (
    (r"\bAsync(Mesh|Generation|Training|SliceAdmission|Slices|LocalEntry|LocalAccess|Local)\b", r"\1"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\basync (with|for|def)\b", r"\1"),
    (r"\(await ((?:[^()]|\([^()]*\))*)\)\.", r"\1."),
    (r"\(await ((?:[^()]|\([^()]*\))*)\)\[", r"\1["),
    (r"\bawait ", ""),
    (r"__a(iter|enter|exit)__", r"__\1__"),
)

_CLIENT_HEAD = '''"""The sync client of a mesh. Made by `python -m orbitmesh._generate_sync`: change `aio.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from orbitmesh._connection import Remote
from orbitmesh._generation_sync import Generation
from orbitmesh._local_sync import Local, LocalAccess
from orbitmesh._loop import LoopThread
from orbitmesh._resuming import RESUME_S
from orbitmesh._slices_sync import Slices
from orbitmesh._training_sync import Training
from orbitmesh.aio import DEPLOY_DEADLINE_S, AsyncMesh
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.local import AsyncLocal
from orbitmesh.results import Deployment, Node, OnProgress, OnWaiting, Plan, Status
from orbitmesh.trace.breakdown import Breakdown
from orbitmesh.training_results import LocalTraining, Privacy, SecureSums, TrainingStatus
'''

_LOCAL_HEAD = '''"""The sync face of a local mesh. Made by `python -m orbitmesh._generate_sync`: change `local.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from orbitmesh._local_entry import local_target
from orbitmesh._local_spec import local_sky
from orbitmesh._loop import LoopThread
from orbitmesh.contacts import ContactPlan, MeshClock
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.local import START_DEADLINE_S, AsyncLocal
from orbitmesh.results import Link, LocalNode, OnProgress

if TYPE_CHECKING:
    from orbitmesh.client import Mesh
'''

_GENERATION_HEAD = '''"""Generations, sync. Made by `python -m orbitmesh._generate_sync`: change `_generation.py`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from types import TracebackType

from orbitmesh._generation import AsyncGeneration
from orbitmesh._loop import LoopThread
from orbitmesh.results import Token
'''

_TRAINING_HEAD = '''"""Training, sync. Made by `python -m orbitmesh._generate_sync`: change `_training.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orbitmesh._loop import LoopThread, end_of, next_of
from orbitmesh._training import WEIGHTS_DEADLINE_S, AsyncTraining
from orbitmesh.training_results import Ledger, SavedWeights, TrainingStatus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
'''

_SLICES_HEAD = '''"""The sync face of slices. Made by `python -m orbitmesh._generate_sync`: change `_slices.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType

from orbitmesh import _slices_proto
from orbitmesh._loop import LoopThread, end_of, next_of
from orbitmesh._slice_admission import AsyncSliceAdmission
from orbitmesh._slices import AsyncSlices
from orbitmesh.slice_results import (
    Slice,
    SliceNode,
    SliceOutcome,
    SliceProfile,
    SlicesApplied,
    SliceShare,
    SlicesOverview,
    SliceTemplate,
)
'''

TARGETS: dict[str, tuple[str, Sources]] = {
    "client.py": (_CLIENT_HEAD, (("aio.py", ("AsyncMesh",)),)),
    "_local_sync.py": (_LOCAL_HEAD, (("local.py", ("AsyncLocal",)), ("_local_entry.py", COPIED))),
    "_generation_sync.py": (_GENERATION_HEAD, (("_generation.py", ("AsyncGeneration",)),)),
    "_training_sync.py": (_TRAINING_HEAD, (("_training.py", ("AsyncTraining",)),)),
    "_slices_sync.py": (
        _SLICES_HEAD,
        (("_slice_admission.py", ("AsyncSliceAdmission",)), ("_slices.py", ("AsyncSlices",))),
    ),
}
"""What each module begins with, and the classes to turn, in the order in which they are needed."""

_INIT = {
    "AsyncLocal": """
    def __init__(self, core: AsyncLocal, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop
""",
    "AsyncGeneration": """
    def __init__(self, core: AsyncGeneration, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop
""",
    "AsyncTraining": """
    def __init__(self, core: AsyncTraining, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop
""",
    "AsyncSliceAdmission": """
    def __init__(self, core: AsyncSliceAdmission, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop
""",
    "AsyncSlices": """
    def __init__(self, core: AsyncSlices, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop
""",
    "AsyncMesh": """
    local = LocalAccess()

    def __init__(
        self,
        target: Remote | AsyncLocal,
        *,
        timeout: float = CONTROL_DEADLINE_S,
        open_timeout: float | None = None,
        patience: float = RESUME_S,
    ) -> None:
        self._core = AsyncMesh(target, timeout=timeout, open_timeout=open_timeout, patience=patience)
        self._loop = LoopThread()

    def _local_handle(self) -> Local:
        return Local(self._core._local_handle(), self._loop)
""",
}
# What is not "hand it to the core and wait".
_BODIES = {
    ("AsyncMesh", "connect"): """        core = AsyncMesh.connect(
            address, identity=identity, timeout=timeout, patience=patience
        )
        return cls(core._connection.target, timeout=timeout, patience=patience)
""",
    ("AsyncMesh", "generate"): """        core = self._loop.run(lambda: {call})
        return Generation(core, self._loop)
""",
    ("AsyncMesh", "train"): """        core = self._loop.run(lambda: {call})
        return Training(core, self._loop)
""",
    ("AsyncMesh", "training"): """        core = self._loop.run(lambda: {call})
        return Training(core, self._loop)
""",
    ("AsyncTraining", "watch"): """        updates = self._core._watch(from_round)
        try:
            while (update := self._loop.run(lambda: next_of(updates))) is not None:
                yield update
        finally:
            # Where the mesh is closed already, the stream went with it.
            if not self._loop.stopped:
                self._loop.run(lambda: end_of(updates))
""",
    ("AsyncMesh", "slices"): """        return Slices(self._core.slices, self._loop)
""",
    ("AsyncSlices", "admit"): """        core = ({call})
        return SliceAdmission(core, self._loop)
""",
    ("AsyncSlices", "watch"): """        overviews = self._core._watch(node)
        try:
            while (overview := self._loop.run(lambda: next_of(overviews))) is not None:
                yield overview
        finally:
            # Where the mesh is closed already, the stream went with it.
            if not self._loop.stopped:
                self._loop.run(lambda: end_of(overviews))
""",
    ("AsyncSliceAdmission", "__aenter__"): """        self._loop.run(lambda: self._core.__aenter__())
        return self
""",
    ("AsyncSliceAdmission", "__aexit__"): """        # Where the mesh is closed already, it ends with its lifetime.
        if not self._loop.stopped:
            self._loop.run(lambda: self._core.__aexit__(kind, error, trace))
""",
    ("AsyncMesh", "__aenter__"): """        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self
""",
    ("AsyncMesh", "close"): """        if not self._loop.stopped:
            self._loop.run(lambda: self._core.close())
            self._loop.stop()
""",
    ("AsyncMesh", "__aexit__"): """        self.close()
""",
    ("AsyncGeneration", "__aenter__"): """        return self
""",
    ("AsyncGeneration", "__aexit__"): """        self.cancel()
""",
    ("AsyncGeneration", "__aiter__"): """        index = 0
        try:
            while (token := self._loop.run(partial(self._core._token, index))) is not None:
                yield token
                index += 1
        finally:
            self.cancel()
""",
    ("AsyncGeneration", "cancel"): """        # Where the mesh is closed already, the call went with it.
        if self.finish_reason is None and not self._loop.stopped:
            self._loop.run(lambda: self._core.cancel())
""",
    ("AsyncGeneration", "wait"): """        self._loop.run(lambda: self._core.wait())
        return self
""",
}


def generate(target: str = "client.py") -> str:
    """The text of a module of the sync face."""
    head, sources = TARGETS[target]
    parts = [head]
    for file, names in sources:
        text = (HERE / file).read_text(encoding="utf-8")
        found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
        parts += [
            _words(_source(text, found[name])) if name in COPIED else _class(text, found[name]) for name in names
        ]
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def _class(text: str, node: ast.ClassDef) -> str:
    docstring = _source(text, node.body[0])
    pieces = [_words(f"class {node.name}:\n    {docstring}\n") + _INIT[node.name]]
    pieces += [
        _method(text, node.name, method)
        for method in node.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(method.name)
    ]
    return "\n".join(pieces)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__aiter__", "__aenter__", "__aexit__")


def _method(text: str, owner: str, method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    lines = text.splitlines(keepends=True)
    first = min([method.lineno, *(decorator.lineno for decorator in method.decorator_list)])
    documented = ast.get_docstring(method) is not None
    # A signature ends where its body begins; one that is documented keeps its docstring as it stands.
    head_end = method.body[0].end_lineno if documented else method.body[0].lineno - 1
    head = _words("".join(lines[first - 1 : head_end]))
    if head and not head.endswith("\n"):
        head += "\n"
    return head + _body(owner, method)


def _body(owner: str, method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
    call = f"self._core.{method.name}({', '.join(_passed(method))})"
    special = _BODIES.get((owner, method.name))
    if special is not None:
        return _wrapped(special.replace("{call}", call), call, method)
    if "property" in decorators:
        return f"        return self._core.{method.name}\n"
    if isinstance(method, ast.AsyncFunctionDef):
        returns = "" if method.returns is None or ast.unparse(method.returns) == "None" else "return "
        return _wrapped(f"        {returns}self._loop.run(lambda: {call})\n", call, method)
    return f"        return {call}\n"


def _wrapped(text: str, call: str, method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The body, with the arguments of its call below each other where one line would be too long."""
    if max(map(len, text.splitlines())) <= LINE_COLUMNS:
        return text
    arguments = "".join(f"                {argument},\n" for argument in _passed(method))
    below = call[: call.index("(")] + f"(\n{arguments}            )"
    made = "lambda: " if f"lambda: {call}" in text else ""
    return text.replace(made + call, f"\n            {made}{below}\n        ")


def _passed(method: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    positional = [argument.arg for argument in method.args.args[1:]]
    return [*positional, *(f"{argument.arg}={argument.arg}" for argument in method.args.kwonlyargs)]


def _source(text: str, node: ast.AST) -> str:
    return ast.get_source_segment(text, node) or ""


def _words(text: str) -> str:
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def main(arguments: list[str]) -> int:
    """Writes the sync face, or with `--check` says whether it is fresh."""
    stale = []
    for target in TARGETS:
        text = generate(target)
        if "--check" not in arguments:
            (HERE / target).write_text(text, encoding="utf-8")
        elif (HERE / target).read_text(encoding="utf-8") != text:
            stale.append(target)
    if stale:
        sys.stderr.write(
            f"{', '.join(stale)}: not what the async core makes of it; run `python -m orbitmesh._generate_sync`\n"
        )
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
