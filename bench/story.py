"""What happened in a demo, as data: written beside its metrics, read by the report."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from schemas.process import UserError

#: Videos that the guest likes.
LIKES = 20
#: Arms by freshness, and when the parameters that they predict with are brought up to date.
UPDATED = {"continuous": "at every step", "hourly": "every hour", "daily": "every day", "frozen": "never"}


@dataclass(frozen=True)
class Wording:
    """How a data set names things.

    Attributes:
        title: what it is, for a headline.
        tags: raw item column with a video's tags, a list.
        names: raw item column with what people call a video; its id column where it has no name.
        tag, video: nouns.
        like: the actions that together are a like.
    """

    title: str
    tags: str
    names: str
    tag: str
    video: str
    like: tuple[str, ...]


@dataclass(frozen=True)
class Video:
    """A ranked video: its id and name, its tags, and its probability of the model's first head."""

    item_id: str
    name: str
    tags: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Answer:
    """What the model server would show, best first.

    Attributes:
        at: wall clock, seconds since 1970.
        version: the model version that answered.
        steps: that had been learned when it was written.
        candidates: videos it ranked.
        latency_ms: of the call.
        videos: the best.
    """

    at: float
    version: int
    steps: int
    candidates: int
    latency_ms: float
    videos: tuple[Video, ...]

    def with_tag(self, tag: str) -> int:
        """How many of the videos have a tag."""
        return sum(tag in video.tags for video in self.videos)

    @property
    def ids(self) -> tuple[str, ...]:
        """The videos, best first."""
        return tuple(video.item_id for video in self.videos)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, after JSON."""
        videos = tuple(Video(**video | {"tags": tuple(video["tags"])}) for video in fields["videos"])
        return cls(**fields | {"videos": videos})


@dataclass(frozen=True)
class Moment:
    """One of the guest's questions: seconds since the first, the version that answered, likes given so far, and how many
    videos of the top 10 have the tag."""

    at_s: float
    version: int
    likes: int
    with_tag: int


@dataclass(frozen=True)
class Visit:
    """What became of a guest's visit.

    Attributes:
        tag: that the guest liked videos of.
        tagged: videos alive that had it.
        likes: given.
        before, after: the guest's top 10.
        others, others_before, others_after: how many regular users were ranked for at the same moments, and how many videos
            of their top 10 had the tag, on average.
        learned_s: from the last like until the model had learned from it.
        seconds: from the last like to the first answer of a version that holds it, and whose top 10 is another.
        last_like_s: when it was given, in seconds since the first question.
        moments: all questions.
        live_from_ms: event time at which the guest came.
    """

    tag: str
    tagged: int
    likes: int
    before: Answer
    after: Answer
    others: int
    others_before: float
    others_after: float
    learned_s: float
    seconds: float
    last_like_s: float
    moments: tuple[Moment, ...]
    live_from_ms: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, after JSON."""
        parts = {
            "before": Answer.of(fields["before"]),
            "after": Answer.of(fields["after"]),
            "moments": tuple(Moment(**moment) for moment in fields["moments"]),
        }
        return cls(**fields | parts)


@dataclass(frozen=True)
class Story:
    """A whole demo beside its metrics.

    Attributes:
        wording: of its data set.
        head: the model's first head, which ranks.
        oracle_auc: of that head by the true probabilities, where the world is a simulated one.
        visit: the guest's.
    """

    wording: Wording
    head: str
    oracle_auc: float | None
    visit: Visit

    @property
    def tag(self) -> str:
        """The guest's tag as it is spoken of: a hashtag by itself, others with the noun."""
        return self.visit.tag if self.visit.tag.startswith("#") else f"{self.wording.tag} {self.visit.tag}"

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote.

        Raises:
            UserError: the file is missing, or is not one of these.
        """
        try:
            fields = json.loads(path.read_text())
            wording = Wording(**fields["wording"] | {"like": tuple(fields["wording"]["like"])})
            return cls(**fields | {"wording": wording, "visit": Visit.of(fields["visit"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a demo's story ({error}): give the guest.json that bench.demo wrote") from error
