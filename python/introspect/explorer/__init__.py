"""``introspect explore``: a local page in the browser for models, dictionaries, attribution graphs and experiments.

    introspect explore smollm2-135m-instruct
    introspect explore runs/cat --model smollm2-135m-instruct

``workspace`` finds what a path holds, ``server`` puts the page on a loopback port, ``security`` guards it. It needs
Starlette and uvicorn: pip install "introspect[explore]".
"""
