"""A guest's visit as a demo might tell it."""

from bench.story import Answer, Moment, Story, Video, Visit, Wording

WORDING = Wording("a world", "hashtags", "video_id", "hashtag", "video", ("click", "like"))


def answer(version, *tags, at=0.0):
    """An answer whose n-th video has the n-th tags."""
    videos = tuple(Video(str(n), f"video {n}", row, 0.9 - n / 100) for n, row in enumerate(tags))
    return Answer(at, version, 100 * version, 2_000, 5.0, videos)


def story(tag="#nails", live_from_ms=1_704_300_000_000, others=9):
    """Two likes of a tag, which then leads."""
    before, after = answer(3, ("#chess",), ("#surf", "#yoga"), at=10.0), answer(5, (tag,), (tag, "#yoga"), at=14.5)
    moments = (Moment(0.0, 3, 0, 0), Moment(1.0, 3, 1, 0), Moment(2.0, 4, 2, 1), Moment(4.5, 5, 2, 2))
    visit = Visit(tag, 104, 2, before, after, others, 0.2, 0.3, 0.7, 2.5, 2.0, moments, live_from_ms)
    return Story(WORDING, "click", 0.83, visit)
