"""The parts of the report's page, as HTML."""

from datetime import UTC, datetime
from html import escape
from statistics import median

from bench import figures
from bench.charts import Chart
from bench.figures import Metrics, arms_of
from bench.story import UPDATED, Answer, Story, Visit

_DAY_MS = 86_400_000


def headline(metrics: Metrics) -> str:
    """What the run comes to, in a line."""
    auc = {arm: metrics["arms"][arm]["auc"] for arm in arms_of(metrics)}
    if auc.get("continuous") is None:
        return f"{metrics['examples']:,} examples learned; none evaluated yet"
    if auc.get("frozen") is None:
        return f"AUC {auc['continuous']:.3f}, every impression scored before it was learned"
    return f"The model that keeps learning: AUC {auc['continuous']:.3f}. The same model, frozen: {auc['frozen']:.3f}."


def lead(metrics: Metrics, story: Story | None) -> str:
    """What was run."""
    evaluated = int(metrics["arms"]["continuous"]["count"])
    name = f"{escape(story.wording.title[0].upper() + story.wording.title[1:])}, learned from as it streamed: " if story else ""
    models = "Every model scored each one" if len(arms_of(metrics)) > 1 else "Each one was scored"
    if not evaluated:
        part = "Nothing of it is evaluated yet."
    elif metrics["evaluated_from_ms"] > metrics["first_event_ms"]:
        part = f"The first part is a warm start; the {evaluated:,} since are evaluated."
    else:
        part = f"{evaluated:,} are evaluated, from the first on."
    return (
        f"{name}{metrics['impressions']:,} impressions{_span(metrics)} of event time, in their order. {models} as of its "
        f"request; then it was learned, once. {part}"
    )


def _span(metrics: Metrics) -> str:
    """From the first event to the newest that was learned from."""
    days = (metrics["newest_learned_ms"] - metrics["first_event_ms"]) / _DAY_MS
    if metrics["newest_learned_ms"] < 0:
        return ""
    return f" over {days:.0f} days" if days >= 2 else f" over {24 * days:.0f} hours"


def cards(metrics: Metrics, story: Story | None) -> str:
    """Headline figures."""
    found = []
    auc = {arm: metrics["arms"][arm]["auc"] for arm in arms_of(metrics)}
    if auc.get("continuous") is not None:
        above = f"{auc['continuous'] - auc['frozen']:+.3f} above frozen" if auc.get("frozen") is not None else "progressive"
        found.append(("AUC, continuous", f"{auc['continuous']:.4f}", above))
    if story and story.oracle_auc is not None:
        found.append(("AUC, oracle", f"{story.oracle_auc:.4f}", "knows the true odds: nobody can do better"))
    if story:
        visit = story.visit
        found.append(("Like to top 10", f"{visit.seconds:.1f} s", "last like to a new ranking over gRPC"))
        change = f"{visit.before.with_tag(visit.tag)} → {visit.after.with_tag(visit.tag)}"
        found.append(("Guest’s top 10", change, f"{story.wording.video}s with {story.tag}"))  # noqa: RUF001
    if seen := figures.paces(metrics):
        live = story.visit.live_from_ms if story else None
        pace = median([rate for event_ms, _, rate in seen if live is None or event_ms < live] or [rate for *_, rate in seen])
        found.append(("Learned", f"{pace:,.0f}/s", f"median; {metrics['examples']:,} examples in all"))
    found.append(("Table", f"{metrics['table_rows']:,}", f"rows, one an id; {metrics['table_bytes'] / 1e6:.1f} MB"))
    return "\n".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>'
        for name, value, note in found
    )


def freshness(metrics: Metrics, story: Story | None) -> str:
    """AUC by arm, over time and in all."""
    arms = arms_of(metrics)
    windows = metrics["windows"]
    text = (
        "AUC is the chance that a positive ranks above a negative. "
        + (
            "Continuous is the model itself; the other arms are copies of it that lag, fed by its own parameter deltas. All "
            "score the same impressions, so what parts them is the age of their parameters, nothing else. "
            if len(arms) > 1
            else "The run had no arms to compare with. "
        )
        + (
            f"Thin lines are windows of {windows[0]['examples']:,} impressions, thick ones means of three. "
            if len(windows) > 1
            else ""
        )
        + ("Dotted lines are the daily copy’s updates." if figures.daily_syncs(metrics) else "")  # noqa: RUF001
    )
    chart = figures.auc_over_time(metrics, _live(story))
    return f"""<section>
<h2>What freshness is worth</h2>
<p>{text}</p>
{_figure(chart, "AUC by event time", "No window of the evaluated stream has closed yet.")}
{_arms_table(metrics, story)}
</section>"""


def visit(story: Story) -> str:
    """The guest's two lists, and how he came from one to the other."""
    told, wording = story.visit, story.wording
    tag, many = escape(story.tag), f"{wording.video}s"
    top = len(told.before.videos)
    when = datetime.fromtimestamp(told.live_from_ms / 1000, UTC).strftime("%-d %B %Y, %H:%M UTC")
    others = (
        f" For {told.others} regular users, asked at the same two moments, it is {told.others_before:.1f} and "
        f"{told.others_after:.1f} on average."
        if told.others
        else ""
    )
    return f"""<section>
<h2>A guest, and {told.likes} likes</h2>
<p>At {when} of the stream’s time someone comes whom nobody has met. The model server ranks {told.before.candidates:,}
{many} for the guest over gRPC, in {told.before.latency_ms:.0f} ms, by the probability of a
{escape(story.head.replace("_", " "))}. The commonest {wording.tag} that this top {top} does without, or nearly, is <b>{tag}</b>
({told.tagged:,} {many} have it): the guest likes {told.likes} of those, {_at_once(told)} on each page of {top}, drawn by lot,
and skips the rest of the page, which the model would have put first, while everyone else goes on. The model has learned
from the last like
{told.learned_s:.1f} s after it; after <b>{told.seconds:.1f} s</b> a version that holds it has been written, loaded and asked.
Liked {many} are not offered again.</p>
<div class="pair">
{_list(told.before, f"Before, version {told.before.version}", told.tag, story)}
{_list(told.after, f"{told.seconds:.1f} s after the last like, version {told.after.version}", told.tag, story)}
</div>
<p>{wording.video.capitalize()}s with {tag} in the guest’s top {top}: {told.before.with_tag(told.tag)} before,
{told.after.with_tag(told.tag)} after.{others}</p>
{_figure(figures.guests_top(told), f"{wording.video.capitalize()}s with {tag} in the guest’s top {top}", "")}
<p class="note">Each ♥ is a like; the shaded part is the wait after the last one. A version is a whole SavedModel: its interval
and loading are most of the wait.</p>
</section>"""  # noqa: RUF001


def calibration(metrics: Metrics, story: Story | None) -> str:
    """Whether probabilities are what they say."""
    nothing = "Nothing has been evaluated yet."
    rows = "".join(
        f"<tr><td>{escape(head.replace('_', ' '))}</td><td class='n'>{_percent(found['positives'], found['count'])}</td>"
        f"<td class='n'>{_number(found['auc'])}</td><td class='n'>{_number(found['logloss'])}</td>"
        f"<td class='n'>{_number(found['calibration'], 3)}</td></tr>"
        for head, found in metrics["heads"].items()
    )
    return f"""<section>
<h2>Probabilities that mean what they say</h2>
<p>Left: predictions in tenths, each against the share that happened; on the dashed line they agree. Right: calibration, the
mean prediction over the mean outcome, window by window: a model that does not learn drifts away from 1 as the world
changes.</p>
<div class="pair">
{_figure(figures.reliability(metrics), "Predicted and happened", nothing)}
{_figure(figures.calibration_over_time(metrics, _live(story)), "Over event time", nothing)}
</div>
<div class="scroll"><table><tr><th>head</th><th class="n">positive</th><th class="n">AUC</th><th class="n">log loss</th>
<th class="n">calibration</th></tr>{rows}</table></div>
<p class="note">The heads of the continuous model, which share their embeddings. All figures but these are of the first.</p>
</section>"""


def machine(metrics: Metrics, story: Story | None) -> str:
    """Growth of the table, and throughput."""
    arms = len(arms_of(metrics)) - 1
    copies = f", {arms} lagged copies scored beside the model" if arms else ""
    live = " From the line on, the stream is as slow as people are." if story else ""
    nothing = "Too short a run for a curve."
    return f"""<section>
<h2>Rows and seconds</h2>
<p>Once it has been seen often enough, an id has a row of its own in a cuckoo-hashed table, which it shares with no other;
until then it reads a default row. A row leaves when its id has not been seen for long; so the table follows what is
alive.{live} Throughput is examples learned in the training process on Beam’s local runner: reading, joining, scoring, learning,
snapshots and model versions included{copies}.</p>
<div class="pair">
{_figure(figures.table_growth(metrics, _live(story)), "Rows of the table, by event time", nothing)}
{_figure(figures.throughput(metrics, _live(story)), "Examples learned a second", nothing)}
</div>
</section>"""  # noqa: RUF001


def footer(metrics: Metrics) -> str:
    """What was counted, and how far it goes."""
    paired = "The arms are paired, so their differences are firmer than their levels. " if len(arms_of(metrics)) > 1 else ""
    return (
        f"<p>{metrics['examples']:,} examples learned in {metrics['model_version']:,} steps, {metrics['actions']:,} actions "
        f"joined; {metrics['duplicates']:,} duplicates, {metrics['late']:,} late and {metrics['unmatched']:,} unmatched "
        f"actions, {metrics['dead_letters']:,} dead letters, {metrics['bad_steps']:,} steps that were not well.</p>"
        f"<p>One run, one seed. {paired}"
        f"Written {datetime.now(UTC).strftime('%d %B %Y, %H:%M UTC')} by <code>python -m bench.report</code>.</p>"
    )


def _live(story: Story | None) -> int | None:
    return story.visit.live_from_ms if story else None


def _figure(chart: Chart | None, title: str, otherwise: str) -> str:
    if chart is None:
        return f'<figure><h3>{title}</h3><p class="note">{otherwise}</p></figure>'
    return f"<figure><h3>{title}</h3>{chart.html()}</figure>"


def _arms_table(metrics: Metrics, story: Story | None) -> str:
    arms = metrics["arms"]
    compared = "frozen" in arms
    names = ["AUC", *(["above frozen"] if compared else []), "log loss", "calibration"]
    rows = []
    for arm in arms_of(metrics):
        found = arms[arm]
        gain = [_gain(found["auc"], arms["frozen"]["auc"]) if arm != "frozen" else ""] if compared else []
        cells = [_number(found["auc"]), *gain, _number(found["logloss"]), _number(found["calibration"], 3)]
        name = f'<span class="swatch" style="background:var(--{arm})"></span>{arm}'
        rows.append(_row(name, UPDATED[arm], cells, "lead-row" if arm == "continuous" else ""))
    if story and story.oracle_auc is not None:
        cells = [_number(story.oracle_auc)] + [""] * (len(names) - 1)
        rows.append(_row("oracle", "knows the true odds", cells, "dim"))
    head = "".join(f'<th class="n">{name}</th>' for name in names)
    return (
        f'<div class="scroll"><table><tr><th>model</th><th class="updated">updated</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _row(name: str, updated: str, cells: list[str], kind: str) -> str:
    numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f'<tr class="{kind}"><td>{name}</td><td class="updated">{updated}</td>{numbers}</tr>'


def _gain(value: float | None, other: float | None) -> str:
    return "" if value is None or other is None else f"{value - other:+.4f}"


def _list(answer: Answer, title: str, tag: str, story: Story) -> str:
    rows = "".join(
        f"<tr><td class='n'>{place}</td><td>{escape(video.name)} {_tags(video.tags, tag)}</td>"
        f"<td class='n'>{video.score:.3f}</td></tr>"
        for place, video in enumerate(answer.videos, start=1)
    )
    return (
        f'<figure><h3>{title}</h3><table class="top"><tr><th></th><th>{escape(story.wording.video)}</th>'
        f'<th class="n">P({escape(story.head)})</th></tr>{rows}</table></figure>'
    )


def _tags(tags: tuple[str, ...], liked: str) -> str:
    return "".join(f'<span class="tag{" liked" if tag == liked else ""}">{escape(tag)}</span>' for tag in tags)


def _at_once(visit: Visit) -> str:
    most = max(after.likes - before.likes for before, after in zip(visit.moments, visit.moments[1:], strict=False))
    return {1: "one", 2: "two", 3: "three"}.get(most, str(most))


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
