"""common/files.py: files are whole or not there."""
import resource

import pytest
import torch
from safetensors.torch import save_file

from common.files import written_beside


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_a_full_disk_is_reported_with_the_name_of_the_file_and_leaves_nothing(tmp_path, write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((ValueError, OSError), match="could not be written|File too large"):
            with written_beside(tmp_path / "big") as path:
                write({"x": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
