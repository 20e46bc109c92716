"""What the package holds, and in which module; each is loaded when it is first asked for."""

from .arrays import (
    read_arrays as read_arrays,
    read_part as read_part,
    read_tensor_metadata as read_tensor_metadata,
    read_tensors as read_tensors,
    tensor_digest as tensor_digest,
    write_arrays as write_arrays,
    write_part as write_part,
    write_tensors as write_tensors,
)
from .bundles import (
    Bundle as Bundle,
    load_benchmark as load_benchmark,
    load_bundle as load_bundle,
    write_bundle as write_bundle,
)
from .comparison import check_same as check_same, plain as plain
from .files import (
    atomic_write as atomic_write,
    ensure_writable as ensure_writable,
    file_digest as file_digest,
    json_digest as json_digest,
    read_json as read_json,
    read_sealed as read_sealed,
    unsealed as unsealed,
    write_json as write_json,
    write_sealed as write_sealed,
)
from .manifest import (
    environment as environment,
    is_finished as is_finished,
    show_versions as show_versions,
    stage as stage,
)
from .paths import (
    benchmarks_root as benchmarks_root,
    data_root as data_root,
    ground_truth_folder as ground_truth_folder,
    project_root as project_root,
    resolved as resolved,
    results_root as results_root,
    run_folder as run_folder,
    runs_root as runs_root,
)
