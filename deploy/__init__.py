"""What runs Freshet elsewhere, and the servers that it meets there, as plain processes on this machine.

`python -m deploy.up` and `python -m deploy.down` start and stop a Kafka broker, a Flink cluster with Beam's job server and
worker pool, and the model server. Tests use the same as a library: `kafka_broker.KafkaBroker`, `flink_cluster.FlinkCluster`.
The rest of the folder is for containers.
"""
