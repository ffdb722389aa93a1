"""orbitmesh: run and train AI models over satellites, edge nodes and the ground.

    from orbitmesh import Link, Mesh

    with Mesh.local(nodes=4, link=Link(latency_ms=20, rate_mbps=100)) as mesh:
        mesh.deploy("models/pydoc", name="demo", stages=3)
        for token in mesh.generate("demo", prompt="Space is"):
            print(token.text, end="")

`Mesh` and `AsyncMesh` are the same client for sync and async code. What they return are frozen values; what
they raise is a `MeshError`, see `orbitmesh.errors` for the tree.
"""

from orbitmesh._generation import AsyncGeneration
from orbitmesh._generation_sync import Generation
from orbitmesh._local_sync import Local
from orbitmesh._slice_admission import AsyncSliceAdmission
from orbitmesh._slices import AsyncSlices
from orbitmesh._slices_sync import SliceAdmission, Slices
from orbitmesh._training import AsyncTraining
from orbitmesh._training_sync import Training
from orbitmesh.aio import AsyncMesh
from orbitmesh.client import Mesh
from orbitmesh.errors import (
    AuthError,
    CancelledError_,
    CapacityError,
    DeadlineError,
    IdentityError,
    InfeasiblePlanError,
    IntegrityError,
    InternalError,
    InvalidInputError,
    MeshError,
    NodeLostError,
    PackError,
    PermissionError_,
    SealError,
    TransportError,
    UnknownModelError,
)
from orbitmesh.local import AsyncLocal
from orbitmesh.results import (
    CutCosts,
    Deployment,
    Link,
    LinkMeasure,
    LocalNode,
    Node,
    Plan,
    PlannedCrossing,
    PlannedStage,
    Progress,
    Stage,
    Status,
    Token,
)
from orbitmesh.slice_results import (
    Slice,
    SliceAllocation,
    SliceNode,
    SliceOutcome,
    SliceProfile,
    SlicesApplied,
    SliceShare,
    SlicesOverview,
    SliceTemplate,
    SliceTraffic,
)
from orbitmesh.trace.breakdown import Breakdown, BreakdownRow, ClockOffset
from orbitmesh.training_results import (
    Ledger,
    LedgerEntry,
    LocalTraining,
    Privacy,
    SavedWeights,
    SecureSums,
    TrainingContribution,
    TrainingNode,
    TrainingRound,
    TrainingSpec,
    TrainingStatus,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncGeneration",
    "AsyncLocal",
    "AsyncMesh",
    "AsyncSliceAdmission",
    "AsyncSlices",
    "AsyncTraining",
    "AuthError",
    "Breakdown",
    "BreakdownRow",
    "CancelledError_",
    "CapacityError",
    "ClockOffset",
    "CutCosts",
    "DeadlineError",
    "Deployment",
    "Generation",
    "IdentityError",
    "InfeasiblePlanError",
    "IntegrityError",
    "InternalError",
    "InvalidInputError",
    "Ledger",
    "LedgerEntry",
    "Link",
    "LinkMeasure",
    "Local",
    "LocalNode",
    "LocalTraining",
    "Mesh",
    "MeshError",
    "Node",
    "NodeLostError",
    "PackError",
    "PermissionError_",
    "Plan",
    "PlannedCrossing",
    "PlannedStage",
    "Privacy",
    "Progress",
    "SavedWeights",
    "SealError",
    "SecureSums",
    "Slice",
    "SliceAdmission",
    "SliceAllocation",
    "SliceNode",
    "SliceOutcome",
    "SliceProfile",
    "SliceShare",
    "SliceTemplate",
    "SliceTraffic",
    "Slices",
    "SlicesApplied",
    "SlicesOverview",
    "Stage",
    "Status",
    "Token",
    "Training",
    "TrainingContribution",
    "TrainingNode",
    "TrainingRound",
    "TrainingSpec",
    "TrainingStatus",
    "TransportError",
    "UnknownModelError",
    "__version__",
]
