"""The training job's command line: what is wrong with it is one line, and what is a runner's passes."""

import math
import re

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions
from small_logs import CONFIG, features, write

from pipelines import train
from pipelines.command_line import has_savepoint, pipeline_options
from pipelines.options import BOUNDS, TrainConfig, TrainOptions
from schemas.kafka_logs import KafkaTopics
from schemas.process import CommandParser, UserError


def parsed(*words):
    parser = CommandParser(prog="python -m pipelines.train")
    TrainOptions._add_argparse_args(parser)
    return pipeline_options(parser, words)


@pytest.fixture
def needed(tmp_path):
    """Words that every run needs, over logs that are there."""
    logs = tmp_path / "logs"
    for topic in ("features", "actions"):
        write(logs, topic, [features("r", 0)] if topic == "features" else [])
        (logs / topic / "p000").mkdir(exist_ok=True)
    CONFIG.dump(logs / "feature_config.toml")
    return ("--logs", str(logs), "--state_dir", str(tmp_path / "state"))


def config_of(*words):
    return TrainConfig.from_options(parsed(*words))


FLINK = ("--runner=FlinkRunner", "--flink_master=host:8081")


def test_a_savepoint_of_the_job_server_is_known_of():
    assert has_savepoint(parsed(*FLINK, "--savepoint_path=file:/s"))
    assert has_savepoint(parsed(*FLINK, "--savepoint_path", "file:/s"))
    assert not has_savepoint(parsed(*FLINK))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--snapshot", "1"], r"--snapshot: no such option \(did you mean --snapshot_interval\?\)"),
        (["--model", "M"], r"--model: no such option \(did you mean --model_dir\?\)"),
        (["--ste=7"], r"--ste: no such option \(did you mean --step\?\)"),
        (["--metrics_jsno", "f"], r"--metrics_jsno: no such option \(did you mean --metrics_json\?\)"),
        (["--zzz"], "--zzz: no such option"),
        (["-q"], "-q: no such option"),
        (["junk"], "'junk' belongs to no option"),
        (["--step", "x"], "argument --step: invalid int value: 'x'"),
        (["--emit", "late"], "argument --emit: invalid choice: 'late' .*"),
        (["--parallelism", "x"], "argument --parallelism: invalid int value: 'x'"),
        ([*FLINK, "--snapshot=1"], r"--snapshot: no such option \(did you mean --snapshot_interval\?\)"),
        ([*FLINK, "--logz", "1"], r"--logz: no such option \(did you mean --logs\?\)"),
        ([*FLINK, "--checkpointing_interval", "2000", "junk"], "'junk' belongs to no option"),
        ([*FLINK, "--faster_copy=true", "junk"], "'junk' belongs to no option"),
        ([*FLINK, "-q"], "-q: no such option"),
    ],
)
def test_a_word_that_is_no_option_is_named(words, message):
    with pytest.raises(UserError, match=f"^{message}; see python -m pipelines.train --help$"):
        parsed("--logs", "x", *words, "--state_dir", "y")


@pytest.mark.parametrize(
    "words",
    [
        FLINK,
        [*FLINK, "--parallelism=2", "--state_backend=filesystem", "--state_backend_storage_path", "/there", "--object_reuse"],
        ["--parallelism=2"],
        ["--direct_running_mode", "multi_processing", "--direct_num_workers=2"],
    ],
)
def test_options_of_runners_pass(words):
    options = parsed("--logs", "x", *words, "--state_dir", "y")
    assert options.view_as(TrainOptions).state_dir == "y"
    assert options.view_as(FlinkRunnerOptions).flink_master == ("host:8081" if FLINK[0] in words else "[auto]")


def test_the_bounds_are_of_all_numbers():
    parser = CommandParser()
    TrainOptions._add_argparse_args(parser)
    assert {action.dest for action in parser._actions if action.type in (int, float)} == set(BOUNDS)
    for action in parser._actions:
        if action.dest in BOUNDS:
            least, most = BOUNDS[action.dest]
            # One that may be left out has none.
            assert action.default is None or least <= action.default <= most


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_out_of_bounds_is_told_with_them(name, needed):
    least, most = BOUNDS[name]
    default = getattr(parsed(*needed).view_as(TrainOptions), name)
    kind = int if default is None else type(default)
    wrong = [kind(least - 1), kind(most + 1)] + ([math.nan, math.inf, -math.inf] if kind is float else [])
    for value in wrong:
        said = re.escape(f"--{name} {value}: must be from {least:,.15g} to {most:,.15g}")
        with pytest.raises(UserError, match=f"^{said}$"):
            config_of(*needed, f"--{name}={value}")
    assert config_of(*needed, f"--{name}={least}")


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("hourly,weekly", "^--arms weekly: no such arm; choose from frozen, daily, hourly$"),
        ("hourly, daily,hourly", "^--arms hourly,daily,hourly: hourly is named twice; name each once$"),
    ],
)
def test_arms_are_known_and_different(arms, message, needed):
    with pytest.raises(UserError, match=message):
        config_of(*needed, "--arms", arms)
    assert [arm.name for arm in config_of(*needed, "--arms", "hourly, daily").learn.arms] == ["hourly", "daily"]


def test_logs_that_are_not_there_yet_are_followed_and_otherwise_refused(tmp_path):
    logs = tmp_path / "logs"
    words = ("--logs", str(logs), "--state_dir", str(tmp_path / "state"))
    with pytest.raises(
        UserError, match=f"^--logs {logs}: no such folder; make it, or write logs with python -m pipelines.replay"
    ):
        config_of(*words, "--follow")
    logs.mkdir()
    CONFIG.dump(logs / "feature_config.toml")
    with pytest.raises(UserError, match="no folder features/ in it; write logs with"):
        config_of(*words)
    assert config_of(*words, "--follow").follow
    for topic in ("features", "actions"):
        (logs / topic).mkdir()
    with pytest.raises(UserError, match="no partitions in features/; write logs .*, or wait for them with --follow$"):
        config_of(*words)
    assert config_of(*words, "--follow").features == CONFIG


def kafka_words(needed, *words):
    """Those of a run from topics."""
    config = needed[1] + "/feature_config.toml"
    return ("--kafka", "broker:9092", "--kafka_prefix", "p-", "--config", config, *needed[2:], *words)


def test_topics_are_of_the_brokers_that_have_the_logs(needed, tmp_path):
    (tmp_path / "settings").write_text("client.id=here")
    words = ("--kafka_config", str(tmp_path / "settings"), "--dead_letters_topic", "letters", "--parameter_topic", "deltas")
    topics = config_of(*kafka_words(needed, *words)).topics
    for output, name, schema in ((topics.dead_letters, "letters", "dead_letters"), (topics.parameters, "deltas", "parameters")):
        assert (output.name, output.schema) == (name, schema)
        assert output.place == KafkaTopics("broker:9092", "p-", (("client.id", "here"),))
    assert config_of(*kafka_words(needed)).topics == (None, None, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--dead_letters_topic", "t", "--dead_letters_dir", "d"],
            "--dead_letters_topic and --dead_letters_dir are two places",
        ),
        (["--parameter_topic", "t", "--parameter_log", "d"], "--parameter_topic and --parameter_log are two places"),
        (
            ["--parameter_topic", "p-actions"],
            "--parameter_topic p-actions: that topic is the log of actions; give one of its own",
        ),
        (
            ["--dead_letters_topic", "t", "--parameter_topic", "t"],
            "--parameter_topic t: that topic is the one of --dead_letters_topic",
        ),
    ],
)
def test_topics_that_do_not_go_together_are_refused(words, message, needed):
    with pytest.raises(UserError, match=f"^{message}"):
        config_of(*kafka_words(needed, *words))


@pytest.mark.parametrize("option", ["--dead_letters_topic", "--parameter_topic"])
def test_topics_are_refused_beside_logs_in_files(option, needed):
    with pytest.raises(UserError, match=f"^{option} t: topics are of --kafka: leave it out, or read the logs from there$"):
        config_of(*needed, option, "t")


@pytest.mark.parametrize("option", ["--logs", "--state_dir"])
def test_what_is_missing_is_named_with_where_to_read_of_it(option, needed):
    at = needed.index(option)
    words = needed[:at] + needed[at + 2 :]
    with pytest.raises(UserError, match=f"^{option} is missing; see python -m pipelines.train --help$"):
        TrainConfig.from_options(PipelineOptions(list(words)))


def test_the_help_tells_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "--logs LOGS required:",
        "--state_dir STATE required:",
        "nothing to serve",
        "(default: LOGS/feature_config.toml)",
    ):
        assert said in text
