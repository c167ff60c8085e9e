"""The artifacts of a store as their records tell of them, and what no plan refers to.

A store behind a URL holds nothing else. A directory that a cluster filled holds them besides its
exports (`lora_export.fleet.stored_things`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_export.fleet.results import Provenance
from lora_export.fleet.stored_things import StoredThing

if TYPE_CHECKING:
    from lora_export.core.progress import Progress
    from lora_export.fleet.fleet_plan import Plan
    from lora_export.fleet.store.artifacts import Artifact, ArtifactStore

__all__ = ["LeftArtifacts", "delete_artifacts", "left_artifacts", "list_artifacts"]

_INPUT = "input"


@dataclass(frozen=True)
class LeftArtifacts:
    """The artifacts in a store that a plan does not refer to.

    Attributes:
        names: The row or the input that each is of, by its key.
        blobs: How many contents no other artifact needs, those of broken-off uploads included.
        bytes: What these take.
    """

    names: dict[str, str] = field(default_factory=dict)
    blobs: int = 0
    bytes: int = 0

    def __len__(self) -> int:
        """Return how many artifacts and contents there are."""
        return len(self.names) + self.blobs


def list_artifacts(store: ArtifactStore) -> list[StoredThing]:
    """Return what rows have made; of the artifacts of one row the newest.

    Raises:
        StorageError: The storage refuses.
    """
    made = [each for each in store.read_all(store.keys()).values() if each.kind != _INPUT]
    damaged = {artifact.key for artifact, _ in store.damaged(made)}
    newest: dict[str, tuple[str, StoredThing]] = {}
    for each in made:
        origin = _origin(each)
        date = origin.date if origin is not None else ""
        if each.name not in newest or newest[each.name][0] <= date:
            newest[each.name] = (date, _thing(each, origin, whole=each.key not in damaged))
    found = [thing for _, thing in newest.values()]
    return sorted(found, key=lambda each: (each.artifact, each.kind, each.adapter or "", each.id))


def _origin(artifact: Artifact) -> Provenance | None:
    try:
        return Provenance.model_validate(artifact.about.get("provenance"))
    except ValidationError:
        return None


def _thing(artifact: Artifact, origin: Provenance | None, *, whole: bool) -> StoredThing:
    verdict = artifact.about.get("verdict")
    return StoredThing(
        kind=artifact.kind,
        id=artifact.name,
        artifact=origin.artifact if origin is not None else artifact.name,
        adapter=origin.adapter if origin is not None else None,
        status="done" if whole else "missing",
        verdict=verdict if isinstance(verdict, str) else None,
        bytes=artifact.bytes,
        made=origin.made_of() if origin is not None else None,
    )


def left_artifacts(store: ArtifactStore, plan: Plan) -> LeftArtifacts:
    """Return what a plan does not refer to: results of other keys, inputs of other contents.

    While a run is storing something, its contents may be counted too: their record is to come.

    Args:
        store: The store.
        plan: The whole plan.

    Raises:
        StorageError: The storage refuses.
    """
    wanted = {row.key for row in plan.rows}
    wanted |= {content for row in plan.rows for content in row.inputs.values()}
    gone = sorted(set(store.keys()) - wanted)
    blobs = store.unreferenced(without=gone)
    known = store.read_all(gone)
    names = {key: known[key].name if key in known else key for key in gone}
    return LeftArtifacts(names, len(blobs), sum(blobs.values()))


def delete_artifacts(store: ArtifactStore, left: LeftArtifacts, progress: Progress) -> None:
    """Delete what `left_artifacts` has found, records first; no run may be under way.

    Raises:
        StorageError: The storage refuses.
    """
    for key, name in left.names.items():
        progress.note(f"deleting {name}")
        store.delete(key)
    store.sweep()
