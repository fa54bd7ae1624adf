"""What is compressed by blocks, in several threads, is one gzip stream that any reader reads."""

import gzip
import zlib

import pytest
import torch

from rdmm.io.streams import GZIP_BLOCK, gzip_bytes
from rdmm.kernels.available import set_threads


@pytest.mark.parametrize("size", [0, 1, GZIP_BLOCK, GZIP_BLOCK + 1, 2 * GZIP_BLOCK + 5])
def test_one_stream_whatever_the_number_of_threads(size):
    data = torch.randint(0, 9, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    packed = []
    for threads in (1, 2):
        set_threads(threads)
        packed.append(gzip_bytes(data))
    assert packed[0] == packed[1]
    assert gzip.decompress(packed[0]) == data
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)  # reads the first stream of a file only
    assert reader.decompress(packed[0]) == data and reader.eof and reader.unused_data == b""
    assert len(packed[0]) < 1.01 * len(gzip.compress(data, 1)) + 20
