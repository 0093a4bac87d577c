"""What the rooms meet at: Avro schemas of every log, the layout of log files, the feature configuration.

- `config`: slots, heads and size of a model, from a TOML file such as `kuairand.toml`
- `avro`, `avro_blocks`, `avro_resolution`: the schemas (`*.avsc`), messages, the blocks of container files, and which
  other schemas they may have been written with
- `log_files`, `log_segments`: writing and reading logs, and where they lie
- `kafka_client`, `schema_registry`: how Kafka's clients are set up, and where messages' schemas may be
- `kafka_logs`, `kafka_writer`, `shard_topic`: topics that are read as logs, written, and appended to by shards
- `files`: files that are there whole or not at all
- `process`: logging, user errors, and how a command ends
- `kernel_cache`: where compiled kernels are kept
- `golden_ids.json`: feature ids and mixed keys, for clients in other languages

Imports nothing of ours, so that every room may import it.
"""
