"""Runs in SAELens's environment: packs documents as its concat_and_batch_sequences does.

python saelens_packing.py < jobs.json      # [{"documents", "options"}]; prints the rows of each
"""

import json
import sys

import torch
from sae_lens.tokenization_and_batching import concat_and_batch_sequences

if __name__ == "__main__":
    rows = []
    for job in json.load(sys.stdin):
        documents = (torch.tensor(document, dtype=torch.long) for document in job["documents"])
        rows.append([row.tolist() for row in concat_and_batch_sequences(documents, **job["options"])])
    print(json.dumps(rows))
