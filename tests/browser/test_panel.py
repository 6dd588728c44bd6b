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

from tests.browser.reader import LIMIT_MS

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.heavy]

CORNERS = ("x1", "y1", "x2", "y2")


def assert_same_boxes(found, expected) -> None:
    """To 0.01 px, which the viewer's own arithmetic stays within."""
    found, expected = (sorted(boxes, key=lambda b: (b["frame_index"], b["septum"])) for boxes in (found, expected))
    assert [(b["frame_index"], b["septum"]) for b in found] == [(b["frame_index"], b["septum"]) for b in expected]
    assert [b[c] for b in found for c in CORNERS] == pytest.approx([b[c] for b in expected for c in CORNERS], abs=0.01)


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
    assert_same_boxes(shown, predicted["boxes"])
    assert {box["by"] for box in shown} == {"model"}
    box = max(predicted["boxes"], key=lambda b: b["y2"] - b["y1"])
    reader.go_to(box["frame_index"])
    keep_picture(reader.page, "prediction")
    assert reader.too_faint() == []
    assert reader.overflowing() == []
    for name in ("predict", "accept", "set-view", "set-defect", "submit", "next"):  # all of it without scrolling
        assert reader.is_in_sight(name), name
    assert 0.3 < reader.outline_share(box) < 0.9  # dashed
    here = pixels_agree(served, reader, image_id, box)
    beside = [pixels_agree(served, reader, image_id, box, shift) for shift in ((5, 0), (-5, 0), (0, 5), (0, -5))]
    assert here > 0.7  # the file's pixels, enlarged
    assert here > max(beside) + 0.05
    assert "View" in reader.part("view").inner_text()
    for name in ("Normal", "ASD", "VSD"):
        assert name in reader.part("defect").inner_text()


def test_a_similar_past_case_has_a_picture_and_opens(served, reader_at_work):
    reader, image_id = reader_at_work(), served.new[0]
    served.wait_for_past_cases()
    reader.open(study_of(served, image_id), image_id)
    reader.predict(image_id)

    case = reader.part("nearest").locator("a.case").first
    case.locator("img").wait_for()
    reader.page.wait_for_function(
        "() => [...document.querySelectorAll('.echo-panel img')].every((one) => one.complete && one.naturalWidth > 20)"
    )
    with reader.context.expect_page() as opened:
        case.click()
    opened.value.locator("[data-echo=status]").wait_for()

    predicted = served.ask(f"echo/predictions/{image_id}", "POST")
    shown = opened.value.locator("[data-echo=status]").get_attribute("data-image")
    assert shown in {one["image_id"] for one in predicted["nearest"]} - {image_id}


def test_where_the_network_looked_is_shown_and_hidden_again(served, reader_at_work, keep_picture):
    reader, image_id = reader_at_work(), served.new[0]
    reader.open(study_of(served, image_id), image_id)
    reader.predict(image_id)

    reader.part("explain").click()
    picture = reader.part("explanation").locator("img")
    picture.wait_for()
    reader.page.wait_for_function("() => document.querySelector('[data-echo=explanation] img').naturalWidth > 0")
    reader.part("explanation").scroll_into_view_if_needed()
    keep_picture(reader.page, "explanation")

    entry, status = served.ask(f"echo/cines/{image_id}"), served.ask(f"echo/predictions/{image_id}", "POST")
    size = picture.evaluate("(one) => [one.naturalWidth, one.naturalHeight]")
    assert size == [entry["width"], entry["height"]]
    words = reader.part("explanation").inner_text()
    assert f"speaks for {status['defect']['defect']}" in words
    frame = int(words.split("Frame ")[1].split(":")[0]) - 1
    assert frame in {crop["frame_index"] for crop in status["defect"]["crops"]}
    assert reader.too_faint() == []
    assert reader.overflowing() == []
    picture.click()
    reader.wait_for_frame(frame)
    reader.part("explain").click()
    reader.part("explanation").wait_for(state="detached")

    reader.page.route(
        "**/echo/explain*",
        lambda route: route.fulfill(
            body=b"", headers={"X-Explanation": '{"frame_index": 0, "defect": "VSD", "probability": 0.1234}'}
        ),
    )
    reader.part("explain").click()
    reader.says("The models were replaced since this prediction; predict the cine again.")
    assert reader.part("explanation").count() == 0


def test_all_cines_of_a_study_are_predicted_with_progress_until_it_is_cancelled(served, reader_at_work):
    reader = reader_at_work()
    first, second = served.several
    reader.page.route(f"**/echo/predictions/{second}", lambda route: None)  # the server takes its time
    reader.open(study_of(served, first), first)

    reader.part("predict-study").click()
    reader.part("progress").filter(has_text="Predicting cine 2 of 2").wait_for()
    reader.page.get_by_role("button", name="Cancel").click()
    reader.says("Cancelled; 1 of 2 cines of this study are predicted")

    assert reader.boxes(first)
    assert not reader.part("child").is_visible()  # one cine is not the child
    reader.page.unroute(f"**/echo/predictions/{second}")
    reader.part("predict-study").click()
    reader.says("All 2 cines of this study are predicted")


def test_the_cines_of_a_study_are_joined_into_an_answer_for_the_child(served, reader_at_work, keep_picture):
    reader = reader_at_work()
    first, second = served.several
    reader.open(study_of(served, first), first)

    reader.part("predict-study").click()
    reader.part("child").wait_for()
    reader.says("All 2 cines of this study are predicted")

    joined = served.ask(f"echo/patient?image={second}")["patient_defect"]
    said = reader.part("child").inner_text()
    assert joined["defect"] in said
    assert f"{joined['cines']} of {joined['asked']} cines took part" in said
    for name, probability in joined["probabilities"].items():
        line = reader.part("child").locator(".bar").filter(has_text=name)
        assert f"{100 * probability:.0f}%" in line.inner_text()
        fill, track = (line.locator(f".{part}").bounding_box()["width"] for part in ("fill", "track"))
        assert fill / track == pytest.approx(probability, abs=0.02)
    assert reader.part("agreement").inner_text()
    reader.part("child").scroll_into_view_if_needed()
    keep_picture(reader.page, "child")
    assert reader.is_in_sight("child")
    assert (reader.too_faint(), reader.overflowing()) == ([], [])
    reader.part("fold").click()
    assert f"{100 * joined['probability']:.0f}%" in reader.part("child").inner_text()
    assert not reader.part("agreement").is_visible()


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (200, {"patient_defect": None}, "No answer: the model abstains on every cine of this child."),
        (400, {"detail": "Cine 1.2 cannot be read."}, "The cines were not joined: Cine 1.2 cannot be read."),
        (200, {"agreement": 1.0}, "The views agree: all cines that can show ASD say ASD."),
        (200, {"agreement": 0.5}, "The views do not agree: 50% of the cines that can show ASD say ASD."),
        (200, {"agreement": None}, "None of these views can show ASD"),
        (200, {"cines": 1}, "From one cine alone"),
        (200, {"probability": 0.35}, "Undecided: hardly better than chance."),
    ],
    ids=["abstained", "refused", "agree", "disagree", "cannot", "alone", "undecided"],
)
def test_how_far_the_cines_of_a_child_agree_is_said_in_words(served, reader_at_work, status, answer, words):
    reader, (first, second) = reader_at_work(), served.several
    said = {"defect": "ASD", "probability": 0.6, "probabilities": {"Normal": 0.3, "ASD": 0.6, "VSD": 0.1}}
    whole = (
        answer
        if {"patient_defect", "detail"} & set(answer)
        else {"patient_defect": {**said, "cines": 2, "asked": 3, "agreement": 1.0, "similarity": 0.4, **answer}}
    )
    prediction = served.ask(f"echo/predictions/{first}", "POST")
    reader.page.route("**/echo/predictions/*", lambda route: route.fulfill(json=prediction))
    reader.page.route("**/echo/patient*", lambda route: route.fulfill(json=whole, status=status))
    reader.open(study_of(served, second), second)

    reader.part("predict-study").click()
    reader.part("child").filter(has_text=words).wait_for()

    assert (reader.too_faint(), reader.overflowing()) == ([], [])
    reader.forgive("400")


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
    before = reader.predict(image_id)
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
    reader.part("set-defect").select_option("VSD")
    reader.part("set-visible").select_option("yes")
    reader.part("set-defect").select_option("ASD")
    assert reader.part("set-visible").input_value() == ""  # that was said of the other one
    reader.part("set-visible").select_option("no")
    reader.part("set-size").fill("6.5")
    reader.part("set-size").press("Tab")
    keep_picture(reader.page, "annotate")
    reader.part("set-size").fill("-3")
    reader.part("set-size").press("Tab")
    reader.says("a positive number of millimetres")
    assert reader.part("set-size").input_value() == "6.5"
    assert reader.too_faint() == []
    assert reader.overflowing() == []
    for name in ("set-visible", "set-size", "submit", "next"):
        assert reader.is_in_sight(name), name
    said = reader.submit()

    assert "Saved as revision 1 by reader-7" in said
    stored = served.studies.annotation(image_id)
    assert (stored.revision, stored.author, stored.view.value, stored.defect.value) == (1, "reader-7", "A4C", "ASD")
    assert (stored.is_defect_visible, stored.defect_size_mm) == (False, 6.5)
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
    assert (reader.part("set-visible").input_value(), reader.part("set-size").input_value()) == ("no", "6.5")
    kept = [
        {"frame_index": b.frame_index, "septum": b.septum.value, **dict(zip(CORNERS, b.xyxy, strict=True))}
        for b in stored.boxes
    ]
    assert_same_boxes(shown, kept)
    reader.go_to(other)
    assert reader.outline_share(next(b for b in shown if b["frame_index"] == other and b["x1"] < 32)) > 0.9  # solid


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
    drawn = [stored.boxes_on(frame)[0].xyxy for frame in (0, 4)]  # with pixels that are higher than wide
    np.testing.assert_allclose(drawn, [(40, 40, 60, 100), (46, 43, 69, 106)], atol=1.5)


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
    assert_same_boxes(reader.wait_for_boxes(image_id, "boxes.length === 1"), drawn)
    patient = served.studies.entry(image_id).patient_id
    assert patient not in reader.page.evaluate("() => JSON.stringify(localStorage)")
    reader.part("discard").click()
    reader.wait_for_boxes(image_id, "boxes.length === 0")


def test_a_tab_that_is_left_takes_nothing_from_another_one(served, reader_at_work):
    reader, image_id = reader_at_work(), served.new[2]
    reader.open(study_of(served, image_id), image_id)
    other = reader.context.new_page()
    other.goto(reader.page.url)
    other.locator(f"[data-echo=status][data-image='{image_id}']").wait_for()
    reader.page.bring_to_front()
    reader.page.keyboard.press("1")
    reader.drag((30, 40), (70, 90))
    kept = f"() => localStorage.getItem('echo-draft/{image_id}')"
    drawn = reader.page.wait_for_function(kept).json_value()

    other.goto("about:blank")

    assert reader.page.evaluate(kept) == drawn


def test_two_readers_who_submit_one_cine_at_once_lose_nothing(served, reader_at_work, keep_picture):
    readers = [reader_at_work("Dr One"), reader_at_work("Dr Two")]
    image_id = next(i for i in served.studies.image_ids() if served.studies.annotation(i) and i not in served.new)
    study, base = study_of(served, image_id), served.studies.annotation(image_id)
    for reader, frame in zip(readers, (2, 5), strict=True):
        reader.open(study, image_id)
        reader.wait_for_boxes(image_id, f"boxes.length === {len(base.boxes)}")
        reader.go_to(frame)
        reader.page.keyboard.press("e")

    for reader in readers:  # neither is waited for before the other is sent
        reader.part("submit").evaluate("(button) => { setTimeout(() => button.click(), 0); }")
    for reader in readers:
        reader.page.locator("[data-echo=conflict]").or_(
            reader.part("message").filter(has_text="Saved")
        ).first.wait_for()
    (late,) = [reader for reader in readers if reader.part("conflict").is_visible()]
    (early,) = [reader for reader in readers if reader is not late]
    keep_picture(late.page, "conflict")

    assert served.studies.annotation(image_id).author == early.name
    assert f"{early.name} saved revision" in late.part("conflict").inner_text()
    assert late.too_faint() == []
    assert late.overflowing() == []
    late.part("keep-both").click()
    late.submit()
    stored = served.studies.annotation(image_id)
    assert (stored.revision, stored.author) == (base.revision + 2, late.name)
    assert [len(stored.boxes_on(frame)) for frame in (2, 5)] == [0, 0]
    assert [b for b in stored.boxes if b.frame_index not in (2, 5)] == [
        b for b in base.boxes if b.frame_index not in (2, 5)
    ]
    assert [a.author for a in served.studies.history(image_id)][-2:] == [early.name, late.name]
    late.forgive("409")  # the conflict, as the browser's log has it


def test_mine_or_theirs_can_be_kept_and_the_other_is_not_lost(served, reader_at_work):
    reader, image_id = reader_at_work("Dr One"), served.new[3]
    reader.open(study_of(served, image_id), image_id)
    reader.page.keyboard.press("e")
    theirs = submit_for(served, image_id, "Dr Two", annotated_frames=[3])

    reader.part("submit").click()
    reader.part("take-theirs").click()
    reader.says("yours is set aside")
    assert reader.part("status").get_attribute("data-changed") == "false"
    reader.go_to(1)
    reader.page.keyboard.press("e")
    submit_for(served, image_id, "Dr Two", annotated_frames=[3, 4])
    reader.part("submit").click()
    reader.part("take-theirs").click()
    reader.part("bring-back").click()  # the later of the two that were given up
    reader.part("bring-back").click()  # the earlier; the later takes its place
    reader.submit()

    assert served.studies.annotation(image_id).annotated_frames == (0,)
    reader.part("bring-back").click()
    reader.submit()
    assert served.studies.annotation(image_id).annotated_frames == (1, 3)
    theirs = submit_for(served, image_id, "Dr Two", annotated_frames=[0, 5], view="A2C")
    reader.go_to(2)
    reader.page.keyboard.press("e")
    reader.page.keyboard.press("s")
    reader.part("keep-mine").click()
    reader.page.keyboard.press("s")
    reader.says(f"Saved as revision {theirs['revision'] + 1}")

    stored = served.studies.annotation(image_id)
    assert (stored.annotated_frames, stored.view) == ((1, 2, 3), None)
    assert [a.annotated_frames for a in served.studies.history(image_id)] == [
        (3,),
        (3, 4),
        (0,),
        (1, 3),
        (0, 5),
        (1, 2, 3),
    ]
    reader.forgive("409")


def submit_for(served, image_id: str, author: str, **said):
    """Submit as another reader does, on top of what is stored now."""
    current = served.ask(f"echo/annotations/{image_id}")
    return served.ask(f"echo/annotations/{image_id}", "PUT", {**current, "author": author, **said})


def test_the_next_cine_is_opened_and_says_why(served, reader_at_work):
    reader = reader_at_work()
    labelled = next(i for i in served.studies.image_ids() if served.studies.annotation(i) and i not in served.new)
    reader.open(study_of(served, labelled), labelled)

    assert reader.part("strategy").input_value() == "uncertainty"  # until one chooses
    reader.part("strategy").select_option("first")
    reader.page.keyboard.press("Escape")
    reader.part("frames").locator("button").first.focus()  # keys do not act in a field
    reader.page.keyboard.press("n")
    reader.part("reason").wait_for()

    shown = reader.page.evaluate("() => new URLSearchParams(location.search).get('cine')")
    assert served.studies.annotation(shown) is None
    reader.wait_for_cine(shown)
    worth_drawing = reader.page.evaluate("() => new URLSearchParams(location.search).get('frames')").split(",")
    reader.wait_for_frame(int(worth_drawing[0]))
    assert reader.part("strategy").input_value() == "first"  # on the page of the next cine too


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
    reader.part("stop-training").click()
    reader.says("The training is stopped")
    assert served.ask("echo/about")["models"]["septal_detector"]["version"] == version
    reader.part("start-training").click()
    reader.page.locator("[data-echo=training][data-status=RUNNING]").wait_for()
    reader.page.locator("[data-echo=training][data-status=DONE]").wait_for(timeout=4 * LIMIT_MS)
    keep_picture(reader.page, "training")
    assert reader.too_faint() == []
    assert reader.overflowing() == []

    reader.part("curve").wait_for()
    now = served.ask("echo/about")["models"]["septal_detector"]["version"]
    assert now != version
    reader.part("badge").filter(has_text=f"Septa {now}").wait_for()


def open_with_doubts(served, reader):
    """Open the panel's list of labels that look like mistakes; labels are judged meanwhile."""
    reader.open(study_of(served, served.new[0]), served.new[0])
    reader.part("tab-1").click()
    reader.page.wait_for_function(
        """() => document.querySelector('[data-echo=suspicious] li')
             || document.querySelector('[data-echo=refresh-suspicious]').click()""",
        polling=500,
        timeout=4 * LIMIT_MS,
    )


def test_a_label_that_looks_like_a_mistake_is_opened_at_its_doubtful_frame(served, reader_at_work):
    reader = reader_at_work()
    open_with_doubts(served, reader)
    asked = served.ask("echo/suspicious")
    taken = asked[0]["image_id"]
    assert served.ask(f"echo/lease?image={taken}&client_id=another", "PUT")["is_yours"]
    reader.part("suspicious").get_by_role("button", name="Open").first.click()
    reader.says("is with another annotator")
    submit_for(served, taken, "another")  # which ends it

    reader.part("suspicious").get_by_role("button", name="Open").first.click()
    reader.page.wait_for_url("**cine=**reason=**")

    opened = reader.page.evaluate("() => new URLSearchParams(location.search).get('cine')")
    (doubt,) = [one for one in asked if one["image_id"] == opened]
    reader.wait_for_cine(opened)
    assert doubt["reason"] in reader.part("reason").inner_text()
    reader.wait_for_frame((doubt["show"] or [0])[0])


def test_a_doubted_label_that_is_right_is_kept_and_listed_no_more(served, reader_at_work, keep_picture):
    reader = reader_at_work()
    open_with_doubts(served, reader)
    first = served.ask("echo/suspicious")[0]
    keep_picture(reader.page, "doubts")

    reader.part("suspicious").get_by_role("button", name="Keep").first.click()
    reader.says(f"Kept: the label is confirmed as revision {first['revision'] + 1} by {reader.name}")

    assert first["image_id"] not in [one["image_id"] for one in served.ask("echo/suspicious")]
    kept, confirmed = served.studies.history(first["image_id"])[-2:]
    assert (kept.boxes, kept.annotated_frames) == (confirmed.boxes, confirmed.annotated_frames)
