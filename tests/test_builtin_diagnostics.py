"""Where attention falls: the shares that `resclip.builtin.training.diagnostics` prints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resclip.builtin import load_builtin
from resclip.builtin.scenes import validation_scenes
from resclip.builtin.training.batches import normalised
from resclip.builtin.training.diagnostics import (
    attention_maps,
    main,
    own_class_shares,
    patch_classes,
)


@pytest.fixture(scope="module")
def visual():
    return load_builtin()[0].visual


def test_a_patch_has_the_class_of_most_of_its_pixels():
    mask = np.zeros((16, 17), np.uint8)  # the seventeenth column is in no patch
    mask[:8, 8:16] = 3
    mask[8:, 5:8] = 9  # 24 of 64 pixels
    classes, pure = patch_classes(mask, 8)
    assert classes.tolist() == [0, 3, 0, 0]
    assert pure.tolist() == [True, True, False, True]


def test_maps_are_distributions_over_patches(visual):
    scene = next(validation_scenes(1))
    with torch.no_grad():
        maps = attention_maps(visual, normalised(scene.image[None]))
    assert list(maps) == [*(f"{block} qk" for block in range(1, 13)), "12 qq", "12 kk"]
    for weights in maps.values():
        assert weights.shape == (1, 196, 196)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 196))


def test_the_final_key_attention_stays_within_things(visual):
    with torch.no_grad():
        shares = own_class_shares(visual, validation_scenes(6))
    assert all(0 <= share <= 1 for pair in shares.values() for share in pair)
    assert shares["12 kk"][0] > 2 * shares["chance"][0]


def test_the_command_prints_a_line_a_map(capsys):
    assert main(["--scenes", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 12 + 2 + 1
    with pytest.raises(SystemExit):
        main(["--scenes", "0"])
    assert "--scenes must be at least 1" in capsys.readouterr().err
