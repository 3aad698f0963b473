"""Build-time metadata: the wheel requires the torch minor version it was compiled against."""

import importlib.metadata

RUNTIME = ["numpy", "jinja2", "typer", "rich", "scipy", "pandas", "matplotlib", "plotly", "huggingface_hub"]


def dynamic_metadata(settings, project):
    major, minor = importlib.metadata.version("torch").split("+")[0].split(".")[:2]
    return {"dependencies": [f"torch=={major}.{minor}.*", *RUNTIME]}


def dynamic_wheel(settings):
    return {"dependencies": True}
