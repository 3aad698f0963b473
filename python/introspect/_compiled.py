"""The compiled part, beside the torch that it was built for; another torch is an ImportError that says what to run."""

import torch  # loads libtorch before _C needs it

_REBUILD = "Rebuild it: pip install --no-build-isolation --force-reinstall --no-deps ."

try:
    from . import _C
except ImportError as error:  # another torch shows as a missing symbol
    raise ImportError(
        f"introspect's compiled part does not load beside torch {torch.__version__}: {error}. {_REBUILD}"
    ) from error

if torch.__version__.split("+")[0].split(".")[:2] != _C.built_with_torch.split(".")[:2]:
    raise ImportError(
        f"introspect was built against torch {_C.built_with_torch} but torch {torch.__version__} is installed. "
        f"{_REBUILD}"
    )
