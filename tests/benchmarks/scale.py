# SPDX-License-Identifier: Apache-2.0
"""Time what people wait for in a study folder of many cines, through the server's routes, and how it grows.

    python tests/benchmarks/scale.py [--cines 10000] [--labelled 3000] [--json FILE]

The cines are links to one small picture, 20 of a patient; scores, and judgements of all labels, are made up. Everything
is timed with a quarter of the cines too: a step that takes four times as long is linear, one that takes sixteen times
is quadratic; growth is of processor time, which other programs disturb less. The process of a training is not started;
what comes before it is timed. Ends with 1 if a look that finds nothing new takes 2 s or more, a next sample 50 ms or
more (median of 20), or a step of more than 100 ms grows more than eightfold.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from next_cine_at_scale import fill_scores, judge, make_folder

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.io.annotation_store import annotation_to_json

REPOSITORY = Path(__file__).resolve().parents[2]
CALLS = 20


def app_over(studies: Path, folder: Path):
    """Return the app of a study folder, as the server builds it."""
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import app_instance, clear_cache

    (folder / "models").mkdir()
    settings.MONAI_LABEL_APP_DIR = str(REPOSITORY / "apps" / "echo")
    settings.MONAI_LABEL_STUDIES = str(studies)
    settings.MONAI_LABEL_APP_CONF = {"models": str(folder / "models"), "device": "cpu", "cache": str(folder / "cache")}
    clear_cache()
    return app_instance()


def measure(cines: int, labelled: int) -> dict[str, tuple[float, float]]:
    """Return the seconds of each step, by the clock and of the processor."""
    from fastapi.testclient import TestClient

    from echo_plugin.host import jobs
    from echo_plugin.host.server import app as server
    from echo_plugin.io.study_folder import StudyFolder

    seconds: dict[str, tuple[float, float]] = {}

    def timed(name, work, calls=1):
        times = []
        for call in range(calls):
            started, worked = time.perf_counter(), time.process_time()
            result = work(call)
            times.append((time.perf_counter() - started, time.process_time() - worked))
        seconds[name] = (statistics.median(t for t, _ in times), statistics.median(t for _, t in times))
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies = folder / "studies"
        studies.mkdir()
        make_folder(studies, cines, labelled)
        for label in (studies / "annotations").glob("*.json"):  # boxes, so that there is something to train on
            image_id = label.name.removesuffix(".json")
            box = SeptalBox(0, 4, 4, 20, 20, Septum.INTERVENTRICULAR)
            label.write_text(annotation_to_json(Annotation(image_id, (box,), (0,), revision=1)))
        timed("index", lambda _: StudyFolder(studies))
        timed("index of unchanged files", lambda _: StudyFolder(studies))
        app = timed("start of the app", lambda _: app_over(studies, folder))
        store = app.datastore()
        image_ids = timed("list of images", lambda _: store.list_images(), CALLS)
        unlabelled = timed("list of those without a label", lambda _: store.get_unlabeled_images(), CALLS)
        fill_scores(app.waiting, image_ids)
        labelled_ids = sorted(set(image_ids) - set(unlabelled))
        for image_id in labelled_ids:
            judge(app.waiting, image_id)

        def read(_=None):
            with app.waiting.pool.reading():
                pass

        timed("first reading of scores and judgements", read)
        timed("calibration, in the background", lambda _: app.waiting.pool.calibrate_if_due())
        web = TestClient(server, base_url="http://127.0.0.1")

        def answered(response):
            assert response.status_code == 200, response.text
            return response.json()

        timed("info", lambda _: answered(web.get("/info/")), 3)
        timed("list for 3D Slicer (/datastore?output=all)", lambda _: answered(web.get("/datastore/?output=all")), 3)
        for strategy in (
            "random",
            "first",
            "fewest_labels",
            "uncertainty",
            "diversity",
            "hybrid",
            "failing_view",
            "suspicious",
        ):
            chosen = app.strategies[strategy]
            timed(f"next sample: {strategy}", lambda call, c=chosen: c({"client_id": f"r{call}"}, store), CALLS)
        submission = {"files": {"label": ("l.json", '{"markups": []}', "application/json")}}
        timed(
            "submission",
            lambda call: answered(web.put(f"/datastore/label?image={unlabelled[call]}", **submission)),
            CALLS,
        )
        chosen = app.strategies["hybrid"]
        timed("next sample after a submission", lambda call: chosen({"client_id": f"s{call}"}, store))

        def choose_after_a_judgement(call):
            judge(app.waiting, labelled_ids[call], revision=2)
            return chosen({"client_id": f"j{call}"}, store)

        timed("next sample: after a judgement", choose_after_a_judgement, CALLS)
        jobs.AsyncTask = _NoProcess
        timed("start of a training", lambda _: answered(web.post("/train/septal_boxes", json={})))
        (studies / "new.png").write_bytes((studies / image_ids[0]).read_bytes() + b"\0")
        timed("a new file is noticed", lambda _: store.refresh())
    return seconds


class _NoProcess:
    """Starts nothing."""

    @staticmethod
    def status(method):
        return None, ""

    @staticmethod
    def run(method, request, enqueue):
        return {"request": request}, None


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cines", type=int, default=10_000)
    parser.add_argument("--labelled", type=int, default=3_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measure(100, 40)  # libraries are loaded, files cached
    few = measure(asked.cines // 4, asked.labelled // 4)
    many = measure(asked.cines, asked.labelled)
    print(f"| step | {asked.cines // 4} cines, ms | {asked.cines} cines, ms | growth |\n|---|---|---|---|")
    growth = {step: worked / max(few[step][1], 1e-4) for step, (_, worked) in many.items()}
    for step, (seconds, _) in many.items():
        print(f"| {step} | {1000 * few[step][0]:.1f} | {1000 * seconds:.1f} | {growth[step]:.1f} |")
    if asked.json:
        asked.json.write_text(json.dumps({"cines": asked.cines, "labelled": asked.labelled, "s": many, "quarter": few}))
    slow = [step for step, (seconds, _) in many.items() if seconds > 0.1 and growth[step] > 8]
    slow += [step for step, (seconds, _) in many.items() if step.startswith("next sample:") and seconds >= 0.05]
    slow += ["index of unchanged files"] if many["index of unchanged files"][0] >= 2 else []
    if slow:
        print(f"Too slow: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow))


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("A folder of many cines"):
        sys.exit(main())
