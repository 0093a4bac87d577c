"""What the rooms meet at: Avro schemas of every log, the feature configuration, the layout of log files.

Imports nothing of ours, so that every room may import it.
"""
