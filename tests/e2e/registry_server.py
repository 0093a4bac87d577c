"""A registry of schemas in a process of its own, with Confluent's interface; what it is told it forgets at its end."""

import json
import urllib.request
from typing import ClassVar
from urllib.error import URLError

from deploy import install
from deploy.server import Server, wait_until
from deploy.service import Service


class RegistryServer(Service):
    """Apicurio Registry."""

    name: ClassVar[str] = "registry"
    port = 0

    @property
    def endpoints(self):
        return {"url": self.url}

    @property
    def url(self):
        return f"http://{self.host}:{self.port}/apis/ccompat/v7"

    def prepare(self, ports):
        self.port = ports.take(0, "port")
        (jar,) = install.schema_registry().glob("*-runner.jar")
        place = [f"-Dquarkus.http.host={self.host}", f"-Dquarkus.http.port={self.port}"]
        command = [str(install.java()), "-Xmx256m", *place, "-jar", str(jar)]
        return [Server("the schema registry", command, self.folder / "logs" / "registry.log")]

    def wait_ready(self, deadline):
        def answers():
            try:
                return self._ask("/subjects") == []
            except URLError:
                return False

        wait_until(answers, self.servers, deadline, f"answer on {self.url}")

    def register(self, subject, schema, references=(), kind="AVRO"):
        """Its number."""
        body = {"schema": json.dumps(schema), "schemaType": kind, "references": list(references)}
        return self._ask(f"/subjects/{subject}/versions", json.dumps(body).encode())["id"]

    def _ask(self, path, body=None):
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
