"""Sheets of draws: what stands in which column, and under which title."""

import numpy as np

from smallobj_d2.visualization.draws import training_sheet
from smallobj_d2.visualization.sheets import View, contact_sheet


def grey(sample):
    return View(np.full((40, 60, 3), sample["grey"], np.uint8), [], [])


def test_each_row_is_a_draw_the_original_first_then_the_augmented_then_a_part_of_it():
    originals, augmented = (
        [{"image_id": k, "grey": base + 10 * k} for k in range(3)] for base in (50, 150)
    )
    sheet = np.asarray(training_sheet(augmented, originals, grey, [2, 0], width=60))
    row, column = 22 + 40 + 8, 60 + 8  # caption, picture and gap; picture and gap
    found = sheet[32 + 22 :: row, 8 + 2 :: column, 0][:2, :3]
    assert found.tolist() == [[70, 170, 170], [50, 150, 150]]
    titles = ["original", "as the model sees it (copies in pink)", "enlarged (white frame)"]
    assert (sheet[:30] == np.asarray(contact_sheet([], titles=titles, width=60))).all()


def test_a_title_stands_over_its_own_column():
    blank, third = (
        np.asarray(contact_sheet([], titles=["", "", title], width=60)) for title in ("", "third")
    )
    assert np.nonzero(blank != third)[1].min() >= 8 + 2 * 68
