"""Reads the command line of a Beam job strictly: Beam itself lets pass whatever it does not know.

What the job's own parser leaves over must be an option of Beam. Job servers have more of them than Beam's Python side
knows, so behind a runner that has one, an unknown ``--option`` is let through, unless it begins, or all but spells, one of
the job's own: there it is a mistake, and one that would otherwise go unseen.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from schemas.process import CommandParser, unknown_option

from .flink import RUNNERS, flink_words

#: How alike an unknown option and one of the job's are, to be taken for a slip: --state_backend, which is Flink's, and
#: --state_dir come to 0.69, --logz and --logs to 0.83.
_A_SLIP = 0.8


def pipeline_options(parser: CommandParser, argv: Sequence[str] | None) -> PipelineOptions:
    """Beam's options of a command line that has nothing in it but options of ``parser``, of Beam, or of a job server.

    Args:
        parser: of the job's own options.
        argv: words; None takes the process's.

    Raises:
        UserError: naming the first word that is none of these, or a value that cannot be used.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    job, rest = parser.parse_known_args(words)
    beam = CommandParser(prog=parser.prog, add_help=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        # A class without options of its own has no such method.
        if hasattr(options, "_add_argparse_args"):
            options._add_argparse_args(beam)
    known, rest = beam.parse_known_args(rest)
    own = parser.option_strings
    on_flink = any(name in (known.runner or "") for name in RUNNERS)
    if on_flink:
        rest = list(_not_a_job_servers(rest, own))
    if rest:
        parser.error(unknown_option(rest[0], own))
    return PipelineOptions([*flink_words(words, job.state_dir or ""), *words] if on_flink else words)


def has_savepoint(options: PipelineOptions) -> bool:
    """Whether a job goes on from a savepoint of Flink's: an option that only its job server knows."""
    return bool(options.get_all_options(retain_unknown_options=True).get("savepoint_path"))


def _not_a_job_servers(words: Sequence[str], own: Sequence[str]) -> Iterator[str]:
    """The words that cannot be a job server's option, ``--name``, ``--name=value`` or ``--name value``."""
    takes_value = False
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name = word.split("=", 1)[0]
            takes_value = name == word
            if any(option.startswith(name) for option in own) or difflib.get_close_matches(name, own, 1, _A_SLIP):
                yield word
        elif takes_value and not word.startswith("-"):
            takes_value = False
        else:
            yield word
