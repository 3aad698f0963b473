"""What `import introspect` says when it cannot work, and what it does not load."""

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_another_torch_minor_is_named_with_the_way_out():
    done = run("import torch; torch.__version__ = '9.8.7+cu999'\nimport introspect; introspect.Error")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: introspect was built against torch 2.")
    assert "torch 9.8.7+cu999 is installed" in message
    assert "pip install --no-build-isolation" in message


def test_another_patch_version_of_torch_is_fine():
    code = (
        "import torch, introspect._C as c\n"
        "torch.__version__ = c.built_with_torch.rsplit('.', 1)[0] + '.99'\n"
        "import introspect; introspect.Error"
    )
    assert run(code).returncode == 0


def test_a_compiled_part_that_does_not_load_is_named_with_the_way_out():
    done = run("import sys; sys.modules['introspect._C'] = None\nimport introspect; introspect.Error")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: introspect's compiled part does not load beside torch ")
    assert "pip install --no-build-isolation" in message


def test_the_package_alone_does_not_load_torch():
    assert run("import sys, introspect; sys.exit('torch' in sys.modules)").returncode == 0


def test_loading_a_model_does_not_load_the_rest_of_the_package():
    code = (
        "import sys, introspect; introspect.load_model, introspect.Model\n"
        "assert not {'introspect._api', 'introspect.experiments', 'introspect.studies'} & set(sys.modules)\n"
        "import introspect._api as api\n"
        "assert introspect.load_model is api.load_model and introspect.Model is api.Model\n"
    )
    assert run(code).returncode == 0


def test_load_model_too_names_a_compiled_part_that_does_not_load():
    done = run("import sys; sys.modules['introspect._C'] = None\nimport introspect; introspect.load_model")
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: introspect's compiled part does not load")
