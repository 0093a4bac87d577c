"""Serving: a local model server that speaks TF Serving's protocol, and the client that ranks with either.

`serving.server` and `serving.rank` are the commands, `serving.host.ModelServer` the server as an object,
`serving.client.RankClient` the client. Nothing is imported here: TensorFlow takes seconds, and a command's
`--help` should not.
"""
