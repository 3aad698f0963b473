"""Runs in the peers' environment: the time of single cells of TransformerLens's patching grids."""

import time

import torch
from transformer_lens import patching


def seconds_of_cells(model, clean, corrupted, name, axes, cells, tokens):
    """Wall time of each of some cells of a grid, and its value, by generic_activation_patch.

    axes: of the index, cells: rows of indices; tokens: ids (right, wrong) of a logit difference at the end.
    """
    import pandas as pd

    clean, corrupted = torch.tensor(clean), torch.tensor(corrupted)
    setter = patching.layer_pos_head_vector_patch_setter if len(axes) == 3 else patching.layer_pos_patch_setter
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
        seconds, values = [], []
        for cell in [cells[0], *cells]:  # the first is not counted
            rows = pd.DataFrame([cell], columns=axes)
            start = time.perf_counter()
            value = patching.generic_activation_patch(
                model, corrupted, cache, lambda x: x[0, -1, tokens[0]] - x[0, -1, tokens[1]], setter, name, None, rows
            )
            seconds.append(time.perf_counter() - start)
            values.append(float(value))
    return {"seconds": torch.tensor(seconds[1:]), "values": torch.tensor(values[1:])}
