# SPDX-License-Identifier: Apache-2.0
"""The update mask's network: shapes, size, folder, and what counts as a change."""

import pytest
import torch

from spatext_lab.baselines.summaries.update_mask import UpdateMaskNetwork, changed
from spatext_lab.training.job import save_half


def test_one_number_a_cell_that_depends_on_all_it_reads(mask):
    x_t, st_map = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 16, 16)
    t = torch.tensor([900, 900])
    odds = mask(x_t, t, st_map)
    assert odds.shape == (2, 16, 16)
    for other in (mask(-x_t, t, st_map), mask(x_t, t - 600, st_map), mask(x_t, t, -st_map)):
        assert not torch.allclose(odds, other, atol=1e-3)
    assert mask(x_t[..., :8, :8], t, st_map[..., :8, :8]).shape == (2, 8, 8)


def test_the_shipped_size_is_below_a_megabyte(tmp_path):
    network = UpdateMaskNetwork()
    save_half(network, tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 1_000_000
    again = UpdateMaskNetwork.from_pretrained(tmp_path)
    x_t, t, st_map = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 64, 16, 16)
    with torch.no_grad():
        assert torch.allclose(again(x_t, t, st_map), network(x_t, t, st_map), atol=1e-2)


def test_a_change_against_a_loop():
    one, other = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    found = changed(one, other, 1.4)
    for k in range(3):
        for y in range(5):
            for x in range(6):
                squares = [(one[k, c, y, x] - other[k, c, y, x]).item() ** 2 for c in range(4)]
                assert found[k, y, x] == ((sum(squares) / 4) ** 0.5 > 1.4)
    assert 0.2 < found.float().mean() < 0.8


@pytest.mark.parametrize("size", [(4, 15), (5, 16), (4, 16)])
def test_a_map_of_another_shape(mask, size):
    channels, side = size
    x_t, st_map = torch.randn(1, channels, side, side), torch.randn(1, 16, side, side)
    st_map = st_map[:, :8] if size == (4, 16) else st_map
    with pytest.raises(ValueError, match=r"x_t has shape .*update mask reads .*even height"):
        mask(x_t, torch.tensor([5]), st_map)
