# SPDX-License-Identifier: Apache-2.0
"""The DICOM instances of a study folder as the routes of DICOMweb ask for them.

The header of a DICOM file as DICOM JSON without its bulk data (PS3.18 F.2.7): large values become addresses.

QIDO-RS over the index of a study folder: which studies, series or instances match, and their attributes as DICOM JSON.

References
----------
PS3.18 10.6 (search), PS3.4 C.2.2.2 (matching)
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from echo_plugin.errors import UnknownImageError, UnreadableCineError
from echo_plugin.io.dicom_cine import DicomFrames, read_dicom_cine
from echo_plugin.io.stored_bytes import damage_named, unreadable
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import (
    INSTANCE_KEYWORDS,
    SERIES_KEYWORDS,
    STUDY_KEYWORDS,
    DicomInstance,
    tag_of,
)

LARGEST_INLINE_BYTES = 4096
"""A palette of 16 bit and 256 entries has 512; an ECG or a private preview has more and is fetched when asked for."""


def read_metadata(path: Path, bulk_url: str) -> dict[str, Any]:
    """Return the DICOM JSON of a file; pixel data are left out.

    ``bulk_url`` : where large values are found; their path (``00189999/0/00281201``) is appended.

    Raises
    ------
    UnreadableCineError
        If the header cannot be parsed.
    """
    with damage_named(path, "a DICOM header that cannot be parsed"):
        dataset = dcmread(path, stop_before_pixels=True, force=True)
        return _without_bulk(dataset.to_json_dict(suppress_invalid_tags=True), bulk_url)


def read_bulk_value(path: Path, place: Sequence[str]) -> bytes:
    """Return the bytes of the element at ``place``: tags, each but the last followed by the number of an item.

    Raises
    ------
    UnreadableCineError
        If there is no such element, or it holds no bytes.
    """
    with damage_named(path, f"no bulk data at {'/'.join(place)[:80]!r}"):
        dataset: Any = dcmread(path, stop_before_pixels=True, force=True)
        for part in place:
            dataset = dataset[int(part, 16)].value if isinstance(dataset, Dataset) else dataset[int(part)]
        if not isinstance(dataset, bytes):
            raise unreadable(path, f"has no bulk data at {'/'.join(place)[:80]!r}.")
        return dataset


def _with_nulls(values: list[Any] | None) -> dict[str, list[Any]]:
    """Return the values as PS3.18 F.2.5 has them: one that is empty among several is null."""
    return {} if values is None else {"Value": [None if value == "" else value for value in values]}


def _without_bulk(attributes: dict[str, Any], url: str) -> dict[str, Any]:
    answer = {}
    for tag, element in attributes.items():
        here = f"{url}/{tag}"
        if len(element.get("InlineBinary", "")) * 3 // 4 > LARGEST_INLINE_BYTES:
            answer[tag] = {"vr": element["vr"], "BulkDataURI": here}
        elif element.get("vr") == "SQ":
            items = [_without_bulk(item, f"{here}/{n}") for n, item in enumerate(element.get("Value") or ())]
            answer[tag] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        else:
            answer[tag] = {**element, **_with_nulls(element.get("Value"))}
    return answer


OPEN_CINES = 64
"""How many cines keep their table of frames in memory: a few KB each, and a player asks for one frame after another."""
KEPT_HEADERS = 512

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """The last ``size`` values that were made; several threads may make the same one at the same time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of ``key``, made when it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


class DicomArchive:
    """What DICOMweb serves of a study folder."""

    def __init__(self, studies: StudyFolder) -> None:
        self.studies = studies
        self._frames: RecentlyUsed[DicomFrames] = RecentlyUsed(OPEN_CINES)
        self._headers: RecentlyUsed[dict[str, Any]] = RecentlyUsed(KEPT_HEADERS)

    def instances(self, study: str, series: str | None = None, sop: str | None = None) -> list[DicomInstance]:
        """Return the instances of a study, a series or the one named.

        Raises
        ------
        UnknownImageError
            If there is none.
        """
        known = self.studies.instances()
        candidates = known.values() if sop is None else filter(None, [known.get(sop)])
        found = [i for i in candidates if i.study_uid == study and series in (None, i.series_uid)]
        if not found:
            what, uid = ("Instance", sop) if sop else ("Series", series) if series else ("Study", study)
            msg = f"{what} {str(uid)[:64]} is not in the study folder."
            raise UnknownImageError(msg)
        return found

    def metadata(self, instance: DicomInstance, base_url: str) -> dict[str, Any]:
        """Return the DICOM JSON of an instance without its bulk data, which is found below ``base_url``."""
        url = (
            f"{base_url}/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"
            "/bulkdata"
        )
        key = (instance.path, instance.stamp, url)
        return self._headers.get(key, lambda: read_metadata(instance.path, url))

    def frames(self, instance: DicomInstance) -> DicomFrames:
        """Return the frames of an instance; where each lies in the file is kept for the next request.

        Raises
        ------
        UnreadableCineError
            If the instance is no image or is damaged.
        """
        return self._frames.get((instance.path, instance.stamp), lambda: _open_frames(instance.path))


def _open_frames(path: Path) -> DicomFrames:
    frames = read_dicom_cine(path).frames
    if not isinstance(frames, DicomFrames):
        msg = f"File {path.name!r} has no frames that are stored as DICOM has them."
        raise UnreadableCineError(msg)
    return frames


Level = Literal["study", "series", "instance"]
JsonAttributes = dict[str, Any]

MODALITIES_IN_STUDY = "00080061"
_STUDY_TAGS, _SERIES_TAGS = [tag_of(k) for k in STUDY_KEYWORDS], [tag_of(k) for k in SERIES_KEYWORDS]
_INSTANCE_TAGS = [tag_of(k) for k in INSTANCE_KEYWORDS]
_SEARCHABLE = frozenset([*_STUDY_TAGS, *_SERIES_TAGS, *_INSTANCE_TAGS, MODALITIES_IN_STUDY])
_DATES = frozenset({"DA", "TM", "DT"})
_NUMBERS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "FL", "FD"})
_EMPTY = {tag: {"vr": dictionary_VR(int(tag, 16))} for tag in (*_STUDY_TAGS, *_SERIES_TAGS)}


@dataclass(frozen=True)
class Query:
    """What a search asks for: ``filters`` by tag, further attributes, and which part of the answer."""

    filters: Mapping[str, str] = field(default_factory=dict)
    include: frozenset[str] = frozenset()
    offset: int = 0
    limit: int | None = None


def parse_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Return the query of a URL's parameters.

    Raises
    ------
    ValueError
        If an attribute is unknown or not indexed, or limit or offset is no whole number of 0 or more.
    """
    filters: dict[str, str] = {}
    include: set[str] = set()
    numbers = {"limit": -1, "offset": 0}
    for name, value in parameters:
        if name in numbers:
            if not value.isdecimal():
                msg = f"Search parameter {name} is {value[:20]!r}; a whole number of 0 or more is accepted."
                raise ValueError(msg)
            numbers[name] = int(value)
        elif name == "includefield":
            include |= {"all" if text == "all" else _tag(text) for text in value.split(",") if text}
        elif name != "fuzzymatching":  # never done: a name matches or does not
            tag = _tag(name)
            if tag not in _SEARCHABLE:
                msg = f"Search by {name[:60]!r} is not supported; {', '.join((*STUDY_KEYWORDS, *SERIES_KEYWORDS))} are."
                raise ValueError(msg)
            if value:
                filters[tag] = value
    limit = None if numbers["limit"] < 0 else numbers["limit"]
    return Query(filters, frozenset(include), numbers["offset"], limit)


def search(
    instances: Mapping[str, DicomInstance],
    query: Query,
    level: Level,
    *,
    base_url: str,
    header: Callable[[DicomInstance], JsonAttributes],
) -> list[JsonAttributes]:
    """Return the matching studies, series or instances in the order of their files.

    ``header`` returns the whole metadata of an instance: it is asked only for attributes that are not indexed, and
    only of what is returned.
    """
    groups: dict[tuple[str, ...], list[DicomInstance]] = {}
    studies: dict[str, list[DicomInstance]] = {}
    for instance in instances.values():
        studies.setdefault(instance.study_uid, []).append(instance)
        groups.setdefault(_key(instance, level), []).append(instance)
    modalities = {uid: sorted({i.text("Modality") for i in members} - {""}) for uid, members in studies.items()}
    matching = [
        members
        for members in groups.values()
        if any(_matches(member, query.filters, modalities[member.study_uid]) for member in members)
    ]
    page = matching[query.offset : None if query.limit is None else query.offset + query.limit]
    return [
        _with_included(_describe(members, studies, modalities, level, base_url), members[0], query.include, header)
        for members in page
    ]


def _key(instance: DicomInstance, level: Level) -> tuple[str, ...]:
    uids = (instance.study_uid, instance.series_uid, instance.sop_uid)
    return uids[: {"study": 1, "series": 2, "instance": 3}[level]]


def _describe(
    members: Sequence[DicomInstance],
    studies: Mapping[str, Sequence[DicomInstance]],
    modalities: Mapping[str, list[str]],
    level: Level,
    base_url: str,
) -> JsonAttributes:
    first = members[0]
    study = studies[first.study_uid]
    url = f"{base_url}/studies/{first.study_uid}"
    tags = list(_STUDY_TAGS)
    answer: JsonAttributes = {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        MODALITIES_IN_STUDY: {"vr": "CS", "Value": modalities[first.study_uid]},
        "00201206": {"vr": "IS", "Value": [len({i.series_uid for i in study})]},
        "00201208": {"vr": "IS", "Value": [len(study)]},
    }
    if level != "study":
        url += f"/series/{first.series_uid}"
        tags += _SERIES_TAGS
        in_series = len(members) if level == "series" else sum(i.series_uid == first.series_uid for i in study)
        answer["00201209"] = {"vr": "IS", "Value": [in_series]}
    if level == "instance":
        url += f"/instances/{first.sop_uid}"
        tags += [tag for tag in _INSTANCE_TAGS if tag in first.attributes]
        answer["00083002"] = {"vr": "UI", "Value": [first.transfer_syntax_uid]}
    answer |= {tag: first.attributes.get(tag) or _EMPTY[tag] for tag in tags}
    answer["00081190"] = {"vr": "UR", "Value": [url]}
    return answer


def _with_included(
    answer: JsonAttributes,
    first: DicomInstance,
    include: frozenset[str],
    header: Callable[[DicomInstance], JsonAttributes],
) -> JsonAttributes:
    missing = [tag for tag in include if tag not in answer and tag != "all"]
    if "all" in include:
        answer |= {tag: value for tag, value in first.attributes.items() if tag not in answer}
    elif missing:
        known = {**first.attributes} if all(tag in first.attributes for tag in missing) else header(first)
        answer |= {tag: known[tag] for tag in missing if tag in known}
    return dict(sorted(answer.items()))


def _tag(name: str) -> str:
    """Return the tag of an attribute named by keyword or by eight hexadecimal digits."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        msg = f"Search parameter {name[:60]!r} is unknown; a keyword or tag of the DICOM dictionary is accepted."
        raise ValueError(msg)
    return f"{Tag(tag):08X}".upper()


def _matches(instance: DicomInstance, filters: Mapping[str, str], modalities: Sequence[str]) -> bool:
    for tag, wanted in filters.items():
        if tag == MODALITIES_IN_STUDY:
            values, vr = list(modalities), "CS"
        else:
            element = instance.attributes.get(tag) or {}
            vr = str(element.get("vr") or dictionary_VR(int(tag, 16)))
            values = [_as_text(value) for value in element.get("Value") or ()]
        if not _value_matches(values, wanted, vr):
            return False
    return True


def _as_text(value: object) -> str:
    return str(value.get("Alphabetic", "")) if isinstance(value, Mapping) else str(value)


def _value_matches(values: Sequence[str], wanted: str, vr: str) -> bool:
    """Whether one of the values of an attribute matches, PS3.4 C.2.2.2.1 to C.2.2.2.5."""
    if vr == "UI":
        return bool(set(values) & set(re.split(r"[,\\]", wanted)))
    if vr in _DATES and "-" in wanted:
        low, _, high = (part.strip() for part in wanted.partition("-"))
        return any((not low or value >= low) and (not high or value[: len(high)] <= high) for value in values)
    if vr in _NUMBERS:
        return any(_number(value) == _number(one) for value in values for one in wanted.split("\\"))
    flags = re.IGNORECASE if vr == "PN" else 0
    alternatives = [_pattern(one) for one in (wanted.split("\\") if vr == "CS" else [wanted])]
    if not values:
        return set(wanted) == {"*"}
    return any(re.fullmatch(one, value, flags) for value in values for one in alternatives)


def _pattern(wanted: str) -> str:
    """Return the regular expression of a text with * and ?; each * settles for the first place that fits.

    >>> _pattern("a*b?*c")
    'a(?>.*?b.).*c'
    """
    first, *rest = [re.escape(part).replace(r"\?", ".") for part in wanted.split("*")]
    if not rest:
        return first
    return first + "".join(f"(?>.*?{part})" for part in rest[:-1]) + f".*{rest[-1]}"


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
