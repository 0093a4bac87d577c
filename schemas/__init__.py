"""What the rooms meet at: Avro schemas of every log, the layout of log files, the feature configuration.

- `config`: slots, heads and size of a model, from a TOML file such as `kuairand.toml`
- `avro`, `avro_blocks`: the schemas (`*.avsc`), messages, and the blocks of container files
- `log_files`: where logs lie, writing and reading them
- `process`: logging, user errors, and how a command ends
- `kernel_cache`: where compiled kernels are kept
- `golden_ids.json`: feature ids and mixed keys, for clients in other languages

Imports nothing of ours, so that every room may import it.
"""
