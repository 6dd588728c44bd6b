# SPDX-License-Identifier: Apache-2.0
"""A review for people: a table, and a page with the most doubtful frames, the label dashed and the detection solid."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg

from echo_plugin.acquisition.review import Doubt, Review, to_json
from echo_plugin.boxes.metrics import FrameBoxes
from echo_plugin.io.atomic_file import make_directory, write_atomically
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.preprocess import to_model_input
from echo_plugin.report import Picture, draw_pictures

SHOWN = 24
SHOWN_FROM = 0.3
"""Score from which a detection is drawn."""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Labels to look at again</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ccc }
td.number { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100% }
.warning { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #b8860b }
</style></head><body>
<h1>Labels to look at again</h1>
{% if review.on_phantoms %}<p class="warning">Labels of phantoms: synthetic cines.</p>{% endif %}
<p>{{ review.cines|length }} labelled cines, judged by {{ review.judges }}; {{ review.left_out }} could not be judged.
{% if review.confirmed %}Confirmed labels, looked at again by a person, are not listed: {{ review.confirmed }}.
{% endif -%}
Quality runs from 0 to 1; a low one means that label and detector disagree, and either may be wrong.
Dashed: the label. Solid: the detector.</p>
<p><img src="data:image/png;base64,{{ picture }}" alt="The most doubtful frames"></p>
<table><thead><tr><th>cine</th><th>quality</th><th>frames (0-based)</th><th>doubt</th><th>author</th><th>revision</th>
</tr></thead><tbody>
{% for cine in review.cines %}<tr><td>{{ cine.image_id }}</td><td class="number">{{ "%.2f"|format(cine.quality) }}</td>
<td>{{ cine.frames|join(", ") }}</td><td>{{ cine.doubt }}</td><td>{{ cine.author or "–" }}</td>
<td class="number">{{ cine.revision }}</td></tr>
{% endfor %}</tbody></table>
<h2>Agreement between annotators</h2>
{% if review.agreement.pairs %}<p>{{ review.agreement.cines }} cines with labels of several people,
{{ review.agreement.frames }} frames annotated by both of a pair. Whoever came second saw the first one's boxes.</p>
<table><tbody>{% if review.agreement.mean_iou is not none %}<tr><td>mean IoU of their boxes</td>
<td class="number">{{ "%.2f"|format(review.agreement.mean_iou) }}</td></tr>{% endif %}
{% for what, kappa in review.agreement.kappa.items() if kappa is not none %}<tr><td>Cohen's kappa, {{ what }}</td>
<td class="number">{{ "%.2f"|format(kappa) }}</td></tr>{% endfor %}</tbody></table>
{% else %}<p>No cine has labels of several people.</p>{% endif %}
</body></html>
"""


def write_review(out: Path, result: Review) -> None:
    """Write review.json and review.html, readable by this user only: the page shows patients' pictures."""
    make_directory(out)
    facts = to_json(result)
    html = Environment(autoescape=True).from_string(TEMPLATE).render(review=facts, picture=_worst_frames(result))
    for name, content in (("review.html", html), ("review.json", json.dumps(facts, indent=1) + "\n")):
        write_atomically(out / name, content.encode())
        (out / name).chmod(0o600)


def describe_review(result: Review, most: int = 20) -> str:
    """Return the most doubtful labels as a table for the terminal."""
    lines = [f"{'quality':>7}  {'cine':<64}  {'frames':<14}  doubt"]
    for doubt in result.doubts[:most]:
        one = doubt.judgement
        frames = ", ".join(map(str, one.frames))
        lines.append(f"{one.quality:7.2f}  {one.image_id:<64}  {frames:<14}  {one.words}")
    if result.confirmed:
        lines.append(f"Confirmed labels, looked at again by a person, are not listed: {len(result.confirmed)}")
    people = result.agreement
    if people.mean_iou is not None:
        lines.append(f"Boxes of {people.pairs} pairs of annotators: mean IoU {people.mean_iou:.2f}")
    return "\n".join(lines) + "\n"


def _worst_frames(result: Review) -> str:
    frames = [(float(doubt.quality.overall[n]), doubt, n) for doubt in result.doubts for n in _places(doubt)]
    worst = sorted(frames, key=lambda frame: frame[0])[:SHOWN]
    figure = draw_pictures([_picture(result.folder, doubt, place, quality) for quality, doubt, place in worst])
    FigureCanvasAgg(figure)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=80, bbox_inches="tight")
    return base64.b64encode(png.getvalue()).decode()


def _places(doubt: Doubt) -> range:
    return range(len(doubt.judged.frame_indices))


def _picture(folder: StudyFolder, doubt: Doubt, place: int, quality: float) -> Picture:
    """Return one frame as the detector saw it, read for this only."""
    answer = doubt.judged.predictions[place]
    keep = []
    for septum in np.unique(answer.labels):
        of_septum = np.flatnonzero((answer.labels == septum) & (answer.scores >= SHOWN_FROM))
        keep += [int(of_septum[answer.scores[of_septum].argmax()])] if len(of_septum) else []
    shown = FrameBoxes(answer.boxes[keep], answer.labels[keep], answer.scores[keep])
    image_id, frame = doubt.judgement.image_id, doubt.judged.frame_indices[place]
    pixels, _ = to_model_input(folder.read_cine(image_id), [frame], doubt.judged.input_size_px)
    title = f"{image_id[-16:]} frame {frame}: {quality:.2f}"
    words = doubt.quality.doubts(place)
    return Picture(pixels[0].numpy(), doubt.judged.labels[place], shown, f"{title}\n{words}")
