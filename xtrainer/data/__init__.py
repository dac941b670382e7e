"""What is the next batch? Loaders, their positions, padding, and reading ahead.

Synopsis:
    loader = ArrayLoader({"inputs": x, "targets": y}, batch_size=32, shuffle=True)
    source = LoaderSource(loader, "train")
    source.restore(LoaderPosition.from_json(saved))
    with Prefetcher(source, prepare, limit=steps_left) as batches:
        for batch, position in batches: ...
    GrainLoader(samples, 256, shuffle=True, num_workers=4)   # the same for a Grain dataset
    saved = source.position.to_json()              # of the batch in use, not of those read ahead
"""

from xtrainer.data.ahead import prefetch
from xtrainer.data.arrays import ArrayLoader
from xtrainer.data.batch import (
    Batch,
    batch_signature,
    batch_spec,
    decode_spec,
    describe_mismatch,
    encode_spec,
    get_input,
    num_rows,
)
from xtrainer.data.fingerprint import array_fingerprint
from xtrainer.data.grain import GrainLoader
from xtrainer.data.loader import LoaderSource
from xtrainer.data.module import DataModule, Phase
from xtrainer.data.ownership import own
from xtrainer.data.padding import pad_rows, row_mask
from xtrainer.data.peek import peek_ahead
from xtrainer.data.position import LoaderPosition
from xtrainer.data.prefetch import Prefetcher
from xtrainer.data.shard import shard_rows

__all__ = [
    "ArrayLoader",
    "Batch",
    "DataModule",
    "GrainLoader",
    "LoaderPosition",
    "LoaderSource",
    "Phase",
    "Prefetcher",
    "array_fingerprint",
    "batch_signature",
    "batch_spec",
    "decode_spec",
    "describe_mismatch",
    "encode_spec",
    "get_input",
    "num_rows",
    "own",
    "pad_rows",
    "peek_ahead",
    "prefetch",
    "row_mask",
    "shard_rows",
]
