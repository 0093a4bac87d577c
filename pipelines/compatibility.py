"""Whether logs, state and feature configuration go together, found out before anything is read or learned.

A state directory carries the configuration it was made with, STATE/feature_config.toml; logs carry theirs. Slots may have
been appended since; any other difference would make every record a dead letter, or a state that cannot be loaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from schemas.config import ConfigError, FeatureConfig, check_compatible, load_config
from schemas.files import replace_file
from schemas.logs import FileLogs

from .options import CONFIG_NAME, TrainConfig
from .state_files import StateError, StateFiles


def check_configuration(config: TrainConfig, from_savepoint: bool = False) -> None:
    """Check a job's configuration against those of its logs and of its state, where these have one.

    Args:
        config: the job.
        from_savepoint: whether it goes on from a runner's savepoint, which has batches in it and a source that makes them.

    Raises:
        ConfigError: naming the file and every difference.
    """
    state = Path(config.state_dir) / CONFIG_NAME
    if isinstance(config.logs, FileLogs) and (logs := Path(config.logs.root) / CONFIG_NAME).exists():
        made = load_config(logs)
        # Records know nothing of a model but its dimension, which is part of their fingerprint.
        model = dataclasses.replace(config.features.model, dim=made.model.dim)
        _compare(logs, dataclasses.replace(made, model=model), config.features)
    # Without a manifest nothing was made with it: a first run that was stopped at once binds nobody.
    if state.exists() and _newest_fingerprint(config.state_dir) is not None:
        made = load_config(state)
        _compare(state, made, config.features)
        if from_savepoint and made.fingerprint != config.features.fingerprint:
            raise ConfigError(
                f"{state}: slots have been appended since, and a savepoint goes on with batches that do not have them: leave "
                "out --savepoint_path, and the job goes on from --state_dir; nothing is lost"
            )


def record_configuration(config: TrainConfig) -> None:
    """Keep the configuration with the state, unless the newest manifest is still of the one before slots were appended.

    Until a manifest has the new slots, a job can go back to the configuration without them.

    Raises:
        StateError: the directory cannot be written to.
    """
    if _newest_fingerprint(config.state_dir) not in (None, config.features.fingerprint):
        return
    path = Path(config.state_dir) / CONFIG_NAME
    text = config.features.to_toml()
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        replace_file(path, text, durable=True)
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); choose another --state_dir") from error


def _newest_fingerprint(state_dir: str) -> int | None:
    files = StateFiles(state_dir, 0)
    for name in sorted((path.name for path in files.directory.glob("manifest-*.json")), reverse=True):
        try:
            return files.read(name).fingerprint
        except StateError:
            # Told, and passed over likewise, by the shard that looks for a state to go on from.
            continue
    return None


def _compare(path: Path, made: FeatureConfig, now: FeatureConfig) -> None:
    try:
        check_compatible(made, now)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
