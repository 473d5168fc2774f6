"""Make torchvision importable with a CPU build of torch.

The CPU build of vLLM requires a torchvision that was compiled for CUDA. With CPU torch its compiled library does not
load, and its operators `nms` and `qnms` are never declared. `import torchvision` then fails with "operator
torchvision::nms does not exist". transformers imports torchvision for InternVL, peft imports transformers, so all three
fail. Declaring the two schemas is enough: nothing here calls them.

Called before transformers is imported (`ureca.model`) and in each vLLM process through the entry point
`vllm.platform_plugins`: vLLM asks those first whether they are its platform (None: no), while its general plugins run
only after it has imported transformers. Imports torch only when called.
"""

import importlib.util
from typing import Any

_MISSING = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # keeps the declarations alive


def declare_missing_operators() -> None:
    """Declare torchvision's two operators if its import fails because they are missing.

    Raises:
        RuntimeError: torchvision's import failed for another reason.
    """
    global _library
    if _library is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
    else:
        return
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    import torchvision  # noqa: F401
