# SPDX-License-Identifier: Apache-2.0
"""The Echo AI panel in a real Chromium, on a real server: what a reader sees, changes and submits.

``MONAILABEL_ECHO_PICTURES=.github/pictures`` keeps the pictures for the README.
"""

from __future__ import annotations

import io
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.heavy]

CORNERS = ("x1", "y1", "x2", "y2")
COLOURS = {"interatrial": (76, 201, 255), "interventricular": (255, 169, 77)}


def places(boxes) -> list[tuple]:
    return sorted((b["frame_index"], b["septum"], *(round(b[c], 2) for c in CORNERS)) for b in boxes)


def outline_share(reader, box) -> float:
    """Return how much of a box's left side is drawn in the colour of its septum, 0..1, from the pixels of the page."""
    (x, top), (_, bottom) = reader.to_screen((box["x1"], box["y1"]), (box["x1"], box["y2"]))
    picture = reader.picture().astype(int)
    rows = slice(round(top) + 8, round(bottom) - 8)  # the corners have handles
    strip = picture[rows, max(round(x) - 3, 0) : round(x) + 4]
    return float((np.abs(strip - COLOURS[box["septum"]]).sum(axis=2) < 90).any(axis=1).mean())


def study_of(served, image_id: str) -> str:
    return served.ask(f"echo/cines/{image_id}")["study_instance_uid"]


def test_the_work_list_offers_the_mode_and_the_cine_plays(served, reader_at_work, keep_picture):
    reader = reader_at_work()
    page = reader.page

    page.goto(f"{served.url}/ohif/")
    page.locator("tbody tr").filter(has_text="US").first.click()
    page.get_by_role("button", name="Echo AI").wait_for()
    keep_picture(page, "work_list")
    page.get_by_role("button", name="Echo AI").click()
    reader.part("predict").wait_for()
    page.wait_for_function("() => document.querySelectorAll('[data-echo=frames] button').length === 8")
    seen = "window.seenFrames"
    page.evaluate(
        f"""() => {{ {seen} = new Set(); new MutationObserver(() => {{
        const strip = [...document.querySelectorAll('[data-echo=frames] button')];
        {seen}.add(strip.findIndex((cell) => cell.hasAttribute('aria-selected'))); }})
        .observe(document.querySelector('[data-echo=frames]'), {{ attributes: true, subtree: true }}); }}"""
    )
    page.keyboard.press(" ")
    page.wait_for_function(f"() => {seen}.size >= 6")
    page.keyboard.press(" ")

    assert reader.part("badge").inner_text().startswith("phantoms only: not for clinical use")
    page.wait_for_function(
        "() => Object.values(window.services.cineService.getState().cines).every((c) => !c.isPlaying)"
    )


def test_a_prediction_lies_on_its_frames_and_on_the_pixels_that_it_speaks_of(served, reader_at_work, keep_picture):
    reader, image_id = reader_at_work(), served.new[0]
    reader.open(study_of(served, image_id), image_id)

    reader.part("predict").click()
    reader.part("defect").wait_for()
    shown = reader.wait_for_boxes(image_id, "boxes.length > 0")

    predicted = served.ask(f"echo/predictions/{image_id}", "POST")
    assert places(shown) == places(predicted["boxes"])
    assert {box["by"] for box in shown} == {"model"}
    box = max(predicted["boxes"], key=lambda b: b["y2"] - b["y1"])
    reader.go_to(box["frame_index"])
    keep_picture(reader.page, "prediction")
    assert 0.3 < outline_share(reader, box) < 0.9  # dashed
    here = pixels_agree(served, reader, image_id, box)
    beside = [pixels_agree(served, reader, image_id, box, shift) for shift in ((5, 0), (-5, 0), (0, 5), (0, -5))]
    assert here > 0.7  # the file's pixels, enlarged
    assert here > max(beside) + 0.05
    assert "View" in reader.part("view").inner_text()
    for name in ("Normal", "ASD", "VSD"):
        assert name in reader.part("defect").inner_text()


def pixels_agree(served, reader, image_id: str, box, shift_px: tuple[int, int] = (0, 0)) -> float:
    """Return the correlation of what the page shows inside a box with that box of the file, moved by ``shift_px``."""
    x1, y1, x2, y2 = (round(box["x1"]) + 3, round(box["y1"]) + 3, round(box["x2"]) - 3, round(box["y2"]) - 3)
    dx, dy = shift_px
    text = f"{x1 + dx},{y1 + dy},{x2 + dx},{y2 + dy}"
    address = f"{served.url}/echo/pictures/{image_id}?frame_index={box['frame_index']}&box={text}"
    with urllib.request.urlopen(address) as answer:
        file = Image.open(io.BytesIO(answer.read())).convert("L")
    (left, top), (right, bottom) = reader.to_screen((x1, y1), (x2, y2))
    page = Image.fromarray(reader.picture()).convert("L").crop((round(left), round(top), round(right), round(bottom)))
    both = np.stack([np.asarray(page.resize(file.size), float).ravel(), np.asarray(file, float).ravel()])
    return float(np.corrcoef(both)[0, 1])


def test_boxes_dragged_and_drawn_are_submitted_and_there_after_a_reload(served, reader_at_work, keep_picture):
    reader, image_id = reader_at_work("reader-7"), served.new[0]
    study = study_of(served, image_id)
    reader.open(study, image_id)
    reader.part("predict").click()
    before = reader.wait_for_boxes(image_id, "boxes.some((box) => box.by === 'model')")
    box = max(before, key=lambda b: b["y2"] - b["y1"])
    reader.go_to(box["frame_index"])

    reader.drag((box["x1"], box["y1"]), (box["x1"] - 12, box["y1"] - 9))  # no other box has a corner there
    reader.wait_for_boxes(image_id, "boxes.some((box) => box.by === 'person')")
    other = (box["frame_index"] + 2) % 8
    reader.go_to(other)
    reader.page.keyboard.press("1")
    reader.drag((30, 40), (70, 90))
    reader.page.keyboard.press("Escape")
    reader.part("set-view").select_option("A4C")
    reader.part("set-defect").select_option("ASD")
    keep_picture(reader.page, "annotate")
    said = reader.submit()

    assert "Saved as revision 1 by reader-7" in said
    stored = served.studies.annotation(image_id)
    assert (stored.revision, stored.author, stored.view.value, stored.defect.value) == (1, "reader-7", "A4C", "ASD")
    assert set(stored.annotated_frames) == {box["frame_index"], other}
    dragged = next(b for b in stored.boxes_on(box["frame_index"]) if b.septum.value == box["septum"])
    np.testing.assert_allclose(dragged.xyxy, [box["x1"] - 12, box["y1"] - 9, box["x2"], box["y2"]], atol=1.0)
    drawn = next(b for b in stored.boxes_on(other) if b.septum.value == "interatrial")
    np.testing.assert_allclose(drawn.xyxy, [30, 40, 70, 90], atol=1.0)
    assert all(b.score is None for b in stored.boxes)

    reader.page.reload()
    reader.wait_for_cine(image_id)
    shown = reader.wait_for_boxes(image_id, f"boxes.length === {len(stored.boxes)}")

    assert {b["by"] for b in shown} == {"person"}
    kept = [
        {"frame_index": b.frame_index, "septum": b.septum.value, **dict(zip(CORNERS, b.xyxy, strict=True))}
        for b in stored.boxes
    ]
    assert places(shown) == places(kept)
    reader.go_to(other)
    assert outline_share(reader, next(b for b in shown if b["frame_index"] == other and b["x1"] < 32)) > 0.9  # solid


def test_keys_copy_fill_between_and_say_that_there_is_no_septum(served, reader_at_work):
    reader, image_id = reader_at_work(), served.new[1]
    reader.open(study_of(served, image_id), image_id)
    page = reader.page

    reader.go_to(0)
    page.keyboard.press("2")
    reader.drag((40, 40), (60, 100))
    reader.wait_for_boxes(image_id, "boxes.length === 1")
    page.keyboard.press("c")
    reader.wait_for_boxes(image_id, "boxes.length === 2")
    reader.go_to(4)
    reader.drag((46, 43), (69, 106))
    reader.wait_for_boxes(image_id, "boxes.length === 3")
    page.keyboard.press("Escape")
    page.keyboard.press("i")
    boxes = reader.wait_for_boxes(image_id, "boxes.length === 5")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('[data-echo=frame]').innerText.includes('Frame 6 of 8')")
    page.keyboard.press("e")
    reader.submit()

    by_frame = {box["frame_index"]: box for box in boxes}
    assert set(by_frame) == {0, 1, 2, 3, 4}
    for corner in CORNERS:
        first, last = by_frame[1][corner], by_frame[4][corner]
        assert by_frame[0][corner] == pytest.approx(first)
        assert by_frame[2][corner] == pytest.approx(first + (last - first) / 3)
        assert by_frame[3][corner] == pytest.approx(first + 2 * (last - first) / 3)
    stored = served.studies.annotation(image_id)
    assert stored.annotated_frames == (0, 1, 2, 3, 4, 5)
    assert stored.boxes_on(5) == ()


def test_what_is_not_submitted_survives_a_reload_that_asks_first(served, reader_at_work):
    reader, image_id = reader_at_work(), served.new[2]
    reader.open(study_of(served, image_id), image_id)
    reader.page.keyboard.press("1")
    reader.drag((30, 40), (70, 90))
    drawn = reader.wait_for_boxes(image_id, "boxes.length === 1")
    asked = []
    reader.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))

    reader.page.reload()
    reader.wait_for_cine(image_id)

    reader.says("Your unsaved changes are back")
    assert asked == ["beforeunload"]
    assert places(reader.wait_for_boxes(image_id, "boxes.length === 1")) == places(drawn)
    patient = served.studies.entry(image_id).patient_id
    assert patient not in reader.page.evaluate("() => JSON.stringify(localStorage)")
    reader.part("discard").click()
    reader.wait_for_boxes(image_id, "boxes.length === 0")


def test_two_readers_of_one_cine_lose_nothing(served, reader_at_work, keep_picture):
    one, other = reader_at_work("Dr One"), reader_at_work("Dr Two")
    image_id = next(i for i in served.studies.image_ids() if served.studies.annotation(i) and i not in served.new)
    study, base = study_of(served, image_id), served.studies.annotation(image_id)
    for reader in (one, other):
        reader.open(study, image_id)
        reader.wait_for_boxes(image_id, f"boxes.length === {len(base.boxes)}")
    one.go_to(2)
    one.page.keyboard.press("e")
    one.submit()
    other.go_to(5)
    other.page.keyboard.press("e")

    other.part("submit").click()
    other.part("conflict").wait_for()
    keep_picture(other.page, "conflict")
    assert served.studies.annotation(image_id).author == "Dr One"
    assert "Dr One saved revision" in other.part("conflict").inner_text()
    other.part("keep-both").click()
    other.submit()

    stored = served.studies.annotation(image_id)
    assert (stored.revision, stored.author) == (base.revision + 2, "Dr Two")
    assert [len(stored.boxes_on(frame)) for frame in (2, 5)] == [0, 0]
    assert [b for b in stored.boxes if b.frame_index not in (2, 5)] == [
        b for b in base.boxes if b.frame_index not in (2, 5)
    ]
    assert [a.author for a in served.studies.history(image_id)][-2:] == ["Dr One", "Dr Two"]
    other.complaints = [c for c in other.complaints if "409" not in c]  # the conflict, as the browser's log has it


def test_the_next_cine_is_opened_and_says_why(served, reader_at_work):
    reader = reader_at_work()
    labelled = next(i for i in served.studies.image_ids() if served.studies.annotation(i) and i not in served.new)
    reader.open(study_of(served, labelled), labelled)

    reader.part("strategy").select_option("first")
    reader.part("next").click()
    reader.part("reason").wait_for()

    shown = reader.page.evaluate("() => new URLSearchParams(location.search).get('cine')")
    assert shown in served.new
    reader.wait_for_cine(shown)


def test_a_training_is_followed_to_its_end_and_its_model_named(served, reader_at_work, keep_picture):
    reader = reader_at_work()
    image_id = served.new[0]
    reader.open(study_of(served, image_id), image_id)
    version = served.ask("echo/about")["models"]["septal_detector"]["version"]

    reader.part("tab-1").click()
    reader.part("epochs").fill("1")
    reader.part("epochs").press("Tab")
    reader.part("start-training").click()
    reader.page.locator("[data-echo=training][data-status=RUNNING]").wait_for()
    reader.page.locator("[data-echo=training][data-status=DONE]").wait_for(timeout=4 * 90_000)
    keep_picture(reader.page, "training")

    reader.part("curve").wait_for()
    now = served.ask("echo/about")["models"]["septal_detector"]["version"]
    assert now != version
    reader.part("badge").filter(has_text=f"Septa {now}").wait_for()
