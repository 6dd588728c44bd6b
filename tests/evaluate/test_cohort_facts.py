# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest

from echo_plugin.evaluate.held_out import AGES, QUALITIES, number_in, phantom_facts


def test_a_folder_without_a_phantom_table_has_no_facts(tmp_path):
    assert phantom_facts(tmp_path) == {}
    (tmp_path / "phantom.csv").write_text("image_id,septal_dropout\na,0.5\n")
    assert phantom_facts(tmp_path)["a"]["septal_dropout"] == "0.5"


def test_a_missing_number_is_unknown_and_not_zero():
    assert number_in({"age_days": "30", "image_quality": ""}, "age_days") == 30.0
    assert number_in({"age_days": "30", "image_quality": ""}, "image_quality") is None
    assert number_in({}, "image_quality") is None


@pytest.mark.parametrize("ranges", [AGES, QUALITIES])
def test_groups_touch_without_overlap_from_nothing_to_the_end(ranges):
    assert ranges[0][1] == 0
    assert np.isinf(ranges[-1][2])
    assert all(before[2] == after[1] for before, after in pairwise(ranges))
