"""Model surgery: find a behaviour's direction in a language model, edit it out of the weights.

    from surgery_lib import find_surgery, load_model

Names are imported when they are first used, so that `import surgery_lib` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
# Public name → the module that defines it.
PUBLIC = {
    "load_model": "surgery_lib.models",
    "pooled_states": "surgery_lib.models.activations",
    "fit_probes": "surgery_lib.surgery.probe",
    "select_rows": "surgery_lib.surgery.effects",
    "Surgery": "surgery_lib.surgery",
    "find_surgery": "surgery_lib.selection.find",
}
if TYPE_CHECKING:
    from surgery_lib.models import load_model
    from surgery_lib.models.activations import pooled_states
    from surgery_lib.selection.find import find_surgery
    from surgery_lib.surgery import Surgery
    from surgery_lib.surgery.effects import select_rows
    from surgery_lib.surgery.probe import fit_probes

__all__ = [
    "Surgery",
    "__version__",
    "find_surgery",
    "fit_probes",
    "load_model",
    "pooled_states",
    "select_rows",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'surgery_lib' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
